// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A command in progress, access by access.
//!
//! A [`Work`] is a command and how far it has come. [`Work::next`] names the one access that comes next;
//! whoever has translated it performs it with [`crate::execute::Memory::perform`], which is all that changes
//! progress. So an access is done exactly once, by an engine or, on a REPLAY, by the control thread, and there
//! is nothing to undo when a translation is missing.
//!
//! What an element needs before it can be applied (its index, its operand, a value on its way from the source
//! of a COPY) is held from one access to the next; so is an old value until it is stored.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::VA_END;
use svmx_abi::queue::WAIT_FOREVER;
use svmx_abi::status::Status;

use crate::command::{
    Addressing, Atomic, Bulk, Command, Fill, Operand, Operands, Target, Transfer, Wait, Width,
};
use crate::compute;
use crate::queue::Completion;

/// A command in progress.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    command: Command,
    /// Elements applied.
    pub applied: u32,
    /// Scalar READ and atomics: the old value; WAIT: the value seen last.
    result: u128,
    held: Held,
    /// When a WAIT is over; `None` if never.
    deadline: Option<Instant>,
    /// A WAIT has looked in vain and looks again later.
    waits: bool,
    /// Set if the command ends before its elements do: status and address.
    ended: Option<(Status, u64)>,
}

/// What has been loaded and is not used up.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Index of element `applied`.
    index: Option<u64>,
    /// Operand of element `applied`, or of all.
    operand: Option<Operand>,
    /// COPY: value of element `applied`.
    value: Option<u128>,
    /// STORE_OLD: what element `applied` − 1 was.
    old: Option<u128>,
}

/// Elements that may be done many at a time.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'w> {
    /// What is to be done.
    pub elements: Elements<'w>,
    /// The first element.
    pub from: u32,
    /// Elements from there on.
    pub left: u32,
}

/// The command that elements belong to.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "they are commands")]
pub enum Elements<'w> {
    Bulk(&'w Bulk),
    Copy(&'w Transfer),
    Fill(&'w Fill),
}

/// What a command needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One access to memory.
    Access(Access),
    /// Nothing: status and address for its completion.
    End(Status, u64),
}

/// One access to memory: aligned, so inside one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Virtual address, below 2^48.
    pub va: u64,
    /// Permission that it needs.
    pub kind: AccessKind,
    /// Width of what is there.
    pub width: Width,
    /// What is done there.
    pub to: To,
    part: Part,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Loads a value.
    Load,
    /// Loads the operand of a CAS: compared value and operand, one behind the other.
    LoadPair,
    /// Stores a value.
    Store(u128),
    /// Reads, computes, writes.
    Atomic(Atomic),
}

/// What an access is for the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Index,
    Operand,
    Source,
    /// The element itself: it is applied.
    Element,
    Old,
    /// A WAIT looks.
    Look,
}

impl Access {
    /// Whether it may change memory.
    pub fn writes(&self) -> bool {
        self.kind != AccessKind::READ
    }

    /// Bytes that it reaches.
    pub fn bytes(&self) -> u64 {
        if self.to == To::LoadPair { 2 * self.width.bytes() } else { self.width.bytes() }
    }

    fn load(va: u64, width: Width, part: Part) -> Self {
        Access { va, kind: AccessKind::READ, width, to: To::Load, part }
    }

    fn store(va: u64, width: Width, value: u128, part: Part) -> Self {
        Access { va, kind: AccessKind::WRITE, width, to: To::Store(value), part }
    }
}

impl Work {
    /// A command that begins now, by the thread that goes on with it: a WAIT's time runs, and a FENCE is done.
    pub fn new(command: Command) -> Self {
        let mut deadline = None;
        match command {
            Command::Wait(Wait { time, .. }) if time != WAIT_FOREVER => {
                deadline = Instant::now().checked_add(Duration::from_nanos(time));
            }
            // spec 10.5: everything before was made by this queue's commands, in order.
            Command::Fence => fence(Ordering::SeqCst),
            _ => {}
        }
        Work { command, applied: 0, result: 0, held: Held::default(), deadline, waits: false, ended: None }
    }

