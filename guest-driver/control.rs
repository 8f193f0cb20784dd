// SPDX-License-Identifier: GPL-2.0

//! The control queue (spec 8): producers, SYNCs, and waiting for a device that may die.
//!
//! Whoever puts entries on the queue gets a *ticket*: the position behind them. To wait until the device has done with them
//! takes a SYNC behind that position, any SYNC. So one is pushed only by those who wait, and only if none stands there
//! yet: of all that an event invalidates, in as many spans and contexts as there are, the last is waited for, once.

use super::abi::{
    control::{CompletionWord, ControlEntry, ControlFlags, Sync},
    ring,
    status::Status,
};
use super::device::{Device, Hw};
use super::hw::{nap, Stopwatch};
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    processor::cpu_relax,
    sync::{atomic::Acquire, Mutex, SpinLock},
};

/// Entries of the ring, binary logarithm.
pub(crate) const CONTROL_LOG2: u8 = 9;
/// Where in `Hw::words` every SYNC writes the position that it stands behind.
const SYNC_WORD: usize = 0;
/// Where in `Hw::words` the command under way completes. A cache line of its own.
const COMMAND_WORD: usize = 64;
/// Most entries that one submission has, besides a SYNC: REPLAYs of one page, each for another queue. More are several
/// submissions, which costs a doorbell each.
pub(crate) const MAX_ENTRIES: usize = 8;

/// A wait spins this long before it sleeps: about what a device that polls takes to answer.
const SPIN_NS: u64 = 10_000;
/// Sleeps are short at first, because a device that was asleep answers soon as well.
const NAP_US: usize = 20;
const EARLY_NS: u64 = 2_000_000;
const LATE_NAP_US: usize = 200;
/// A device that did not answer for this long is looked at, again and again.
const CHECK_NS: u64 = 50_000_000;
/// A device that did not answer for this long is dead.
const LIMIT_NS: u64 = 5_000_000_000;
/// One step of a wait counts as no more than this: a machine that was stopped is no dead device.
const STEP_NS: u64 = 100_000_000;

/// State of the control queue's producers.
#[pin_data]
pub(crate) struct Control {
    /// Taken for a slot's allocation up to the tail's store: a few entries' copies. Nothing sleeps
    /// under it, and no other lock is taken.
    #[pin]
    ring: SpinLock<Ring>,
    /// One command with a status at a time; the value of the last one.
    #[pin]
    command: Mutex<u64>,
}

struct Ring {
    /// Entries that were ever pushed. Its lower half is the tail.
    position: u64,
    /// The position that the last SYNC stands behind.
    synced: u64,
    /// SYNCs that were pushed.
    syncs: u64,
}

/// Where the control queue is. Indices are free-running.
pub(crate) struct Rings {
    pub(crate) control_tail: u32,
    pub(crate) control_head: u32,
    pub(crate) syncs_submitted: u64,
    /// Where the last SYNC that is done stands in the queue.
    pub(crate) synced_position: u64,
}

/// A position in the control queue: behind some entry.
#[derive(Clone, Copy, Default, PartialEq, PartialOrd)]
pub(crate) struct Ticket(u64);

impl Control {
    /// The state that goes with a reset device.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- new_spinlock!(Ring { position: 0, synced: 0, syncs: 0 }, "svmx::ring"),
            command <- new_mutex!(0, "svmx::command"),
        })
    }

    /// SYNCs that were pushed.
    pub(crate) fn syncs(&self) -> u64 {
        self.ring.lock().syncs
    }
}

impl Device {
    /// Puts `entries` on the control queue, next to each other. Sleeps while the ring is full.
    ///
    /// Fails with ENODEV if the device is dead or gone; nothing needs to be done about it then.
    pub(crate) fn submit(&self, entries: &[ControlEntry]) -> Result<Ticket> {
        self.push(|ring, hw| ring.push(hw, entries, None))
    }

