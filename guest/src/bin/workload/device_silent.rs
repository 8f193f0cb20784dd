// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `device-silent`: the device stops answering its control queue while it works and holds pages. Its engines don't
//! know and write on; the CPU touches the pages and waits in the notifier, until the driver declares the device
//! dead. From then on every wait fails with ENODEV, no page changes by itself, and no update was lost.

use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Result, bail, ensure};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use svmx::{Device, Error, QueueSize, SharedSlice};

const PAGES: usize = 16;
const PER_PAGE: usize = 512;
/// Words of a page: the device's, the CPU's.
const BY_DEVICE: usize = 0;
const BY_CPU: usize = 1;
/// What a device takes that answers.
const ANSWER: Duration = Duration::from_secs(1);

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let memory = SharedSlice::<u64>::zeroed(PAGES * PER_PAGE)?;
    let mut queue = device.create_queue(QueueSize::default())?;
    let every_page = memory.strided(BY_DEVICE, PER_PAGE as i32, PAGES as u32)?.fetch_add(1);
    let (begun, mut rounds, mut touches, mut longest) = (Instant::now(), 0, 0, Duration::ZERO);
    step("working until the device is silent");
    'lost: loop {
        match queue.submit(&every_page) {
            Err(Error::DeviceLost) => break,
            submitted => submitted?,
        }
        loop {
            ensure!(begun.elapsed() < run.part(1, 2), "the device still answers after {rounds} commands");
            let asked = Instant::now();
            touch(&memory);
            touches += 1;
            longest = longest.max(asked.elapsed());
            match queue.complete(Some(ANSWER)) {
                Ok(completion) if completion.status.is_success() => break,
                // Nobody has noticed: a REPLAY that is not executed is missed by none but us.
                Err(Error::TimedOut) => {}
                Err(Error::DeviceLost) => break 'lost,
                other => bail!("command {rounds}: {other:?}"),
            }
        }
        rounds += 1;
    }
    metric("commands", rounds);
    metric("longest_touch_ms", longest.as_millis() as u64);
    step("reading and writing the memory of a dead device");
    ensure!(rounds > 0, "the device never answered");
    verify(&memory, rounds, touches)?;
    match queue.submit(&every_page).and_then(|()| queue.complete(Some(ANSWER)).map(drop)) {
        Err(Error::DeviceLost) => {}
        other => bail!("expected ENODEV from a dead device, found {other:?}"),
    }
    drop((queue, device));
    verify(&memory, rounds, touches)?;
    Ok(Shown::Pass(format!("silent after {rounds} commands, and every update is there")))
}

/// The CPU wants every page.
fn touch(memory: &SharedSlice<u64>) {
    memory.chunks(PER_PAGE).for_each(|page| _ = page[BY_CPU].fetch_add(1, Relaxed));
}

/// The last command may have been done in part.
fn verify(memory: &SharedSlice<u64>, rounds: u64, touches: u64) -> Result<()> {
    for (number, page) in memory.chunks(PER_PAGE).enumerate() {
        let [device, cpu] = [BY_DEVICE, BY_CPU].map(|word| page[word].load(Relaxed));
        ensure!((rounds..=rounds + 1).contains(&device), "page {number}: {device} of {rounds} by the device");
        ensure!(cpu == touches, "page {number}: {cpu} of {touches} by the CPU");
    }
    Ok(())
}
