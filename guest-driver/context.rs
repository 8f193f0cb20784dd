// SPDX-License-Identifier: GPL-2.0

//! A context: an open file, bound to one process's memory, with an address space on the device.

use super::abi::{
    control::{CreateContext, DestroyContext},
    status::Status,
};
use super::ahead::Outlooks;
use super::device::Device;
use super::faultq::Fault;
use super::hw::{self, debugfs::Files, WaitQueue};
use super::live::{Kind, Live};
use super::mm::Owner;
use super::mmap;
use super::opener::Opener;
use super::outlook::Outlook;
use super::queue::Queue;
use super::quota::{Resource, Taken};
use super::ranges::Policies;
use super::space::Space;
use super::stats::{self, Stats};
use super::views;
use super::waiters::Waiters;
use kernel::{
    bindings, impl_has_work,
    mm::Mm,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Acquire, AtomicFlag, Release},
        Arc, Mutex, SpinLock,
    },
    workqueue::{new_work, Work},
};

/// A context. It ends once, when its file is released or its device is unbound, whichever is first;
/// what is left then is an empty shell.
#[pin_data]
pub(crate) struct Context {
    pub(crate) device: Arc<Device>,
    pub(crate) asid: u32,
    /// The process's memory: the object is kept, not what is mapped.
    pub(crate) mm: ARef<Mm>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) opener: Opener,
    /// The file's, for zapping the process's mappings of queues. Valid until the file is released.
    mapping: *mut bindings::address_space,
    /// Which of the device's completion vectors its queues have.
    completion_index: u16,
    /// Faults are cancelled from now on.
    ending: AtomicFlag,
    /// Outermost lock: the context ends once. True when it has.
    #[pin]
    ended: Mutex<bool>,
    /// In debugfs, until it ends. They refer to the context.
    #[pin]
    files: Mutex<Option<Files<Context>>>,
    /// Taken in page faults of the process, under the lock of its `mm`: nothing that takes that lock,
    /// such as a copy from or to the process, happens under it.
    #[pin]
    pub(crate) queues: Mutex<KVec<Arc<Queue>>>,
    /// `None` once the context has ended. Never taken by notifiers, so that memory is allocated under it.
    #[pin]
    pub(crate) space: Mutex<Option<Space>>,
    /// How atomics are served, by address.
    #[pin]
    pub(crate) policies: Policies,
    /// Faults to serve, those of one page next to each other ([`Fault::order`]). Innermost lock, for an insertion or a swap.
    #[pin]
    faults: SpinLock<KVec<Fault>>,
    /// Pages that will be needed. Innermost lock, for a look-up or a change.
    #[pin]
    pub(crate) outlooks: SpinLock<Outlooks>,
    /// Those who wait for pages that others bring.
    #[pin]
    pub(crate) waiters: Waiters,
    #[pin]
    work: Work<Context>,
    taken: Taken,
    _live: Live,
}

impl_has_work! {
    impl HasWork<Self> for Context { self.work }
}

// SAFETY: `mapping` is used only while the file is open, by functions that may run on any thread;
// everything else is `Send`.
unsafe impl Send for Context {}
// SAFETY: As above; everything else is `Sync`.
unsafe impl Sync for Context {}

impl Context {
    /// Makes a context for the memory `mm`, on the device too.
    pub(crate) fn create(
        device: &Arc<Device>,
        mm: &Mm,
        mapping: *mut bindings::address_space,
    ) -> Result<Arc<Self>> {
        let taken = Taken::new(Resource::Context)?;
        let asid = device.asids.lock().take().ok_or(ENOSPC)?;
        let context = Self::create_with(device, mm, mapping, asid, taken);
        if context.is_err() {
            device.asids.lock().give(asid);
        }
        context
    }

