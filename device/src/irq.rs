// SPDX-License-Identifier: Apache-2.0 OR MIT

//! MSI-X vectors: event file descriptors that the VMM gives, and the pending bits of vectors that
//! have none for the moment. Table and masks are the VMM's.

use std::fs::File;
use std::io::Write;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;
use svmx_abi::pci::NUM_VECTORS;

/// All vectors.
#[derive(Debug, Default)]
pub struct Interrupts {
    vectors: [Mutex<Vector>; NUM_VECTORS as usize],
}

#[derive(Debug, Default)]
struct Vector {
    event: Option<File>,
    pending: bool,
}

impl Interrupts {
    /// Raises a vector, at once or as soon as it has an event. One out of range is ignored: who may
    /// name it is checked where it is parsed.
    pub fn raise(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut vector = vector.lock();
            vector.pending = true;
            vector.deliver();
        }
    }

    /// Gives a vector its event, or takes it away. An interrupt that waited is delivered now.
    pub fn set(&self, vector: u32, event: Option<File>) {
        // Whoever raises an interrupt must not wait for a VMM that does not read.
        let event = event.filter(|event| fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok());
        if let Some(vector) = self.vectors.get(vector as usize) {
            let mut vector = vector.lock();
            vector.event = event;
            vector.deliver();
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
}

impl Vector {
    fn deliver(&mut self) {
        if let (true, Some(mut event)) = (self.pending, self.event.as_ref()) {
            // An event whose counter is full is as raised as it can be.
            let _ = event.write(&1u64.to_ne_bytes());
            self.pending = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::AsFd;

    #[test]
    fn what_is_raised_between_clear_and_replace_arrives() {
        let interrupts = Interrupts::default();
        interrupts.raise(3);
        assert_eq!(interrupts.pending(), 1 << 3);
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        interrupts.set(3, Some(File::from(event.as_fd().try_clone_to_owned().unwrap())));
        assert_eq!(event.read(), Ok(1));
        assert_eq!(interrupts.pending(), 0);
        interrupts.raise(NUM_VECTORS);
        interrupts.set(3, None);
        interrupts.raise(3);
        interrupts.disable();
        assert_eq!((event.read(), interrupts.pending()), (Err(nix::errno::Errno::EAGAIN), 0));
    }
}
