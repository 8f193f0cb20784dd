// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The matrix *event × shape × state*: what its rows and columns are, and every cell's name. The rows
//! themselves are in the files that have their functions; docs/events.md shows the whole of it.

use super::cell::Cell;
use super::scene::Scene;
use super::{access, advice, huge, ksm, mapping, migrate, mremap, proc_files, process, served, swap, touch};
use anyhow::Result;
use std::fmt;
use svmx::abi::status::Status;

/// All rows, by the files that they are in.
pub(crate) const GROUPS: &[&[Event]] = &[
    touch::EVENTS,
    process::EVENTS,
    mapping::EVENTS,
    mremap::EVENTS,
    advice::EVENTS,
    huge::EVENTS,
    access::EVENTS,
    proc_files::EVENTS,
];

/// Cells of the whole matrix, so that none vanishes unnoticed.
pub(crate) const CELLS: usize = 1036;

/// Those of `events-system`.
pub(crate) const SYSTEM_GROUPS: &[&[Event]] = &[swap::EVENTS, migrate::EVENTS, ksm::EVENTS, served::EVENTS];
pub(crate) const SYSTEM_CELLS: usize = 168;

/// Every row.
#[cfg(test)]
pub(crate) fn events() -> impl Iterator<Item = &'static Event> {
    GROUPS.iter().chain(SYSTEM_GROUPS).copied().flatten()
}

/// Something that the memory management does to a process's memory: a row.
pub(crate) struct Event {
    pub(crate) name: &'static str,
    /// The function of the kernel that does it, and what it tells notifiers.
    pub(crate) kernel: &'static str,
    /// Memory of which shapes it is tried on.
    pub(crate) shapes: &'static [Shape],
    /// What is there afterwards.
    pub(crate) memory: Memory,
    /// The same in some states, if it differs there.
    pub(crate) memory_in: &'static [(State, Memory)],
    /// What becomes of what the device holds.
    pub(crate) fates: Fates,
    /// The same of pages of a huge one, if it differs there.
    pub(crate) huge: Option<Fates>,
    /// How a command that runs during the event may end as well, because it met a moment in between.
    pub(crate) between: Option<Status>,
    /// States that it can't be tried in, and why.
    pub(crate) absent: &'static [(State, &'static str)],
    /// Whether the kernel stores to a page that it has pinned, while the device may already have it back: it
    /// promises no more (make_device_exclusive() in mm/rmap.c: "not handled and not supported").
    pub(crate) pins: bool,
    /// What the memory needs besides, before the device gets any of it.
    pub(crate) before: fn(&Scene) -> Result<()>,
    /// Does it, and checks what only this event has. The rest is checked by whoever calls.
    pub(crate) run: fn(&mut Cell) -> Result<()>,
}

impl Event {
    /// What a row is unless it says otherwise.
    pub(crate) const ROW: Event = Event {
        name: "",
        kernel: "",
        shapes: Shape::ALL,
        memory: Memory::Kept,
        memory_in: &[],
        fates: Fates::TAKEN,
        huge: None,
        between: None,
        absent: &[],
        pins: false,
        before: |_| Ok(()),
        run: |_| Ok(()),
    };

    /// What is there afterwards.
    pub(crate) fn memory(&self, state: State) -> Memory {
        let own = self.memory_in.iter().find(|(other, _)| *other == state);
        own.map_or(self.memory, |(_, memory)| *memory)
    }

    /// What becomes of the device's entry, if it has one.
    pub(crate) fn fate(&self, shape: Shape, state: State) -> Option<Fate> {
        let huge = self.huge.filter(|_| shape == Shape::Huge);
        huge.unwrap_or(self.fates).of(state)
    }

    /// Why there is nothing to try in this state, if so.
    pub(crate) fn absent(&self, state: State) -> Option<&'static str> {
        self.absent.iter().find(|(absent, _)| *absent == state).map(|(_, reason)| *reason)
    }
}

/// What the device has of the pages when the event comes: a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Untouched,
    /// Entries that allow reading.
    Readable,
    /// Entries that allow reading and writing, which the CPU shares.
    Writable,
    /// Exclusive access, of which it makes no use at the moment.
    Held,
    /// Exclusive access, and it adds to the pages all the time.
    Hammered,
    /// The same, and a CPU thread adds to the same words.
    Contended,
    /// Entries of the policy *coherent*.
    Coherent,
}

impl State {
    pub(crate) const ALL: [State; 7] = [
        State::Untouched,
        State::Readable,
        State::Writable,
        State::Held,
        State::Hammered,
        State::Contended,
        State::Coherent,
    ];

    /// Whether the device is at work during the event.
    pub(crate) fn is_hammered(self) -> bool {
        matches!(self, State::Hammered | State::Contended)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Untouched => "untouched",
            State::Readable => "readable",
            State::Writable => "writable",
            State::Held => "held",
            State::Hammered => "hammered",
            State::Contended => "contended",
            State::Coherent => "coherent",
        }
    }
}

/// What memory the event meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A small page.
    Page,
    /// Four of them, two on each side of a boundary of 2 MiB.
    Spans,
    /// Three that belong to one huge page.
    Huge,
}

