// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `mixture`: all events of the memory management at once, in a random order, over memory of several kinds, while
//! queues of two contexts and CPU threads add to it. Now and then everybody stops, and every counter must be
//! the number of additions that were made, every pattern what it was.
//!
//! What each thread does is a function of the seed and of how far it is; which thread is first is the scheduler's.

mod actors;
mod events;
mod region;

use crate::link::metric;
use crate::random::Random;
use crate::scenario::{Run, Shown, patience, step};
use crate::system::memcg::Group;
use crate::system::numa;
use crate::system::swap::Swap;
use anyhow::{Context, Result, anyhow, ensure};
use events::{EVENTS, Tools};
use region::Region;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};
use svmx::Device;

/// How long it goes on if nobody says.
const DURATION: Duration = Duration::from_secs(60);
/// From one check to the next.
const INTERVAL: Duration = Duration::from_secs(5);
const SWAP_SPACE: u64 = 128 << 20;
/// Threads of each kind.
const CONTEXTS: u64 = 2;
const QUEUES: u64 = 2;
const CPU_THREADS: u64 = 2;
const EVENT_THREADS: u64 = 2;
/// Events that a failure tells of.
const MEMORY: usize = 40;
/// Of which the watchdog tells these.
const LAST: usize = 6;

/// What all threads share.
struct World {
    seed: u64,
    regions: Vec<Region>,
    tools: Tools,
    /// Held for reading by whoever does a step, for writing while all is checked.
    gate: RwLock<()>,
    stop: AtomicBool,
    device_ops: AtomicU64,
    cpu_ops: AtomicU64,
    /// Commands that met a moment in which the memory could not be reached.
    turned_away: AtomicU64,
    /// How often each event happened.
    happened: Vec<AtomicU64>,
    /// The last events, for a failure.
    late: Mutex<VecDeque<String>>,
    failure: Mutex<Option<anyhow::Error>>,
}

impl World {
    /// Does `one` again and again until it is time to stop, and says at which step it failed.
    fn steps(&self, who: &str, mut one: impl FnMut(u64) -> Result<()>) {
        for n in 0.. {
            if self.stop.load(Relaxed) {
                return;
            }
            let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let result = one(n);
            drop(gate);
            if let Err(error) = result {
                return self.fail(error.context(format!("{who}, step {n}")));
            }
        }
    }

    /// The first failure counts. All threads end.
    fn fail(&self, error: anyhow::Error) {
        self.stop.store(true, Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Keeps what is about to happen, for a failure. If nothing goes on, the last of it is where it hangs.
    fn note(&self, what: String) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if late.len() == MEMORY {
            late.pop_front();
        }
        late.push_back(what);
        let last: Vec<_> = late.iter().rev().take(LAST).map(String::as_str).collect();
        step(format!("(the last first) {}", last.join("; ")));
    }

    /// Compares all memory with what was done to it. Nobody else is at work.
    fn check(&self) -> Result<()> {
        for (n, region) in self.regions.iter().enumerate() {
            region.check().with_context(|| format!("region {n} ({:?})", region.kind))?;
        }
        Ok(())
    }
}

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let duration = run.duration.unwrap_or(DURATION);
    let _swap = Swap::on(SWAP_SPACE)?;
    let group = Group::new("mixture")?;
    Group::join("mixture")?;
    let nodes = numa::nodes()?;
    ensure!(nodes.len() > 1, "the machine has the nodes {nodes:?}");
    let mut random = Random::part(run.seed, 0);
    let tools = Tools::new(group, nodes)?;
    let regions = region::all(&mut random, &tools.uffd)?;
    let world = World {
        seed: run.seed,
        regions,
        tools,
        gate: RwLock::new(()),
        stop: AtomicBool::new(false),
        device_ops: AtomicU64::new(0),
        cpu_ops: AtomicU64::new(0),
        turned_away: AtomicU64::new(0),
        happened: EVENTS.iter().map(|_| AtomicU64::new(0)).collect(),
        late: Mutex::new(VecDeque::new()),
        failure: Mutex::new(None),
    };
    let devices = (0..CONTEXTS).map(|_| Device::open_nth(0)).collect::<Result<Vec<_>, _>>()?;
    let checks = thread::scope(|scope| {
        // Ends when nobody can have a fault any more.
        let server = scope.spawn(|| events::serve(&world));
        let actors: Vec<_> = actors::all(&devices)?
            .into_iter()
            .map(|actor| {
                let world = &world;
                scope.spawn(move || actor(world))
            })
            .collect();
        let checks = supervise(&world, duration);
        world.stop.store(true, Relaxed);
        let ended: Vec<_> = actors.into_iter().map(|actor| actor.join()).collect();
        let last =
            if ended.iter().all(Result::is_ok) { world.check() } else { Err(anyhow!("a thread panicked")) };
        world.tools.over.store(true, Relaxed);
        drop(server.join());
        last.and(checks)
    });
    conclude(run, &world, &devices, checks)
}

/// Checks now and then, until it is time. Returns how often.
fn supervise(world: &World, duration: Duration) -> Result<u64> {
    let (start, mut checks) = (Instant::now(), 0);
    while start.elapsed() < duration && !world.stop.load(Relaxed) {
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next && !world.stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        world.note(format!("check {checks}"));
        let everybody = world.gate.write().unwrap_or_else(PoisonError::into_inner);
        world.check().inspect_err(|_| world.stop.store(true, Relaxed))?;
        drop(everybody);
        checks += 1;
    }
    Ok(checks)
}

fn conclude(run: &Run, world: &World, devices: &[Device], checks: Result<u64>) -> Result<Shown> {
    let failure = world.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    let late = || {
        let late = world.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.iter().cloned().collect::<Vec<_>>().join("; ")
    };
    let told = || format!("seed {}; the last events: {}", run.seed, late());
    let checks = match failure {
        Some(error) => return Err(error.context(told())),
        None => checks.with_context(told)?,
    };
    let mut revocations = 0;
    for device in devices {
        revocations += device.stats()?.revocations;
    }
    let (device_ops, cpu_ops) = (world.device_ops.load(Relaxed), world.cpu_ops.load(Relaxed));
    metric("device_ops", device_ops);
    metric("cpu_ops", cpu_ops);
    metric("checks", checks);
    metric("revocations", revocations);
    metric("turned_away", world.turned_away.load(Relaxed));
    metric("shared_with_children", world.tools.shared.load(Relaxed));
    let mut events = 0;
    for (event, happened) in EVENTS.iter().zip(&world.happened) {
        let happened = happened.load(Relaxed);
        metric(&format!("event_{}", event.name.replace('-', "_")), happened);
        events += happened;
    }
    ensure!(device_ops > 0 && cpu_ops > 0 && revocations > 0, "nothing happened in {:?}", patience());
    let kinds = world.happened.iter().filter(|happened| happened.load(Relaxed) > 0).count();
    ensure!(2 * kinds > EVENTS.len(), "of {} events only {kinds} happened", EVENTS.len());
    Ok(Shown::Pass(format!(
        "{events} events of {kinds} kinds, {device_ops} additions by the device and {cpu_ops} by CPUs, all exact at {} checks",
        checks + 1
    )))
}