    /// One that is over before it begins.
    pub fn refused(status: Status, va: u64) -> Self {
        Work { ended: Some((status, va)), ..Work::new(Command::Nop) }
    }

    /// Ends the command early; what has been applied stays.
    pub fn end(&mut self, status: Status, va: u64) {
        self.ended = Some((status, va));
    }

    /// What is in progress.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Whether it is a WAIT that has looked in vain: its next look can be later.
    pub fn waits(&self) -> bool {
        self.waits && self.applied == 0 && self.ended.is_none()
    }

    /// The elements that are left, if nothing is held and none was refused: whoever does the first of them, whole
    /// and in their order, says so with [`Self::advance`].
    pub fn batch(&self) -> Option<Batch<'_>> {
        let Held { index: None, operand: None, value: None, old: None } = self.held else { return None };
        let (count, elements) = match &self.command {
            Command::Bulk(bulk) => (bulk.count, Elements::Bulk(bulk)),
            Command::Copy(copy) => (copy.count, Elements::Copy(copy)),
            Command::Fill(fill) => (fill.count, Elements::Fill(fill)),
            _ => return None,
        };
        let left = count.checked_sub(self.applied).filter(|_| self.ended.is_none())?;
        Some(Batch { elements, from: self.applied, left })
    }

    /// Elements of a batch have been done.
    pub fn advance(&mut self, elements: u32) {
        self.applied += elements;
    }

    /// What comes next.
    pub fn next(&self) -> Next {
        if let Some((status, va)) = self.ended {
            return Next::End(status, va);
        }
        match &self.command {
            // A FENCE was done when it began.
            Command::Nop | Command::Fence => Next::End(Status::SUCCESS, 0),
            Command::Read(Target { va, width }) => self.once(Access::load(*va, *width, Part::Element)),
            Command::Write(Target { va, width }, value) => {
                self.once(Access::store(*va, *width, (*value).into(), Part::Element))
            }
            Command::Atomic(Target { va, width }, atomic) => self.once(atomic_at(*va, *width, *atomic)),
            Command::Wait(Wait { target, .. }) => {
                self.once(Access::load(target.va, target.width, Part::Look))
            }
            Command::Bulk(bulk) => self.next_in_bulk(bulk),
            Command::Copy(copy) => self.next_in_copy(copy),
            Command::Fill(fill) => self.next_in_fill(fill),
        }
    }

    /// What a command says that is over.
    pub fn completion(&self, tag: u32) -> Option<Completion> {
        let Next::End(status, fault_addr) = self.next() else { return None };
        let wide = status == Status::SUCCESS && matches!(self.command, Command::Atomic(..));
        Some(Completion {
            status,
            tag,
            // spec 5.5: an old value that could not be stored.
            result: self.held.old.unwrap_or(self.result) as u64,
            applied: self.applied,
            fault_addr: if wide { (self.result >> 64) as u64 } else { fault_addr },
        })
    }

    /// The only access of a command of one element.
    fn once(&self, access: Access) -> Next {
        if self.applied > 0 { Next::End(Status::SUCCESS, 0) } else { Next::Access(access) }
    }

    /// In this order: the last element's old value, then the next one's index and operand, itself.
    fn next_in_bulk(&self, bulk: &Bulk) -> Next {
        let (width, i) = (bulk.width, self.applied);
        if let (Some(array), Some(old)) = (bulk.old, self.held.old) {
            return entry(array, i.wrapping_sub(1), width.bytes(), |va| {
                Access::store(va, width, old, Part::Old)
            });
        }
        if i >= bulk.count {
            return Next::End(Status::SUCCESS, 0);
        }
        if let (Addressing::Indexed { array, index }, None) = (bulk.addressing, self.held.index) {
            return entry(array, i, index.bytes(), |va| Access::load(va, index, Part::Index));
        }
        let operand = match (bulk.operands, self.held.operand) {
            (Operands::Immediate(operand), _) | (_, Some(operand)) => operand,
            (Operands::One(array), None) => return operand_at(bulk, array, 0),
            (Operands::Each(array), None) => return operand_at(bulk, array, i),
        };
        let atomic = Atomic { op: bulk.op, operand };
        in_range(element_va(bulk, i, self.held.index), |va| atomic_at(va, width, atomic))
    }

    fn next_in_copy(&self, copy: &Transfer) -> Next {
        let &Transfer { width, count, source, destination } = copy;
        if self.applied >= count {
            return Next::End(Status::SUCCESS, 0);
        }
        let i = if copy.backwards() { count - 1 - self.applied } else { self.applied };
        match self.held.value {
            None => entry(source, i, width.bytes(), |va| Access::load(va, width, Part::Source)),
            Some(value) => {
                entry(destination, i, width.bytes(), |va| Access::store(va, width, value, Part::Element))
            }
        }
    }

    fn next_in_fill(&self, fill: &Fill) -> Next {
        let &Fill { width, count, destination, value } = fill;
        if self.applied >= count {
            return Next::End(Status::SUCCESS, 0);
        }
        let store = |va| Access::store(va, width, value.into(), Part::Element);
        entry(destination, self.applied, width.bytes(), store)
    }

    /// The access that was next has been done, and loaded this.
    pub fn apply(&mut self, access: &Access, loaded: Operand) {
        let value = loaded.value;
        match access.part {
            Part::Index => self.held.index = Some(value as u64),
            Part::Operand => self.held.operand = Some(loaded),
            Part::Source => self.held.value = Some(value),
            Part::Old => self.held.old = None,
            Part::Look => self.looked(value as u64),
            Part::Element => {
                self.applied += 1;
                match &self.command {
                    Command::Bulk(bulk) => self.held = self.held.behind_element(bulk, value),
                    _ => self.result = value,
                }
                self.held.value = None;
            }
        }
    }

    /// spec 5.7.
    fn looked(&mut self, seen: u64) {
        let Command::Wait(wait) = &self.command else { return };
        self.result = seen.into();
        if compute::holds(wait.condition, wait.target.width, seen, wait.compare) {
            self.applied = 1;
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.ended = Some((Status::TIMEOUT, 0));
        } else {
            self.waits = true;
        }
    }
}

