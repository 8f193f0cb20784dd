// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Exactly once (spec 5.5): random programs of commands over several queues, while a mock driver grants,
//! takes, restricts and invalidates pages, answers faults in every way that it may, and resets, against a
//! sequential reference that is written from the specification alone.
//!
//! A program is drawn from one 64-bit seed and shrinks to a small one. The threads of the device are real, so a
//! failure that needs an interleaving may need some runs to come again; while it shrinks, each candidate runs
//! up to [`RETRIES`] times. What fails prints its seed and program. To run it again, or for long:
//!
//! ```text
//! SVMX_PROPERTY_SEED=0x1234 cargo test -p svmx-device --test properties
//! SVMX_PROPERTY_STEPS=1000000 cargo test --release -p svmx-device --test properties -- --nocapture
//! ```
//!
//! Seeds are not kept: one means another program as soon as anything about how programs are drawn changes. What a
//! random program finds gets a test of its own, of the few steps that it shrinks to (`tests/model/`, and
//! `tests/instruments/exclusivity.rs` for the checker that watches these programs).

mod answers;
mod commands;
mod ledger;
mod program;
mod reference;
mod steps;
mod world;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use mock_driver::HANG;
use program::{Program, calm_program, program};
use world::Random;

/// How often a program runs that is to be made smaller.
const RETRIES: u32 = 10;

/// When a program that is to be made smaller is taken to hang.
const HANG_AGAIN: Duration = Duration::from_secs(3);

/// The longest program.
const PROGRAM: usize = 120;

/// Steps between two words about how far it is.
const PROGRESS: u64 = 50_000;

/// The number in an environment variable, decimal or with 0x.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Draws a program from a seed, runs it, and if it fails looks for a smaller one that fails too. How many
/// steps it had.
fn check(seed: u64, strategy: &impl Strategy<Value = Program>, calm: bool) -> u64 {
    let mut random = Random(seed);
    let mut bytes = [0; 32];
    bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_le_bytes()));
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 3000,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tree = strategy.new_tree(&mut runner).expect("a strategy without filters");
    let steps = tree.current().steps.len();
    let failures = AtomicU32::new(0);
    let run = |program: Program| {
        let first = failures.load(Ordering::Relaxed) == 0;
        let (times, patience) = if first { (1, HANG) } else { (RETRIES, HANG_AGAIN) };
        for _ in 0..times {
            if let Err(error) = steps::run(&program, calm, patience) {
                failures.fetch_add(1, Ordering::Relaxed);
                return Err(TestCaseError::fail(format!("{error:#}")));
            }
        }
        Ok(())
    };
    if let Err(TestError::Fail(why, smallest)) = runner.run_one(tree, run) {
        panic!("SVMX_PROPERTY_SEED={seed:#x} ({steps} steps at first)\n{smallest}\n{why}");
    }
    steps as u64
}

/// Runs programs until so many steps are done, or the one that is asked for.
fn check_many(steps_wanted: u64, name: &str, strategy: &impl Strategy<Value = Program>, calm: bool) {
    if let Some(seed) = variable("SVMX_PROPERTY_SEED") {
        check(seed, strategy, calm);
        return;
    }
    let start = Instant::now();
    let mut seeds = Random(RandomState::new().hash_one(name));
    let (mut programs, mut steps) = (0, 0);
    while steps < steps_wanted {
        let before = steps;
        steps += check(seeds.next(), strategy, calm);
        programs += 1;
        if steps / PROGRESS != before / PROGRESS {
            println!("{name}: {steps} steps so far, {:?}", start.elapsed());
        }
    }
    println!("{name}: {steps} steps in {programs} programs, {:?}", start.elapsed());
}

#[test]
fn every_element_exactly_once() {
    let steps = variable("SVMX_PROPERTY_STEPS").unwrap_or(2_500);
    check_many(steps, "disturbed programs", &program(PROGRAM), false);
}

#[test]
fn undisturbed_commands_do_what_the_reference_does() {
    check_many(500, "undisturbed programs", &calm_program(PROGRAM), true);
}
