// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ranges`: pages acquired ahead of use and released, policies by address; exact counts, errors that say how far it came,
//! signals, threads that touch and unmap meanwhile, and arguments that are wrong.
#![expect(unsafe_code, reason = "submits entries that name areas")]

mod hostile;
mod partial;
mod racing;

use crate::area::{Area, Backing, PAGE, RawQueue};
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::uapi::Stats;
use svmx::{Device, Policy, QueueSize};

/// More than two of the driver's notifiers.
const PAGES: u64 = 1200;
const W: WidthLog2 = WidthLog2::W64;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let mut side = Side::new()?;
    step("acquire, use, release");
    acquired(&mut side)?;
    step("only what the device had");
    sparse(&mut side)?;
    step("by policy");
    by_policy(&mut side)?;
    step("partial failures");
    partial::each_error(&side)?;
    step("signals");
    partial::signals(run)?;
    step("wrong arguments");
    let refused = hostile::arguments(&side.device)?;
    metric("refused", refused);
    step("many policies");
    hostile::many_policies(&side.device)?;
    step("changes while everybody works");
    let changes = racing::policies(run)?;
    metric("policy_changes", changes);
    step("ranges while everybody works");
    let sweeps = racing::sweeps(run)?;
    metric("sweeps", sweeps);
    step("stores beside atomics");
    racing::stores()?;
    step("munmap meanwhile");
    racing::unmapped(run)?;
    Ok(Shown::Pass(format!(
        "{PAGES} pages acquired without a fault; {changes} changes of policy and {sweeps} sweeps lost nothing"
    )))
}

/// A context with a queue that may name any area.
struct Side {
    device: Device,
    queue: RawQueue,
}

impl Side {
    fn new() -> Result<Self> {
        Self::on(Device::open_nth(0)?)
    }

    /// Another queue of a context.
    fn on(device: Device) -> Result<Self> {
        // SAFETY: what it is given names areas, which nothing but atomics reaches.
        let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
        Ok(Side { device, queue })
    }

    /// Adds 1 to the first word of each page.
    fn add(&mut self, area: &Area, pages: u64) -> Result<()> {
        self.start_adding(area, pages)?;
        self.added(pages)
    }

    fn start_adding(&mut self, area: &Area, pages: u64) -> Result<()> {
        self.queue.submit(&Sqe {
            opcode: Opcode::FETCH_ADD,
            width: W,
            flags: SqeFlags::BULK,
            addr: area.address(0),
            operand: 1,
            count: pages as u32,
            stride: PAGE as i32,
            ..Sqe::default()
        })
    }

    fn added(&mut self, pages: u64) -> Result<()> {
        let found = self.queue.complete()?;
        ensure!(found.status.is_success() && u64::from(found.applied) == pages, "{found:?}");
        Ok(())
    }

    fn stats(&self) -> Result<Box<Stats>> {
        Ok(self.device.stats()?)
    }
}

/// What was acquired has no fault, and what was released costs the CPU none.
fn acquired(side: &mut Side) -> Result<()> {
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    let before = side.stats()?;
    side.device.acquire(area.range())?;
    let acquired = side.stats()?;
    expect("grants", acquired.grants - before.grants, PAGES)?;
    side.device.acquire(area.range())?;
    expect("grants of what is there", side.stats()?.grants - acquired.grants, 0)?;
    for _ in 0..3 {
        side.add(&area, PAGES)?;
    }
    let used = side.stats()?;
    expect("faults of acquired pages", used.faults - before.faults, 0)?;
    expect("released pages", side.device.release(area.range())?, PAGES)?;
    let released = side.stats()?;
    expect("revocations", released.revocations - used.revocations, PAGES)?;
    let faults = faults_of(|| check(&area, PAGES, 3))?;
    ensure!(faults < PAGES / 16, "{faults} faults of the CPU on {PAGES} pages that were given back");
    expect("released pages that were released", side.device.release(area.range())?, 0)?;
    // The control: without a release each page costs a fault, so the count above can be wrong.
    side.device.acquire(area.range())?;
    let faults = faults_of(|| check(&area, PAGES, 3))?;
    ensure!(faults >= PAGES, "{faults} faults of the CPU on {PAGES} pages that the device had");
    Ok(())
}

/// Releasing brings nothing into memory that was not there, and counts what the device had in any way.
fn sparse(side: &mut Side) -> Result<()> {
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    expect("released pages of none", side.device.release(area.range())?, 0)?;
    let held = [0, 1, 2, 511, 512, 600, PAGES - 1];
    for page in held {
        side.device.acquire(area.address(page * PAGE)..area.address((page + 1) * PAGE))?;
    }
    let read = Sqe { opcode: Opcode::READ, width: W, addr: area.address(700 * PAGE), ..Sqe::default() };
    let found = side.queue.execute(&read)?;
    ensure!(found.status.is_success(), "{found:?}");
    let faults =
        faults_of(|| expect("released pages", side.device.release(area.range())?, held.len() as u64 + 1))?;
    ensure!(faults < 64, "{faults} faults for {} pages that were given back", held.len());
    Ok(())
}

/// Acquiring obeys the policy, and a change of it takes back what was acquired.
fn by_policy(side: &mut Side) -> Result<()> {
    const FEW: u64 = 40;
    for (backing, policy, exclusive) in [
        (Backing::Private, Policy::EXCLUSIVE, FEW),
        (Backing::Private, Policy::COHERENT, 0),
        (Backing::Private, Policy::AUTO, FEW),
        (Backing::Memfd, Policy::COHERENT, 0),
        (Backing::Memfd, Policy::AUTO, 0),
    ] {
        let area = Area::new(backing, FEW * PAGE)?;
        side.device.set_policy(area.range(), policy)?;
        let before = side.stats()?;
        side.device.acquire(area.range())?;
        side.add(&area, FEW)?;
        let after = side.stats()?;
        let context = || format!("{backing:?}, {policy:?}");
        expect("grants", after.grants - before.grants, exclusive).with_context(context)?;
        expect("shared grants", after.shared_grants - before.shared_grants, FEW - exclusive)
            .with_context(context)?;
        expect("faults", after.faults - before.faults, 0).with_context(context)?;
        let other = if policy == Policy::COHERENT { Policy::AUTO } else { Policy::COHERENT };
        side.device.set_policy(area.range(), other)?;
        let taken = side.stats()?.revocations - after.revocations;
        expect("revocations by the change", taken, exclusive).with_context(context)?;
        expect("pages left by the change", side.device.release(area.range())?, 0).with_context(context)?;
        check(&area, FEW, 1)?;
        // The next area may get the same addresses.
        side.device.set_policy(area.range(), Policy::EXCLUSIVE)?;
    }
    Ok(())
}

fn expect(what: &str, found: u64, expected: u64) -> Result<()> {
    ensure!(found == expected, "{what}: expected {expected}, found {found}");
    Ok(())
}

/// The first word of each page.
fn check(area: &Area, pages: u64, expected: u64) -> Result<()> {
    (0..pages).try_for_each(|page| {
        let found = area.load(page * PAGE, W);
        ensure!(found == expected, "page {page}: expected {expected}, found {found}");
        Ok(())
    })
}

/// Page faults of this thread meanwhile.
fn faults_of(act: impl FnOnce() -> Result<()>) -> Result<u64> {
    let count = || getrusage(UsageWho::RUSAGE_THREAD).map(|usage| usage.minor_page_faults());
    let before = count()?;
    act()?;
    Ok(u64::try_from(count()? - before)?)
}
