// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `huge`: memory that the CPU maps by 2 MiB is mapped so on the device too: a copy of 64 MiB is a fault for each 2 MiB at
//! most. And it stays right when huge pages are split, discarded in part, or atomics come to them, also in the middle of copies.
#![expect(
    unsafe_code,
    reason = "submits entries that name an area, and gives the kernel advice on its pages"
)]

use crate::area::{Area, PAGE, RawQueue};
use crate::counter::statistics;
use crate::link::metric;
use crate::random::Random;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use nix::libc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::{Device, QueueSize};

const HUGE: u64 = 2 << 20;
/// Of each of the two areas: 64 MiB.
const HUGES: u64 = 32;
const LEN: u64 = HUGES * HUGE;
/// What is copied while huge pages are split: 8 MiB, that many times.
const SPLIT: u64 = 4 * HUGE;
const COPIES: u64 = 4;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    // SAFETY: every entry names an area.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    step("populate");
    let (from, to) = (area()?, area()?);
    fill(&from, LEN, 1);
    fill(&to, LEN, 0);
    let have = huge_bytes(&from)? + huge_bytes(&to)?;
    if have < 2 * LEN {
        return Ok(Shown::Skip(format!("the kernel had only {} MiB in huge pages", have >> 20)));
    }
    step("copy");
    copy(&mut queue, &from, &to, LEN)?;
    let stats = device.stats()?;
    let (faults, huge) = (stats.faults, stats.huge_grants);
    metric("copy_faults", faults);
    ensure!(huge == 2 * HUGES, "expected {} mappings of 2 MiB, found {huge}", 2 * HUGES);
    ensure!(faults <= 2 * HUGES, "expected a fault for each 2 MiB at most, found {faults}");
    check(&to, LEN, |offset| word(offset, 1))?;
    step("atomics");
    atomics(&mut queue, &to)?;
    let exclusive = device.stats()?.grants;
    ensure!(exclusive == HUGES, "expected {HUGES} exclusive grants, found {exclusive}");
    step("discard");
    discarded(&mut queue, &from, &to)?;
    metric("discard_faults", device.stats()?.faults - faults);
    step("splits");
    let splits = split(&mut queue, &from, &to, Random::part(run.seed, 1))?;
    metric("splits", splits);
    statistics(&*device.stats()?, "");
    Ok(Shown::Pass(format!(
        "{huge} mappings of 2 MiB by {faults} faults, and {splits} huge pages split meanwhile"
    )))
}

/// Private memory that asks for huge pages.
fn area() -> Result<Area> {
    let room = Area::room(LEN + HUGE)?;
    let area = Area::at(room.next_multiple_of(HUGE), LEN)?;
    area.huge()?;
    Ok(area)
}

/// What word `offset` of an area holds in `round`.
fn word(offset: u64, round: u64) -> u64 {
    offset << 8 | round
}

fn fill(area: &Area, len: u64, round: u64) {
    for offset in (0..len).step_by(8) {
        area.store(offset, WidthLog2::W64, word(offset, round));
    }
}

fn check(area: &Area, len: u64, expected: impl Fn(u64) -> u64) -> Result<()> {
    for offset in (0..len).step_by(8) {
        let (found, expected) = (area.load(offset, WidthLog2::W64), expected(offset));
        ensure!(found == expected, "word at {offset:#x}: expected {expected:#x}, found {found:#x}");
    }
    Ok(())
}

fn copy(queue: &mut RawQueue, from: &Area, to: &Area, len: u64) -> Result<()> {
    let done = queue.execute(&Sqe {
        opcode: Opcode::COPY,
        width: WidthLog2::W64,
        addr: to.address(0),
        arg0: from.address(0),
        count: u32::try_from(len / 8)?,
        ..Sqe::default()
    })?;
    ensure!(done.status.is_success(), "{done:?}");
    Ok(())
}

