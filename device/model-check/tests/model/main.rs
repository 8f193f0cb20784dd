// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Model checks: each is a small program, run in every interleaving by loom, and says what must hold. Next to
//! it stand programs that lack one fence or ordering and must go wrong, which proves that the check sees it.

mod invalidate;
mod ownership;
mod sleep;

use std::panic::{UnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::thread;

/// Switches of threads, in one interleaving, that no thread asked for. The weakened programs show that it is
/// enough for what is looked for; `LOOM_MAX_PREEMPTIONS` sets another number, and takes longer.
const PREEMPTIONS: usize = 2;
/// loom's own choice is too small for a log of invalidations that is moved into its place.
const STACK: usize = 256 << 10;

/// Runs a program in every interleaving.
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