impl Held {
    /// What is left when an element that was `old` has been applied.
    fn behind_element(self, bulk: &Bulk, old: u128) -> Held {
        let operand = self.operand.filter(|_| matches!(bulk.operands, Operands::One(_)));
        Held { index: None, operand, value: None, old: bulk.old.map(|_| old) }
    }
}

fn atomic_at(va: u64, width: Width, atomic: Atomic) -> Access {
    Access { va, kind: AccessKind::ATOMIC, width, to: To::Atomic(atomic), part: Part::Element }
}

fn operand_at(bulk: &Bulk, array: u64, i: u32) -> Next {
    let bytes = bulk.op.operand_bytes(bulk.width);
    let to = if bytes > bulk.width.bytes() { To::LoadPair } else { To::Load };
    entry(array, i, bytes, |va| Access { to, ..Access::load(va, bulk.width, Part::Operand) })
}

/// Where element `i` is: it may be nowhere. In 128 bits nothing wraps (spec 5.5).
fn element_va(bulk: &Bulk, i: u32, index: Option<u64>) -> i128 {
    let distance = match bulk.addressing {
        Addressing::Stride(stride) => i128::from(i) * i128::from(stride),
        Addressing::Indexed { .. } => i128::from(index.unwrap_or(0)) * i128::from(bulk.width.bytes()),
    };
    i128::from(bulk.base) + distance
}