    /// Puts `entries` and a SYNC behind them on the control queue: what is submitted later is executed with the SYNC done.
    pub(crate) fn submit_sync(&self, entries: &[ControlEntry]) -> Result<Ticket> {
        self.push(|ring, hw| ring.push(hw, entries, Some(Ticket(ring.position + 1))))
    }

    /// Makes sure that a SYNC stands behind `ticket`, without waiting for it.
    fn request_sync(&self, ticket: Ticket) -> Result {
        self.push(|ring, hw| ring.push(hw, &[], Some(ticket))).map(|_| ())
    }

    /// Makes sure that a SYNC stands behind everything that is on the queue, if there is room for it now.
    pub(crate) fn try_request_sync(&self) {
        self.with_hw(|hw| self.try_push(hw, |ring, hw| ring.push(hw, &[], Some(Ticket(ring.position)))));
    }

    /// Whether a SYNC behind `ticket` is done, or the device is dead, which is as good: it makes no
    /// access to memory any more. If none was pushed yet it is not.
    pub(crate) fn is_synced(&self, ticket: Ticket) -> bool {
        self.is_dead() || self.with_hw(|hw| synced(hw, ticket)).unwrap_or(true)
    }

    /// Waits until a SYNC behind `ticket` is done, or the device is dead.
    pub(crate) fn wait_synced(&self, ticket: Ticket) {
        // Death is a good end.
        let _ = self.request_sync(ticket).and_then(|()| self.wait_for(|hw| synced(hw, ticket)));
    }

    /// Where the driver's rings are, if the hardware is still there.
    pub(crate) fn rings(&self) -> Option<Rings> {
        self.with_hw(|hw| {
            let ring = self.control.ring.lock();
            let (control_tail, syncs_submitted) = (ring.position as u32, ring.syncs);
            drop(ring);
            let synced_position = CompletionWord(hw.words.word(SYNC_WORD).load(Acquire)).value();
            let control_head = hw.doorbells.control_head();
            Rings { control_tail, control_head, syncs_submitted, synced_position }
        })
    }

    /// Executes a command and waits for its end. For creation and destruction, which are rare.
    pub(crate) fn command(&self, mut entry: ControlEntry) -> Result {
        let mut value = self.control.command.lock();
        *value += 1;
        entry.flags = ControlFlags::NOTIFY;
        entry.notify_addr = self.with_hw(|hw| hw.words.dma()).ok_or(ENODEV)? + COMMAND_WORD as u64;
        entry.notify_value = *value;
        self.submit(&[entry])?;
        let expected = *value;
        self.wait_for(|hw| command_word(hw).value() == expected)?;
        match self.with_hw(command_word).ok_or(ENODEV)?.status() {
            Status::SUCCESS => Ok(()),
            status => {
                dev_dbg!(self.pci().as_dev(), "command {:#x}: status {}\n", entry.opcode.0, status.0);
                Err(EIO)
            }
        }
    }

    /// Waits until `push` finds room.
    fn push(&self, push: impl Fn(&mut Ring, &Hw) -> Option<Ticket>) -> Result<Ticket> {
        let mut patience = Patience::new();
        loop {
            if self.is_dead() {
                return Err(ENODEV);
            }
            match self.with_hw(|hw| self.try_push(hw, &push)).ok_or(ENODEV)? {
                Some(ticket) => return Ok(ticket),
                None => patience.wait(self)?,
            }
        }
    }

    fn try_push(&self, hw: &Hw, push: impl Fn(&mut Ring, &Hw) -> Option<Ticket>) -> Option<Ticket> {
        let ticket = push(&mut self.control.ring.lock(), hw)?;
        hw.doorbells.kick_if_needed(&hw.regs);
        Some(ticket)
    }

    /// Waits until `done`, for a bounded time: then the device is dead.
    fn wait_for(&self, done: impl Fn(&Hw) -> bool) -> Result {
        let mut patience = Patience::new();
        while !self.with_hw(&done).ok_or(ENODEV)? {
            patience.wait(self)?;
        }
        Ok(())
    }
}

