// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who plays in an input: a hostile process with two queues, another process that it must not harm, their
//! driver, and the host. An input is a sequence of acts; which acts there are depends on who is hostile.

use std::fs::File;
use std::sync::atomic::Ordering;

use mock_driver::{Mock, RAM, Space, UserQueue, add, memfd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use svmx_abi::control::{Cancel, ControlEntry, CreateContext, CreateQueue, Replay, Sync, TlbInvalidate};
use svmx_abi::doorbell::{DRIVER_PAGE, driver};
use svmx_abi::pci::{PAGE_SIZE, VECTOR_COMPLETION_FIRST};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::regs::{self, Control};
use svmx_abi::ring;
use svmx_abi::status::Status;
use svmx_device::device::Region;
use svmx_device::memory::DmaMap;

use crate::entries;
use crate::input::{Input, VA};
use crate::machine::{EVERYTHING, READ_ONLY};
use crate::messages;

/// Acts of one input; what comes after is ignored.
const MAX_ACTS: usize = 64;
/// Pages that the hostile process has, mapped at [`VA`] and on.
const FRAMES: u64 = 8;
/// Pages of guest memory that nothing leads to.
const UNTOUCHED: u64 = 2;

/// Who is hostile. Each can do what those before can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Powers {
    /// A process: its rings, its doorbell pages, its memory. The driver answers its faults.
    Process,
    /// The driver: control queue, page tables, all of guest memory.
    Driver,
    /// A guest with access to the device's regions.
    Registers,
    /// The host, which maps, unmaps, resets.
    Host,
}

/// Those who play.
pub(crate) struct Scene<'m> {
    mock: &'m Mock,
    powers: Powers,
    space: Space,
    frames: u64,
    untouched: u64,
    queues: [UserQueue<'m>; 2],
    victim: UserQueue<'m>,
    /// The page that the victim's only command is about.
    theirs: u64,
    /// What a hostile driver believes of the control queue.
    ctl_base: u64,
    ctl_tail: u32,
}

impl<'m> Scene<'m> {
    pub(crate) fn new(mock: &'m Mock, powers: Powers) -> Self {
        let (space, other) = (mock.space(), mock.space());
        let (frames, theirs, untouched) = (mock.pages(FRAMES), mock.pages(1), mock.pages(UNTOUCHED));
        for page in 0..FRAMES {
            let access = [Access::EXCLUSIVE, Access::COHERENT, Access::READ, Access::READ_WRITE];
            // The last two pages fault.
            if let Some(&access) = access.get(page as usize % 6) {
                mock.map(space, VA + page * PAGE_SIZE, Pte::leaf(frames + page * PAGE_SIZE, access));
            }
        }
        // What the page table allows and the host does not.
        mock.map(space, VA + FRAMES * PAGE_SIZE, Pte::leaf(READ_ONLY, Access::EXCLUSIVE));
        mock.map(space, VA + (FRAMES + 1) * PAGE_SIZE, Pte::leaf(READ_ONLY + PAGE_SIZE, Access::EXCLUSIVE));
        mock.map(other, VA, Pte::leaf(theirs, Access::EXCLUSIVE));
        let queues = [(); 2].map(|()| UserQueue::sized(mock, space, 3));
        let victim = UserQueue::sized(mock, other, 3);
        let ctl_base = mock.read(regs::CTL_BASE, 8);
        let ctl_tail = mock.doorbell(DRIVER_PAGE, driver::CTL_TAIL).load(Ordering::Relaxed);
        Scene { mock, powers, space, frames, untouched, queues, victim, theirs, ctl_base, ctl_tail }
    }

