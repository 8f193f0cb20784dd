// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `two-processes`: two processes with a context each have different memory at the same addresses, and
//! neither reaches the other's. An address that is not in the process is FAULT, whatever it is elsewhere.
//! A forked child has nothing of its parent's context.
#![expect(unsafe_code, reason = "lets commands name raw addresses")]

mod forked;

use crate::area::{Area, PAGE, RawQueue, scalar};
use crate::link::metric;
use crate::maps;
use crate::process::{self, Process};
use crate::random::Random;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use svmx::abi::pci::VA_END;
use svmx::abi::queue::{Opcode, Sqe, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Device, QueueSize};

/// Where both processes have memory.
const BOTH: u64 = 0x3000_0000_0000;
/// Where only the one, and only the other, has.
const ONLY: [u64; 2] = [0x3100_0000_0000, 0x3200_0000_0000];
const PAGES: u64 = 8;
const ROUNDS: u64 = 3000;
const GAPS: usize = 400;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    // The other side may be slower than this one, but does no more.
    let patience = run.part(2, 5);
    step("starting the other process");
    let mut other = Process::start("two-processes", &[run.seed.to_string()])?;
    let mut side = Side::new(0, run.seed)?;
    other.expect("ready", patience)?;
    other.say("go")?;
    step("both at work");
    side.work()?;
    other.expect("worked", patience)?;
    other.say("go on")?;
    step("addresses outside");
    side.outside()?;
    other.expect("done", patience)?;
    side.verify()?;
    let status = other.wait(patience)?;
    ensure!(status.success(), "the other process ended with {status}");
    step("a forked child");
    let denied = forked::denied()?;
    metric("device_ops", 2 * ROUNDS);
    metric("outside", side.outside);
    metric("denied_after_fork", denied);
    Ok(Shown::Pass(format!(
        "{} addresses outside the process gave a fault status, in each of two",
        side.outside
    )))
}

/// The other process.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let seed = arguments.first().context("no seed")?.parse()?;
    let mut side = Side::new(1, seed)?;
    process::tell("ready")?;
    process::listen()?;
    side.work()?;
    process::tell("worked")?;
    process::listen()?;
    side.outside()?;
    side.verify()?;
    process::tell("done")?;
    // The memory stays until the first process has done its part.
    process::listen()?;
    side.verify()
}

/// One of the two.
struct Side {
    number: usize,
    queue: RawQueue,
    both: Area,
    only: Area,
    /// What must be in `both`, and in `only`.
    model: Vec<u64>,
    random: Random,
    outside: u64,
}

impl Side {
    fn new(number: usize, seed: u64) -> Result<Self> {
        let device = Device::open_nth(0)?;
        let queue = device.create_queue(QueueSize::default())?;
        // SAFETY: it names the two areas, and addresses where nothing of this process is.
        let queue = unsafe { RawQueue::new(queue) };
        let (both, only) = (Area::at(BOTH, PAGES * PAGE)?, Area::at(ONLY[number], PAGE)?);
        let mut random = Random::part(seed, number as u64);
        let mut model = Vec::new();
        for word in 0..PAGES * PAGE / 8 {
            let value = random.next();
            both.store(8 * word, WidthLog2::W64, value);
            model.push(value);
        }
        only.store(0, WidthLog2::W64, 7);
        Ok(Side { number, queue, both, only, model, random, outside: 0 })
    }

    /// Atomics of the device and stores of the CPU, each seeing what this process left there.
    fn work(&mut self) -> Result<()> {
        for _ in 0..ROUNDS {
            let word = self.random.below(self.model.len() as u64);
            let value = self.random.next();
            let expected = self.model[word as usize];
            if self.random.one_in(4) {
                self.both.store(8 * word, WidthLog2::W64, value);
                self.model[word as usize] = value;
                continue;
            }
            let entry = scalar(Opcode::SWAP, WidthLog2::W64, BOTH + 8 * word, value);
            let found = self.queue.execute(&entry)?;
            ensure!(
                found.status.is_success() && found.result == expected.into(),
                "process {}: expected {expected:#x} in word {word}, found {found:x?}",
                self.number
            );
            self.model[word as usize] = value;
        }
        Ok(())
    }

    /// Every kind of address that is not this process's.
    fn outside(&mut self) -> Result<()> {
        let other = ONLY[1 - self.number];
        let mut addresses = vec![other, other + 8, other + PAGE - 8];
        addresses.extend([0, 8, PAGE - 8, PAGE, 1 << 47, (1 << 47) + PAGE, VA_END / 4 * 3, VA_END - 8]);
        addresses.extend(maps::gaps(&mut self.random, GAPS)?);
        for addr in addresses {
            self.must_end(addr, Status::FAULT)?;
        }
        // The kernel's half, the vsyscall page, and the end of it all.
        for addr in
            [VA_END, 0xffff_8000_0000_0000, 0xffff_ffff_8000_0000, 0xffff_ffff_ff60_0000, u64::MAX - 7]
        {
            self.must_end(addr, Status::ADDRESS_RANGE)?;
        }
        Ok(())
    }

    fn must_end(&mut self, addr: u64, status: Status) -> Result<()> {
        let command = |opcode, addr| scalar(opcode, WidthLog2::W64, addr, 0);
        let entries = [
            command(Opcode::READ, addr),
            command(Opcode::WRITE, addr),
            command(Opcode::FETCH_ADD, addr),
            command(Opcode::WAIT, addr),
            Sqe { count: 1, ..command(Opcode::FILL, addr) },
            // To there, and from there.
            Sqe { count: 1, arg0: BOTH, ..command(Opcode::COPY, addr) },
            Sqe { count: 1, arg0: addr, ..command(Opcode::COPY, BOTH) },
        ];
        for entry in entries {
            let found = self.queue.execute(&entry)?;
            ensure!(
                found.status.0 == status
                    && found.fault_addr == addr
                    && found.result == 0
                    && found.applied == 0,
                "process {}: expected {} for {addr:#x}, found {found:x?} for {entry:x?}",
                self.number,
                status.name().unwrap_or_default()
            );
        }
        self.outside += 1;
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        for (word, &expected) in self.model.iter().enumerate() {
            let found = self.both.load(8 * word as u64, WidthLog2::W64);
            ensure!(
                found == expected,
                "process {}: word {word} is {found:#x}, not {expected:#x}",
                self.number
            );
        }
        let found = self.only.load(0, WidthLog2::W64);
        ensure!(found == 7, "process {}: its own memory is {found:#x}, not 7", self.number);
        Ok(())
    }
}