    fn create_with(
        device: &Arc<Device>,
        mm: &Mm,
        mapping: *mut bindings::address_space,
        asid: u32,
        taken: Taken,
    ) -> Result<Arc<Self>> {
        let stats = Arc::init(pin_init::init_zeroed::<Stats>(), GFP_KERNEL_ACCOUNT)?;
        let space = Space::new(device.clone(), stats.clone(), asid)?;
        let root = space.root();
        let completion_index = device.completion_index(asid);
        let context = Arc::pin_init(
            try_pin_init!(Context {
                device: device.clone(),
                asid,
                mm: mm.into(),
                stats,
                opener: Opener::current(),
                mapping,
                completion_index,
                ending: AtomicFlag::new(false),
                ended <- new_mutex!(false, "svmx::ended"),
                files <- new_mutex!(None, "svmx::files"),
                queues <- new_mutex!(KVec::new(), "svmx::queues"),
                space <- new_mutex!(Some(space), "svmx::space"),
                policies <- Policies::new(),
                faults <- new_spinlock!(KVec::new(), "svmx::faults"),
                outlooks <- new_spinlock!(Outlooks::new(), "svmx::outlooks"),
                waiters <- Waiters::new(),
                work <- new_work!("svmx::serve"),
                taken,
                _live: Live::new(Kind::Context),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        device.command(CreateContext { asid, root, ..Default::default() }.into())?;
        device.set_context(asid, Some(context.clone()));
        let folder = device.folder.lock().clone();
        *context.files.lock() = Some(views::of_context(&folder, context.clone()));
        Ok(context)
    }

    /// Whose exclusive access this context's pages are (R14: the context, not the process).
    pub(crate) fn owner(&self) -> Owner {
        Owner::of(self)
    }

    /// Whether the calling thread runs in the memory that the context is bound to.
    pub(crate) fn is_mine(&self) -> bool {
        kernel::current!().mm().is_some_and(|mm| mm.as_raw() == self.mm.as_raw())
    }

    /// Where completions of the context's queues are waited for.
    pub(crate) fn completions(&self) -> Result<&WaitQueue> {
        self.device.completions(self.completion_index).ok_or(ENODEV)
    }

    /// Makes a queue.
    pub(crate) fn create_queue(&self, sq_log2: u8, cq_log2: u8) -> Result<Arc<Queue>> {
        let queue = Queue::create(&self.device, self.asid, self.completion_index, sq_log2, cq_log2)?;
        let kept = self.keep(&queue);
        if let Err(error) = kept {
            self.outlooks.lock().remove(queue.id());
            queue.destroy();
            return Err(error);
        }
        // Pollers arm the queues that they find: they shall look again.
        if let Ok(completions) = self.completions() {
            completions.wake_all();
        }
        Ok(queue)
    }

    fn keep(&self, queue: &Arc<Queue>) -> Result {
        let mut outlook = KBox::<Outlook>::zeroed(GFP_KERNEL_ACCOUNT)?;
        outlook.queue = queue.id();
        self.outlooks.lock().add(outlook)?;
        Ok(self.queues.lock().push(queue.clone(), GFP_KERNEL_ACCOUNT)?)
    }

    /// The queue with this identifier.
    pub(crate) fn queue(&self, id: u32) -> Result<Arc<Queue>> {
        self.queues.lock().iter().find(|queue| queue.id() == id).cloned().ok_or(ENOENT)
    }

    /// Ends a queue.
    pub(crate) fn destroy_queue(&self, id: u32) -> Result {
        let queue = {
            let mut queues = self.queues.lock();
            let index = queues.iter().position(|queue| queue.id() == id).ok_or(ENOENT)?;
            queues.remove(index).map_err(|_| ENOENT)?
        };
        self.end_queue(&queue);
        Ok(())
    }

    /// Ends a queue that was taken out of the list: a page fault that did not find it there maps
    /// nothing any more, and one that did has put its page where the zap finds it.
    fn end_queue(&self, queue: &Queue) {
        // SAFETY: The file is not released: either this is one of its operations, or its release, or
        // the device's unbinding, which the release waits for.
        unsafe { mmap::zap(self.mapping, queue) };
        // Before its identifier is free.
        self.outlooks.lock().remove(queue.id());
        queue.destroy();
        // Nobody wants what its command waits for.
        self.waiters.give_up(Some(queue.id()));
        if let Ok(completions) = self.completions() {
            completions.wake_all();
        }
    }

    /// Whether faults are to be cancelled.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Acquire)
    }

    /// Takes a fault for the work item to serve.
    pub(crate) fn push_fault(self: &Arc<Self>, fault: Fault) {
        self.stats.faults.bump();
        self.serve_fault(fault);
    }

    /// Takes a fault that was not served yet.
    pub(crate) fn serve_fault(self: &Arc<Self>, fault: Fault) {
        if self.insert_fault(fault).is_err() {
            return self.cancel(&fault, Status::NO_RESOURCES);
        }
        self.queue_work();
    }

    fn insert_fault(&self, fault: Fault) -> Result {
        let mut faults = self.faults.lock();
        // A queue has one fault outstanding, which bounds the list.
        faults.reserve(1, GFP_ATOMIC)?;
        let index = faults.partition_point(|other| other.order() <= fault.order());
        // There is room, and the index is not beyond the end.
        faults.insert_within_capacity(index, fault).map_err(|_| ENOMEM)
    }

    /// Makes the work item run, again if it runs now.
    pub(crate) fn queue_work(self: &Arc<Self>) {
        if let Some(queue) = hw::queue() {
            // If it is queued already it will find the fault.
            let _ = queue.enqueue(self.clone());
        }
    }

    /// Takes all faults that are not served, and gives an empty list for further ones.
    pub(crate) fn swap_faults(&self, empty: &mut KVec<Fault>) {
        core::mem::swap(&mut *self.faults.lock(), empty);
    }

    /// Whether there is a fault to serve.
    pub(crate) fn has_fault(&self) -> bool {
        !self.faults.lock().is_empty()
    }

    /// Faults to serve.
    pub(crate) fn count_faults(&self) -> usize {
        self.faults.lock().len()
    }

    /// Ends the stalled command of a fault.
    pub(crate) fn cancel(&self, fault: &Fault, status: Status) {
        self.stats.cancels.bump();
        self.device.cancel(fault, status);
    }

    /// Ends the context. Whoever comes second waits for the first. No other file operation is under
    /// way, but page faults of the process may be.
    pub(crate) fn end(&self) {
        let mut ended = self.ended.lock();
        if core::mem::replace(&mut *ended, true) {
            return;
        }
        self.ending.store(true, Release);
        // Waits for readers, who take the locks of what ends below.
        let files = self.files.lock().take();
        drop(files);
        // 1. Queues: after this the device makes no access through the context's page table.
        let queues = core::mem::take(&mut *self.queues.lock());
        for queue in queues {
            self.end_queue(&queue);
        }
        // 2. Faults: the drain cancels those that still come, nobody waits for a page, and the work item has ended.
        self.waiters.end();
        hw::flush(&self.work);
        // 3. Notifiers, then the address space on the device, then its tables.
        let space = self.space.lock().take();
        if let Some(mut space) = space {
            space.clear();
            let destroy = DestroyContext { asid: self.asid, ..Default::default() };
            // Fails only if the device is dead, which walks no tables.
            let _ = self.device.command(destroy.into());
            drop(space);
        }
        stats::ENDED.add(&self.stats);
        // 4. Only now: unbinding ends all contexts that it finds, and so waits here for one whose file is
        // being released.
        let known = self.device.set_context(self.asid, None);
        self.device.asids.lock().give(self.asid);
        self.taken.give();
        // The caller has a reference too, so this is not the last one.
        drop(known);
    }
}
