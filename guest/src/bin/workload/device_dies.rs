// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `device-dies`: the device's process is killed while it holds pages exclusively, with a command running and
//! threads asleep in WAIT. The threads get ENODEV within five seconds and the memory stays the CPU's. With
//! the first device the CPU touches the pages at once, so an invalidation finds the device dead; with the
//! second, if there is one, nobody touches anything until the threads have come back.
//!
//! `device-given-up`: the same with a process that is stopped until the VMM has given the device up. Each access
//! that the driver tries until then takes as long as the VMM's patience, so it takes longer; and later the process goes on.

use crate::link::{self, metric};
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use svmx::report::Action;
use svmx::{Device, Error, Queue, QueueSize, SharedSlice};

const PAGES: usize = 64;
const PER_PAGE: usize = 512;
/// How long a dead device may take to be known as such.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// A few accesses, each of which takes the VMM's patience.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(60);
/// How long a process is stopped, in seconds: longer than it takes until the memory is the CPU's.
const STOPPED: u32 = 25;
/// How often memory is touched at most before it is verified.
const MOST_TOUCHES: u64 = 4;
/// Elements of the command that runs when the device dies.
const RUNNING: u32 = u32::MAX;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    for n in 0..run.devices.min(2) {
        let (action, within) = (Action::KillDevice { device: n }, KILLED_WITHIN);
        lose(n, action, within, n == 0).with_context(|| format!("device {n}"))?;
    }
    Ok(Shown::Pass("every wait returned ENODEV in time, and all memory works".into()))
}

pub(crate) fn given_up(_: &Run) -> Result<Shown> {
    let action = Action::StopDevice { device: 0, seconds: STOPPED };
    let (memory, stopped) = lose(0, action, GIVEN_UP_WITHIN, true)?;
    step("waiting until the process has gone on");
    let gone_on = Duration::from_secs(STOPPED.into()) + KILLED_WITHIN;
    thread::sleep(gone_on.saturating_sub(stopped.elapsed()));
    touch(&memory)?;
    verify(&memory)?;
    Ok(Shown::Pass("every wait returned ENODEV, and all memory works, also when the process goes on".into()))
}

type Return = (&'static str, Result<(), Error>);

/// Loses device `n` by `action`; returns the memory that it had, and when the action was asked for.
fn lose(
    n: u32,
    action: Action,
    within: Duration,
    touch_at_once: bool,
) -> Result<(SharedSlice<u64>, Instant)> {
    step(format!("device {n}: taking pages"));
    let device = Device::open_nth(n)?;
    let memory = SharedSlice::<u64>::zeroed(PAGES * PER_PAGE)?;
    for (element, word) in memory.iter().enumerate() {
        word.store(element as u64, Relaxed);
    }
    let mut holder = device.create_queue(QueueSize::default())?;
    let every_page = memory.strided(1, PER_PAGE as i32, PAGES as u32)?.fetch_add(1);
    let completion = holder.execute(&every_page)?;
    ensure!(completion.status.is_success(), "{completion:?}");
    let grants = device.stats()?.grants;
    ensure!(grants >= PAGES as u64, "expected {PAGES} pages held, found {grants} grants");

    let (sender, returns) = channel();
    let mut running = device.create_queue(QueueSize::default())?;
    running.submit(&memory.strided(2, 0, RUNNING)?.fetch_add(1))?;
    let idle = device.create_queue(QueueSize::default())?;
    sleep_on_command(running, sender.clone());
    sleep_on_nothing(&device, &idle, sender);
    thread::sleep(Duration::from_millis(100));
    ensure!(returns.try_recv().is_err(), "a wait returned before the device died");

    step(format!("device {n}: asking the host for {action:?}"));
    // Before the request: it is dead some time before the answer is here.
    let killed = Instant::now();
    link::request(action)?;
    if touch_at_once {
        step(format!("device {n}: touching the pages of a dead device"));
        touch(&memory)?;
        metric(&format!("touched_after_ms_{n}"), killed.elapsed().as_millis() as u64);
    }
    step(format!("device {n}: waiting for the sleepers"));
    let late = collect(&returns, killed, within)?;
    metric(&format!("enodev_after_ms_{n}"), late.as_millis() as u64);
    step(format!("device {n}: reading and writing all memory"));
    touch(&memory)?;
    verify(&memory)?;
    step(format!("device {n}: closing"));
    // Either call may say so; what matters is that both come back.
    match holder.submit(&every_page).and_then(|()| holder.complete(Some(within)).map(drop)) {
        Err(Error::DeviceLost) => {}
        other => bail!("expected ENODEV from a dead device, found {other:?}"),
    }
    drop((holder, idle, device));
    touch(&memory)?;
    Ok((memory, killed))
}

fn sleep_on_command(mut queue: Queue, sender: Sender<Return>) {
    queue.set_spin(Duration::ZERO);
    thread::spawn(move || {
        let result = queue.complete(None).map(drop);
        // The scenario may have failed and gone.
        let _ = sender.send(("a command that runs", result));
    });
}

fn sleep_on_nothing(device: &Device, queue: &Queue, sender: Sender<Return>) {
    let (device, id, index) = (device.clone(), queue.id(), queue.next_completion());
    thread::spawn(move || {
        let _ = sender.send(("a queue without commands", device.wait(id, index, None)));
    });
}

/// Both sleepers' returns, and when the last came.
fn collect(returns: &Receiver<Return>, killed: Instant, within: Duration) -> Result<Duration> {
    for _ in 0..2 {
        let left = within.saturating_sub(killed.elapsed());
        match returns.recv_timeout(left.max(Duration::from_millis(1))) {
            Ok((_, Err(Error::DeviceLost))) => {}
            Ok((what, other)) => bail!("waiting for {what}: expected ENODEV, found {other:?}"),
            Err(_) => bail!("a wait did not return within {within:?}"),
        }
    }
    Ok(killed.elapsed())
}

/// Reads and writes every word: the last of each page counts the touches.
fn touch(memory: &SharedSlice<u64>) -> Result<()> {
    for page in memory.chunks(PER_PAGE) {
        let sum = page.iter().fold(0u64, |sum, word| sum.wrapping_add(word.load(Relaxed)));
        page[PER_PAGE - 1].fetch_add(1, Relaxed);
        let again = page.iter().fold(0u64, |sum, word| sum.wrapping_add(word.load(Relaxed)));
        // The device may have written in the first page until it was dead; never afterwards.
        ensure!(page[0].load(Relaxed) == 0 || sum.wrapping_add(1) == again, "memory changes by itself");
    }
    Ok(())
}

/// Every word is what CPU and device made it, within what the device may not have come to.
fn verify(memory: &SharedSlice<u64>) -> Result<()> {
    for (element, word) in memory.iter().enumerate() {
        let (start, found) = (element as u64, word.load(Relaxed));
        let (page, offset) = (element / PER_PAGE, element % PER_PAGE);
        let most = match (page, offset) {
            (0, 2) => start + u64::from(RUNNING),
            (_, 1) => start + 1,
            (_, offset) if offset == PER_PAGE - 1 => start + MOST_TOUCHES,
            _ => start,
        };
        let least = if offset == 1 { start + 1 } else { start };
        ensure!(
            (least..=most).contains(&found),
            "element {element}: expected {least} to {most}, found {found}"
        );
    }
    Ok(())
}
