// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Waiting with poll(2) on the device's file (spec 9.4): readable while a completion was not taken.

use super::Bench;
use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::scenario::{Run, patience, step};
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::{Device, QueueSize};

/// How long a sleeper is left alone, so that it sleeps.
const ASLEEP: Duration = Duration::from_millis(50);

pub(super) fn poll(bench: &mut Bench, _: &Run) -> Result<()> {
    let device = Device::open_nth(0)?;
    let area = Area::new(Backing::Private, PAGE)?;
    let add = scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1);
    // Two rounds: the first file has no queue when the poll begins.
    step("poll: a queue that comes later");
    let mut queue = woken(&device, || {
        let mut queue = queue(&device)?;
        queue.submit(&add)?;
        Ok(queue)
    })?;
    taken(&device, &mut queue)?;

    step("poll: nothing in flight");
    ensure!(!readable(&device, Duration::ZERO)?, "readable without a command");
    let start = Instant::now();
    ensure!(!readable(&device, ASLEEP)?, "readable without a command");
    ensure!(start.elapsed() >= ASLEEP, "it did not wait: {:?}", start.elapsed());

    step("poll: a completion that is there");
    queue.submit(&add)?;
    let start = Instant::now();
    while queue.running() > 0 {
        ensure!(start.elapsed() < patience(), "the command does not complete");
        thread::yield_now();
    }
    ensure!(readable(&device, Duration::ZERO)?, "not readable, and a completion is there");
    taken(&device, &mut queue)?;

    step("poll: a completion that comes");
    woken(&device, || queue.submit(&add))?;
    taken(&device, &mut queue)?;
    ensure!(area.load(0, WidthLog2::W64) == 3, "expected 3 additions");
    // And it goes on like any other.
    let found = queue.execute(&Sqe::default())?;
    ensure!(found.status.is_success(), "{found:?}");
    bench.checks += 4;
    Ok(())
}

fn queue(device: &Device) -> Result<RawQueue> {
    let queue = device.create_queue(QueueSize::default())?;
    // SAFETY: it names the area of `poll`, which is reached through atomics only and outlives it.
    Ok(unsafe { RawQueue::new(queue) })
}

/// Whether the file is or becomes readable.
fn readable(device: &Device, timeout: Duration) -> Result<bool> {
    let mut polled = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, PollTimeout::try_from(timeout)?)?;
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    ensure!((PollFlags::POLLIN | PollFlags::empty()).contains(events), "poll says {events:?}");
    Ok(!events.is_empty())
}

/// Lets a thread poll, does something once it sleeps, and sees it woken.
fn woken<T>(device: &Device, act: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| readable(device, patience()));
        thread::sleep(ASLEEP);
        ensure!(!sleeper.is_finished(), "poll returned before there was a command");
        let result = act().context("while somebody polls")?;
        let woken = sleeper.join().map_err(|_| anyhow::anyhow!("the polling thread panicked"))??;
        ensure!(woken, "poll slept through a completion");
        Ok(result)
    })
}

/// Takes the one completion; then the file is not readable any more.
fn taken(device: &Device, queue: &mut RawQueue) -> Result<()> {
    let found = queue.complete()?;
    ensure!(found.status.is_success(), "{found:?}");
    ensure!(!readable(device, Duration::ZERO)?, "readable, and its only completion is taken");
    Ok(())
}
