// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `spans`: one event over many spans of 2 MiB, on two devices, is waited for once: one SYNC for each device, however
//! many spans there are. Counted, and each addition is still where it belongs. And a command that comes to each page of a
//! large area faults on few of them, as the driver obtains what it will need next.
//! `spans-evicted`: with a driver that keeps a few spans only, CPU threads and the device increment words in many; nothing is lost.
#![expect(unsafe_code, reason = "submits entries that name an area")]

use crate::area::{Area, PAGE, RawQueue};
use crate::counter::statistics;
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Instant;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::uapi::Stats;
use svmx::{Device, QueueSize};

/// What a leaf table of the device covers.
const SPAN: u64 = 2 << 20;
/// Of the area: 100 MiB.
const SPANS: u64 = 50;
/// Words that are added to in each span, at equal distances.
const WORDS: u64 = 16;
const STRIDE: u64 = SPAN / WORDS;

/// A device with a queue.
struct Adder {
    device: Device,
    queue: RawQueue,
}

impl Adder {
    fn new(n: u32) -> Result<Self> {
        let device = Device::open_nth(n)?;
        // SAFETY: every entry names an area.
        let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
        Ok(Adder { device, queue })
    }

    /// Adds 1 to every `step`-th word from word `first` on.
    fn add(&mut self, area: &Area, first: u64, step: u64) -> Result<()> {
        let count = u32::try_from((area.live() / STRIDE - first).div_ceil(step))?;
        let stride = i32::try_from(step * STRIDE)?;
        let done = self.queue.execute(&Sqe { count, stride, ..addition(area, first * STRIDE) })?;
        ensure!(done.status.is_success(), "{done:?}");
        Ok(())
    }
}

/// Private memory of whole spans.
fn area(spans: u64) -> Result<Area> {
    let room = Area::room((spans + 1) * SPAN)?;
    Area::at(room.next_multiple_of(SPAN), spans * SPAN)
}

/// Every word has been added to `times` times.
fn check(area: &Area, times: u64) -> Result<()> {
    for offset in (0..area.live()).step_by(STRIDE as usize) {
        let found = area.load(offset, WidthLog2::W64);
        ensure!(found == times, "word at {offset:#x}: expected {times}, found {found}");
    }
    Ok(())
}

pub(crate) fn waits(run: &Run) -> Result<Shown> {
    let mut adders = (0..run.devices).map(Adder::new).collect::<Result<Vec<_>>>()?;
    swept(&mut adders[0])?;
    let mut area = area(SPANS)?;
    // The kernel's walk of its own page table may make an event of each GiB that it comes to.
    let gibs = ((area.address(area.len()) - 1) >> 30) - (area.address(0) >> 30) + 1;
    one_event(&mut adders, &area, "discard", 1, |area| area.discard())?;
    check(&area, 0)?;
    one_event(&mut adders, &area, "mprotect", gibs, |area| area.flicker())?;
    check(&area, 1)?;
    one_event(&mut adders, &area, "fork", 1, |_| fork())?;
    check(&area, 2)?;
    held(&mut adders, &area)?;
    let before = statistics_of(&adders)?;
    step("munmap");
    area.unmap_from(0)?;
    counted(&adders, &before, "munmap", 1)?;
    for (n, adder) in adders.iter().enumerate() {
        statistics(&*adder.device.stats()?, &format!("_{n}"));
    }
    Ok(Shown::Pass(format!(
        "an event over {SPANS} spans of {} devices is one SYNC of each, four times",
        adders.len()
    )))
}

/// Pages of the area that is swept: 64 MiB.
const SWEPT: u64 = 16384;

/// A device adds to every page of an area, untouched at first, then touched by the CPU.
fn swept(adder: &mut Adder) -> Result<()> {
    let area = area(SWEPT * PAGE / SPAN)?;
    for (round, name) in [(1, "untouched"), (2, "touched")] {
        step(format!("sweep over {name} pages"));
        let (before, start) = (adder.device.stats()?, Instant::now());
        let done =
            adder.queue.execute(&Sqe { count: SWEPT as u32, stride: PAGE as i32, ..addition(&area, 0) })?;
        let (after, elapsed) = (adder.device.stats()?, start.elapsed());
        ensure!(done.status.is_success(), "{done:?}");
        let (faults, granted) = (after.faults - before.faults, after.grants - before.grants);
        metric(&format!("{name}_faults"), faults);
        metric(&format!("{name}_ns_per_page"), elapsed.as_nanos() as u64 / SWEPT);
        // One that comes too late costs a fault of its own, so this says little of how long anything takes.
        ensure!(faults <= SWEPT / 8, "{faults} faults in a sweep over {SWEPT} pages");
        ensure!(granted >= SWEPT, "{granted} grants for {SWEPT} pages");
        for offset in (0..SWEPT * PAGE).step_by(PAGE as usize) {
            let found = area.load(offset, WidthLog2::W64);
            ensure!(found == round, "word at {offset:#x}: expected {round}, found {found}");
        }
    }
    Ok(())
}

