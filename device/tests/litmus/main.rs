// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The litmus tests of spec 10.6: its table is read from docs/spec.md, and every row is raced, thousands of
//! times on each kind of page that it can run on. What is forbidden must never be seen. What is allowed is
//! counted and printed; that it appears is asserted of nothing.
//!
//! What this can show depends on the host. x86 keeps stores in order, and loads; it lets a load overtake an
//! earlier store to another word, and nothing else. So here a device whose WRITEs were relaxed stores, or
//! whose READs were relaxed loads, would pass: only the compiler could reorder them. And the device puts a
//! full barrier behind every completion, as it must look at the arm word (spec 4.4), so that SB without FENCE
//! is not seen either, and a FENCE that did nothing would pass. What these races do catch is a device that
//! does things in another order than it should: a store after its completion, elements of a command in
//! another order, a second command begun early, a WAIT or READ that sees what is not there yet. On a host
//! with weaker order they test what the table says.

//!
//! `SVMX_LITMUS_BATCHES=5000 cargo test --release -p svmx-device --test litmus -- --nocapture` races for long.

mod parse;
mod race;

use std::collections::BTreeSet;

use parse::{Row, rows};
use svmx_abi::pte::Access;

/// Batches for each row and kind of page, if `SVMX_LITMUS_BATCHES` does not say.
const BATCHES: u64 = 21;

/// A test for each row, by its name in the table; and the test that no row is without one.
macro_rules! litmus {
    ($($test:ident = $row:literal,)*) => {
        $(#[test]
        fn $test() {
            run($row);
        })*

        #[test]
        fn every_row_of_the_table_is_a_test() {
            let listed: BTreeSet<&str> = [$($row),*].into();
            let rows = rows();
            let specified: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            assert_eq!(listed, specified);
        }
    };
}

litmus! {
    messages_from_queue_to_cpu = "MP+queue+cpu",
    messages_from_cpu_to_queue = "MP+cpu+queue",
    messages_from_queue_to_queue = "MP+queue+queue",
    messages_to_a_queue_that_waits = "MP+queue+wait",
    messages_of_a_bulk_command = "MP+bulk+cpu",
    stores_buffered_by_queues = "SB+queue+queue",
    no_stores_buffered_past_fences = "SB+fences",
    no_stores_buffered_past_fence_and_barrier = "SB+fence+cpu",
    no_loads_of_what_comes_later = "LB+queue+queue",
    one_word_never_goes_back = "CoRR+queue",
    nothing_added_is_lost = "ADD+queue+queue",
    a_completion_shows_its_effect = "COMPLETION",
}

fn run(name: &str) {
    let row = rows().into_iter().find(|row| row.name == name).expect("a row of the table");
    let batches =
        std::env::var("SVMX_LITMUS_BATCHES").map_or(BATCHES, |text| text.parse().expect("a number"));
    let both = Access { atomic: true, ..Access::COHERENT };
    let mut kinds = vec![Access::EXCLUSIVE, Access::COHERENT, both];
    if !row.has_atomics() {
        kinds.push(Access::READ_WRITE);
    }
    for access in kinds {
        let seen = race::race(&row, access, batches);
        println!("{} on {access:?}: {} of {}; {:?}", row.name, seen.outcomes, seen.runs, seen.results);
        assert!(row.allowed || seen.outcomes == 0, "{row:?} seen {} times of {}", seen.outcomes, seen.runs);
    }
}

#[test]
fn the_table_says_what_is_run() {
    let parsed = rows();
    let of = |name: &str| -> &Row { parsed.iter().find(|row| row.name == name).unwrap() };
    assert_eq!(format!("{:?}", of("SB+fence+cpu").first.steps), "[Write('x', 1), Fence, Read('a', 'y')]");
    assert_eq!(format!("{:?}", of("SB+fence+cpu").second.steps), "[Store('y', 1), Barrier, Load('b', 'x')]");
    assert!(of("MP+queue+queue").first.queue && !of("MP+queue+cpu").second.queue);
    assert!(of("SB+queue+queue").allowed && !of("SB+fences").allowed);
}