/// The access to entry `i` of an array of entries of that size.
fn entry(array: u64, i: u32, bytes: u64, access: impl FnOnce(u64) -> Access) -> Next {
    in_range(i128::from(array) + i128::from(i) * i128::from(bytes), access)
}

fn in_range(va: i128, access: impl FnOnce(u64) -> Access) -> Next {
    match u64::try_from(va) {
        Ok(va) if va < VA_END => Next::Access(access(va)),
        // The low 64 bits, for those who look for the reason.
        _ => Next::End(Status::ADDRESS_RANGE, va as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::AtomicOp;
    use svmx_abi::queue::Condition;

    const ONE: Operand = Operand { value: 1, compare: 0 };

    fn plain(addressing: Addressing, base: u64, count: u32) -> Bulk {
        let (op, width) = (AtomicOp::Add, Width::W64);
        Bulk { op, width, base, count, addressing, operands: Operands::Immediate(ONE), old: None }
    }

    fn bulk(addressing: Addressing, base: u64, count: u32) -> Work {
        Work::new(Command::Bulk(plain(addressing, base, count)))
    }

    fn access(work: &Work) -> Access {
        let Next::Access(access) = work.next() else { panic!("{:?}", work.next()) };
        access
    }

    /// Does the next access, which must be at `va` and loads `value`.
    fn step(work: &mut Work, kind: AccessKind, va: u64, value: u128) -> Access {
        let next = access(work);
        assert_eq!((next.kind, next.va), (kind, va));
        work.apply(&next, Operand { value, compare: 0 });
        next
    }

    #[test]
    fn strides_go_both_ways_and_never_wrap() {
        let mut work = bulk(Addressing::Stride(-8), 8, 3);
        step(&mut work, AccessKind::ATOMIC, 8, 0);
        step(&mut work, AccessKind::ATOMIC, 0, 0);
        assert_eq!(work.next(), Next::End(Status::ADDRESS_RANGE, 8u64.wrapping_neg()));
        let work = bulk(Addressing::Stride(8), u64::MAX - 7, 1);
        assert_eq!(work.next(), Next::End(Status::ADDRESS_RANGE, u64::MAX - 7));
        assert_eq!(bulk(Addressing::Stride(8), u64::MAX - 7, 0).next(), Next::End(Status::SUCCESS, 0));
    }

    #[test]
    fn an_index_is_read_once_per_element() {
        let mut work = bulk(Addressing::Indexed { array: 0x2000, index: Width::W32 }, 0x8000, 2);
        step(&mut work, AccessKind::READ, 0x2000, 5);
        step(&mut work, AccessKind::ATOMIC, 0x8000 + 5 * 8, 99);
        assert_eq!((work.applied, work.completion(0)), (1, None));
        step(&mut work, AccessKind::READ, 0x2004, u64::MAX.into());
        assert!(matches!(work.next(), Next::End(Status::ADDRESS_RANGE, _)));
    }

    #[test]
    fn an_operand_is_read_before_its_element() {
        let strided = plain(Addressing::Stride(8), 0x8000, 2);
        let each = Bulk { operands: Operands::Each(0x3000), op: AtomicOp::Cas, ..strided };
        let mut work = Work::new(Command::Bulk(each));
        for i in 0..2 {
            assert_eq!(access(&work).to, To::LoadPair);
            step(&mut work, AccessKind::READ, 0x3000 + 16 * i, 7);
            let element = step(&mut work, AccessKind::ATOMIC, 0x8000 + 8 * i, 0);
            assert!(matches!(element.to, To::Atomic(atomic) if atomic.operand.value == 7));
        }
        let mut work = Work::new(Command::Bulk(Bulk { operands: Operands::One(0x3000), ..each }));
        step(&mut work, AccessKind::READ, 0x3000, 7);
        step(&mut work, AccessKind::ATOMIC, 0x8000, 0);
        step(&mut work, AccessKind::ATOMIC, 0x8008, 0);
        assert_eq!(work.next(), Next::End(Status::SUCCESS, 0));
    }

    #[test]
    fn an_old_value_is_stored_before_the_next_element() {
        let work = Bulk { old: Some(0x4000), ..plain(Addressing::Stride(0), 0x8000, 2) };
        let mut work = Work::new(Command::Bulk(work));
        for i in 0..2u64 {
            step(&mut work, AccessKind::ATOMIC, 0x8000, 10 + u128::from(i));
            let store = step(&mut work, AccessKind::WRITE, 0x4000 + 8 * i, 0);
            assert_eq!(store.to, To::Store(10 + u128::from(i)));
        }
        assert_eq!(work.completion(3).unwrap().result, 0);
    }

    #[test]
    fn an_old_value_that_can_t_be_stored_is_the_result() {
        let work = Bulk { old: Some(VA_END - 8), ..plain(Addressing::Stride(0), 0x8000, 5) };
        let mut work = Work::new(Command::Bulk(work));
        step(&mut work, AccessKind::ATOMIC, 0x8000, 20);
        let mut cancelled = work;
        step(&mut work, AccessKind::WRITE, VA_END - 8, 0);
        step(&mut work, AccessKind::ATOMIC, 0x8000, 21);
        let end = work.completion(0).unwrap();
        assert_eq!((end.status, end.fault_addr), (Status::ADDRESS_RANGE, VA_END));
        assert_eq!((end.result, end.applied), (21, 2));
        cancelled.end(Status::FAULT, VA_END - 8);
        let end = cancelled.completion(0).unwrap();
        assert_eq!((end.status, end.result, end.applied), (Status::FAULT, 20, 1));
    }

    #[test]
    fn a_copy_loads_and_stores_in_its_direction() {
        let copy = Transfer { width: Width::W32, count: 2, source: 0x1000, destination: 0x1004 };
        let mut work = Work::new(Command::Copy(copy));
        step(&mut work, AccessKind::READ, 0x1004, 2);
        assert_eq!(step(&mut work, AccessKind::WRITE, 0x1008, 0).to, To::Store(2));
        step(&mut work, AccessKind::READ, 0x1000, 1);
        assert_eq!(step(&mut work, AccessKind::WRITE, 0x1004, 0).to, To::Store(1));
        assert_eq!((work.next(), work.applied), (Next::End(Status::SUCCESS, 0), 2));
    }

    #[test]
    fn a_cas_of_128_bits_returns_both_halves() {
        let operand = Operand { value: 1, compare: 2 };
        let target = Target { va: 0x1000, width: Width::W128 };
        let mut work = Work::new(Command::Atomic(target, Atomic { op: AtomicOp::Cas, operand }));
        step(&mut work, AccessKind::ATOMIC, 0x1000, 3 | 4 << 64);
        let end = work.completion(0).unwrap();
        assert_eq!((end.result, end.fault_addr), (3, 4));
    }

    #[test]
    fn a_wait_looks_until_its_condition_or_its_end() {
        let target = Target { va: 0x1000, width: Width::W64 };
        let wait =
            |time| Work::new(Command::Wait(Wait { target, condition: Condition::Uge, compare: 5, time }));
        let mut once = wait(0);
        step(&mut once, AccessKind::READ, 0x1000, 4);
        let end = once.completion(0).unwrap();
        assert_eq!((end.status, end.applied, end.result), (Status::TIMEOUT, 0, 4));
        let mut long = wait(WAIT_FOREVER);
        step(&mut long, AccessKind::READ, 0x1000, 4);
        assert!(long.waits());
        step(&mut long, AccessKind::READ, 0x1000, 6);
        let end = long.completion(0).unwrap();
        assert_eq!((end.status, end.applied, end.result), (Status::SUCCESS, 1, 6));
    }
}
