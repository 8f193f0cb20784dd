// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A process that faults all the time and needs hardly any CPU for it: two contexts, each with many queues, whose
//! commands go round the same pages, so that each of these goes back and forth between the two.

use crate::process;
use crate::scenario::patience;
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use svmx::{Device, IndexArray, Queue, QueueSize, SharedSlice};

/// Queues of each context.
const QUEUES: usize = 16;
/// Pages that all of them want.
const PAGES: usize = 16;
/// Times that a command goes round them.
const TURNS: usize = 8;
const WORDS_OF_A_PAGE: usize = 512;

/// The process.
pub(crate) fn child(_: &[String]) -> Result<()> {
    let contexts = [Device::open_nth(0)?, Device::open_nth(0)?];
    let memory = SharedSlice::<u64>::zeroed(PAGES * WORDS_OF_A_PAGE)?;
    let mut queues = Vec::new();
    for context in &contexts {
        for _ in 0..QUEUES {
            let mut queue = context.create_queue(QueueSize { sq_log2: 2, cq_log2: 2 })?;
            queue.set_spin(Duration::ZERO);
            queues.push(queue);
        }
    }
    let stop = AtomicBool::new(false);
    let completed = thread::scope(|scope| {
        let worker = scope.spawn(|| work(&mut queues, &memory, &stop));
        let told = obey(&contexts);
        stop.store(true, Relaxed);
        told.and(worker.join().ok().context("the thread panicked")?)
    })?;
    let expected = completed * TURNS as u64;
    for page in 0..PAGES {
        let observed = memory[page * WORDS_OF_A_PAGE].load(Relaxed);
        ensure!(observed == expected, "page {page}: expected {expected}, found {observed}");
    }
    process::tell("exact")
}

/// Answers the parent until it says stop.
fn obey(contexts: &[Device; 2]) -> Result<()> {
    process::tell("busy")?;
    loop {
        match process::listen()?.as_str() {
            "served" => {
                let faults = contexts.iter().map(|context| Ok(context.stats()?.faults));
                process::tell(&faults.sum::<Result<u64>>()?.to_string())?;
            }
            "stop" => return Ok(()),
            other => bail!("the parent said {other:?}"),
        }
    }
}

/// Keeps two commands in every queue. Returns how many were completed.
fn work(queues: &mut [Queue], memory: &SharedSlice<u64>, stop: &AtomicBool) -> Result<u64> {
    let words: Vec<u64> = (0..TURNS * PAGES).map(|turn| (turn % PAGES * WORDS_OF_A_PAGE) as u64).collect();
    let command = memory.indexed(&IndexArray::new(&words)?, 0..words.len())?.fetch_add(1);
    let mut completed = 0;
    loop {
        let more = !stop.load(Relaxed);
        for queue in queues.iter_mut() {
            while more && queue.in_flight() < 2 {
                queue.submit(&command)?;
            }
        }
        if queues.iter().all(|queue| queue.in_flight() == 0) {
            return Ok(completed);
        }
        for queue in queues.iter_mut().filter(|queue| queue.in_flight() > 0) {
            let completion = queue.complete(Some(patience()))?;
            let whole = completion.status.is_success() && completion.applied == words.len() as u32;
            ensure!(whole, "{completion:?}");
            completed += 1;
        }
    }
}
