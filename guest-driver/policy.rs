// SPDX-License-Identifier: GPL-2.0

//! Which addresses have which policy: an interval map as a sorted list.
//!
//! Pure functions of such lists, tested on the host by `abi/tests/policy.rs`. Who keeps a context's list, and what a
//! change of it does to the device, is in `ranges.rs`. The list is short (`MAX_POLICIES`) and changes seldom, so a
//! change makes a new one: it can't fail half-way.

use super::abi::uapi::Policy;
use core::ops::Range;

/// A range of addresses with a policy that is not the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    /// Behind the last address.
    pub(crate) end: u64,
    pub(crate) policy: Policy,
}

/// The policy of `va`. `pieces` are in order and do not overlap; what is in none has the default.
pub(crate) fn find(pieces: &[Piece], va: u64) -> Policy {
    let index = pieces.partition_point(|piece| piece.end <= va);
    match pieces.get(index) {
        Some(piece) if piece.start <= va => piece.policy,
        _ => Policy::EXCLUSIVE,
    }
}

/// What `pieces` become when `range`, which is not empty, gets `policy`: at most two more, in order, and no two
/// neighbours that could be one.
pub(crate) fn with(pieces: &[Piece], range: Range<u64>, policy: Policy) -> impl Iterator<Item = Piece> + '_ {
    let (before, rest) = pieces.split_at(pieces.partition_point(|piece| piece.end < range.start));
    let (touched, behind) = rest.split_at(rest.partition_point(|piece| piece.start <= range.end));
    let mut new = Piece { start: range.start, end: range.end, policy };
    // What sticks out on either side, perhaps of the same piece, is joined or stays.
    let left = touched.first().filter(|piece| piece.start < range.start);
    let right = touched.last().filter(|piece| piece.end > range.end);
    let mut left = left.map(|piece| Piece { end: piece.end.min(range.start), ..*piece });
    let mut right = right.map(|piece| Piece { start: piece.start.max(range.end), ..*piece });
    if let Some(piece) = left.take_if(|piece| piece.policy == policy) {
        new.start = piece.start;
    }
    if let Some(piece) = right.take_if(|piece| piece.policy == policy) {
        new.end = piece.end;
    }
    let new = (policy != Policy::EXCLUSIVE).then_some(new);
    let changed = left.into_iter().chain(new).chain(right);
    before.iter().copied().chain(changed).chain(behind.iter().copied())
}