/// Of 1 to the word at `offset`, and to as many others as its user says.
fn addition(area: &Area, offset: u64) -> Sqe {
    Sqe {
        opcode: Opcode::FETCH_ADD,
        width: WidthLog2::W64,
        flags: SqeFlags::BULK,
        addr: area.address(offset),
        operand: 1,
        ..Sqe::default()
    }
}

/// Lets the devices have all of the area, each its part of every span.
fn held(adders: &mut [Adder], area: &Area) -> Result<()> {
    let step = adders.len() as u64;
    adders.iter_mut().zip(0..).try_for_each(|(adder, first)| adder.add(area, first, step))
}

fn statistics_of(adders: &[Adder]) -> Result<Vec<Stats>> {
    adders.iter().map(|adder| Ok(*adder.device.stats()?)).collect()
}

/// An event that takes the whole area from the devices.
fn one_event(
    adders: &mut [Adder],
    area: &Area,
    name: &str,
    most: u64,
    event: impl FnOnce(&Area) -> Result<()>,
) -> Result<()> {
    step(name);
    held(adders, area).with_context(|| format!("before {name}"))?;
    let before = statistics_of(adders)?;
    event(area).context(name.to_owned())?;
    counted(adders, &before, name, most)
}

/// Every span of every device was invalidated once, with one to `most` SYNCs of each device.
fn counted(adders: &[Adder], before: &[Stats], name: &str, most: u64) -> Result<()> {
    for (n, (adder, before)) in adders.iter().zip(before).enumerate() {
        let after = adder.device.stats()?;
        let (spans, syncs) = (after.invalidations - before.invalidations, after.syncs - before.syncs);
        metric(&format!("{name}_syncs_{n}"), syncs);
        ensure!(spans == SPANS, "{name}, device {n}: expected {SPANS} spans invalidated, found {spans}");
        ensure!(
            (1..=most).contains(&syncs),
            "{name}, device {n}: expected 1 SYNC, {most} at most; found {syncs}"
        );
    }
    Ok(())
}

/// A child that does nothing.
fn fork() -> Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: the child calls nothing but `_exit`.
    match unsafe { fork() }? {
        // SAFETY: always safe; nothing of the parent's is cleaned up.
        ForkResult::Child => unsafe { nix::libc::_exit(0) },
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => bail!("the child: {other:?}"),
        },
    }
}

/// Spans that the driver is told to keep in `spans-evicted`.
const KEPT: u64 = 8;
/// Sweeps over all spans.
const SWEEPS: u64 = 5;

pub(crate) fn evicted(run: &Run) -> Result<Shown> {
    ensure!(run.module.contains(&format!("max_spans={KEPT}")), "the driver was loaded with {:?}", run.module);
    let mut adder = Adder::new(0)?;
    let area = area(SPANS)?;
    let over = AtomicBool::new(false);
    let sweeps = thread::scope(|scope| {
        let cpu = scope.spawn(|| increment(&area, &over));
        let swept = (0..SWEEPS).try_for_each(|sweep| {
            step(format!("sweep {sweep}"));
            adder.add(&area, 0, 1)
        });
        over.store(true, Relaxed);
        let sweeps = cpu.join().map_err(|_| anyhow::anyhow!("the CPU's thread panicked"));
        swept.and(sweeps)
    })?;
    check(&area, SWEEPS + sweeps)?;
    let stats = adder.device.stats()?;
    statistics(&stats, "");
    metric("cpu_sweeps", sweeps);
    // Each sweep needs all spans, and finds no more than those that are kept.
    let least = SWEEPS * (SPANS - KEPT) - KEPT;
    ensure!(stats.evictions >= least, "expected {least} evictions at least, found {}", stats.evictions);
    Ok(Shown::Pass(format!(
        "{} evictions, and {} additions, none lost",
        stats.evictions,
        SPANS * WORDS * (SWEEPS + sweeps)
    )))
}

/// Adds 1 to every word, again and again. Returns how often.
fn increment(area: &Area, over: &AtomicBool) -> u64 {
    let mut sweeps = 0;
    while !over.load(Relaxed) {
        for word in 0..SPANS * WORDS {
            area.increment(word * STRIDE);
        }
        sweeps += 1;
    }
    sweeps
}