    /// Plays the input's acts.
    pub(crate) fn play(&mut self, input: &mut Input<'_>) {
        let acts = match self.powers {
            Powers::Process => 6,
            Powers::Driver => 10,
            Powers::Registers => 13,
            Powers::Host => 19,
        };
        for _ in 0..MAX_ACTS {
            if input.is_over() {
                return;
            }
            match input.byte() % acts {
                0 => self.submit(input),
                1 => self.doorbell(input),
                2 => self.scribble(input),
                3 => self.consume(input),
                4 => self.answer(input),
                5 => self.change(input),
                6 => self.control(input),
                7 => self.driver_doorbell(input),
                8 => self.table(input),
                9 => self.scribble_anywhere(input),
                10 => self.write(input),
                11 => self.read(input),
                12 => self.mock.write(regs::KICK, input.byte().into(), 4),
                13 => self.map(input),
                14 => self.unmap(input),
                15 => self.reset(input),
                16 => self.interrupts(input),
                17 => self.restart(),
                _ => messages::converse(self.mock, input, true),
            }
        }
    }

    /// What a hostile process must not have achieved. A reset is what comes next.
    pub(crate) fn verify(&mut self) {
        if self.powers > Powers::Process {
            return;
        }
        assert_eq!(self.mock.read(regs::FATAL_ERROR, 4), 0, "a process stopped the device");
        let completion = self.victim.run(add(VA, 1));
        assert_eq!((completion.head.status(), completion.result), (Status::SUCCESS, 0), "of another process");
        assert_eq!(self.mock.control(Sync::default()), Status::SUCCESS);
        assert_eq!(self.mock.ram64(self.theirs).load(Ordering::Relaxed), 1);
        for at in (0..UNTOUCHED * PAGE_SIZE).step_by(8) {
            let word = self.mock.ram64(self.untouched + at).load(Ordering::Relaxed);
            assert_eq!(word, 0, "memory changed that no table leads to");
        }
    }

