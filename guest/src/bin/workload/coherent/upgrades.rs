// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One page from untouched to read to written to atomic, by memory and policy; what is refused; and what a change of
//! policy takes away. All of it with exact counts of what the driver did.

use super::{Cost, Side};
use crate::area::{Area, Backing, PAGE};
use crate::maps;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use svmx::Policy;
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::status::Status;

const MEMORY: [Backing; 3] = [Backing::Private, Backing::SharedAnonymous, Backing::Memfd];
const W: WidthLog2 = WidthLog2::W64;

pub(super) fn each_policy_and_memory() -> Result<()> {
    for backing in MEMORY {
        for (name, policy) in Policy::ALL {
            if backing == Backing::Private || policy != Policy::EXCLUSIVE {
                upgrade(backing, policy).with_context(|| format!("{backing:?}, {name}"))?;
            }
        }
    }
    Ok(())
}

fn upgrade(backing: Backing, policy: Policy) -> Result<()> {
    let mut side = Side::new(0)?;
    let area = Area::new(backing, PAGE)?;
    side.device.set_policy(area.range(), policy)?;
    let exclusive = backing == Backing::Private && policy != Policy::COHERENT;
    let shared = Cost { faults: 1, shared: 1, ..Cost::default() };
    let atomic = if exclusive { Cost { faults: 1, grants: 1, ..Cost::default() } } else { shared };
    let nothing = Cost::default();

    // Private memory that was never touched is the zero page, which nobody may write.
    ensure!(side.costs(shared, |side| side.command(Opcode::READ, &area, 0, 0))? == 0);
    ensure!(side.costs(nothing, |side| side.command(Opcode::READ, &area, 8, 0))? == 0);
    area.store(8, W, 5);
    ensure!(side.command(Opcode::READ, &area, 8, 0)? == 5, "the device reads what was there before");
    side.costs(shared, |side| side.command(Opcode::WRITE, &area, 0, 7))?;
    side.costs(nothing, |side| side.command(Opcode::WRITE, &area, 16, 8))?;
    ensure!(area.load(0, W) == 7 && area.load(16, W) == 8);
    ensure!(side.costs(atomic, |side| side.command(Opcode::FETCH_ADD, &area, 0, 1))? == 7);
    ensure!(side.costs(nothing, |side| side.command(Opcode::FETCH_ADD, &area, 0, 1))? == 8);
    // Whoever may do atomics may load and store.
    side.costs(nothing, |side| side.command(Opcode::WRITE, &area, 8, 6))?;
    // A CPU takes the page back if the device has it for itself, and only then.
    let touched = Cost { revocations: exclusive.into(), ..nothing };
    ensure!(side.costs(touched, |_| Ok(area.increment(0)))? == 9);
    let again = if exclusive { atomic } else { nothing };
    ensure!(side.costs(again, |side| side.command(Opcode::FETCH_ADD, &area, 0, 1))? == 10);
    let found = [0, 8, 16].map(|offset| area.load(offset, W));
    ensure!(found == [11, 6, 8], "expected 11, 6, 8 at the end, found {found:?}");
    Ok(())
}

/// What no policy allows, and what one does not.
pub(super) fn refusals() -> Result<()> {
    let mut side = Side::new(0)?;
    let cancelled = Cost { faults: 1, cancels: 1, ..Cost::default() };
    for backing in MEMORY {
        let mut area = Area::new(backing, PAGE)?;
        area.store(0, W, 3);
        if backing != Backing::Private {
            side.costs(cancelled, |side| side.refused(Opcode::FETCH_ADD, &area, Status::NOT_EXCLUSIVE))?;
        }
        for (name, policy) in Policy::ALL {
            side.device.set_policy(area.range(), policy)?;
            area.protect(true, false)?;
            for opcode in [Opcode::FETCH_ADD, Opcode::WRITE] {
                side.costs(cancelled, |side| side.refused(opcode, &area, Status::PERMISSION))
                    .with_context(|| format!("{backing:?}, {name}, read-only, {opcode:?}"))?;
            }
            ensure!(side.command(Opcode::READ, &area, 0, 0)? == 3);
            area.protect(false, false)?;
            for opcode in [Opcode::FETCH_ADD, Opcode::WRITE, Opcode::READ] {
                side.refused(opcode, &area, Status::PERMISSION)
                    .with_context(|| format!("{backing:?}, {name}, no rights, {opcode:?}"))?;
            }
            area.protect(true, true)?;
            ensure!(area.load(0, W) == 3, "a refused command changed something");
        }
        // The next area may get the same addresses.
        side.device.set_policy(area.range(), Policy::EXCLUSIVE)?;
    }
    nothing_there(&mut side)
}

/// A policy can be had for addresses without memory. That is all there is.
fn nothing_there(side: &mut Side) -> Result<()> {
    for gap in maps::gaps(&mut Random::new(1), 16)? {
        let page = gap & !(PAGE - 1);
        side.device.set_policy(page..page + PAGE, Policy::COHERENT)?;
        let found = side.queue.execute(&crate::area::scalar(Opcode::FETCH_ADD, W, gap & !7, 1))?;
        ensure!(found.status.0 == Status::FAULT, "at {gap:#x}, where nothing is: {found:?}");
    }
    Ok(())
}

/// Each change takes away what the device has, and what comes then is by the new policy.
pub(super) fn changes() -> Result<()> {
    const PAGES: u64 = 16;
    let mut side = Side::new(0)?;
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    area.store(0, W, 0);
    let mut held = 0;
    let policies = [Policy::EXCLUSIVE, Policy::COHERENT, Policy::AUTO, Policy::COHERENT, Policy::EXCLUSIVE];
    for (round, policy) in (1..).zip(policies) {
        let taken = Cost { revocations: held, ..Cost::default() };
        side.costs(taken, |side| Ok(side.device.set_policy(area.range(), policy)?))
            .with_context(|| format!("round {round}"))?;
        let before = side.so_far()?;
        side.add_all(&area, PAGE, PAGES)?;
        let after = side.so_far()?;
        let found = (after.grants - before.grants, after.shared - before.shared);
        let expected = if policy == Policy::COHERENT { (0, PAGES) } else { (PAGES, 0) };
        ensure!(found == expected, "round {round}: expected {expected:?} grants, found {found:?}");
        held = expected.0;
    }
    for page in 0..PAGES {
        let found = area.load(page * PAGE, W);
        ensure!(found == policies.len() as u64, "page {page}: {found}");
    }
    Ok(())
}
