// SPDX-License-Identifier: Apache-2.0 OR MIT

//! WAIT (spec 5.7): every condition, time-outs, and what ends one: a store of a CPU thread, a command of
//! another queue, the end of its queue.

use super::reference::Memory;
use super::{Bench, W32, W64, values};
use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::random::Random;
use crate::scenario::{Run, patience, step};
use anyhow::{Context, Result, ensure};
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::queue::{Opcode, Sqe, WAIT_FOREVER, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Condition, Device, QueueSize};

/// How long a WAIT is left to itself before what it waits for happens.
const A_WHILE: Duration = Duration::from_millis(5);

fn entry(width: WidthLog2, addr: u64, condition: Condition, value: u64, nanoseconds: u64) -> Sqe {
    let arg1 = condition as u64;
    Sqe { opcode: Opcode::WAIT, width, addr, compare: value, arg0: nanoseconds, arg1, ..Sqe::default() }
}

pub(super) fn wait(bench: &mut Bench, run: &Run) -> Result<()> {
    conditions(bench, run)?;
    timeouts(bench)?;
    step("wait: woken");
    let area = Area::new(Backing::Private, 2 * PAGE)?;
    let shared = Area::new(Backing::Memfd, 2 * PAGE)?;
    for (round, area) in [&area, &shared, &area].into_iter().enumerate() {
        by_a_cpu(bench, area, round as u64)?;
    }
    by_a_queue(bench, &area)?;
    by_its_end(bench, &area)
}

/// Every condition × width × pair of edge values, looked at once.
fn conditions(bench: &mut Bench, run: &Run) -> Result<()> {
    step("wait: conditions");
    let mut random = Random::part(run.seed, 11);
    let mut memory = Memory::of([Area::new(Backing::Private, PAGE)?]);
    for width in [W32, W64] {
        for condition in Condition::ALL {
            let values = values::integers(width, &mut random);
            for &value in &values {
                let at = random.below(PAGE >> width.0) << width.0;
                memory.store(0, at, width, *random.pick(&values));
                let compare = if random.one_in(3) { memory.copy_of(0, at, width) } else { value };
                let wait = entry(width, memory.address(0, at), condition, compare as u64, 0);
                bench.agree(&wait, &mut memory)?;
            }
        }
    }
    Ok(())
}

/// A time that passes: not too early, and the value seen last.
fn timeouts(bench: &mut Bench) -> Result<()> {
    step("wait: time-outs");
    let area = Area::new(Backing::Private, PAGE)?;
    area.store(8, W64, 77);
    for time in [Duration::ZERO, Duration::from_micros(30), Duration::from_millis(20)] {
        let wait = entry(W64, area.address(8), Condition::Eq, 78, time.as_nanos() as u64);
        let start = Instant::now();
        let found = bench.expect(&wait, Status::TIMEOUT, 0, Some(0))?;
        ensure!(found.result == 77, "expected the value seen last, found {found:x?}");
        ensure!(start.elapsed() >= time, "{time:?} were over after {:?}", start.elapsed());
    }
    // It neither changes anything nor keeps the CPU from it.
    ensure!(area.load(8, W64) == 77, "a WAIT changed what it waits for");
    Ok(())
}

/// A CPU thread stores what is waited for. Everything that it stored before is seen by what comes after.
fn by_a_cpu(bench: &mut Bench, area: &Area, round: u64) -> Result<()> {
    let (flag, data) = (PAGE, 64);
    for (n, nanoseconds) in [WAIT_FOREVER, patience().as_nanos() as u64, WAIT_FOREVER].into_iter().enumerate()
    {
        let go = 10 * round + n as u64 + 1;
        area.store(data, W64, 0);
        let wait = entry(W64, area.address(flag), Condition::Eq, go, nanoseconds);
        bench.queue.submit(&wait)?;
        bench.queue.submit(&scalar(Opcode::READ, W64, area.address(data), 0))?;
        thread::sleep(A_WHILE);
        ensure!(bench.queue.running() == 2, "a WAIT did not wait");
        area.store(data, W64, go + 1000);
        area.store(flag, W64, go);
        let found = bench.queue.complete()?;
        ensure!(
            found.status.is_success() && (found.result, found.applied) == (go.into(), 1),
            "expected {go}, found {found:x?}"
        );
        let found = bench.queue.complete()?;
        ensure!(found.result == u128::from(go + 1000), "expected {}, found {found:x?}", go + 1000);
        bench.checks += 2;
    }
    Ok(())
}

/// Another queue does what is waited for, by WRITEs and by atomics; and goes on while this one waits.
fn by_a_queue(bench: &mut Bench, area: &Area) -> Result<()> {
    step("wait: for another queue");
    let mut other = queue(&Device::open_nth(0)?)?;
    for (n, opcode) in [Opcode::WRITE, Opcode::FETCH_ADD, Opcode::WRITE, Opcode::SWAP].into_iter().enumerate()
    {
        area.store(0, W32, 0);
        let wait = entry(W32, area.address(0), Condition::Sgt, 4, WAIT_FOREVER);
        bench.queue.submit(&wait)?;
        for value in 0..20 {
            let found = other.execute(&scalar(Opcode::FETCH_ADD, W64, area.address(PAGE + 8), value))?;
            ensure!(found.status.is_success(), "{found:x?} while another queue waits");
        }
        ensure!(bench.queue.running() == 1, "a WAIT did not wait");
        let found = other.execute(&scalar(opcode, W32, area.address(0), 5))?;
        ensure!(found.status.is_success(), "{found:x?}");
        let found = bench.queue.complete().with_context(|| format!("round {n}"))?;
        ensure!(found.status.is_success() && found.result == 5, "expected 5, found {found:x?}");
        bench.checks += 1;
    }
    Ok(())
}

/// A WAIT without end ends with its queue, at once.
fn by_its_end(bench: &mut Bench, area: &Area) -> Result<()> {
    step("wait: without end");
    let device = Device::open_nth(0)?;
    for _ in 0..5 {
        let mut queue = queue(&device)?;
        area.store(0, W64, 0);
        queue.submit(&entry(W64, area.address(0), Condition::Ne, 0, WAIT_FOREVER))?;
        thread::sleep(A_WHILE);
        ensure!(queue.running() == 1, "a WAIT did not wait");
        queue.destroy()?;
        bench.checks += 1;
    }
    Ok(())
}

fn queue(device: &Device) -> Result<RawQueue> {
    let queue = device.create_queue(QueueSize::default())?;
    // SAFETY: it names the areas of `wait`, which are reached through atomics only and outlive it.
    Ok(unsafe { RawQueue::new(queue) })
}
