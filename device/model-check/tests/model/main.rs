// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Model checks: each is a small program of two or three threads, run by loom in every interleaving with at most
//! [`PREEMPTIONS`] switches that no thread asked for, and with each stale value that a load may return there; it says what
//! must hold. An error that takes more switches, more threads or a longer program is not found.
//!
//! Next to most stand programs that lack something and must go wrong, which proves that the check sees it. What they
//! lack is a kind of thing in a part of one thread ([`model_check::sync::Weakness`]): all its fences, all acquire loads, or
//! those under a lock, and so on. So each kind is needed there; which single one of several is not said.

mod invalidate;
mod ownership;
mod sharing;
mod sleep;

use std::panic::{UnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::thread;

/// Switches of threads, in one interleaving, that no thread asked for. The weakened programs show that it is
/// enough for what they lack; `LOOM_MAX_PREEMPTIONS` sets another number, and takes longer.
const PREEMPTIONS: usize = 2;
/// loom's own choice is too small for a log of invalidations that is moved into its place.
const STACK: usize = 256 << 10;

/// Runs a program in every interleaving of that kind.
fn check(program: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.max_branches = 10_000;
    let program = Arc::new(program);
    builder.check(move || {
        let program = program.clone();
        let main = thread::Builder::new().stack_size(STACK).spawn(move || program());
        main.unwrap().join().unwrap();
    });
}

/// Runs a program that must go wrong in some interleaving, in the way that `how` says.
#[track_caller]
fn check_fails(how: &str, program: impl Fn() + Send + Sync + UnwindSafe + 'static) {
    let panic = catch_unwind(|| check(program)).expect_err("nothing went wrong");
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(text.contains(how), "it went wrong in another way: {text}");
}
