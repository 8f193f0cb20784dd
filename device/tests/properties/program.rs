// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random programs: what memory looks like, which commands run on it, and what the driver and the host do
//! meanwhile. Everything shrinks towards less: fewer steps, atomic pages, small numbers. Commands are made in
//! [`crate::commands`].

use std::fmt;

use proptest::prelude::*;
use proptest::sample::select;
use svmx_abi::pte::Access;
use svmx_abi::queue::Sqe;
use svmx_abi::status::Status;

use crate::commands::sqe;
use crate::reference::Backing;

/// Parts of a queue's address space, so far from each other that no 32-bit index leads from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// Elements, on pages of every kind.
    Targets,
    /// The first of these again.
    Alias,
    /// 32-bit indices on the first page, 64-bit ones on the second.
    Indices,
    Operands,
    OldValues,
    Floats32,
    Floats64,
    /// A 2 MiB page.
    Huge,
    /// What all queues add to.
    Shared,
}

impl Window {
    pub(crate) const fn base(self) -> u64 {
        (self as u64 + 1) << 40
    }

    pub(crate) const fn pages(self) -> u64 {
        match self {
            Window::Targets => 6,
            Window::Floats32 | Window::Floats64 => 1,
            Window::Huge => 512,
            _ => 2,
        }
    }

    pub(crate) fn contains(self, va: u64) -> bool {
        va >> 40 == self as u64 + 1
    }
}

/// What a page is: its permissions and what is behind it, and whether the host may unmap that.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) access: Access,
    pub(crate) backing: Backing,
    pub(crate) removable: bool,
}

impl fmt::Debug for Kind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Access { read, write, atomic, coherent } = self.access;
        for (allowed, letter) in [(read, 'r'), (write, 'w'), (atomic, 'a'), (coherent, 'c')] {
            write!(to, "{}", if allowed { letter } else { '-' })?;
        }
        write!(to, "{}{:?}", if self.removable { " removable " } else { " " }, self.backing)
    }
}

const fn ram(access: Access) -> Kind {
    Kind { access, backing: Backing::Ram, removable: false }
}
const BOTH: Access = Access { atomic: true, ..Access::COHERENT };
const ATOMIC_ALONE: Access = Access { read: false, write: false, ..Access::EXCLUSIVE };

/// How a program's world is made.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) engines: usize,
    /// Whether idle threads of the device poll for long, or not at all.
    pub(crate) poll: bool,
    /// Whether time passes between the read and the write of an atomic on an *atomic* page.
    pub(crate) slow: bool,
    pub(crate) fault_log2: u8,
    pub(crate) lookahead: u32,
    /// Whether pages are in the page table from the start.
    pub(crate) granted: bool,
    pub(crate) queues: Vec<QueueLayout>,
}

/// The kinds of a queue's pages, window by window.
#[derive(Clone, Debug)]
pub(crate) struct QueueLayout {
    pub(crate) targets: Vec<Kind>,
    pub(crate) indices: Vec<Kind>,
    pub(crate) operands: Vec<Kind>,
    pub(crate) old_values: Vec<Kind>,
    pub(crate) alias: Vec<Access>,
    /// What is in memory at first.
    pub(crate) seed: u64,
}

/// How a fault is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// REPLAY with the entry, which is in the table too.
    Replay,
    /// The entry is in the table; the device shall look there.
    LookUp,
    /// REPLAY with the entry, and it is taken away behind that.
    TakenBack,
    /// The device shall look although nothing has changed.
    NothingThere,
    /// REPLAY with an entry that does not suffice.
    Insufficient,
    /// Of other faults and other queues; this one waits.
    Stale,
    /// Twice.
    Doubled,
    Cancel(Status),
    /// Not now.
    Later,
}

/// What TLB_INVALIDATE is for, when nothing has changed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    Page,
    Window,
    Space,
    Everything,
}

/// How the device is brought to its reset state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reset {
    Conventional,
    Register,
    Disable,
}

/// One thing that happens. Queues and pages are counted from zero, and round.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Submit { queue: usize, sqe: Sqe },
    Answer(Answer),
    Grant { queue: usize, page: usize },
    Revoke { queue: usize, page: usize },
    Restrict { queue: usize, page: usize },
    Invalidate { queue: usize, page: usize, scope: Scope },
    UnmapMemory,
    BusMasterOff,
    CpuAdd(u64),
    Pause(u8),
    Settle,
    Destroy { queue: usize },
    Reset(Reset),
}

#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) layout: Layout,
    pub(crate) steps: Vec<Step>,
}

/// What a failure prints: a line for each queue and step.
impl fmt::Display for Program {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { engines, poll, slow, fault_log2, lookahead, granted, queues } = &self.layout;
        write!(to, "{engines} engines, poll {poll}, slow {slow}, ")?;
        writeln!(to, "2^{fault_log2} faults, LOOKAHEAD {lookahead}, granted {granted}")?;
        for QueueLayout { targets, indices, operands, old_values, alias, seed } in queues {
            writeln!(to, "queue, seed {seed:#x}:")?;
            for (name, kinds) in
                [("targets", targets), ("indices", indices), ("operands", operands), ("old", old_values)]
            {
                writeln!(to, "  {name}: {kinds:?}")?;
            }
            writeln!(to, "  alias: {alias:?}")?;
        }
        self.steps.iter().try_for_each(|step| writeln!(to, "{step:x?}"))
    }
}

