// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver over the socket, as small as can be: it lets the device of another process work on all of its
//! guest's memory once, so that what the device keeps from that can be seen. Nothing is measured here.

use std::fs::File;
use std::sync::atomic::{Ordering, fence};

use mock_driver::{add_strided, wait_until};
use svmx_abi::control::{ControlEntry, ControlFlags, CreateContext, CreateQueue};
use svmx_abi::doorbell::{driver, queue};
use svmx_abi::pci::{BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_REGS, PAGE_SIZE, VECTOR_COMPLETION_FIRST};
use svmx_abi::pte::{self, Access, Pte};
use svmx_abi::queue::Cqe;
use svmx_abi::regs;
use svmx_abi::status::Status;
use svmx_device::memory::{DmaMap, GuestMemory};

use crate::process::{Process, RAM};

const CONFIG: u32 = 7;
const ASID: u32 = 1;
// Guest-physical addresses. What is from ELEMENTS on is mapped at the same virtual ones.
const CTL: u64 = 0x1000;
const CTL_LOG2: u8 = 7;
const FAULTS: u64 = 0x3000;
const NOTIFY: u64 = 0x4000;
/// Of the levels 3, 2 and 1.
const TABLES: [u64; 3] = [0x5000, 0x6000, 0x7000];
const LEAF_TABLES: u64 = 0x10_0000;
/// Two pages for each queue.
const RINGS: u64 = 0x30_0000;
const RING_LOG2: u8 = 4;
const ELEMENTS: u64 = 0x40_0000;

/// Adds to an element of every page, with a queue for each engine. Returns the number of engines.
pub(crate) fn work(process: &mut Process) -> u32 {
    let mut driver = Driver::new(process);
    driver.enable();
    driver.tables();
    let engines = driver.read(regs::NUM_ENGINES);
    driver.queues(engines);
    let pages = (RAM - ELEMENTS) / PAGE_SIZE;
    let share = pages / u64::from(engines);
    let count = u32::try_from(share).unwrap();
    for number in 1..=engines {
        let first = ELEMENTS + PAGE_SIZE * share * u64::from(number - 1);
        let sqe = add_strided(first, count, PAGE_SIZE as i32);
        driver.put::<8>(sq(number), zerocopy::transmute!(sqe));
        driver.ring(number, queue::SQ_TAIL, 1);
    }
    for number in 1..=engines {
        driver.await_completion(number, count);
    }
    engines
}

fn sq(number: u32) -> u64 {
    RINGS + 2 * PAGE_SIZE * u64::from(number - 1)
}

fn cq(number: u32) -> u64 {
    sq(number) + PAGE_SIZE
}

struct Driver<'p> {
    process: &'p mut Process,
    ram: GuestMemory,
    doorbells: GuestMemory,
}

impl<'p> Driver<'p> {
    fn new(process: &'p mut Process) -> Self {
        let region = process.client.region(BAR_DOORBELLS).unwrap();
        let doorbells = mapped(region.file_offset.as_ref().unwrap().file(), BAR_DOORBELLS_SIZE);
        let ram = mapped(&process.ram, RAM);
        Driver { process, ram, doorbells }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.process.client.region_read(BAR_REGS, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u64, size: usize) {
        self.process.client.region_write(BAR_REGS, offset, &value.to_le_bytes()[..size]).unwrap();
    }

    fn put<const N: usize>(&self, address: u64, words: [u64; N]) {
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.ram.word64(address + at, true).unwrap().store(*word, Ordering::Relaxed);
        }
    }

    /// spec 4.3.
    fn ring(&mut self, page: u32, offset: u64, value: u32) {
        let base = PAGE_SIZE * u64::from(page);
        self.doorbells.word32(base + offset, true).unwrap().store(value, Ordering::Release);
        fence(Ordering::SeqCst);
        // NEED_KICK is at the same place in both kinds of page.
        if self.doorbells.word32(base + queue::NEED_KICK, false).unwrap().load(Ordering::Relaxed) == 1 {
            self.write(regs::KICK, page.into(), 4);
        }
    }

    fn enable(&mut self) {
        // Memory and bus master.
        self.process.client.region_write(CONFIG, 4, &[6, 0]).unwrap();
        self.write(regs::CTL_BASE, CTL, 8);
        self.write(regs::CTL_LOG2, CTL_LOG2.into(), 4);
        self.write(regs::FAULT_BASE, FAULTS, 8);
        self.write(regs::FAULT_LOG2, 4, 4);
        self.write(regs::CONTROL, regs::Control::ENABLE.0.into(), 4);
        assert_eq!(self.read(regs::STATUS), 1, "READY");
    }

    /// All of memory from [`ELEMENTS`] on, by pages of 4 KiB.
    fn tables(&self) {
        self.put(TABLES[0], [Pte::table(TABLES[1]).0]);
        self.put(TABLES[1], [Pte::table(TABLES[2]).0]);
        let entry = |base: u64, va, level| base + 8 * pte::index(va, level) as u64;
        for va in (ELEMENTS..RAM).step_by(PAGE_SIZE as usize) {
            let leaves = LEAF_TABLES + PAGE_SIZE * pte::index(va, 1) as u64;
            self.put(entry(TABLES[2], va, 1), [Pte::table(leaves).0]);
            self.put(entry(leaves, va, 0), [Pte::leaf(va, Access::EXCLUSIVE).0]);
        }
    }

    /// A context and its queues.
    fn queues(&mut self, count: u32) {
        let context = CreateContext { asid: ASID, root: TABLES[0], ..Default::default() };
        let queues = (1..=count).map(|number| {
            ControlEntry::from(CreateQueue {
                queue: number,
                asid: ASID,
                sq_base: sq(number),
                cq_base: cq(number),
                sq_log2: RING_LOG2,
                cq_log2: RING_LOG2,
                vector: VECTOR_COMPLETION_FIRST,
                ..Default::default()
            })
        });
        let mut entries: Vec<ControlEntry> =
            std::iter::once(ControlEntry::from(context)).chain(queues).collect();
        let last = entries.last_mut().unwrap();
        (last.flags, last.notify_addr, last.notify_value) = (ControlFlags::NOTIFY, NOTIFY, 1);
        for (entry, slot) in entries.iter().zip((CTL..).step_by(64)) {
            self.put::<8>(slot, zerocopy::transmute!(*entry));
        }
        self.ring(0, driver::CTL_TAIL, count + 1);
        let word = self.ram.word64(NOTIFY, false).unwrap();
        wait_until("the control queue", || word.load(Ordering::Acquire) == 1);
    }

    fn await_completion(&self, number: u32, count: u32) {
        let first = self.ram.word64(cq(number), false).unwrap();
        wait_until("a completion", || first.load(Ordering::Acquire) != 0);
        let cqe: Cqe = zerocopy::transmute!(self.ram.copy::<4>(cq(number)).unwrap());
        assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, count));
    }
}

fn mapped(file: &File, size: u64) -> GuestMemory {
    let map = DmaMap { address: 0, size, file: file.try_clone().unwrap(), offset: 0, writable: true };
    GuestMemory::default().with_map(map).unwrap()
}