/// Atomics on one page of each 2 MiB that the device has as such.
fn atomics(queue: &mut RawQueue, area: &Area) -> Result<()> {
    for base in (0..LEN).step_by(HUGE as usize) {
        let offset = base + 5 * PAGE;
        let add = Sqe {
            opcode: Opcode::FETCH_ADD,
            width: WidthLog2::W64,
            addr: area.address(offset),
            operand: 1,
            ..Sqe::default()
        };
        let done = queue.execute(&add)?;
        ensure!(done.status.is_success() && done.result == word(offset, 1).into(), "{done:?}");
    }
    check(area, LEN, |offset| word(offset, 1) + u64::from(offset % HUGE == 5 * PAGE))
}

/// A page in the middle of each 2 MiB loses its content, and the device sees so.
fn discarded(queue: &mut RawQueue, from: &Area, to: &Area) -> Result<()> {
    fill(from, LEN, 2);
    for base in (0..LEN).step_by(HUGE as usize) {
        advise(from, base + 7 * PAGE, libc::MADV_DONTNEED)?;
    }
    copy(queue, from, to, LEN)?;
    let gone = |offset: u64| offset % HUGE / PAGE == 7;
    check(to, LEN, |offset| if gone(offset) { 0 } else { word(offset, 2) })
}

/// Copies while a thread splits huge pages on both sides, which were put together again before. Returns how many were split.
fn split(queue: &mut RawQueue, from: &Area, to: &Area, mut random: Random) -> Result<u64> {
    let before = pages_split()?;
    for round in 3..3 + COPIES {
        fill(from, SPLIT, round);
        for area in [from, to] {
            collapse(area)?;
        }
        let over = AtomicBool::new(false);
        let copied = thread::scope(|scope| {
            let splitter = scope.spawn(|| splitter(from, to, &over, &mut random));
            let copied = copy(queue, from, to, SPLIT);
            over.store(true, Relaxed);
            splitter.join().map_err(|_| anyhow::anyhow!("the splitting thread panicked"))??;
            copied
        });
        copied.with_context(|| format!("round {round}"))?;
        check(to, SPLIT, |offset| word(offset, round)).with_context(|| format!("round {round}"))?;
    }
    let splits = pages_split()? - before;
    ensure!(splits > 0, "no huge page was split");
    Ok(splits)
}

fn splitter(from: &Area, to: &Area, over: &AtomicBool, random: &mut Random) -> Result<()> {
    loop {
        // Advice on a part of a huge page splits it.
        advise(random.pick::<&Area>(&[from, to]), random.below(SPLIT / PAGE) * PAGE, libc::MADV_COLD)?;
        if over.load(Relaxed) {
            return Ok(());
        }
    }
}

/// Huge pages that the kernel has split since it started.
fn pages_split() -> Result<u64> {
    let vmstat = std::fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let line = vmstat.lines().find_map(|line| line.strip_prefix("thp_split_page "));
    Ok(line.context("/proc/vmstat has no thp_split_page")?.parse()?)
}

/// Asks for huge pages where they were split. Without enough memory in one piece it stays as it is.
fn collapse(area: &Area) -> Result<()> {
    for base in (0..SPLIT).step_by(HUGE as usize) {
        // SAFETY: the range is in the area, and its content stays.
        let done = unsafe { libc::madvise(area.address(base) as *mut _, HUGE as usize, libc::MADV_COLLAPSE) };
        let error = std::io::Error::last_os_error();
        let refused = [libc::EAGAIN, libc::ENOMEM, libc::EBUSY].map(Some).contains(&error.raw_os_error());
        ensure!(done == 0 || refused, "MADV_COLLAPSE: {error}");
    }
    Ok(())
}

fn advise(area: &Area, offset: u64, advice: i32) -> Result<()> {
    // SAFETY: the page is in the area, which nothing but atomics reaches; its content stays, or is replaced by zeroes.
    let done = unsafe { libc::madvise(area.address(offset) as *mut _, PAGE as usize, advice) };
    ensure!(done == 0, "madvise {advice}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// How much of the area the CPU maps by 2 MiB.
fn huge_bytes(area: &Area) -> Result<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    let header = format!("{:x}-", area.address(0));
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&header));
    let line = lines.find(|line| line.starts_with("AnonHugePages:")).context("no AnonHugePages")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib << 10)
}
