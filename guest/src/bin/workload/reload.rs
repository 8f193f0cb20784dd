// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `reload`: the driver can't be unloaded while it is in use, can when it is not, and works each time.

use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use svmx::module::{self, ModuleError};
use svmx::{Device, QueueSize, SharedSlice};

const ROUNDS: u32 = 20;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    ensure!(!module::is_loaded(), "the driver is loaded already");
    let (mut refused, mut ops) = (0u32, 0u64);
    for round in 0..ROUNDS {
        step(format!("round {round}: loading"));
        module::load(&run.module)?;
        module::wait_for_devices(run.devices, Duration::from_secs(10))?;
        for n in 0..run.devices {
            step(format!("round {round}: working on device {n}"));
            let device = Device::open_nth(n)?;
            must_refuse("with an open file")?;
            ops += work(&device, round)?;
            drop(device);
            refused += 2;
        }
        step(format!("round {round}: unloading"));
        unload_when_unused()?;
        for n in 0..run.devices {
            ensure!(!Device::path(n).exists(), "{:?} is there without a driver", Device::path(n));
        }
    }
    ensure!(refused > 0, "no unload was tried while a device was in use: there are no devices");
    metric("rounds", ROUNDS);
    metric("refused", refused);
    metric("device_ops", ops);
    Ok(Shown::Pass(format!("{ROUNDS} loads and unloads, {refused} unloads refused while in use")))
}

fn must_refuse(when: &str) -> Result<()> {
    match module::unload() {
        Err(ModuleError::Unload(Errno::EAGAIN | Errno::EBUSY)) => Ok(()),
        other => bail!("expected EAGAIN or EBUSY {when}, found {other:?}"),
    }
}

fn unload_when_unused() -> Result<()> {
    let start = Instant::now();
    loop {
        match module::unload() {
            Ok(()) => return Ok(()),
            // The last close may be on its way.
            Err(ModuleError::Unload(Errno::EAGAIN)) if start.elapsed() < Duration::from_secs(1) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("not in use"),
        }
    }
}

/// Some atomics; every other time the queue, with a command running, is left to the close.
fn work(device: &Device, round: u32) -> Result<u64> {
    let mut queue = device.create_queue(QueueSize::default())?;
    let counters = SharedSlice::<u64>::zeroed(8 * 512)?;
    for _ in 0..10 {
        let completion = queue.execute(&counters.strided(0, 512, 8)?.fetch_add(1))?;
        ensure!(completion.status.is_success(), "{completion:?}");
    }
    for (page, counter) in counters.iter().step_by(512).enumerate() {
        let found = counter.load(Relaxed);
        ensure!(found == 10, "page {page}: expected 10, found {found}");
    }
    queue.submit(&counters.strided(0, 0, 1 << 20)?.fetch_add(1))?;
    must_refuse("with a command running")?;
    if round.is_multiple_of(2) {
        queue.destroy()?;
    }
    Ok(80)
}
