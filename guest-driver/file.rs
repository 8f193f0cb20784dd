// SPDX-License-Identifier: GPL-2.0

//! `/dev/svmxN` (spec 9): the only code that touches user pointers.

use super::abi::{pci, uapi};
use super::context::Context;
use super::device::Device;
use super::hw::{compat, Ended};
use super::mmap;
use super::queue::Region;
use super::ranges;
use core::ops::Range;
use kernel::{
    bindings, container_of,
    error::to_result,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    mm::virt::VmaNew,
    prelude::*,
    str::{CStrExt, CString},
    sync::{Arc, ArcBorrow},
    transmute::{AsBytes, FromBytes},
    types::{ForeignOwnable, Opaque},
    uaccess::{UserPtr, UserSlice},
};

/// The device node.
///
/// # Invariants
///
/// `misc` is registered from the end of initialization to the drop.
#[pin_data(PinnedDrop)]
pub(crate) struct Node {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<Device>,
    name: CString,
}

// SAFETY: A registration is not tied to a thread.
unsafe impl Send for Node {}
// SAFETY: Nothing of it changes.
unsafe impl Sync for Node {}

impl Node {
    /// The options give a name that is not used: that of each device is set in `new`.
    const TEMPLATE: bindings::miscdevice = MiscDeviceOptions { name: c"svmx" }.into_raw::<Context>();

    /// The operations of `MiscDevice` with `poll`, which it lacks.
    const FOPS: bindings::file_operations = {
        // SAFETY: `into_raw` points at a constant.
        let fops = unsafe { *Self::TEMPLATE.fops };
        compat::owned(bindings::file_operations { poll: Some(poll), ..fops })
    };

    /// Registers `/dev/svmx<number>` for `device`.
    pub(crate) fn register(device: Arc<Device>, number: u32) -> Result<Pin<KBox<Self>>> {
        let name = CString::try_from_fmt(fmt!("svmx{}", number))?;
        let node = try_pin_init!(&this in Node {
            misc: Opaque::new(Self::TEMPLATE),
            device,
            name,
            _: {
                // SAFETY: The fields are initialized, pinned, and live until the drop deregisters.
                to_result(unsafe {
                    let misc = Opaque::cast_into(&raw const (*this.as_ptr()).misc);
                    (*misc).name = (*this.as_ptr()).name.as_char_ptr();
                    (*misc).fops = &Self::FOPS;
                    bindings::misc_register(misc)
                })?;
            },
        });
        KBox::pin_init(node, GFP_KERNEL)
    }

    /// The node that `misc` is registered for.
    fn of(misc: &MiscDeviceRegistration<Context>) -> &Self {
        let raw = misc.as_raw().cast::<Opaque<bindings::miscdevice>>();
        // SAFETY: `FOPS` is used by nodes only, whose `misc` this is; it is not deregistered during
        // an open.
        unsafe { &*container_of!(raw, Self, misc) }
    }
}

#[pinned_drop]
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered. Waits for opens under way.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

#[vtable]
impl MiscDevice for Context {
    type Ptr = Arc<Context>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Arc<Context>> {
        let device = &Node::of(misc).device;
        let _user = device.enter()?;
        // Before a context is asked for, which would wait with the lock of all misc devices held.
        if device.is_gone() {
            return Err(ENODEV);
        }
        let current = kernel::current!();
        let mm = current.mm().ok_or(EINVAL)?;
        // SAFETY: The file is valid; its mapping is that of its inode and does not change.
        let mapping = unsafe { (*file.as_ptr()).f_mapping };
        Context::create(device, mm, mapping)
    }

    fn release(context: Arc<Context>, _file: &File) {
        context.end();
    }

    fn mmap(context: ArcBorrow<'_, Context>, _file: &File, vma: &VmaNew) -> Result {
        let _user = context.device.enter()?;
        mmap::prepare(&context, vma)
    }