    fn queue(&mut self, number: u8) -> &mut UserQueue<'m> {
        let [one, two] = &mut self.queues;
        if number.is_multiple_of(2) { one } else { two }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let (queue, frames) = (input.byte(), self.frames);
        let entry = entries::submission(input, frames);
        self.queue(queue).submit(entry);
    }

    fn doorbell(&mut self, input: &mut Input<'_>) {
        let (queue, word) = (input.byte(), input.byte());
        let value = input.number(self.frames) as u32;
        let page = self.queue(queue).id;
        // Known words are 64 bytes apart; the rest of the page means nothing.
        self.mock.ring(page, u64::from(word) * 16, value);
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16()) * 8 % (FRAMES * PAGE_SIZE);
        let value = input.number(self.frames);
        self.mock.ram64(self.frames + at).store(value, Ordering::Relaxed);
    }

    fn consume(&mut self, input: &mut Input<'_>) {
        let queue = input.byte();
        let queue = self.queue(queue);
        for _ in 0..8 {
            if queue.take().is_none() {
                return;
            }
        }
    }

    /// The driver's answer to a fault, if there is one: cancel, try again, or a grant of some kind.
    fn answer(&mut self, input: &mut Input<'_>) {
        let (kind, choice) = (input.byte(), input.byte());
        let Some(fault) = self.mock.fault() else { return };
        let (queue, fault_id) = (fault.head.queue(), fault.fault_id);
        let page = fault.va / PAGE_SIZE;
        if kind % 4 == 0 {
            let (_, status, _) = Status::ALL[usize::from(choice) % Status::ALL.len()];
            self.post(Cancel { queue, fault_id, status, ..Default::default() });
            return;
        }
        let access = [Access::EXCLUSIVE, Access::COHERENT, Access::READ, Access::READ_WRITE];
        let entry =
            Pte::leaf(self.frames + page % FRAMES * PAGE_SIZE, access[usize::from(choice) % access.len()]);
        let pte = if kind % 4 == 1 { 0 } else { entry.0 };
        if kind % 4 == 3 && page < 1 << 36 && self.powers == Powers::Process && fault.asid == self.space.asid
        {
            self.map_page(page * PAGE_SIZE, entry);
        }
        self.post(Replay { queue, fault_id, pte, ..Default::default() });
    }

    /// The driver changes what is mapped near the process's memory, as it must: entry, invalidation.
    fn change(&mut self, input: &mut Input<'_>) {
        let (page, kind) = (u64::from(input.byte() % 16), input.byte());
        let va = VA + page * PAGE_SIZE;
        // Bits 1 to 4 are what a leaf allows.
        let frame = self.frames + page % FRAMES * PAGE_SIZE;
        let entry = if kind % 4 == 0 {
            Pte::NONE
        } else {
            Pte(Pte::table(frame).0 | u64::from(kind >> 2 & 0xf) << 1)
        };
        if self.powers == Powers::Process {
            self.map_page(va, entry);
        }
        self.post(TlbInvalidate { asid: self.space.asid, va, len: PAGE_SIZE, ..Default::default() });
        if kind & 0x80 != 0 {
            self.post(Sync::default());
        }
    }

    /// Sets an entry of a table that exists: few are, so that memory does not run out.
    fn map_page(&self, va: u64, entry: Pte) {
        if va >> 21 == VA >> 21 {
            self.mock.map(self.space, va, entry);
        }
    }

    fn control(&mut self, input: &mut Input<'_>) {
        let entry = entries::control(input, self.frames);
        self.post(entry);
    }

    fn driver_doorbell(&mut self, input: &mut Input<'_>) {
        let word = input.byte();
        let value = input.number(self.frames) as u32;
        self.mock.ring(DRIVER_PAGE, u64::from(word) * 16, value);
    }

    fn table(&mut self, input: &mut Input<'_>) {
        let (place, at) = (input.byte(), input.byte());
        let entry = entries::table_entry(input, self.frames);
        // One of the tables that translate the process's memory, if they still do; else some frame.
        let level = u64::from(place % 4);
        let mut table = self.space.root;
        for upper in (level as u32 + 1..4).rev() {
            let next = self.mock.ram.word64(table + 8 * svmx_abi::pte::index(VA, upper) as u64, false);
            table = next.map_or(self.frames, |entry| Pte(entry.load(Ordering::Relaxed)).address());
        }
        let index = if place < 128 {
            svmx_abi::pte::index(VA, level as u32) as u64 + u64::from(at)
        } else {
            at.into()
        };
        if let Some(word) = self.mock.ram.word64(table + 8 * (index % 512), true) {
            word.store(entry.0, Ordering::Release);
        }
    }

    fn scribble_anywhere(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16()) * 8;
        let value = input.number(self.frames);
        self.mock.ram64(at).store(value, Ordering::Relaxed);
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let (region, offset, size) = place(input, self.frames);
        let value = input.number(self.frames).to_le_bytes();
        let data: Vec<u8> = value.iter().copied().cycle().take(size).collect();
        self.mock.device.lock().write(region, offset, &data);
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let (region, offset, size) = place(input, self.frames);
        self.mock.device.lock().read(region, offset, &mut vec![0xa5; size]);
    }

    /// Memory of any kind anywhere. What the host refuses leaves everything as it was.
    fn map(&mut self, input: &mut Input<'_>) {
        let pages = u64::from(input.byte());
        let address = input.number(self.frames);
        let (offset, size) = (PAGE_SIZE * u64::from(input.byte()), input.number(self.frames));
        let flags = input.byte();
        let size = if flags & 2 == 0 { pages * PAGE_SIZE } else { size };
        let address = if flags & 4 == 0 { address & !(PAGE_SIZE - 1) } else { address };
        let map = DmaMap { address, size, file: memfd(pages * PAGE_SIZE), offset, writable: flags & 1 == 0 };
        let _ = self.mock.device.lock().dma_map(map);
    }

    fn unmap(&mut self, input: &mut Input<'_>) {
        let mut device = self.mock.device.lock();
        let _ = match input.byte() % 4 {
            0 => device.dma_unmap(0, EVERYTHING),
            1 => device.dma_unmap(0, RAM),
            _ => {
                let address = input.number(self.frames) & !(PAGE_SIZE - 1);
                device.dma_unmap(address, PAGE_SIZE * u64::from(input.byte()))
            }
        };
    }

    fn reset(&mut self, input: &mut Input<'_>) {
        match input.byte() % 5 {
            0 => self.mock.device.lock().reset(),
            1 => self.mock.write(regs::CONTROL, Control::RESET.0.into(), 4),
            2 => self.mock.write(regs::CONTROL, 0, 4),
            3 => self.mock.write(regs::CONTROL, Control::ENABLE.0.into(), 4),
            _ => self.mock.bus_master(input.byte().is_multiple_of(2)),
        }
    }

    fn interrupts(&mut self, input: &mut Input<'_>) {
        let (kind, vector) = (input.byte(), input.byte());
        let device = self.mock.device.lock();
        match kind % 4 {
            0 => device.disable_interrupts(),
            1 => _ = device.set_interrupt(vector.into(), None),
            _ => {
                let event = EventFd::from_flags(EfdFlags::empty())
                    .map(|event| File::from(std::os::fd::OwnedFd::from(event)));
                device.set_interrupt(u32::from(vector) % 16, event.ok());
            }
        }
    }

    /// What a driver does that has just been loaded, without waiting for a device that may not answer: rings,
    /// ENABLE, and the process's context and queues again.
    fn restart(&mut self) {
        let mock = self.mock;
        mock.bus_master(true);
        mock.write(regs::CONTROL, Control::RESET.0.into(), 4);
        mock.write(regs::CTL_BASE, self.ctl_base, 8);
        mock.write(regs::CTL_LOG2, 6, 4);
        mock.write(regs::FAULT_BASE, self.frames, 8);
        mock.write(regs::FAULT_LOG2, 1, 4);
        mock.write(regs::CONTROL, Control::ENABLE.0.into(), 4);
        self.ctl_tail = 0;
        let Space { asid, root } = self.space;
        self.post(CreateContext { asid, root, ..Default::default() });
        for at in 0..self.queues.len() {
            let queue = &mut self.queues[at];
            (queue.tail, queue.head) = (0, 0);
            let description = queue.description(self.space);
            self.post(CreateQueue { vector: VECTOR_COMPLETION_FIRST, ..description });
        }
    }

    /// Puts an entry on the control queue. A hostile driver does not wait for room.
    fn post(&mut self, entry: impl Into<ControlEntry>) {
        if self.powers == Powers::Process {
            self.mock.post(entry);
            return;
        }
        let words: [u64; 8] = zerocopy::transmute!(entry.into());
        let slot = self.ctl_base + 64 * u64::from(ring::slot(self.ctl_tail, 6));
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.mock.ram64(slot + at).store(*word, Ordering::Relaxed);
        }
        self.ctl_tail = self.ctl_tail.wrapping_add(1);
        self.mock.ring(DRIVER_PAGE, driver::CTL_TAIL, self.ctl_tail);
    }
}

/// Region, offset and size of an access: one of the registers, or anywhere.
fn place(input: &mut Input<'_>, frames: u64) -> (Region, u64, usize) {
    let (kind, at) = (input.byte(), u64::from(input.byte()));
    let region = match kind % 4 {
        0 => Region::Registers,
        1 => Region::Config,
        2 => Region::Doorbells,
        _ => Region::Msix,
    };
    let offset = match kind >> 2 & 7 {
        0 | 1 => 4 * at,
        2 => 0x100 + 4 * (at % 16),
        3 => regs::COUNTERS + at,
        4 => at,
        5 => PAGE_SIZE + 16 * at,
        6 => u64::from(input.u16()),
        _ => input.number(frames),
    };
    let size = match kind >> 5 {
        0..=2 => 4,
        3 => 8,
        4 => 1,
        5 => 2,
        _ => usize::from(input.byte() % 80),
    };
    (region, offset, size)
}
