// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The driver's interval map of policies, against a table that has each page's policy for itself.

use svmx_abi as abi;

#[path = "../../guest-driver/policy.rs"]
mod policy;

use abi::uapi::Policy;
use policy::{find, with, Piece};

/// Few pages, so that ranges touch, cut and cover each other all the time.
const PAGES: u64 = 24;
const PAGE: u64 = 4096;

/// The same sequence in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Compares with the table, and looks whether the list is what it should be.
fn check(pieces: &[Piece], table: &[Policy]) {
    for (page, &expected) in (0..).zip(table) {
        for va in [page * PAGE, page * PAGE + 8, page * PAGE + PAGE - 1] {
            assert_eq!(find(pieces, va), expected, "{va:#x} in {pieces:x?}");
        }
    }
    assert_eq!(find(pieces, PAGES * PAGE), Policy::EXCLUSIVE);
    for piece in pieces {
        assert!(piece.start < piece.end && piece.policy != Policy::EXCLUSIVE, "{pieces:x?}");
    }
    for pair in pieces.windows(2) {
        let apart = pair[0].end < pair[1].start;
        let differ = pair[0].end == pair[1].start && pair[0].policy != pair[1].policy;
        assert!(apart || differ, "{pieces:x?}");
    }
}

#[test]
fn changes_in_any_order_are_what_a_table_says() {
    let mut random = Random(1);
    for _ in 0..200 {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut table = [Policy::EXCLUSIVE; PAGES as usize];
        for _ in 0..200 {
            let start = random.below(PAGES);
            let end = start + 1 + random.below(PAGES - start);
            let (_, policy) = Policy::ALL[random.below(3) as usize];
            let new: Vec<Piece> = with(&pieces, start * PAGE..end * PAGE, policy).collect();
            assert!(new.len() <= pieces.len() + 2, "{new:x?} of {pieces:x?}");
            table[start as usize..end as usize].fill(policy);
            check(&new, &table);
            pieces = new;
        }
    }
}

#[test]
fn a_hole_splits_and_filling_it_joins() {
    let set = |pieces: &[Piece], range, policy| with(pieces, range, policy).collect::<Vec<_>>();
    let all = set(&[], 0..9 * PAGE, Policy::COHERENT);
    let split = set(&all, 3 * PAGE..4 * PAGE, Policy::EXCLUSIVE);
    assert_eq!(split.len(), 2);
    assert_eq!(set(&split, 3 * PAGE..4 * PAGE, Policy::COHERENT), all);
    assert_eq!(set(&split, 3 * PAGE..4 * PAGE, Policy::AUTO).len(), 3);
    assert_eq!(set(&split, 0..1 << 48, Policy::EXCLUSIVE), []);
}
