// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes of an input, taken from the front; zeros when there are none left. What they mean is for those
//! who take them. [`crate::seeds`] writes what is read here.

use arbitrary::Unstructured;
use svmx_abi::pci::{PAGE_SIZE, VA_END};

/// Where the processes of a scene have their memory.
pub(crate) const VA: u64 = 0x7000_0000;

/// An input.
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Input(Unstructured::new(bytes))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A number that is likely to mean something where it is put: a kind, and what that kind takes.
    pub(crate) fn number(&mut self, frames: u64) -> u64 {
        match self.byte() % 8 {
            0 => self.byte().into(),
            // Two fields of 32 bits, as `count` and `stride`, or `queue` and `asid`.
            1 => u64::from(self.byte()) | (i64::from(self.byte() as i8) as u64) << 32,
            2 => VA + u64::from(self.u16()),
            3 => frames + PAGE_SIZE * u64::from(self.byte()),
            4 => frames + u64::from(self.u16()),
            // Near a power of two.
            5 => (1u64 << (self.byte() % 64)).wrapping_add(i64::from(self.byte() as i8) as u64),
            6 => VA_END.wrapping_sub(u64::from(self.u16())),
            _ => self.u64(),
        }
    }
}