impl Ring {
    /// Pushes `entries`, and a SYNC if none stands behind `sync`. Returns the position behind them; `None` if there is no
    /// room for them.
    fn push(&mut self, hw: &Hw, entries: &[ControlEntry], sync: Option<Ticket>) -> Option<Ticket> {
        let sync = sync.is_some_and(|ticket| ticket.0 > self.synced);
        if entries.is_empty() && !sync {
            return Some(Ticket(self.position));
        }
        // A head out of range is a broken device: as if full, until the wait finds it dead.
        let pending = ring::pending(hw.doorbells.control_head(), self.tail(), CONTROL_LOG2)?;
        if pending + MAX_ENTRIES as u32 + 1 > ring::entries(CONTROL_LOG2) {
            return None;
        }
        for entry in entries {
            self.put(hw, *entry);
        }
        if sync {
            self.put_sync(hw);
        }
        hw.doorbells.store_control_tail(self.tail());
        Some(Ticket(self.position))
    }

    fn put_sync(&mut self, hw: &Hw) {
        let mut entry = ControlEntry::from(Sync::default());
        entry.flags = ControlFlags::NOTIFY;
        entry.notify_addr = hw.words.dma() + SYNC_WORD as u64;
        entry.notify_value = (self.position + 1) % CompletionWord::VALUE_END;
        self.put(hw, entry);
        self.synced = self.position;
        self.syncs += 1;
    }

    /// Writes the entry at the tail. The caller has seen that there is room.
    fn put(&mut self, hw: &Hw, entry: ControlEntry) {
        let slot = ring::slot(self.tail(), CONTROL_LOG2) as usize;
        hw.control.write(slot * size_of::<ControlEntry>(), entry);
        self.position += 1;
    }

    fn tail(&self) -> u32 {
        self.position as u32
    }
}

/// The word holds the position of the last SYNC that is done. The acquire load's partner is the
/// device's release store: what it wrote to memory before is visible.
fn synced(hw: &Hw, ticket: Ticket) -> bool {
    let done = CompletionWord(hw.words.word(SYNC_WORD).load(Acquire)).value();
    // The word holds positions modulo VALUE_END, and far fewer than half of them are outstanding.
    let ahead = done.wrapping_sub(ticket.0) % CompletionWord::VALUE_END;
    ahead < CompletionWord::VALUE_END / 2
}

fn command_word(hw: &Hw) -> CompletionWord {
    CompletionWord(hw.words.word(COMMAND_WORD).load(Acquire))
}

/// Waits in steps: spins, sleeps, looks at the device, and at last gives it up.
struct Patience {
    watch: Stopwatch,
    seen_ns: u64,
    waited_ns: u64,
    next_check_ns: u64,
}

impl Patience {
    fn new() -> Self {
        Patience { watch: Stopwatch::start(), seen_ns: 0, waited_ns: 0, next_check_ns: CHECK_NS }
    }

    /// One step. Fails if the device is dead.
    fn wait(&mut self, device: &Device) -> Result {
        let now = self.watch.ns();
        self.waited_ns += now.saturating_sub(self.seen_ns).min(STEP_NS);
        self.seen_ns = now;
        if self.waited_ns < SPIN_NS {
            cpu_relax();
        } else if self.waited_ns < EARLY_NS {
            nap(NAP_US);
        } else {
            if self.waited_ns >= LIMIT_NS {
                device.declare_dead(format_args!("it does not answer"));
            } else if self.waited_ns >= self.next_check_ns {
                self.next_check_ns = self.waited_ns + CHECK_NS;
                device.check_health();
            }
            nap(LATE_NAP_US);
        }
        match device.is_dead() {
            true => Err(ENODEV),
            false => Ok(()),
        }
    }
}
