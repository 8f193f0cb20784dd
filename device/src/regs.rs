// SPDX-License-Identifier: Apache-2.0 OR MIT

//! BAR0 (spec 3): which register an access is to, and the ring registers' values. What writes cause is
//! [`crate::device`]'s.

use svmx_abi::pci::{MAX_CONTEXTS, MAX_QUEUES, MAX_RING_LOG2, NUM_VECTORS, VA_BITS};
use svmx_abi::regs::{self, Counter, Version};

use crate::command::Command;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "spec 3.1 says what each is, under the same names")]
pub enum Register {
    Constant(u64),
    NumEngines,
    Control,
    Status,
    FatalError,
    Kick,
    CtlBase,
    CtlLog2,
    FaultBase,
    FaultLog2,
    LookAhead,
    Counter(Counter),
}

/// The part of a register that an access is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bits to the right of it.
    shift: u32,
    /// Bytes: 4 or 8.
    size: usize,
}

impl Part {
    /// This part of a value.
    pub fn of(self, value: u64) -> u64 {
        let value = value >> self.shift;
        if self.size == 4 { value & u64::from(u32::MAX) } else { value }
    }

    /// `value` with this part replaced.
    pub fn replace(self, value: u64, part: u64) -> u64 {
        if self.size == 8 {
            return part;
        }
        let mask = u64::from(u32::MAX) << self.shift;
        (value & !mask) | ((part << self.shift) & mask)
    }
}

/// The register at an offset and the part of it that `size` bytes cover; `None` for everything that spec
/// 3.1 does not allow.
pub fn decode(offset: u64, size: usize) -> Option<(Register, Part)> {
    if size == 8 {
        let (register, wide) = at(offset)?;
        return wide.then_some((register, Part { shift: 0, size }));
    }
    if size != 4 {
        return None;
    }
    if let Some((register, _)) = at(offset) {
        return Some((register, Part { shift: 0, size }));
    }
    let (register, wide) = at(offset.checked_sub(4)?)?;
    wide.then_some((register, Part { shift: 32, size }))
}

/// The register that begins at an offset, and whether it has 64 bits.
fn at(offset: u64) -> Option<(Register, bool)> {
    let constant = |value: u32| Some((Register::Constant(value.into()), false));
    match offset {
        regs::MAGIC => constant(regs::MAGIC_VALUE),
        regs::VERSION => constant(Version::CURRENT.0),
        regs::OPCODES => Some((Register::Constant(Command::opcodes()), true)),
        regs::BULK_OPCODES => Some((Register::Constant(Command::bulk_opcodes()), true)),
        regs::MAX_CONTEXTS => constant(MAX_CONTEXTS),
        regs::MAX_QUEUES => constant(MAX_QUEUES),
        regs::MAX_RING_LOG2 => constant(MAX_RING_LOG2.into()),
        regs::VA_BITS => constant(VA_BITS),
        regs::NUM_ENGINES => Some((Register::NumEngines, false)),
        regs::NUM_VECTORS => constant(NUM_VECTORS.into()),
        regs::CONTROL => Some((Register::Control, false)),
        regs::STATUS => Some((Register::Status, false)),
        regs::FATAL_ERROR => Some((Register::FatalError, false)),
        regs::KICK => Some((Register::Kick, false)),
        regs::CTL_BASE => Some((Register::CtlBase, true)),
        regs::CTL_LOG2 => Some((Register::CtlLog2, false)),
        regs::FAULT_BASE => Some((Register::FaultBase, true)),
        regs::FAULT_LOG2 => Some((Register::FaultLog2, false)),
        regs::LOOKAHEAD => Some((Register::LookAhead, false)),
        _ => {
            let counter = Counter::ALL.into_iter().find(|counter| counter.offset() == offset)?;
            Some((Register::Counter(counter), true))
        }
    }
}

/// The registers that the driver writes and the device only keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingRegisters {
    /// `CTL_BASE`.
    pub ctl_base: u64,
    /// `CTL_LOG2`.
    pub ctl_log2: u32,
    /// `FAULT_BASE`.
    pub fault_base: u64,
    /// `FAULT_LOG2`.
    pub fault_log2: u32,
    /// `LOOKAHEAD`, in its range.
    pub lookahead: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_bits_come_whole_or_in_halves() {
        let (register, whole) = decode(regs::CTL_BASE, 8).unwrap();
        assert_eq!((register, whole.of(0x1_0000_0002)), (Register::CtlBase, 0x1_0000_0002));
        let (register, upper) = decode(regs::CTL_BASE + 4, 4).unwrap();
        assert_eq!((register, upper.of(0x1_0000_0002)), (Register::CtlBase, 1));
        assert_eq!(upper.replace(0x1_0000_0002, 9), 0x9_0000_0002);
        let (_, lower) = decode(regs::CTL_BASE, 4).unwrap();
        assert_eq!(lower.replace(0x1_0000_0002, 9), 0x1_0000_0009);
    }

    #[test]
    fn anything_else_is_nothing() {
        for (offset, size) in [
            (regs::MAGIC, 8),
            (regs::MAGIC, 1),
            (regs::MAGIC + 2, 4),
            (regs::CTL_LOG2 + 4, 4),
            (0xfffc, 4),
            (u64::MAX, 8),
            (regs::CTL_BASE, 16),
        ] {
            assert_eq!(decode(offset, size), None, "{offset:#x} {size}");
        }
        assert!(decode(Counter::Walks.offset() + 4, 4).is_some());
    }
}
