// SPDX-License-Identifier: GPL-2.0

//! One device: what is shared between its files, interrupts and notifiers, and how it dies.
//!
//! The object outlives the hardware: files may be open when the device is unbound. What touches the
//! hardware is in [`Hw`], behind a `Revocable`, so that nothing reaches it afterwards.

use super::abi::pci as limits;
use super::context::Context;
use super::control::Control;
use super::doorbell::Doorbells;
use super::faultq::FaultQueue;
use super::hw::{self, debugfs::Dir, DmaBuf, Handler, PciDevice, WaitQueue};
use super::ids::Ids;
use super::live::{Kind, Live};
use super::mm::is_orphaned;
use super::regs::{Health, Identity, Regs};
use super::trace;
use kernel::{
    impl_has_delayed_work, impl_has_work, new_mutex, new_spinlock,
    prelude::*,
    revocable::Revocable,
    sync::{
        atomic::{Acquire, Atomic, AtomicFlag, Full, Relaxed},
        Arc, Mutex, SpinLock,
    },
    time::{msecs_to_jiffies, Jiffies},
    workqueue::{new_delayed_work, new_work, DelayedWork, Work, WorkItem},
};

/// How often a device is looked at while it has queues: a killed one must be noticed within seconds
/// even if the driver has nothing to ask of it.
const WATCHDOG_MS: u32 = 1000;

/// How often the fault queue is looked at while its interrupt is not armed, besides by those who poll it.
const LOOK_JIFFIES: Jiffies = 1;

/// Everything that is gone once the driver is unbound.
pub(crate) struct Hw {
    pub(crate) regs: Regs,
    pub(crate) doorbells: Doorbells,
    /// The control queue's ring.
    pub(crate) control: DmaBuf,
    /// The fault queue's ring.
    pub(crate) faults: DmaBuf,
    /// Completion words of the control queue: see `control.rs`.
    pub(crate) words: DmaBuf,
}

/// A device.
#[pin_data]
pub(crate) struct Device {
    pci: PciDevice,
    /// The N of `/dev/svmxN`.
    number: u32,
    identity: Identity,
    /// Set once, by whoever finds out first. Bus mastering is off from then on.
    dead: AtomicFlag,
    /// Set when the driver is being unbound: no new users.
    removed: AtomicFlag,
    /// Callers of the file operations that may touch the device; see [`enter`](Self::enter).
    users: Atomic<i32>,
    #[pin]
    last_user: WaitQueue,
    #[pin]
    hw: Revocable<Hw>,
    #[pin]
    pub(crate) control: Control,
    #[pin]
    pub(crate) fault_queue: FaultQueue,
    /// Waiters for completions, one wait queue for each completion vector.
    completions: KVec<Pin<KBox<WaitQueue>>>,
    /// Contexts by ASID. Innermost lock; taken for a look-up or a store only.
    #[pin]
    contexts: SpinLock<KVec<Option<Arc<Context>>>>,
    #[pin]
    pub(crate) asids: Mutex<Ids>,
    #[pin]
    pub(crate) queue_ids: Mutex<Ids>,
    /// Queues that exist: the watchdog runs while there are any.
    queues: Atomic<i32>,
    /// In debugfs, while the driver is bound.
    #[pin]
    pub(crate) folder: Mutex<Dir>,
    #[pin]
    drain: Work<Device, 0>,
    #[pin]
    check: Work<Device, 1>,
    #[pin]
    watchdog: DelayedWork<Device, 2>,
    #[pin]
    look: DelayedWork<Device, 3>,
    _live: Live,
}

impl_has_work! {
    impl HasWork<Self, 0> for Device { self.drain }
    impl HasWork<Self, 1> for Device { self.check }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 2> for Device { self.watchdog }
    impl HasDelayedWork<Self, 3> for Device { self.look }
}