/// A program of at most so many steps.
pub(crate) fn program(steps: usize) -> impl Strategy<Value = Program> {
    (layout(), prop::collection::vec(step(), 1..steps)).prop_map(|(layout, steps)| Program { layout, steps })
}

/// A program whose driver does nothing but answer faults, each at once.
pub(crate) fn calm_program(steps: usize) -> impl Strategy<Value = Program> {
    let step = (0..4usize, sqe()).prop_map(|(queue, sqe)| Step::Submit { queue, sqe });
    (layout(), prop::collection::vec(step, 1..steps)).prop_map(|(layout, steps)| Program { layout, steps })
}

fn layout() -> impl Strategy<Value = Layout> {
    let queues = prop::collection::vec(queue_layout(), 1..=4);
    let numbers =
        ((1..=3usize, any::<bool>(), any::<bool>()), 1..=6u8, select(&[0, 0, 1, 4, 1000][..]), any::<bool>());
    (numbers, queues).prop_map(|(((engines, poll, slow), fault_log2, lookahead, granted), queues)| Layout {
        engines,
        poll,
        slow,
        fault_log2,
        lookahead,
        granted,
        queues,
    })
}

fn queue_layout() -> impl Strategy<Value = QueueLayout> {
    let pages =
        |kind: BoxedStrategy<Kind>, window: Window| prop::collection::vec(kind, window.pages() as usize);
    (
        pages(target(), Window::Targets),
        pages(array(Access::READ), Window::Indices),
        pages(array(Access::READ_WRITE), Window::Operands),
        pages(array(Access::READ_WRITE), Window::OldValues),
        prop::collection::vec(select(&[Access::EXCLUSIVE, Access::COHERENT, BOTH][..]), 2),
        any::<u64>(),
    )
        .prop_map(|(targets, indices, operands, old_values, alias, seed)| QueueLayout {
            targets,
            indices,
            operands,
            old_values,
            alias,
            seed,
        })
}

fn odd(access: Access) -> impl Strategy<Value = Kind> {
    let kind = move |backing| Kind { backing, ..ram(access) };
    select(vec![
        Kind { removable: true, ..ram(access) },
        kind(Backing::ReadOnly),
        kind(Backing::Nothing),
        kind(Backing::Malformed),
        kind(Backing::Outside),
    ])
}

fn target() -> BoxedStrategy<Kind> {
    prop_oneof![
        8 => Just(ram(Access::EXCLUSIVE)),
        4 => Just(ram(Access::COHERENT)),
        2 => Just(ram(BOTH)),
        2 => Just(Kind { removable: true, ..ram(Access::EXCLUSIVE) }),
        1 => Just(ram(ATOMIC_ALONE)),
        1 => Just(ram(Access::READ_WRITE)),
        1 => Just(ram(Access::READ)),
        2 => odd(BOTH),
    ]
    .boxed()
}

fn array(access: Access) -> BoxedStrategy<Kind> {
    prop_oneof![8 => Just(ram(access)), 3 => Just(ram(Access::EXCLUSIVE)), 1 => odd(BOTH)].boxed()
}

fn step() -> BoxedStrategy<Step> {
    let (queue, page) = (0..4usize, 0..24usize);
    let pair = || (queue.clone(), page.clone());
    prop_oneof![
        30 => (queue.clone(), sqe()).prop_map(|(queue, sqe)| Step::Submit { queue, sqe }),
        30 => answer().prop_map(Step::Answer),
        2 => pair().prop_map(|(queue, page)| Step::Grant { queue, page }),
        8 => pair().prop_map(|(queue, page)| Step::Revoke { queue, page }),
        3 => pair().prop_map(|(queue, page)| Step::Restrict { queue, page }),
        5 => (pair(), select(&[Scope::Page, Scope::Window, Scope::Space, Scope::Everything][..]))
            .prop_map(|((queue, page), scope)| Step::Invalidate { queue, page, scope }),
        2 => Just(Step::UnmapMemory),
        2 => Just(Step::BusMasterOff),
        4 => (1..9u64).prop_map(Step::CpuAdd),
        6 => (0..50u8).prop_map(Step::Pause),
        3 => Just(Step::Settle),
        2 => queue.prop_map(|queue| Step::Destroy { queue }),
        1 => select(&[Reset::Conventional, Reset::Register, Reset::Disable][..]).prop_map(Step::Reset),
    ]
    .boxed()
}

fn answer() -> impl Strategy<Value = Answer> {
    let statuses: Vec<Status> =
        Status::ALL.iter().filter(|(.., cancel)| *cancel).map(|(_, status, _)| *status).collect();
    prop_oneof![
        6 => Just(Answer::Replay),
        6 => Just(Answer::LookUp),
        6 => Just(Answer::TakenBack),
        1 => Just(Answer::NothingThere),
        1 => Just(Answer::Insufficient),
        1 => Just(Answer::Stale),
        2 => Just(Answer::Doubled),
        2 => Just(Answer::Later),
        1 => select(statuses).prop_map(Answer::Cancel),
    ]
}
