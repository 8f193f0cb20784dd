// SPDX-License-Identifier: Apache-2.0 OR MIT

//! COPY and FILL by one engine, against memcpy and memset; in CPU time, as in [`crate::bulk`].

use std::time::Duration;

use measure::sample::Side;
use measure::{Aim, Comparison, Row, alternate};
use mock_driver::UserQueue;
use svmx_abi::pte::Access;
use svmx_abi::queue::{Opcode, Sqe, WidthLog2};
use svmx_device::model::Options;

use crate::arena::{Arena, native_time, wait_asleep};
use crate::native::Block;

/// More than a second-level cache, less than a last-level one.
const BYTES: u64 = 8 << 20;
const FROM: u64 = 1 << 40;
const TO: u64 = 2 << 40;
/// Transfers of a round.
const TIMES: u32 = 8;

/// Both.
pub(crate) fn rates(name: &str, rounds: usize) -> Vec<Row> {
    let options = Options { engines: 1, poll: Duration::ZERO, ..Default::default() };
    let arena = Arena::new(options, 2 * BYTES);
    let space = arena.mock.space();
    let access = Access { read: true, write: true, ..Access::default() };
    let (from, to) = (arena.mapped(space, FROM, BYTES, access), arena.mapped(space, TO, BYTES, access));
    let block = Block::new(&arena.mock, from, to, BYTES as usize);
    let mut queue = UserQueue::new(&arena.mock, space);
    let base = Sqe { width: WidthLog2::W64, addr: TO, count: (BYTES / 8) as u32, ..Default::default() };
    let copy = Sqe { opcode: Opcode::COPY, arg0: FROM, ..base };
    let fill = Sqe { opcode: Opcode::FILL, operand: u64::from_ne_bytes([7; 8]), ..base };

    let copied = in_turns(rounds, &arena, &mut queue, copy, &|| block.copy());
    // The engine copies what differs from what the last native fill left.
    block.fill(9);
    queue.submit(copy);
    wait_asleep(&mut queue);
    assert!(block.is_copied(), "COPY copies");
    let filled = in_turns(rounds, &arena, &mut queue, fill, &|| block.fill(7));
    let row =
        |figure: &str, with, comparison| Row::compared(name, figure, "GB/s", with, comparison, Aim::None);
    vec![
        row("COPY of 8 MiB, 64-bit elements, one engine", "memcpy", &copied),
        row("FILL of 8 MiB, 64-bit elements, one engine", "memset", &filled),
    ]
}

fn in_turns(
    rounds: usize,
    arena: &Arena,
    queue: &mut UserQueue<'_>,
    sqe: Sqe,
    native: &(dyn Fn() + Sync),
) -> Comparison {
    let rate = |time: Duration| (u64::from(TIMES) * BYTES) as f64 / time.as_secs_f64() / 1e9;
    let sides: Vec<Side<'_>> = vec![
        Box::new(|| {
            let before = arena.engine_time();
            for _ in 0..TIMES {
                queue.submit(sqe);
            }
            for _ in 0..TIMES {
                wait_asleep(queue);
            }
            rate(arena.engine_time() - before)
        }),
        Box::new(|| rate(native_time(|| (0..TIMES).for_each(|_| native())))),
    ];
    Comparison::of(alternate(rounds, sides))
}
