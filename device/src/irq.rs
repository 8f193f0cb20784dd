// SPDX-License-Identifier: Apache-2.0 OR MIT

//! MSI-X vectors: event file descriptors that the VMM gives, and the pending bits of vectors that
//! have none for the moment, or may not be raised while bus mastering is off (spec 1.2). Table and masks
//! are the VMM's.
//!
//! Whoever raises an interrupt never waits for the VMM ([`eventfd`]), so locks here are held for moments.

mod eventfd;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use svmx_abi::pci::NUM_VECTORS;

use crate::instrument::Hook;
use eventfd::Signaller;

/// All vectors.
#[derive(Debug)]
pub struct Interrupts {
    vectors: [Mutex<Vector>; NUM_VECTORS as usize],
    signaller: Signaller,
    /// Bus mastering. Read with a vector's lock held.
    permitted: AtomicBool,
    /// Who is told of vectors that are raised, and may take one (true) to deliver it later.
    pub detour: Hook<u16, bool>,
}

#[derive(Debug, Default)]
struct Vector {
    event: Option<File>,
    pending: bool,
}

impl Default for Interrupts {
    /// Vectors without events, none of which is pending, nor may be raised.
    fn default() -> Self {
        Interrupts {
            vectors: Default::default(),
            signaller: Signaller::new(),
            permitted: AtomicBool::default(),
            detour: Hook::default(),
        }
    }
}

impl Interrupts {
    /// Raises a vector. One out of range is ignored: who may name it is checked where it is parsed.
    pub fn raise(&self, vector: u16) {
        if self.detour.call(vector) != Some(true) {
            self.deliver_now(vector);
        }
    }

    /// Delivers a vector that was raised: at once, or as soon as it has an event and may be.
    pub fn deliver_now(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut vector = vector.lock();
            vector.pending = true;
            self.deliver(&mut vector);
        }
    }

    /// Gives a vector its event, or takes it away. An interrupt that waited is delivered now. What is no eventfd
    /// is not taken: then nothing changes, and the answer is false.
    pub fn set(&self, vector: u32, event: Option<File>) -> bool {
        if event.as_ref().is_some_and(|event| !self.signaller.accepts(event)) {
            return false;
        }
        if let Some(vector) = self.vectors.get(vector as usize) {
            let mut vector = vector.lock();
            vector.event = event;
            self.deliver(&mut vector);
        }
        true
    }

    /// Whether interrupts may be delivered. When this returns none is delivered any more, or all that
    /// waited are.
    pub fn permit(&self, permitted: bool) {
        self.permitted.store(permitted, Ordering::Relaxed);
        for vector in &self.vectors {
            // A lock that is taken after the store: its holder before this one has delivered, its holders
            // after this one see the store.
            self.deliver(&mut vector.lock());
        }
    }

    /// Takes every event away, as when MSI-X is disabled.
    pub fn disable(&self) {
        for vector in &self.vectors {
            *vector.lock() = Vector::default();
        }
    }

    /// Forgets what is pending (spec 1.1). The events are the VMM's and stay.
    pub fn reset(&self) {
        for vector in &self.vectors {
            vector.lock().pending = false;
        }
    }

    /// The pending-bit array.
    pub fn pending(&self) -> u64 {
        self.vectors.iter().rev().fold(0, |bits, vector| (bits << 1) | u64::from(vector.lock().pending))
    }

    fn deliver(&self, vector: &mut Vector) {
        let permitted = self.permitted.load(Ordering::Relaxed);
        if let (true, true, Some(event)) = (permitted, vector.pending, vector.event.as_ref()) {
            self.signaller.raise(event);
            vector.pending = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::AsFd;

    fn event() -> (EventFd, File) {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let file = File::from(event.as_fd().try_clone_to_owned().unwrap());
        (event, file)
    }

    #[test]
    fn nothing_is_delivered_without_bus_mastering() {
        const NOT_RAISED: Result<u64, nix::errno::Errno> = Err(nix::errno::Errno::EAGAIN);
        let interrupts = Interrupts::default();
        let (given_before, file) = event();
        interrupts.set(1, Some(file));
        interrupts.raise(1);
        // An event for what is pending is no reason to deliver it either.
        interrupts.raise(2);
        let (given_after, file) = event();
        interrupts.set(2, Some(file));
        assert_eq!((given_before.read(), given_after.read()), (NOT_RAISED, NOT_RAISED));
        assert_eq!(interrupts.pending(), 0b110);
        interrupts.permit(true);
        assert_eq!((given_before.read(), given_after.read()), (Ok(1), Ok(1)));
        assert_eq!(interrupts.pending(), 0);
        interrupts.permit(false);
        interrupts.raise(1);
        interrupts.reset();
        interrupts.permit(true);
        assert_eq!(given_before.read(), NOT_RAISED, "forgotten by a reset");
    }

    #[test]
    fn what_is_raised_between_clear_and_replace_arrives() {
        let interrupts = Interrupts::default();
        interrupts.permit(true);
        interrupts.raise(3);
        assert_eq!(interrupts.pending(), 1 << 3);
        let (event, file) = event();
        interrupts.set(3, Some(file));
        assert_eq!(event.read(), Ok(1));
        assert_eq!(interrupts.pending(), 0);
        interrupts.raise(NUM_VECTORS);
        interrupts.set(3, None);
        interrupts.raise(3);
        interrupts.disable();
        assert_eq!((event.read(), interrupts.pending()), (Err(nix::errno::Errno::EAGAIN), 0));
    }

    #[test]
    fn a_vmm_can_not_stop_who_raises_its_interrupts() {
        let interrupts = Interrupts::default();
        interrupts.permit(true);
        // A counter that is full, and a flag that is gone once the event has been given.
        let (event, file) = event();
        interrupts.set(3, Some(file));
        fcntl(&event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        event.write(u64::MAX - 1).unwrap();
        (0..3).for_each(|_| interrupts.raise(3));
        assert_eq!(interrupts.pending(), 0);
        // A pipe that is full.
        let (_reader, writer) = std::io::pipe().unwrap();
        assert!(!interrupts.set(3, Some(File::from(std::os::fd::OwnedFd::from(writer)))));
        interrupts.raise(3);
        assert_eq!(event.read(), Ok(u64::MAX), "the one before stayed");
    }
}
