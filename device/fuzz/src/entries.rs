// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Queue entries and page-table entries from an input: near to valid ones, so that much of what is made gets
//! past the first check, and anything else with the same bytes changed. They know the opcodes of the abi,
//! and of the other fields only where in the entry they are.

use svmx_abi::control::{ControlEntry, ControlFlags, ControlOpcode};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::Pte;
use svmx_abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};

use crate::input::Input;

/// A submission: opcode, width, flags, which of the other words are not zero, and those.
pub(crate) fn submission(input: &mut Input<'_>, frames: u64) -> Sqe {
    let opcode = known(input.byte(), &Opcode::ALL.map(|(_, opcode)| opcode.0));
    let width = input.byte();
    let flags = input.byte();
    let present = input.byte();
    let mut words = [0; 8];
    for (at, word) in words.iter_mut().enumerate().skip(1) {
        if present & (1 << at) != 0 {
            *word = input.number(frames);
        }
    }
    let fields: Sqe = zerocopy::transmute!(words);
    Sqe {
        opcode: Opcode(opcode),
        width: WidthLog2(width),
        flags: SqeFlags(u16::from(flags) | u16::from(present & 1) << 15),
        tag: u32::from(flags) << 8 | u32::from(opcode),
        ..fields
    }
}

/// A control entry: opcode, flags, which of the other words are not zero, and those. Its completion word
/// goes to a page that is nobody's unless the input names another.
pub(crate) fn control(input: &mut Input<'_>, frames: u64) -> ControlEntry {
    let opcode = known(input.byte(), &ControlOpcode::ALL.map(|(_, opcode)| opcode.0));
    let flags = input.byte();
    let present = input.byte();
    let mut word =
        |bit: u8, otherwise| if present & (1 << bit) != 0 { input.number(frames) } else { otherwise };
    let body = std::array::from_fn(|at| word(at as u8, 0));
    ControlEntry {
        opcode: ControlOpcode(opcode),
        flags: ControlFlags(flags),
        notify_addr: word(5, frames),
        notify_value: word(6, 1),
        reserved1: word(7, 0) as u32,
        body,
        ..Default::default()
    }
}

/// A page-table entry of any level: leaf, huge leaf or table at one of the first frames, or any number.
pub(crate) fn table_entry(input: &mut Input<'_>, frames: u64) -> Pte {
    let kind = input.byte();
    let address = frames + PAGE_SIZE * u64::from(input.byte() % 32);
    match kind % 4 {
        0 => Pte::table(address),
        // Bits 1 to 4 are what a leaf allows.
        1 => Pte(Pte::table(address).0 | u64::from(kind >> 2 & 0xf) << 1),
        2 => Pte(Pte::table(address & !0x1f_ffff).0 | u64::from(kind >> 2 & 0xf) << 1 | 1 << 7),
        _ => Pte(input.number(frames)),
    }
}

/// One of the opcodes that there are, or in an eighth of all cases any.
fn known(byte: u8, opcodes: &[u8]) -> u8 {
    if byte >= 0xe0 { byte - 0xe0 } else { opcodes[usize::from(byte) % opcodes.len()] }
}