impl Shape {
    pub(crate) const ALL: &'static [Shape] = &[Shape::Page, Shape::Spans, Shape::Huge];
    /// Where huge pages make no difference.
    pub(crate) const SMALL: &'static [Shape] = &[Shape::Page, Shape::Spans];
    pub(crate) const HUGE: &'static [Shape] = &[Shape::Huge];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Page => "page",
            Shape::Spans => "spans",
            Shape::Huge => "huge",
        }
    }
}

/// What is there afterwards, to CPU and device alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// What was there, with every addition.
    Kept,
    /// The same at another address, and nothing at the old one.
    Moved,
    /// The same at another address, and zeros at the old one.
    MovedLeavingZeros,
    /// Zeros.
    Zeroed,
    /// What was at another address.
    Replaced,
    /// Nothing: commands end with FAULT. What is mapped there next begins with zeros.
    Gone,
    /// The first part has what was there, the second has nothing.
    TailGone,
    /// What was there, for loads; stores and atomics of the device end with PERMISSION.
    ReadOnly,
    /// What was there, but it can't be reached: commands end with PERMISSION.
    NoAccess,
    /// Guard pages: commands end with FAULT. Without them it begins with zeros.
    Guarded,
    /// The process is gone. Its forked child still has what it got, and memory that comes next is its own.
    Ended {
        /// What ended it, if it did not end by itself.
        signal: Option<i32>,
    },
}

impl Memory {
    /// How a command ends that goes on at the old address.
    pub(crate) fn stops(self, shape: Shape) -> Option<Status> {
        match self {
            Memory::Gone | Memory::Moved | Memory::Guarded => Some(Status::FAULT),
            // The small page is in the first part.
            Memory::TailGone if shape != Shape::Page => Some(Status::FAULT),
            Memory::ReadOnly | Memory::NoAccess => Some(Status::PERMISSION),
            _ => None,
        }
    }
}

/// What becomes of an entry of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is revoked, once.
    Taken,
    /// It is revoked, once, in the second part of the memory, where the event is; the others stay.
    Tail,
    /// It stays, and the next access needs no fault.
    Stays,
    /// The driver itself takes it away before it asks the kernel for what clashes with it (spec 6.3): no event meets it.
    GivenUp,
    /// One or the other: the kernel promises neither.
    Perhaps,
}

/// The fates of each kind of entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fates {
    pub(crate) readable: Fate,
    pub(crate) writable: Fate,
    pub(crate) held: Fate,
}

impl Fates {
    /// Every entry is taken.
    pub(crate) const TAKEN: Fates = Fates { readable: Fate::Taken, writable: Fate::Taken, held: Fate::Taken };
    /// The kernel passes over entries that are not present, as those of exclusive pages: they stay, all others go.
    pub(crate) const PRESENT: Fates = Fates { held: Fate::Stays, ..Fates::TAKEN };
    /// The kernel does as it likes.
    pub(crate) const PERHAPS: Fates =
        Fates { readable: Fate::Perhaps, writable: Fate::Perhaps, held: Fate::Perhaps };
    /// Nothing happens to any.
    pub(crate) const STAYS: Fates = Fates { readable: Fate::Stays, writable: Fate::Stays, held: Fate::Stays };
    /// Entries are taken where the event is.
    pub(crate) const TAIL: Fates = Fates { readable: Fate::Tail, writable: Fate::Tail, held: Fate::Tail };
    /// What a CPU does to memory by touching it: only exclusive access ends.
    pub(crate) const TOUCHED: Fates = Fates { held: Fate::Taken, ..Fates::STAYS };

    /// The one of this state, if the device holds anything in it.
    pub(crate) fn of(self, state: State) -> Option<Fate> {
        match state {
            State::Untouched => None,
            State::Readable => Some(self.readable),
            State::Writable | State::Coherent => Some(self.writable),
            State::Held | State::Hammered | State::Contended => Some(self.held),
        }
    }
}

/// A cell.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    pub(crate) event: &'static Event,
    pub(crate) shape: Shape,
    pub(crate) state: State,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.event.name, self.shape.name(), self.state.name())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Every cell, in order.
pub(crate) fn cells() -> impl Iterator<Item = Name> {
    cells_of(GROUPS)
}

/// Every cell of events that need more of a system than the others: swap space, nodes, memory that can go offline.
pub(crate) fn system_cells() -> impl Iterator<Item = Name> {
    cells_of(SYSTEM_GROUPS)
}

fn cells_of(groups: &'static [&'static [Event]]) -> impl Iterator<Item = Name> {
    groups.iter().copied().flatten().flat_map(|event| {
        let states =
            move |shape: &'static Shape| State::ALL.map(|state| Name { event, shape: *shape, state });
        event.shapes.iter().flat_map(states)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_number_of_cells_is_known_and_names_differ() {
        assert_eq!((cells().count(), system_cells().count()), (CELLS, SYSTEM_CELLS));
        let names: HashSet<_> = cells().chain(system_cells()).map(|name| name.to_string()).collect();
        assert_eq!(names.len(), CELLS + SYSTEM_CELLS);
    }

    #[test]
    fn rows_are_complete() {
        for event in events() {
            assert!(!event.kernel.is_empty() && !event.shapes.is_empty(), "{}", event.name);
            assert!(event.absent.iter().all(|(_, reason)| !reason.is_empty()), "{}", event.name);
        }
    }
}
