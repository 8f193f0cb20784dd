// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `contexts`: 64 contexts of four processes, all busy, first on pages of their own, then those of a process on
//! one page, which each takes from the others. Every sum is exact and no context starves. Then one context
//! beside a process that faults all the time on many queues.
//!
//! What is compared is how many faults were served for whom, not how long it took.

mod greedy;
mod member;

pub(crate) use greedy::child as greedy;
pub(crate) use member::child as member;

use crate::link::metric;
use crate::process::Process;
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, ensure};
use member::Loop;
use std::time::{Duration, Instant};

const PROCESSES: usize = 4;
/// Contexts of each.
const MEMBERS: usize = 16;
/// Rounds that each context has made when the first may stop. On pages of their own each of them is a fault; of
/// one page that all want whoever has it makes several at a time.
const ROUNDS: [(&str, u64); 2] = [("own", 48), ("shared", 24)];
/// Faults that may have been served by then for any context, for each round of the slowest.
const FAIR: u64 = 4;
/// Rounds of the context beside the greedy process.
const BESIDE: u64 = 200;
/// Faults of the greedy process that may be served for each of that context's.
const CROWD: u64 = 64;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let spread = together(run)?;
    let crowd = beside(run)?;
    Ok(Shown::Pass(format!(
        "{} contexts: {spread:.2} faults of one for each round of the slowest; {crowd:.1} faults of a greedy process \
         for each of another",
        PROCESSES * MEMBERS
    )))
}

/// All contexts at work. Returns the most faults of a context for each round of the slowest.
fn together(run: &Run) -> Result<f64> {
    step("starting the processes");
    let arguments = [MEMBERS.to_string()].into_iter().chain(ROUNDS.map(|(_, rounds)| rounds.to_string()));
    let arguments: Vec<String> = arguments.collect();
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(Process::start("contexts-member", &arguments)?);
    }
    let mut widest = 0f64;
    for (name, _) in ROUNDS {
        everybody(&mut processes, "ready", name, patience())?;
        processes.iter_mut().try_for_each(|process| process.say("go"))?;
        everybody(&mut processes, "reached", name, run.part(1, 3))?;
        processes.iter_mut().try_for_each(|process| process.say("stop"))?;
        let mut all = Vec::new();
        for process in &mut processes {
            all.extend(scores(&process.line(patience())?)?);
        }
        widest = widest.max(judge(name, &all)?);
    }
    for process in &mut processes {
        let status = process.wait(patience())?;
        ensure!(status.success(), "a process ended with {status}");
    }
    Ok(widest)
}

fn everybody(processes: &mut [Process], line: &str, name: &str, timeout: Duration) -> Result<()> {
    step(format!("{name}: waiting for everybody's {line:?}"));
    processes.iter_mut().try_for_each(|process| process.expect(line, timeout))
}

fn numbers(line: &str) -> Result<Vec<u64>> {
    line.split_whitespace()
        .map(|word| word.parse().with_context(|| format!("the child said {line:?}")))
        .collect()
}

/// What became of a context in a contest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Score {
    rounds: u64,
    /// Faults of it that were served.
    faults: u64,
}

/// A child's line: rounds and faults of each of its contexts.
fn scores(line: &str) -> Result<Vec<Score>> {
    Ok(numbers(line)?.chunks_exact(2).map(|pair| Score { rounds: pair[0], faults: pair[1] }).collect())
}

/// Nobody starved: while the slowest made its rounds, not many more faults of another context were served. Its
/// own faults would be the wrong measure where pages are shared: who gets to keep one needs fewer of them.
fn judge(name: &str, scores: &[Score]) -> Result<f64> {
    ensure!(scores.len() == PROCESSES * MEMBERS, "{} contexts of {}", scores.len(), PROCESSES * MEMBERS);
    let number = |what: &str, value: u64| metric(&format!("{what}_{name}"), value);
    let fewest = |field: fn(&Score) -> u64| scores.iter().map(field).min().unwrap_or(0);
    let most = scores.iter().map(|score| score.faults).max().unwrap_or(0);
    let rounds = fewest(|score| score.rounds);
    number("faults", scores.iter().map(|score| score.faults).sum());
    number("fewest_faults", fewest(|score| score.faults));
    number("most_faults", most);
    number("fewest_rounds", rounds);
    let fair = rounds > 0 && most <= FAIR * rounds;
    ensure!(
        fair,
        "{name}: {most} faults of a context were served while another made {rounds} rounds: {scores:?}"
    );
    Ok(most as f64 / rounds as f64)
}

/// One context by itself, then beside the greedy process. Returns how many of that one's faults were served for
/// each of the context's.
fn beside(run: &Run) -> Result<f64> {
    step("a context by itself");
    let mut own = Loop::new()?;
    let alone = time_of(&mut own)?;
    let mut greedy = Process::start("contexts-greedy", &[])?;
    greedy.expect("busy", patience())?;
    step("a context beside a greedy process");
    let before = served(&mut greedy)?;
    let beside = time_of(&mut own)?;
    let crowd = (served(&mut greedy)? - before) as f64 / BESIDE as f64;
    greedy.say("stop")?;
    greedy.expect("exact", run.part(1, 3))?;
    let status = greedy.wait(patience())?;
    ensure!(status.success(), "the greedy process ended with {status}");
    own.audit()?;
    metric("round_alone_us", alone.as_secs_f64() * 1e6 / BESIDE as f64);
    metric("round_beside_us", beside.as_secs_f64() * 1e6 / BESIDE as f64);
    metric("greedy_faults_per_fault", crowd);
    ensure!(crowd <= CROWD as f64, "{crowd} faults of the greedy process were served for each other one");
    Ok(crowd)
}

fn time_of(own: &mut Loop) -> Result<Duration> {
    let start = Instant::now();
    (0..BESIDE).try_for_each(|_| own.round())?;
    Ok(start.elapsed())
}

/// Faults of the greedy process so far.
fn served(greedy: &mut Process) -> Result<u64> {
    greedy.say("served")?;
    numbers(&greedy.line(patience())?)?.first().copied().context("the greedy process said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_starves_is_found() {
        let mut scores = vec![Score { rounds: 100, faults: 100 }; PROCESSES * MEMBERS];
        assert!(judge("own", &scores).is_ok());
        scores[7].rounds = 24;
        assert!(judge("own", &scores).is_err(), "too slow");
        scores[7] = Score { rounds: 100, faults: 401 };
        assert!(judge("own", &scores).is_err(), "another had too much");
        assert!(judge("own", &scores[1..]).is_err(), "one is missing");
        assert!(judge("own", &[Score { rounds: 0, faults: 0 }; PROCESSES * MEMBERS]).is_err());
    }

    #[test]
    fn lines_of_children() {
        let score = |rounds, faults| Score { rounds, faults };
        assert_eq!(scores("1 2 3 4").unwrap(), [score(1, 2), score(3, 4)]);
        assert!(scores("1 x").is_err());
    }
}
