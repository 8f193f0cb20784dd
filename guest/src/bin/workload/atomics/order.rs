// SPDX-License-Identifier: Apache-2.0 OR MIT

//! NOP and FENCE: commands without an element, which succeed, and what a FENCE's completion says.

use super::{Bench, W32, W64};
use crate::area::{Area, Backing, PAGE, scalar};
use crate::random::Random;
use crate::scenario::Run;
use anyhow::{Result, ensure};
use svmx::abi::queue::{Opcode, Sqe};
use svmx::abi::status::Status;

const ROUNDS: u64 = 200;

/// A FENCE completes when every WRITE before it is visible (spec 10.5); NOPs between change nothing.
pub(super) fn fences(bench: &mut Bench, run: &Run) -> Result<()> {
    let mut random = Random::part(run.seed, 3);
    let area = Area::new(Backing::Private, 2 * PAGE)?;
    for round in 0..ROUNDS {
        for width in [W32, W64] {
            let offset = random.below((2 * PAGE) >> width.0) << width.0;
            let value = random.next() & (u64::MAX >> (64 - (8 << width.0)));
            let entries = [
                scalar(Opcode::WRITE, width, area.address(offset), value),
                Sqe { opcode: Opcode::NOP, ..Sqe::default() },
                Sqe { opcode: Opcode::FENCE, ..Sqe::default() },
            ];
            // All at once, so that the device does not come to the FENCE only when the WRITE is long done.
            for (tag, entry) in entries.iter().enumerate() {
                bench.queue.submit(&Sqe { tag: tag as u32, ..*entry })?;
            }
            for (tag, entry) in entries.iter().enumerate() {
                let found = bench.queue.complete()?;
                bench.checks += 1;
                let applied = u32::from(entry.opcode == Opcode::WRITE);
                ensure!(
                    found.status.0 == Status::SUCCESS && (found.tag, found.applied) == (tag as u32, applied),
                    "round {round}: expected success, found {found:x?} for {entry:x?}"
                );
            }
            let found = area.load(offset, width);
            ensure!(found == value, "round {round}: expected {value:#x} behind the FENCE, found {found:#x}");
        }
    }
    Ok(())
}
