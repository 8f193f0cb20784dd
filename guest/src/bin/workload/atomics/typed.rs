// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The library's own commands: each does what its documentation says. That what it makes is refused or does
//! something else would not be seen by the other parts, which write entries themselves.

use super::Bench;
use crate::scenario::Run;
use anyhow::{Result, ensure};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use svmx::{Command, Completion, Condition, Device, IndexArray, Pair, Queue, QueueSize, SharedSlice};

pub(super) fn typed(bench: &mut Bench, _: &Run) -> Result<()> {
    let mut queue = Device::open_nth(0)?.create_queue(QueueSize::default())?;
    bench.checks += scalars(&mut queue)?;
    bench.checks += bulk(&mut queue)?;
    bench.checks += wide(&mut queue)?;
    bench.checks += others(&mut queue)?;
    Ok(())
}

fn succeeds(queue: &mut Queue, command: &Command) -> Result<Completion> {
    let found = queue.execute(command)?;
    ensure!(found.status.is_success(), "{found:x?} for {command:x?}");
    Ok(found)
}

fn scalars(queue: &mut Queue) -> Result<u64> {
    let word = SharedSlice::<u32>::of(&[10])?;
    let at = || word.at(0);
    let one = 1f32.to_bits();
    // Each command, and what it leaves.
    let commands = [
        (Command::fetch_add(at(), 5), 15),
        (Command::fetch_and(at(), 0b1100), 0b1100),
        (Command::fetch_or(at(), 0b0011), 0b1111),
        (Command::fetch_xor(at(), 0b0101), 0b1010),
        (Command::fetch_umin(at(), 9), 9),
        (Command::fetch_umax(at(), u32::MAX), u32::MAX),
        (Command::fetch_smax(at(), -2), u32::MAX),
        (Command::fetch_smin(at(), -2), u32::MAX - 1),
        (Command::swap(at(), one), one),
        (Command::fetch_fadd(at(), 0.5), 1.5f32.to_bits()),
        (Command::compare_and_swap(at(), one, 7), 1.5f32.to_bits()),
        (Command::compare_and_swap(at(), 1.5f32.to_bits(), 7), 7),
        (Command::write(at(), 8), 8),
        (Command::read(at()), 8),
    ];
    let mut before = 10;
    for (command, after) in &commands {
        let found = succeeds(queue, command)?;
        let write = command.entry().opcode == svmx::abi::queue::Opcode::WRITE;
        let result = if write { 0 } else { u128::from(before) };
        ensure!(found.result == result && word.load(0) == *after, "{found:x?}, {:#x}", word.load(0));
        before = *after;
    }
    Ok(commands.len() as u64)
}

fn bulk(queue: &mut Queue) -> Result<u64> {
    let indices = IndexArray::new(&[3u64, 0, 3, 9])?;
    let operands = SharedSlice::of(&[99u64, 1, 2, 4, 8])?;
    let pairs: Vec<_> = (0..4).map(|n| Pair { compare: n % 2, new: 40 + n }).collect();
    let pairs = SharedSlice::of(&pairs)?;
    let number = |value: f64| value.to_bits();
    let floats = SharedSlice::of(&[0.0, 1.5, -1.0, 0.25].map(number))?;
    let (old, memory) = (SharedSlice::zeroed(5)?, SharedSlice::<u64>::zeroed(10)?);
    let strided = || memory.strided(0, 3, 4)?.store_old(&old, 1);
    let indexed = || memory.indexed(&indices, 0..4)?.store_old(&old, 1);
    // Each command, and what it makes of elements 0, 3, 6 and 9, which are 1 before.
    let commands = [
        (strided()?.fetch_add(2), [3, 3, 3, 3]),
        (strided()?.fetch_add_each(&operands, 1)?, [2, 3, 5, 9]),
        (indexed()?.fetch_add_each(&operands, 1)?, [3, 6, 1, 9]),
        (indexed()?.fetch_add(1), [2, 3, 1, 2]),
        (strided()?.fetch_and(2), [0, 0, 0, 0]),
        (strided()?.fetch_and_each(&operands, 1)?, [1, 0, 0, 0]),
        (strided()?.fetch_or(2), [3, 3, 3, 3]),
        (strided()?.fetch_or_each(&operands, 1)?, [1, 3, 5, 9]),
        (strided()?.fetch_xor(3), [2, 2, 2, 2]),
        (strided()?.fetch_xor_each(&operands, 1)?, [0, 3, 5, 9]),
        (strided()?.fetch_umin(0), [0, 0, 0, 0]),
        (strided()?.fetch_umin_each(&operands, 1)?, [1, 1, 1, 1]),
        (strided()?.fetch_umax(4), [4, 4, 4, 4]),
        (strided()?.fetch_umax_each(&operands, 1)?, [1, 2, 4, 8]),
        (strided()?.fetch_smin(-1), [u64::MAX; 4]),
        (strided()?.fetch_smin_each(&operands, 1)?, [1, 1, 1, 1]),
        (strided()?.fetch_smax(-1), [1, 1, 1, 1]),
        (strided()?.fetch_smax_each(&operands, 1)?, [1, 2, 4, 8]),
        (strided()?.swap(6), [6, 6, 6, 6]),
        (strided()?.swap_each(&operands, 1)?, [1, 2, 4, 8]),
        (strided()?.compare_and_swap(1, 2), [2, 2, 2, 2]),
        (strided()?.compare_and_swap_each(&pairs, 0)?, [1, 41, 1, 43]),
    ];
    for (command, after) in &commands {
        (0..10).for_each(|element| memory.store(element, 1));
        let found = succeeds(queue, command)?;
        let elements = [0, 3, 6, 9].map(|element| memory.load(element));
        ensure!(found.applied == 4 && elements == *after, "{elements:x?} after {command:x?}");
        ensure!(old.load(0) == 0 && old.load(1) == 1, "old values {old:?} after {command:x?}");
    }
    (0..4).for_each(|element| memory.store(element, number(1.0)));
    succeeds(queue, &memory.strided(0, 1, 4)?.fetch_fadd(0.5))?;
    succeeds(queue, &memory.strided(0, 1, 4)?.fetch_fadd_each(&floats, 0)?)?;
    let sums = [0, 1, 2, 3].map(|element| f64::from_bits(memory.load(element)));
    ensure!(sums == [1.5, 3.0, 0.5, 1.75], "{sums:?}");
    Ok(commands.len() as u64 + 2)
}

