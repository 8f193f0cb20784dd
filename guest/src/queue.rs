// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A queue: submission without system calls, completions by looking, and by sleeping when looking took
//! too long.
#![expect(unsafe_code, reason = "declares submission of arbitrary addresses, which the caller answers for")]

use crate::command::{Command, Keep};
use crate::device::Device;
use crate::error::Error;
use crate::ring::{NeedKick, Rings};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::mem::{self, ManuallyDrop};
use std::time::{Duration, Instant};
use svmx_abi::queue::{Cqe, Sqe};
use svmx_abi::status::Status;

/// Entries of a queue's rings, as binary logarithms (1 to 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSize {
    /// Submissions.
    pub sq_log2: u8,
    /// Completions.
    pub cq_log2: u8,
}

impl Default for QueueSize {
    /// 64 entries each.
    fn default() -> Self {
        QueueSize { sq_log2: 6, cq_log2: 6 }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The command's tag.
    pub tag: u32,
    /// Success, or why not.
    pub status: CommandStatus,
    /// READ and scalar atomics: the element's value before, zero-extended. WAIT: what was seen last. A bulk
    /// command that ended because an old value could not be stored: that value, at 128 bits its lower half.
    pub result: u128,
    /// Elements applied: after an error the first so many, and no other.
    pub applied: u32,
    /// The address that ended the command, if one did; else zero.
    pub fault_addr: u64,
}

/// A [`Status`] that prints its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CommandStatus(pub Status);

impl CommandStatus {
    /// Whether every element was applied.
    pub fn is_success(self) -> bool {
        self.0 == Status::SUCCESS
    }

    /// Whether it is a WAIT whose condition did not come true in its time.
    pub fn is_timeout(self) -> bool {
        self.0 == Status::TIMEOUT
    }
}

impl std::fmt::Debug for CommandStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {}", self.0.0),
        }
    }
}

impl From<Cqe> for Completion {
    fn from(cqe: Cqe) -> Self {
        let status = CommandStatus(cqe.head.status());
        // With success the field is not an address but the upper half of the result (spec 5.1).
        let (upper, fault_addr) = if status.is_success() { (cqe.fault_addr, 0) } else { (0, cqe.fault_addr) };
        Completion {
            tag: cqe.head.tag(),
            status,
            result: u128::from(cqe.result) | u128::from(upper) << 64,
            applied: cqe.applied,
            fault_addr,
        }
    }
}

/// A submission and completion queue pair. Commands run and complete in order, one at a time.
///
/// Dropping it ends the command that runs at its next element, and then lets go of the memory of all
/// commands in flight.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    id: u32,
    spin: Duration,
    broken: bool,
    ended: bool,
    /// Dropped only when the device can't reach the queue and its memory any more.
    parts: ManuallyDrop<Parts>,
}

#[derive(Debug)]
struct Parts {
    rings: Rings,
    /// The memory of each command in flight, oldest first.
    in_flight: VecDeque<Keep>,
}

impl Queue {
    pub(crate) fn new(device: Device, id: u32, rings: Rings) -> Self {
        let parts = ManuallyDrop::new(Parts { rings, in_flight: VecDeque::new() });
        Queue { device, id, spin: Duration::from_micros(20), broken: false, ended: false, parts }
    }

    /// Its identifier in the context.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How long [`Self::complete`] looks at the ring before it sleeps. The default is 20 µs; zero leaves
    /// the CPU to others.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Commands whose completions have not been taken.
    pub fn in_flight(&self) -> usize {
        self.parts.in_flight.len()
    }

    /// Commands that the device has not completed: those in flight without the completions that wait to
    /// be taken.
    pub fn running(&self) -> usize {
        self.parts.rings.running() as usize
    }

    /// The free-running index of the completion that is taken next: what [`Device::wait`] takes.
    pub fn next_completion(&self) -> u32 {
        self.parts.rings.head()
    }

    /// Hands a command to the device.
    ///
    /// # Errors
    /// [`Error::Full`]: take a completion first. [`Error::Broken`]. After either the device does not have the
    /// command; that it is gone is said by who waits.
    pub fn submit(&mut self, command: &Command) -> Result<(), Error> {
        self.push(&command.sqe, command.keep.clone())
    }