impl Device {
    /// A device that is not yet started. `vectors` are those allocated.
    pub(crate) fn new(
        pci: &PciDevice,
        number: u32,
        identity: Identity,
        hw: Hw,
        vectors: u16,
    ) -> Result<Arc<Self>> {
        let mut completions = KVec::new();
        for _ in limits::VECTOR_COMPLETION_FIRST..vectors {
            completions.push(KBox::pin_init(WaitQueue::new(), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let mut contexts = KVec::new();
        for _ in 0..=identity.max_contexts {
            contexts.push(None, GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Device {
                pci: pci.clone(),
                number,
                identity,
                dead: AtomicFlag::new(false),
                removed: AtomicFlag::new(false),
                users: Atomic::new(0),
                last_user <- WaitQueue::new(),
                hw <- Revocable::new(hw),
                control <- Control::new(),
                fault_queue <- FaultQueue::new(),
                completions,
                contexts <- new_spinlock!(contexts, "svmx::contexts"),
                asids <- new_mutex!(Ids::new(identity.max_contexts)?, "svmx::asids"),
                queue_ids <- new_mutex!(Ids::new(identity.max_queues)?, "svmx::queue_ids"),
                queues: Atomic::new(0),
                folder <- new_mutex!(Dir::none(), "svmx::folder"),
                drain <- new_work!("svmx::drain"),
                check <- new_work!("svmx::check"),
                watchdog <- new_delayed_work!("svmx::watchdog"),
                look <- new_delayed_work!("svmx::look"),
                _live: Live::new(Kind::Device),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn pci(&self) -> &PciDevice {
        &self.pci
    }

    /// The N of `/dev/svmxN`.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs `f` with the hardware, or not at all if it is gone. `f` must not sleep.
    pub(crate) fn with_hw<R>(&self, f: impl FnOnce(&Hw) -> R) -> Option<R> {
        self.hw.try_access_with(f)
    }

    /// Whether the device was declared dead.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Acquire)
    }

    /// Whether users of the device must give up: it is dead, or being unbound.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_dead() || self.removed.load(Acquire)
    }

    /// Declares the device dead, once: it can't reach memory any more, and everybody who waits for
    /// it fails with ENODEV. May be called in any context.
    pub(crate) fn declare_dead(&self, why: core::fmt::Arguments<'_>) {
        // First: whoever sees `dead` relies on it that the device reaches no memory any more. The device
        // lets this write complete when it is so (spec 1.2), if it is alive.
        self.pci.clear_master();
        if self.dead.xchg(true, Full) {
            return;
        }
        dev_err!(self.pci.as_dev(), "declared dead: {}\n", why);
        trace::dead(self.number);
        self.wake_everybody();
    }

    /// Reads whether the device is there and works, and declares it dead if not.
    pub(crate) fn check_health(&self) {
        if self.is_dead() {
            return;
        }
        match self.with_hw(|hw| hw.regs.health()) {
            None | Some(Health::Good) => {}
            Some(Health::Gone) => self.declare_dead(format_args!("it is gone")),
            Some(Health::Fatal(error)) => self.declare_dead(format_args!("fatal error {error}")),
        }
    }

    fn wake_everybody(&self) {
        for queue in &self.completions {
            queue.wake_all();
        }
    }

    /// Whose completions share an interrupt and a wait queue: some number for `asid`.
    pub(crate) fn completion_index(&self, asid: u32) -> u16 {
        (asid as usize).checked_rem(self.completions.len()).unwrap_or(0) as u16
    }

    /// The wait queue of completions with this index; `None` can't happen for one from above.
    pub(crate) fn completions(&self, index: u16) -> Option<&WaitQueue> {
        self.completions.get(usize::from(index)).map(|queue| &**queue)
    }

    /// Enters a file operation that may touch the device, or fails if it is being unbound.
    /// Unbinding waits for whoever is in.
    pub(crate) fn enter(&self) -> Result<User<'_>> {
        // Full ordering, here and in `close`: either this sees `removed`, or `close` sees the user.
        self.users.fetch_add(1, Full);
        let user = User(self);
        match self.removed.load(Acquire) {
            true => Err(ENODEV),
            false => Ok(user),
        }
    }

    /// Lets no further user in and waits for those that are, who give up soon.
    fn close(&self) {
        self.removed.xchg(true, Full);
        self.wake_everybody();
        self.last_user.wait_uninterruptible(|| self.users.load(Acquire) == 0);
    }

    /// Ends all contexts, for unbinding. Files stay open and get ENODEV.
    pub(crate) fn end_contexts(&self) {
        self.close();
        for asid in 0..=self.identity.max_contexts {
            // The lock is not held while the context ends.
            let context = self.context(asid);
            if let Some(context) = context {
                context.end();
            }
        }
    }

    /// Stops the hardware and gives it up. No interrupt is connected any more, no context is left.
    pub(crate) fn release_hw(&self) {
        hw::flush(&self.drain);
        hw::flush(&self.check);
        hw::flush_delayed(&self.watchdog);
        hw::flush_delayed(&self.look);
        self.with_hw(|hw| hw.regs.reset());
        self.pci.clear_master();
        self.hw.revoke();
    }

    /// The context with this ASID.
    pub(crate) fn context(&self, asid: u32) -> Option<Arc<Context>> {
        self.contexts.lock().get(asid as usize)?.clone()
    }

    /// How many contexts there are.
    pub(crate) fn count_contexts(&self) -> usize {
        self.contexts.lock().iter().flatten().count()
    }

    /// How many queues there are.
    pub(crate) fn count_queues(&self) -> i32 {
        self.queues.load(Relaxed)
    }

    /// Makes a context known, or unknown. Returns the one that was.
    pub(crate) fn set_context(&self, asid: u32, context: Option<Arc<Context>>) -> Option<Arc<Context>> {
        let mut contexts = self.contexts.lock();
        core::mem::replace(contexts.get_mut(asid as usize)?, context)
    }

    /// Ends the waits of contexts whose processes have ended: the wait keeps the memory, the memory the mappings of queues, and
    /// those the file.
    fn give_up_orphans(&self) {
        for asid in 0..=self.identity.max_contexts {
            if let Some(context) = self.context(asid).filter(|context| is_orphaned(&context.mm)) {
                context.waiters.give_up(None);
            }
        }
    }

    /// A queue was made: keep an eye on the device.
    pub(crate) fn queue_made(self: &Arc<Self>) {
        self.queues.add(1, Relaxed);
        self.start_watchdog();
    }

    /// A queue is gone.
    pub(crate) fn queue_gone(&self) {
        self.queues.add(-1, Relaxed);
    }

    /// Looks at the fault queue soon, whatever happens until then.
    pub(crate) fn look_later(self: &Arc<Self>) {
        if let Some(queue) = hw::queue() {
            // Already queued is as good.
            let _ = queue.enqueue_delayed::<_, 3>(self.clone(), LOOK_JIFFIES);
        }
    }

    fn start_watchdog(self: &Arc<Self>) {
        if let Some(queue) = hw::queue() {
            // Already queued is as good.
            let _ = queue.enqueue_delayed::<_, 2>(self.clone(), msecs_to_jiffies(WATCHDOG_MS));
        }
    }
}

/// Looks at the fault queue while no interrupt says that there is something: see `faultq.rs`.
impl WorkItem<3> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        this.drain_faults();
        if this.is_polled() {
            this.look_later();
        }
    }
}

/// Somebody in a file operation.
pub(crate) struct User<'a>(&'a Device);

impl Drop for User<'_> {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Full) == 1 {
            self.0.last_user.wake_all();
        }
    }
}

impl Handler for Device {
    fn handle(this: &Arc<Self>, vector: u16) {
        let Some(queue) = hw::queue() else { return };
        match vector {
            limits::VECTOR_FAULT => drop(queue.enqueue::<_, 0>(this.clone())),
            limits::VECTOR_EVENT => drop(queue.enqueue::<_, 1>(this.clone())),
            _ => {
                if let Some(queue) = this.completions(vector - limits::VECTOR_COMPLETION_FIRST) {
                    queue.wake_all();
                }
            }
        }
    }
}

/// The fault interrupt came.
impl WorkItem<0> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        this.drain_and_arm();
    }
}

/// The event interrupt came: the device may have stopped.
impl WorkItem<1> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        this.check_health();
    }
}

/// The watchdog: looks at the device as long as there are queues.
impl WorkItem<2> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        if this.is_gone() || this.queues.load(Relaxed) == 0 {
            // Whoever makes the next queue starts it again: it is not queued now.
            return;
        }
        this.check_health();
        this.give_up_orphans();
        this.start_watchdog();
    }
}
