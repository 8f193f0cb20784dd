// SPDX-License-Identifier: GPL-2.0

//! Identifiers 1 to a maximum, for contexts and for queues.

use kernel::{bitmap::BitmapVec, prelude::*};

/// Which identifiers are taken.
pub(crate) struct Ids {
    taken: BitmapVec,
}

impl Ids {
    /// None of 1 to `max` is taken.
    pub(crate) fn new(max: u32) -> Result<Self> {
        let mut taken = BitmapVec::new(max as usize + 1, GFP_KERNEL)?;
        taken.set_bit(0);
        Ok(Ids { taken })
    }

    /// Takes the lowest that is free.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let id = self.taken.next_zero_bit(1)?;
        self.taken.set_bit(id);
        Some(id as u32)
    }

    /// Gives `id` back.
    pub(crate) fn give(&mut self, id: u32) {
        self.taken.clear_bit(id as usize);
    }
}
