// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries of a writer of garbage: of every form of every command (spec 5.4), in its arena, and then more often
//! than not wrong in one thing. What is wrong in many is refused at once and gets nowhere.

use crate::random::Random;
use svmx::abi::queue::{Condition, Opcode, Sqe, SqeFlags, WAIT_FOREVER, WidthLog2};

/// A value that is small, near a power of two, an address of the arena, or anything.
pub(super) fn value(random: &mut Random, arena: u64, bytes: u64) -> u64 {
    match random.below(6) {
        0 => random.below(16),
        1 => (1u64 << random.below(64)).wrapping_sub(random.below(3)),
        2 => u64::MAX - random.below(16),
        3 => arena + 8 * random.below(bytes / 8),
        4 => random.next() >> random.below(64),
        _ => random.next(),
    }
}

/// An entry that is right or nearly so. Its memory is the arena, of so many bytes.
pub(super) fn nearly_right(random: &mut Random, arena: u64, bytes: u64) -> Sqe {
    let entry = right(random, arena, bytes);
    match random.below(8) {
        0..3 => entry,
        3 => Sqe { flags: SqeFlags(entry.flags.0 ^ 1 << random.below(6)), ..entry },
        4 => Sqe { width: WidthLog2(random.below(6) as u8), ..entry },
        5 => Sqe { opcode: any_opcode(random), ..entry },
        _ => {
            // One of the eight words; of some of them a part.
            let mut words: [u64; 8] = zerocopy::transmute!(entry);
            let word = &mut words[random.below(8) as usize];
            *word = match random.below(3) {
                0 => *word ^ 1 << random.below(64),
                1 => word.wrapping_add(random.below(17)).wrapping_sub(8),
                _ => value(random, arena, bytes),
            };
            zerocopy::transmute!(words)
        }
    }
}

fn any_opcode(random: &mut Random) -> Opcode {
    let (_, opcode) = *random.pick(&Opcode::ALL);
    opcode
}

/// An entry of any form, with all that it names in the arena, but for indices that lead where they will.
fn right(random: &mut Random, arena: u64, bytes: u64) -> Sqe {
    let opcode = any_opcode(random);
    let widths: &[WidthLog2] = match opcode {
        Opcode::NOP | Opcode::FENCE => return Sqe { opcode, ..Sqe::default() },
        Opcode::COPY | Opcode::FILL => &[WidthLog2::W8, WidthLog2::W32, WidthLog2::W64],
        Opcode::CAS => &[WidthLog2::W32, WidthLog2::W64, WidthLog2::W128],
        _ => &[WidthLog2::W32, WidthLog2::W64],
    };
    let width = *random.pick(widths);
    let mut place = |align: u64| arena + align * random.below(bytes / align);
    let (addr, other) = (place(1 << width.0), place(1 << width.0));
    let entry = Sqe { opcode, width, addr, ..Sqe::default() };
    match opcode {
        Opcode::READ => entry,
        Opcode::WAIT => wait(random, entry),
        Opcode::COPY => Sqe { arg0: other, count: count(random), ..entry },
        Opcode::FILL => Sqe { operand: random.below(3), count: count(random), ..entry },
        Opcode::WRITE => Sqe { operand: random.below(3), ..entry },
        _ if random.one_in(3) => {
            let compare = if opcode == Opcode::CAS { random.below(3) } else { 0 };
            Sqe { operand: random.below(3), compare, ..entry }
        }
        _ => bulk(random, entry, arena, bytes),
    }
}

/// Mostly short; seldom longer than any arena.
fn count(random: &mut Random) -> u32 {
    match random.below(8) {
        0 => random.next() as u32 >> random.below(32),
        _ => random.below(600) as u32,
    }
}

/// Mostly for less than a millisecond, seldom for ever: that ends with the queue.
fn wait(random: &mut Random, entry: Sqe) -> Sqe {
    let time = if random.one_in(50) { WAIT_FOREVER } else { random.below(1_000_000) };
    let condition = *random.pick(&Condition::ALL);
    Sqe { compare: random.below(3), arg0: time, arg1: condition as u64, ..entry }
}

fn bulk(random: &mut Random, entry: Sqe, arena: u64, bytes: u64) -> Sqe {
    let Sqe { opcode, width, .. } = entry;
    let mut entry = Sqe { flags: SqeFlags::BULK, count: count(random), ..entry };
    if random.one_in(2) {
        entry.flags = entry.flags.with(SqeFlags::INDEXED);
        // The arena is the only place whose words are small numbers, some of them.
        entry.addr = arena;
        entry.index_addr = arena + 8 * random.below(bytes / 8);
        if random.one_in(2) {
            entry.flags = entry.flags.with(SqeFlags::INDEX64);
        }
    } else {
        entry.stride = (random.below(9) as i32 - 4) << width.0;
    }
    let operand_log2 = width.0 + u8::from(opcode == Opcode::CAS);
    let own = random.one_in(2);
    if own {
        entry.flags = entry.flags.with(SqeFlags::OPERANDS);
    }
    if own || width == WidthLog2::W128 {
        entry.operand = arena + (random.below(bytes >> operand_log2) << operand_log2);
    } else {
        entry.operand = random.below(3);
        entry.compare = if opcode == Opcode::CAS { random.below(3) } else { 0 };
    }
    if random.one_in(2) {
        entry.flags = entry.flags.with(SqeFlags::STORE_OLD);
        entry.arg0 = arena + (random.below(bytes >> width.0) << width.0);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const ARENA: u64 = 0x10_0000;
    const BYTES: u64 = 16 * 4096;

    #[test]
    fn every_form_of_every_command_comes_up() {
        let mut random = Random::new(1);
        let forms: HashSet<_> = (0..200_000)
            .map(|_| right(&mut random, ARENA, BYTES))
            .map(|entry| (entry.opcode.0, entry.width.0, entry.flags.0))
            .collect();
        // Scalars with both widths, CAS with a third, and as many bulk forms of each atomic: strides, two kinds
        // of indices; operands or not; old values or not. NOP, FENCE; COPY and FILL with three widths.
        let atomics = 11 * 2 + 1;
        assert_eq!(forms.len(), 2 + 3 * 2 + 2 * 3 + atomics + atomics * 3 * 2 * 2);
    }

    #[test]
    fn what_is_right_is_aligned_and_in_the_arena() {
        let mut random = Random::new(2);
        let inside =
            |address, align: u64| (ARENA..ARENA + BYTES).contains(&address) && address.is_multiple_of(align);
        for _ in 0..20_000 {
            let entry = right(&mut random, ARENA, BYTES);
            let width = 1 << entry.width.0;
            let has = |flag| entry.flags.contains(flag);
            let element = !matches!(entry.opcode, Opcode::NOP | Opcode::FENCE);
            assert!(!element || inside(entry.addr, width), "{entry:x?}");
            assert!(!has(SqeFlags::INDEXED) || inside(entry.index_addr, 8), "{entry:x?}");
            let pair = if entry.opcode == Opcode::CAS { 2 } else { 1 };
            assert!(!has(SqeFlags::OPERANDS) || inside(entry.operand, pair * width), "{entry:x?}");
            let stored = has(SqeFlags::STORE_OLD) || entry.opcode == Opcode::COPY;
            assert!(!stored || inside(entry.arg0, width), "{entry:x?}");
        }
    }
}
