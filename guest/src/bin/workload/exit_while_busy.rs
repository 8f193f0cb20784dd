// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `exit-while-busy`: a process exits, is killed, execs, forks, or unmaps its memory while commands run, 100
//! times. Afterwards every context and every queue that the device has can be had.

mod busy;

use crate::link::metric;
use crate::process::Process;
use crate::random::Random;
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use std::os::unix::process::ExitStatusExt;
use svmx::abi::pci::{MAX_CONTEXTS, MAX_QUEUES};
use svmx::{Command, Device, QueueSize, SharedSlice};

pub(crate) use busy::{after_exec, child};

const ROUNDS: usize = 100;
/// Of each kind at least.
const EACH: usize = 16;

/// How a process gives up its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exit,
    Kill,
    Exec,
    Fork,
    Unmap,
}

impl Kind {
    const ALL: [(&str, Kind); 5] = [
        ("exit", Kind::Exit),
        ("kill", Kind::Kill),
        ("exec", Kind::Exec),
        ("fork", Kind::Fork),
        ("unmap", Kind::Unmap),
    ];
}

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let mut random = Random::part(run.seed, 0);
    let mut kinds: Vec<_> = Kind::ALL.iter().flat_map(|kind| [kind; EACH]).collect();
    kinds.resize_with(ROUNDS, || random.pick(&Kind::ALL));
    for i in (1..ROUNDS).rev() {
        kinds.swap(i, random.below(i as u64 + 1) as usize);
    }
    let mut busy = Vec::new();
    for (round, &&(name, kind)) in kinds.iter().enumerate() {
        step(format!("round {round}: {name}"));
        let running = one(name, kind, &mut random).with_context(|| format!("round {round}: {name}"))?;
        busy.push((kind, running > 0));
    }
    for (name, kind) in Kind::ALL {
        let rounds = busy.iter().filter(|(other, _)| *other == kind).count();
        let busy = busy.iter().filter(|round| **round == (kind, true)).count();
        metric(name, rounds);
        metric(&format!("{name}_while_busy"), busy);
        ensure!(2 * busy >= rounds, "{name}: only {busy} of {rounds} processes were busy when they gave up");
    }
    step("all contexts");
    let contexts = all_contexts(0)?;
    step("all queues");
    let queues = all_queues()?;
    metric("contexts", contexts);
    metric("queues", queues);
    Ok(Shown::Pass(format!(
        "{ROUNDS} processes gave up while busy; {contexts} contexts and {queues} queues are free"
    )))
}

/// One process, and how many of its commands ran right before it gave up.
fn one(name: &str, kind: Kind, random: &mut Random) -> Result<usize> {
    let mut process = Process::start("busy", &[name.into(), random.next().to_string()])?;
    let line = process.line(patience())?;
    let running = line.strip_prefix("running ").and_then(|count| count.parse().ok());
    let running = running.with_context(|| format!("the child said {line:?}"))?;
    if kind == Kind::Kill {
        // Without delay: in what it said it was busy a moment ago.
        process.kill()?;
        let status = process.wait(patience())?;
        ensure!(status.signal() == Some(9), "expected death by SIGKILL, found {status}");
    } else {
        let status = process.wait(patience())?;
        ensure!(status.success(), "expected success, found {status}");
    }
    Ok(running)
}

/// Opens as many contexts as there are, but for those that this process has open.
pub(crate) fn all_contexts(open: u32) -> Result<u32> {
    setrlimit(Resource::RLIMIT_NOFILE, 4096, 4096)?;
    let mut contexts = Vec::new();
    for n in open..MAX_CONTEXTS {
        contexts
            .push(Device::open_nth(0).with_context(|| format!("context {n} of {MAX_CONTEXTS}: leaked?"))?);
    }
    let one_more = Device::open_nth(0);
    ensure!(one_more.is_err(), "there are more contexts than {MAX_CONTEXTS}");
    Ok(MAX_CONTEXTS)
}

/// Makes as many queues as there are, and uses the last.
fn all_queues() -> Result<u32> {
    let device = Device::open_nth(0)?;
    let size = QueueSize { sq_log2: 1, cq_log2: 1 };
    let mut queues = Vec::new();
    for n in 0..MAX_QUEUES {
        queues
            .push(device.create_queue(size).with_context(|| format!("queue {n} of {MAX_QUEUES}: leaked?"))?);
    }
    ensure!(device.create_queue(size).is_err(), "there are more queues than {MAX_QUEUES}");
    let memory = SharedSlice::<u64>::zeroed(1)?;
    let last = queues.last_mut().context("no queues")?;
    let found = last.execute(&Command::fetch_add(memory.at(0), 1))?;
    ensure!(found.status.is_success(), "{found:?}");
    Ok(MAX_QUEUES)
}
