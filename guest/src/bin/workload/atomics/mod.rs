// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `atomics`: every command against a model on the CPU, at every place and in every form; every mistake and its
//! status; every kind of memory; commands that end early; fences, waits, and waiting with poll.
#![expect(unsafe_code, reason = "lets commands name raw addresses")]

mod bulk;
mod contended;
mod copy;
mod early;
mod memory;
mod model;
mod order;
mod polled;
mod reference;
mod refused;
mod typed;
mod values;
mod wait;

use crate::area::RawQueue;
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use reference::{Expected, Memory};
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Completion, Device, QueueSize};

const W8: WidthLog2 = WidthLog2::W8;
const W32: WidthLog2 = WidthLog2::W32;
const W64: WidthLog2 = WidthLog2::W64;
const W128: WidthLog2 = WidthLog2::W128;

/// Every atomic.
const ATOMICS: [Opcode; 11] = [
    Opcode::FETCH_ADD,
    Opcode::FETCH_AND,
    Opcode::FETCH_OR,
    Opcode::FETCH_XOR,
    Opcode::FETCH_UMIN,
    Opcode::FETCH_UMAX,
    Opcode::FETCH_SMIN,
    Opcode::FETCH_SMAX,
    Opcode::SWAP,
    Opcode::CAS,
    Opcode::FETCH_FADD,
];

/// READ, WRITE and every atomic: the commands that can have a single element and do something to it.
fn operations() -> impl Iterator<Item = Opcode> {
    [Opcode::READ, Opcode::WRITE].into_iter().chain(ATOMICS)
}

/// The widths of an opcode's elements (spec 5.2); none for NOP and FENCE.
fn widths(opcode: Opcode) -> &'static [WidthLog2] {
    match opcode {
        Opcode::NOP | Opcode::FENCE => &[],
        Opcode::COPY | Opcode::FILL => &[W8, W32, W64],
        Opcode::CAS => &[W32, W64, W128],
        _ => &[W32, W64],
    }
}

/// Every operation with each of its widths.
fn scalars() -> impl Iterator<Item = (Opcode, WidthLog2)> {
    operations().flat_map(|opcode| widths(opcode).iter().map(move |width| (opcode, *width)))
}

/// The queue, and how many commands were compared with what they should do.
struct Bench {
    queue: RawQueue,
    checks: u64,
}

impl Bench {
    /// Does a command and compares the status.
    fn ends(&mut self, entry: &Sqe, status: Status) -> Result<Completion> {
        let found = self.queue.execute(entry)?;
        self.checks += 1;
        let expected = status.name().unwrap_or_default();
        ensure!(found.status.0 == status, "expected {expected}, found {found:x?} for {entry:x?}");
        Ok(found)
    }

    /// Does a command and compares the status, the number of elements applied, and, if there is one to
    /// compare with, the address that ended it.
    fn expect(
        &mut self,
        entry: &Sqe,
        status: Status,
        applied: u32,
        address: Option<u64>,
    ) -> Result<Completion> {
        self.queue.submit(entry)?;
        self.completed(entry, status, applied, address)
    }

    /// Compares the completion of a command that was submitted, in the same way.
    fn completed(
        &mut self,
        entry: &Sqe,
        status: Status,
        applied: u32,
        address: Option<u64>,
    ) -> Result<Completion> {
        let found = self.queue.complete().with_context(|| format!("{entry:x?}"))?;
        self.checks += 1;
        let expected = status.name().unwrap_or_default();
        ensure!(found.status.0 == status, "expected {expected}, found {found:x?} for {entry:x?}");
        ensure!(found.applied == applied, "expected {applied} applied, found {found:x?} for {entry:x?}");
        if let Some(address) = address {
            ensure!(
                found.fault_addr == address,
                "expected address {address:#x}, found {found:x?} for {entry:x?}"
            );
        }
        ensure!(found.tag == entry.tag, "expected tag {:#x}, found {found:x?}", entry.tag);
        Ok(found)
    }

    /// Compares the completion of a command that was submitted with all that the reference expects.
    fn as_expected(&mut self, entry: &Sqe, expected: Expected) -> Result<()> {
        let Expected { status, applied, result, address } = expected;
        let found = self.completed(entry, status, applied, address)?;
        ensure!(found.result == result, "expected result {result:#x}, found {found:x?} for {entry:x?}");
        Ok(())
    }

    /// Does a command and compares everything with the reference: the completion, and all of the memory.
    fn agree(&mut self, entry: &Sqe, memory: &mut Memory) -> Result<()> {
        let expected = memory.execute(entry)?;
        self.queue.submit(entry)?;
        self.as_expected(entry, expected)?;
        memory.compare().with_context(|| format!("after {entry:x?}"))
    }

    /// A command that must succeed.
    fn succeed(&mut self, entry: &Sqe) -> Result<Completion> {
        self.expect(entry, Status::SUCCESS, 1, Some(0))
    }
}

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let queue = device.create_queue(QueueSize::default())?;
    // SAFETY: the modules below name areas, or addresses where nothing of the process is.
    let queue = unsafe { RawQueue::new(queue) };
    let mut bench = Bench { queue, checks: 0 };
    type Part = fn(&mut Bench, &Run) -> Result<()>;
    let parts: [(&str, Part); 18] = [
        ("values", values::values),
        ("places", values::places),
        ("misaligned", refused::misaligned),
        ("malformed", refused::malformed),
        ("addresses", refused::addresses),
        ("kinds of memory", memory::kinds),
        ("bulk", bulk::forms),
        ("long bulk", bulk::long),
        ("bulk that ends early", early::arrays),
        ("bulk out of range", early::range),
        ("contended", contended::contended),
        ("copy", copy::copy),
        ("fill", copy::fill),
        ("copy that ends early", copy::early),
        ("wait", wait::wait),
        ("order", order::fences),
        ("typed", typed::typed),
        ("poll", polled::poll),
    ];
    let result = parts.into_iter().try_for_each(|(name, part)| {
        step(name);
        let before = bench.checks;
        let result = part(&mut bench, run);
        metric(&format!("checks_{}", name.replace(' ', "_")), bench.checks - before);
        result
    });
    metric("checks", bench.checks);
    crate::counter::statistics(&*device.stats()?, "");
    result?;
    Ok(Shown::Pass(format!("{} commands did what the model says", bench.checks)))
}
