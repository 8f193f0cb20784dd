// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A sequential model of the commands, written from docs/spec.md as plainly as possible: no queues, no
//! translation, no concurrency. It is told which memory a queue may reach at most; whether an access
//! happens now, later or never is for its user to say, one step at a time.

mod check;
mod element;
mod memory;

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::VA_END;
use svmx_abi::queue::{Condition, Opcode, Sqe};
use svmx_abi::status::Status;

pub(crate) use check::{End, Form, check};
pub(crate) use element::Value;
pub(crate) use memory::{Backing, Memory, Page, Verdict};

/// An access that a command needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// May lie outside the address space: that is for [`Access::verdict`] to find.
    at: i128,
    kind: AccessKind,
}

impl Access {
    /// As a completion names it. Of an address outside 64 bits, the low ones.
    pub(crate) fn va(&self) -> u64 {
        self.at as u64
    }

    pub(crate) fn kind(&self) -> AccessKind {
        self.kind
    }

    /// What comes of it in the end.
    pub(crate) fn verdict(&self, memory: &Memory) -> Verdict {
        if self.at < 0 || self.at >= VA_END.into() {
            return Verdict::Ends(Status::ADDRESS_RANGE);
        }
        memory.page(self.va()).verdict(self.kind)
    }
}

/// A command that was not refused, between two of its steps.
#[derive(Clone)]
pub(crate) struct Run<'a> {
    form: Form<'a>,
    /// Elements applied.
    pub(crate) applied: u32,
    /// What the completion's `result` will be, and of a scalar CAS at 128 bits `fault_addr`.
    pub(crate) result: Value,
    /// The old value of the last element, while it is not stored.
    old: Option<Value>,
    /// A WAIT has looked.
    looked: bool,
}

impl<'a> Run<'a> {
    /// Checks a command.
    pub(crate) fn new(sqe: &'a Sqe) -> Result<Self, End> {
        check(sqe)?;
        Ok(Run { form: Form(sqe), applied: 0, result: Value::default(), old: None, looked: false })
    }

    /// Elements in all.
    pub(crate) fn count(&self) -> u32 {
        match self.form.0 {
            _ if self.form.is_nothing() => 0,
            sqe if self.form.has_count() => sqe.count,
            _ => 1,
        }
    }

    /// Whether nothing is left to do; a WAIT looks once.
    pub(crate) fn done(&self) -> bool {
        self.old.is_none() && (self.applied == self.count() || self.looked)
    }

    /// What a command that ends here has in `result`, and a success in `fault_addr`.
    pub(crate) fn results(&self, status: Status) -> (Value, u64) {
        match self.old {
            // spec 5.5: it could not be stored.
            Some(old) => (low(old), 0),
            None if status == Status::SUCCESS && self.form.wide() && !self.form.bulk() => {
                (low(self.result), (self.result.bits >> 64) as u64)
            }
            None if matches!(status, Status::SUCCESS | Status::TIMEOUT) => (self.result, 0),
            None => (Value::default(), 0),
        }
    }

    /// The accesses of the next step. Those of one element may happen in any order but that its index comes
    /// before the element.
    pub(crate) fn accesses(&self, memory: &Memory) -> Vec<Access> {
        let (sqe, i) = (self.form.0, i128::from(self.applied));
        let access = |kind, at| Access { at, kind };
        if self.done() {
            return vec![];
        }
        if self.old.is_some() {
            return vec![access(AccessKind::WRITE, self.old_address())];
        }
        match sqe.opcode {
            Opcode::READ | Opcode::WAIT => vec![access(AccessKind::READ, sqe.addr.into())],
            Opcode::WRITE => vec![access(AccessKind::WRITE, sqe.addr.into())],
            Opcode::FILL => vec![access(AccessKind::WRITE, self.place(sqe.addr))],
            Opcode::COPY => vec![
                access(AccessKind::READ, self.place(sqe.arg0)),
                access(AccessKind::WRITE, self.place(sqe.addr)),
            ],
            _ => {
                let index = i128::from(sqe.index_addr) + i * i128::from(self.form.index_bytes());
                let index = self.form.indexed().then(|| access(AccessKind::READ, index));
                let operand = self.operand_address().map(|at| access(AccessKind::READ, at));
                let known = index.is_none_or(|index| index.verdict(memory) == Verdict::Allowed);
                let element = known.then(|| access(AccessKind::ATOMIC, self.element_address(memory)));
                [index, operand, element].into_iter().flatten().collect()
            }
        }
    }

