// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `atomics`: every command against a model on the CPU, at every place; every mistake and its status; every
//! kind of memory; bulk commands, and how they end early; fences; and waiting with poll.
#![expect(unsafe_code, reason = "lets commands name raw addresses")]

mod bulk;
mod memory;
mod model;
mod order;
mod polled;
mod refused;
mod values;

use crate::area::RawQueue;
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Result, ensure};
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Completion, Device, QueueSize};

/// Both widths.
const WIDTHS: [WidthLog2; 2] = [WidthLog2::W32, WidthLog2::W64];

/// Every opcode with an element.
fn operations() -> impl Iterator<Item = Opcode> {
    Opcode::ALL
        .into_iter()
        .map(|(_, opcode)| opcode)
        .filter(|opcode| !matches!(*opcode, Opcode::NOP | Opcode::FENCE))
}

/// Whether the opcode is a read-modify-write.
fn is_atomic(opcode: Opcode) -> bool {
    !matches!(opcode, Opcode::NOP | Opcode::FENCE | Opcode::READ | Opcode::WRITE)
}

/// The queue, and how many commands were compared with what they should do.
struct Bench {
    queue: RawQueue,
    checks: u64,
}

impl Bench {
    /// Does a command and compares the status, the number of elements applied, and, if there is one to
    /// compare with, the address that ended it.
    fn expect(
        &mut self,
        entry: &Sqe,
        status: Status,
        applied: u32,
        address: Option<u64>,
    ) -> Result<Completion> {
        let found = self.queue.execute(entry)?;
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
    let parts: [(&str, Part); 10] = [
        ("values", values::values),
        ("places", values::places),
        ("misaligned", refused::misaligned),
        ("malformed", refused::malformed),
        ("addresses", refused::addresses),
        ("kinds of memory", memory::kinds),
        ("bulk", bulk::complete),
        ("bulk that ends early", bulk::partial),
        ("order", order::fences),
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