    /// Hands any entry at all to the device, with whatever addresses it has.
    ///
    /// # Errors
    /// As [`Self::submit`].
    ///
    /// # Safety
    /// Until the command has completed, or the queue has been destroyed, the device reads and writes
    /// the process's memory as the entry says, index arrays included. The caller answers for it: what
    /// the command can write must be nothing that Rust code relies on (only atomics, or memory
    /// that no reference points to), and it must not be unmapped and reused meanwhile.
    pub unsafe fn submit_raw(&mut self, entry: &Sqe) -> Result<(), Error> {
        self.push(entry, Keep::default())
    }

    /// Takes the next completion if it is there.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::DeviceLost`].
    pub fn try_complete(&mut self) -> Result<Option<Completion>, Error> {
        let Some((cqe, need_kick)) = self.parts.rings.pop() else { return Ok(None) };
        if cqe.head.status() == Status::BAD_DOORBELL {
            // It stands for no command: all of them keep their memory until the queue is destroyed.
            self.broken = true;
            return Err(Error::Broken);
        }
        self.parts.in_flight.pop_front();
        // A kick that fails takes nothing from the completion: the next call says what is wrong.
        let _ = self.kick(need_kick);
        Ok(Some(cqe.into()))
    }

    /// Takes the next completion: looks for a while, then sleeps.
    ///
    /// # Errors
    /// [`Error::Idle`] if no command is in flight, [`Error::TimedOut`], [`Error::Broken`],
    /// [`Error::DeviceLost`].
    pub fn complete(&mut self, timeout: Option<Duration>) -> Result<Completion, Error> {
        if self.in_flight() == 0 {
            return Err(Error::Idle);
        }
        let start = Instant::now();
        loop {
            if let Some(completion) = self.try_complete()? {
                return Ok(completion);
            }
            if self.broken {
                return Err(Error::Broken);
            }
            let waited = start.elapsed();
            if waited < self.spin {
                std::hint::spin_loop();
                continue;
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(waited));
            match self.device.wait(self.id, self.parts.rings.head(), left) {
                // It may have come just before the end: look once more.
                Err(Error::TimedOut) if !self.parts.rings.ready() => return Err(Error::TimedOut),
                Err(Error::TimedOut | Error::Ioctl { errno: Errno::EINTR, .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Submits a command and waits until it is done.
    ///
    /// # Errors
    /// [`Error::Busy`] if other commands are in flight; else as [`Self::submit`] and [`Self::complete`].
    pub fn execute(&mut self, command: &Command) -> Result<Completion, Error> {
        if self.in_flight() != 0 {
            return Err(Error::Busy);
        }
        self.submit(command)?;
        self.complete(None)
    }

    /// Ends the queue.
    ///
    /// # Errors
    /// What the driver said. Then the memory of the commands in flight stays mapped for ever, unless it
    /// said that the device is gone.
    pub fn destroy(mut self) -> Result<(), Error> {
        self.end()
    }

    fn push(&mut self, entry: &Sqe, keep: Keep) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        // Before the entry can be seen: from then on the memory must stay.
        self.parts.in_flight.push_back(keep);
        match self.parts.rings.push(entry) {
            Ok(need_kick) => {
                // The entry is published: to report a kick that fails would be to ask for a second one. The
                // next wait says what is wrong.
                let _ = self.kick(need_kick);
                Ok(())
            }
            Err(error) => {
                self.parts.in_flight.pop_back();
                Err(error)
            }
        }
    }

    fn kick(&self, NeedKick(needed): NeedKick) -> Result<(), Error> {
        if needed { self.device.kick(self.id) } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), Error> {
        if mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let result = self.device.destroy_queue(self.id);
        if matches!(result, Ok(()) | Err(Error::DeviceLost)) {
            // SAFETY: this is reached once, by `drop` or by `destroy` before it, and nothing uses the parts
            // afterwards. The queue has ended, or the driver cut the device off from memory, so nothing
            // reaches rings or elements.
            unsafe { ManuallyDrop::drop(&mut self.parts) };
        }
        // Else nothing is known of the queue (in a forked child, not even that its mappings are
        // there): leaking is what is safe.
        result
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use svmx_abi::queue::CqeHead;

    #[test]
    fn the_upper_half_is_an_address_only_of_an_error() {
        let completion = |status| {
            let head = CqeHead::new(true, status, 9);
            Completion::from(Cqe { head, result: 2, applied: 1, sq_head: 1, fault_addr: 1 })
        };
        let success = completion(Status::SUCCESS);
        assert_eq!((success.result, success.fault_addr), (1 << 64 | 2, 0));
        let fault = completion(Status::FAULT);
        assert_eq!((fault.result, fault.fault_addr), (2, 1));
        assert!(completion(Status::TIMEOUT).status.is_timeout() && !success.status.is_timeout());
    }
}