fn wide(queue: &mut Queue) -> Result<u64> {
    let big = |n: u128| n << 64 | (100 - n);
    let memory = SharedSlice::of(&[big(0), big(1), big(2)])?;
    let found = succeeds(queue, &Command::compare_and_swap(memory.at(1), big(1), big(7)))?;
    ensure!(found.result == big(1) && memory.load(1) == big(7), "{found:x?}, {:#x}", memory.load(1));
    let found = succeeds(queue, &Command::compare_and_swap(memory.at(1), big(1), 0))?;
    ensure!(found.result == big(7) && memory.load(1) == big(7), "{found:x?}, {:#x}", memory.load(1));
    let old = SharedSlice::zeroed(3)?;
    let pair = |compare, new| Pair { compare: big(compare), new: big(new) };
    let pairs = SharedSlice::of(&[pair(0, 10), pair(1, 11), pair(2, 12)])?;
    succeeds(queue, &memory.strided(0, 1, 3)?.store_old(&old, 0)?.compare_and_swap_each(&pairs, 0)?)?;
    ensure!([0, 1, 2].map(|n| memory.load(n)) == [10, 7, 12].map(big), "{memory:x?}");
    ensure!([0, 1, 2].map(|n| old.load(n)) == [0, 7, 2].map(big), "{old:x?}");
    let pairs = SharedSlice::of(&[pair(0, 0), pair(7, 70)])?;
    succeeds(queue, &memory.strided(2, -1, 3)?.compare_and_swap_with(&pairs, 1)?)?;
    ensure!([0, 1, 2].map(|n| memory.load(n)) == [10, 70, 12].map(big), "{memory:x?}");
    Ok(4)
}

fn others(queue: &mut Queue) -> Result<u64> {
    let bytes = SharedSlice::of(b"svmx copies bytes")?;
    let to = SharedSlice::<u8>::zeroed(20)?;
    succeeds(queue, &Command::fill(&to, 2..20, b'.')?)?;
    let found = succeeds(queue, &Command::copy(&bytes, 5..17, &to, 3)?)?;
    let text: Vec<u8> = to.iter().map(|byte| byte.load(Relaxed)).collect();
    ensure!(found.applied == 12 && text == *b"\0\0.copies bytes.....", "{}", text.escape_ascii());
    succeeds(queue, &Command::copy(&to, 3..15, &to, 6)?)?;
    let text: Vec<u8> = to.iter().map(|byte| byte.load(Relaxed)).collect();
    ensure!(text == *b"\0\0.copcopies bytes..", "{}", text.escape_ascii());

    let words = SharedSlice::of(&[5u64, 0])?;
    let wait = |condition, value, time| Command::wait(words.at(0), condition, value, time);
    let found = succeeds(queue, &wait(Condition::Uge, 5, None))?;
    ensure!(found.result == 5 && found.applied == 1, "{found:x?}");
    let found = queue.execute(&wait(Condition::Slt, 5, Some(Duration::from_micros(50))))?;
    ensure!(found.status.is_timeout() && found.result == 5 && found.applied == 0, "{found:x?}");
    succeeds(queue, &Command::nop())?;
    succeeds(queue, &Command::fence())?;
    Ok(7)
}
