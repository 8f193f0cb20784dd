// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `device-stops`: the device's process is stopped in the midst of a contest over the same counters, and continued after
//! 2 s, then after 20 s. The machine waits for it as for a device that is slow: nothing is lost, no wait fails.

use crate::contest::{Counters, Goals};
use crate::link::{self, metric};
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, anyhow, ensure};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use svmx::report::Action;
use svmx::{Command, Device, QueueSize, SharedSlice};

/// Seconds: less than the driver waits for a device, and more.
const STOPS: [u32; 2] = [2, 20];
/// Before and after a stop all goes on as ever.
const AROUND: Duration = Duration::from_secs(2);

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let mut updates = 0;
    for seconds in STOPS {
        updates += stop(run, &device, seconds).with_context(|| format!("stopped for {seconds} s"))?;
    }
    Ok(Shown::Pass(format!("{updates} updates by CPUs and device around stops of {STOPS:?} s, none lost")))
}

/// One contest with a stop in it; the updates that were made.
fn stop(run: &Run, device: &Device, seconds: u32) -> Result<u64> {
    step(format!("a contest with a stop of {seconds} s"));
    let counters = Counters::new()?;
    let stop = Duration::from_secs(seconds.into());
    let goals = Goals {
        cpu_ops: 1_000_000,
        device_ops: 20_000,
        grants: 0,
        at_least: AROUND + stop + AROUND,
        limit: run.part(2, 5),
    };
    let over = AtomicBool::new(false);
    let (score, longest) = thread::scope(|scope| {
        let request = scope.spawn(|| {
            thread::sleep(AROUND);
            link::request(Action::StopDevice { device: 0, seconds })
        });
        let prober = scope.spawn(|| probe(device, &over));
        let clock = scope.spawn(|| longest_nap(&over));
        let score = counters.contest(run, 2, std::slice::from_ref(device), goals);
        over.store(true, Relaxed);
        request.join().map_err(|_| anyhow!("the request panicked"))??;
        let longest = prober.join().map_err(|_| anyhow!("the probes panicked"))??;
        let nap = clock.join().map_err(|_| anyhow!("the clock panicked"))?;
        metric(&format!("machine_stood_still_ms_{seconds}"), nap.as_millis() as u64);
        Ok::<_, anyhow::Error>((score?, longest))
    })?;
    step("audit");
    metric(&format!("longest_pause_ms_{seconds}"), longest.as_millis() as u64);
    let audit = counters.audit(&score.book);
    ensure!(audit.wrong.is_empty(), "{} updates lost: {:?}", audit.lost, audit.wrong);
    // Else it was not stopped, and nothing is shown.
    ensure!(longest + Duration::from_millis(500) > stop, "the device's longest pause was {longest:?}");
    Ok(audit.expected)
}

/// Commands on memory that nobody else touches, one after the other: the longest time in which none was completed.
fn probe(device: &Device, over: &AtomicBool) -> Result<Duration> {
    let mut queue = device.create_queue(QueueSize::default())?;
    queue.set_spin(Duration::ZERO);
    let memory = SharedSlice::<u64>::zeroed(1)?;
    let (mut longest, mut made, mut last) = (Duration::ZERO, 0, Instant::now());
    while !over.load(Relaxed) {
        let completion = queue.execute(&Command::fetch_add(memory.at(0), 1))?;
        ensure!(completion.status.is_success() && completion.result == made, "probe {made}: {completion:?}");
        made += 1;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        thread::sleep(Duration::from_millis(1));
    }
    Ok(longest)
}

/// What the longest of many short sleeps took, by a thread that has nothing to do with the device.
fn longest_nap(over: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    while !over.load(Relaxed) {
        let start = Instant::now();
        thread::sleep(Duration::from_millis(1));
        longest = longest.max(start.elapsed());
    }
    longest
}