    fn ioctl(context: ArcBorrow<'_, Context>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if !context.is_mine() {
            return Err(EPERM);
        }
        let arg = UserPtr::from_addr(arg);
        match cmd {
            uapi::IOC_INFO => info(&context, arg),
            uapi::IOC_QUEUE_CREATE => queue_create(&context, arg),
            uapi::IOC_QUEUE_DESTROY => queue_destroy(&context, arg),
            uapi::IOC_KICK => kick(&context, arg),
            uapi::IOC_WAIT => wait(&context, arg),
            uapi::IOC_STATS => stats(&context, arg),
            uapi::IOC_ACQUIRE_EXCLUSIVE => acquire(&context, arg),
            uapi::IOC_RELEASE => release(&context, arg),
            uapi::IOC_POLICY => set_policy(&context, arg),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}

/// An ioctl's structure: begins with its size and flags, and has no bytes that are not fields.
trait Argument: FromBytes + AsBytes {
    fn head(&self) -> (u32, u32);
}

macro_rules! arguments {
    ($($name:ident),*) => {$(
        // SAFETY: Integers and arrays of them, without padding: `abi` derives the same of zerocopy.
        unsafe impl FromBytes for uapi::$name {}
        // SAFETY: As above.
        unsafe impl AsBytes for uapi::$name {}
        impl Argument for uapi::$name {
            fn head(&self) -> (u32, u32) {
                (self.size, self.flags)
            }
        }
    )*};
}
arguments!(Info, QueueCreate, QueueDestroy, Kick, Wait, Acquire, Release, SetPolicy);

// SAFETY: Integers and arrays of them, without padding.
unsafe impl AsBytes for uapi::Stats {}
// SAFETY: Integers and arrays of them.
unsafe impl pin_init::Zeroable for uapi::Stats {}

// A `User` of the device is taken only between the copies: unbinding waits for users, and a copy may wait
// for a process for ever (userfaultfd, FUSE).

/// Copies an ioctl's structure in, once, and checks its head (spec 9.2).
fn read<T: Argument>(arg: UserPtr) -> Result<T> {
    let value: T = UserSlice::new(arg, size_of::<T>()).reader().read()?;
    check_head(value.head(), size_of::<T>())?;
    Ok(value)
}

fn check_head((size, flags): (u32, u32), expected: usize) -> Result {
    match size as usize == expected && flags == 0 {
        true => Ok(()),
        false => Err(EINVAL),
    }
}

fn write<T: AsBytes>(arg: UserPtr, value: &T) -> Result {
    UserSlice::new(arg, size_of::<T>()).writer().write(value)
}

fn info(context: &Context, arg: UserPtr) -> Result {
    let mut info: uapi::Info = read(arg)?;
    let identity = context.device.identity();
    info.version = identity.version.0;
    info.num_engines = identity.num_engines;
    info.opcodes = identity.opcodes;
    info.bulk_opcodes = identity.bulk_opcodes;
    info.max_ring_log2 = identity.max_ring_log2.into();
    info.state = if super::protection_off() { uapi::INFO_PROTECTION_OFF } else { 0 };
    write(arg, &info)
}

fn queue_create(context: &Context, arg: UserPtr) -> Result {
    let mut create: uapi::QueueCreate = read(arg)?;
    let sizes = pci::MIN_RING_LOG2..=context.device.identity().max_ring_log2;
    if create.reserved != 0 || !sizes.contains(&create.sq_log2) || !sizes.contains(&create.cq_log2) {
        return Err(EINVAL);
    }
    {
        let _user = context.device.enter()?;
        let queue = context.create_queue(create.sq_log2, create.cq_log2)?;
        create.queue = queue.id();
        create.sq_offset = mmap::offset(&queue, Region::Submissions);
        create.cq_offset = mmap::offset(&queue, Region::Completions);
        create.doorbell_offset = mmap::offset(&queue, Region::Doorbell);
        create.sq_bytes = queue.bytes(Region::Submissions);
        create.cq_bytes = queue.bytes(Region::Completions);
    }
    let written = write(arg, &create);
    if written.is_err() {
        // The process does not know of it. Another thread may have guessed and destroyed it; or the
        // device is being unbound, which destroys it too.
        if let Ok(_user) = context.device.enter() {
            let _ = context.destroy_queue(create.queue);
        }
    }
    written
}

fn queue_destroy(context: &Context, arg: UserPtr) -> Result {
    let destroy: uapi::QueueDestroy = read(arg)?;
    if destroy.reserved != 0 {
        return Err(EINVAL);
    }
    let _user = context.device.enter()?;
    context.destroy_queue(destroy.queue)
}

fn kick(context: &Context, arg: UserPtr) -> Result {
    let kick: uapi::Kick = read(arg)?;
    if kick.reserved != 0 {
        return Err(EINVAL);
    }
    let _user = context.device.enter()?;
    let queue = context.queue(kick.queue)?;
    if context.device.is_gone() {
        return Err(ENODEV);
    }
    queue.kick();
    Ok(())
}

fn wait(context: &Context, arg: UserPtr) -> Result {
    let wait: uapi::Wait = read(arg)?;
    if wait.timeout_ns < -1 {
        return Err(EINVAL);
    }
    let _user = context.device.enter()?;
    let queue = context.queue(wait.queue)?;
    let over = || context.device.is_gone() || queue.is_destroyed();
    let done = || over() || queue.is_posted_or_arm(wait.index);
    let ended = context.completions()?.wait(wait.timeout_ns, done);
    // What is posted is posted, whatever else happened.
    if queue.is_posted(wait.index) {
        return Ok(());
    }
    match ended {
        _ if queue.is_destroyed() => Err(compat::ecanceled()),
        _ if context.device.is_gone() => Err(ENODEV),
        Err(Ended::Timeout) => Err(ETIMEDOUT),
        // Restarting would begin a timeout anew.
        Err(Ended::Signal) if wait.timeout_ns >= 0 => Err(EINTR),
        Err(Ended::Signal) => Err(ERESTARTSYS),
        Ok(()) => Ok(()),
    }
}

fn stats(context: &Context, arg: UserPtr) -> Result {
    let (mut reader, mut writer) = UserSlice::new(arg, size_of::<uapi::Stats>()).reader_writer();
    let head = (reader.read::<u32>()?, reader.read::<u32>()?);
    check_head(head, size_of::<uapi::Stats>())?;
    // Too big for the stack.
    let mut stats = KBox::<uapi::Stats>::zeroed(GFP_KERNEL)?;
    stats.size = head.0;
    context.stats.copy_to(&mut stats);
    stats.syncs = context.device.control.syncs();
    writer.write(&*stats)
}

fn acquire(context: &Context, arg: UserPtr) -> Result {
    let mut acquire: uapi::Acquire = read(arg)?;
    let range = pages(acquire.addr, acquire.len)?;
    if acquire.len / pci::PAGE_SIZE > uapi::MAX_ACQUIRE_PAGES {
        return Err(EINVAL);
    }
    acquire.done = 0;
    let result = match context.device.enter() {
        Ok(_user) => ranges::acquire(context, range, &mut acquire.done),
        Err(error) => Err(error),
    };
    write(arg, &acquire)?;
    result
}

fn release(context: &Context, arg: UserPtr) -> Result {
    let mut release: uapi::Release = read(arg)?;
    let range = pages(release.addr, release.len)?;
    release.done = 0;
    let result = match context.device.enter() {
        Ok(_user) => ranges::release(context, range, &mut release.done),
        Err(error) => Err(error),
    };
    write(arg, &release)?;
    result
}

fn set_policy(context: &Context, arg: UserPtr) -> Result {
    let set: uapi::SetPolicy = read(arg)?;
    if set.reserved != 0 || !set.policy.is_known() {
        return Err(EINVAL);
    }
    let range = pages(set.addr, set.len)?;
    let _user = context.device.enter()?;
    ranges::set_policy(context, range, set.policy)
}

/// A range of whole pages, at least one, that the device can name.
fn pages(addr: u64, len: u64) -> Result<Range<u64>> {
    let end = addr.checked_add(len).filter(|end| *end <= pci::VA_END).ok_or(EINVAL)?;
    let whole = addr % pci::PAGE_SIZE == 0 && len % pci::PAGE_SIZE == 0;
    match whole && len > 0 {
        true => Ok(addr..end),
        false => Err(EINVAL),
    }
}

/// Readable when a queue of this file has a completion that its consumer is not past (spec 9.4).
///
/// # Safety
///
/// Called by the kernel for a file that was opened by a node.
unsafe extern "C" fn poll(
    raw: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: The file is open, so its private data is its context.
    let context: ArcBorrow<'_, Context> =
        unsafe { <Arc<Context> as ForeignOwnable>::borrow((*raw).private_data) };
    let gone = bindings::POLLERR | bindings::POLLHUP;
    let (Ok(_user), true) = (context.device.enter(), context.is_mine()) else { return gone };
    let Ok(completions) = context.completions() else { return gone };
    // SAFETY: These are the arguments of this `poll`. The wait queue belongs to the device, which the
    // context keeps, which the file keeps.
    unsafe { completions.poll(File::from_raw_file(raw), table) };
    if context.device.is_gone() {
        return gone;
    }
    let queues = context.queues.lock();
    let ready = queues.iter().filter(|queue| queue.is_posted_or_arm(queue.consumer_head())).count();
    match ready {
        0 => 0,
        _ => bindings::POLLIN | bindings::POLLRDNORM,
    }
}