    /// Every access of the command in order, as far as its indices can be read.
    pub(crate) fn needs(&self, memory: &Memory) -> Vec<Access> {
        let mut run = self.clone();
        let mut needs = vec![];
        for applied in 0..self.count() {
            run.applied = applied;
            needs.extend(run.accesses(memory));
            if self.form.store_old() {
                run.applied = applied + 1;
                needs.push(Access { at: run.old_address(), kind: AccessKind::WRITE });
            }
        }
        needs
    }

    /// Does the next step, whose accesses must all be possible.
    pub(crate) fn step(&mut self, memory: &mut Memory) {
        let (sqe, bytes) = (self.form.0, self.form.bytes());
        if let Some(old) = self.old {
            memory.store(self.old_address() as u64, bytes, old);
            self.old = None;
            return;
        }
        match sqe.opcode {
            Opcode::READ => self.result = load(memory, sqe.addr.into(), bytes),
            Opcode::WAIT => return self.look(memory),
            Opcode::COPY => {
                let value = load(memory, self.place(sqe.arg0), bytes);
                memory.store(self.place(sqe.addr) as u64, bytes, value);
            }
            Opcode::WRITE => memory.store(sqe.addr, bytes, u128::from(sqe.operand).into()),
            Opcode::FILL => memory.store(self.place(sqe.addr) as u64, bytes, u128::from(sqe.operand).into()),
            opcode => {
                let (compare, operand) = self.operands(memory);
                let at = self.element_address(memory);
                let m = load(memory, at, bytes);
                memory.store(at as u64, bytes, element::after(opcode, bytes, m, operand, compare));
                self.old = self.form.store_old().then_some(m);
                self.result = if self.form.bulk() { Value::default() } else { m };
            }
        }
        self.applied += 1;
    }

    /// spec 5.7.
    fn look(&mut self, memory: &Memory) {
        let (sqe, bytes) = (self.form.0, self.form.bytes());
        let condition = Condition::from_number(sqe.arg1).expect("it was checked");
        self.result = load(memory, sqe.addr.into(), bytes);
        self.looked = true;
        self.applied = element::holds(condition, bytes, self.result.bits, sqe.compare.into()).into();
    }

    /// Where the next element of a COPY or FILL is, in the array at `base` (spec 5.6).
    fn place(&self, base: u64) -> i128 {
        let (sqe, bytes) = (self.form.0, u64::from(self.form.bytes()));
        let (to, from) = (i128::from(sqe.addr), i128::from(sqe.arg0));
        let length = i128::from(u64::from(sqe.count) * bytes);
        let backwards = sqe.opcode == Opcode::COPY && to > from && to < from + length;
        let i = if backwards { sqe.count - 1 - self.applied } else { self.applied };
        i128::from(base) + i128::from(i) * i128::from(bytes)
    }

    /// Where the element of an atomic is; its index, if it has one, can be read.
    fn element_address(&self, memory: &Memory) -> i128 {
        let (sqe, i) = (self.form.0, i128::from(self.applied));
        let base = i128::from(sqe.addr);
        if self.form.indexed() {
            let bytes = self.form.index_bytes();
            let index = load(memory, i128::from(sqe.index_addr) + i * i128::from(bytes), bytes);
            return base + (index.bits * u128::from(self.form.bytes())) as i128;
        }
        base + i * i128::from(sqe.stride)
    }

    /// Where the element's operand is, if it is in memory.
    fn operand_address(&self) -> Option<i128> {
        let distance = if self.form.own_operands() { self.form.operand_bytes() } else { 0 };
        let at = i128::from(self.form.0.operand) + i128::from(self.applied) * i128::from(distance);
        self.form.operands_in_memory().then_some(at)
    }

    /// Where the last element's old value goes.
    fn old_address(&self) -> i128 {
        let last = i128::from(self.applied) - 1;
        i128::from(self.form.0.arg0) + last * i128::from(self.form.bytes())
    }

    /// The compared value and the operand of the next element.
    fn operands(&self, memory: &Memory) -> (u128, u128) {
        let (sqe, bytes) = (self.form.0, self.form.bytes());
        let both = |low, high| u128::from(low) | u128::from(high) << 64;
        match self.operand_address() {
            Some(at) if self.form.is_cas() => {
                (load(memory, at, bytes).bits, load(memory, at + i128::from(bytes), bytes).bits)
            }
            Some(at) => (0, load(memory, at, bytes).bits),
            None if self.form.wide() => (both(sqe.compare, sqe.arg1), both(sqe.operand, sqe.arg0)),
            None => (sqe.compare.into(), sqe.operand.into()),
        }
    }
}

fn low(value: Value) -> Value {
    Value { bits: value.bits & u128::from(u64::MAX), ..value }
}

fn load(memory: &Memory, at: i128, bytes: u32) -> Value {
    memory.load(at as u64, bytes).expect("the access was found to be possible")
}
