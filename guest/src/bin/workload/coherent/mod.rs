// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `coherent`: atomics on memory that stays with the CPU, because it is shared with other processes or is a file's, or
//! because the process wants it so; and what loads and stores of the device do to such memory and to a fork's.
#![expect(unsafe_code, reason = "submits entries that name areas")]

mod disk;
mod forked;
mod sharing;
mod upgrades;
mod writeback;

use crate::area::{Area, RawQueue, scalar};
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Completion, Device, QueueSize};

pub(crate) use sharing::child;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    step("upgrades");
    upgrades::each_policy_and_memory()?;
    step("refusals");
    upgrades::refusals()?;
    step("changes of policy");
    upgrades::changes()?;
    step("a forked child");
    forked::shares_until_written()?;
    let disk = disk::Disk::new()?;
    let additions = sharing::contests(run, disk.as_ref())?;
    metric("shared_additions", additions);
    let Some(mut disk) = disk else {
        return Ok(Shown::Pass(format!("{additions} additions, none lost; no disk: the kernel has no zram")));
    };
    step("writeback");
    let written = writeback::survives(&mut disk)?;
    metric("written_back", written);
    Ok(Shown::Pass(format!(
        "{additions} additions of two processes, none lost; {written} of the device's in a file, all on the disk"
    )))
}

/// A context with a queue.
struct Side {
    device: Device,
    queue: RawQueue,
}

/// What something cost, by the driver's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cost {
    faults: u64,
    grants: u64,
    shared: u64,
    revocations: u64,
    cancels: u64,
}

impl Side {
    fn new(device: u32) -> Result<Self> {
        let device = Device::open_nth(device)?;
        let queue = device.create_queue(QueueSize::default())?;
        // SAFETY: what it is given names areas, which nothing but atomics reaches.
        let queue = unsafe { RawQueue::new(queue) };
        Ok(Side { device, queue })
    }

    fn so_far(&self) -> Result<Cost> {
        let stats = self.device.stats()?;
        Ok(Cost {
            faults: stats.faults,
            grants: stats.grants,
            shared: stats.shared_grants,
            revocations: stats.revocations,
            cancels: stats.cancels,
        })
    }

    /// Does something that must cost this, no more and no less.
    fn costs<T>(&mut self, expected: Cost, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.so_far()?;
        let result = act(self)?;
        let after = self.so_far()?;
        let found = Cost {
            faults: after.faults - before.faults,
            grants: after.grants - before.grants,
            shared: after.shared - before.shared,
            revocations: after.revocations - before.revocations,
            cancels: after.cancels - before.cancels,
        };
        ensure!(found == expected, "expected {expected:?}, found {found:?}");
        Ok(result)
    }

    /// A command on the 64-bit word at `offset`, and what was there before.
    fn command(&mut self, opcode: Opcode, area: &Area, offset: u64, operand: u64) -> Result<u64> {
        let found = self.queue.execute(&scalar(opcode, WidthLog2::W64, area.address(offset), operand))?;
        ensure!(found.status.is_success(), "{opcode:?} at {offset:#x}: {found:?}");
        Ok(found.result as u64)
    }

    /// A command that must be refused.
    fn refused(&mut self, opcode: Opcode, area: &Area, status: Status) -> Result<()> {
        let found = self.queue.execute(&scalar(opcode, WidthLog2::W64, area.address(0), 0))?;
        let name = status.name().unwrap_or_default();
        ensure!(found.status.0 == status, "{opcode:?}: expected {name}, found {found:?}");
        Ok(())
    }

    /// Adds 1 to a word in every `stride` bytes, `count` times.
    fn add_all(&mut self, area: &Area, stride: u64, count: u64) -> Result<Completion> {
        let found = self.queue.execute(&additions(area, stride, count)?)?;
        ensure!(found.status.is_success() && u64::from(found.applied) == count, "{found:?}");
        Ok(found)
    }
}

/// Adds 1 to a word in every `stride` bytes, `count` times.
fn additions(area: &Area, stride: u64, count: u64) -> Result<Sqe> {
    Ok(Sqe {
        opcode: Opcode::FETCH_ADD,
        width: WidthLog2::W64,
        flags: SqeFlags::BULK,
        addr: area.address(0),
        operand: 1,
        count: u32::try_from(count).context("too many elements")?,
        stride: i32::try_from(stride).context("too wide a stride")?,
        ..Sqe::default()
    })
}
