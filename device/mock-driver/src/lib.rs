// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver without a kernel: guest memory in a memfd, page tables, control queue, fault consumer, user
//! rings. It obeys the specification by default, and lets a test break it.

pub mod binary;
mod meeting;
mod rings;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use svmx_abi::control::{CompletionWord, ControlEntry, ControlFlags, CreateContext};
use svmx_abi::doorbell::{DRIVER_PAGE, driver};
use svmx_abi::fault::FaultRecord;
use svmx_abi::pci::{BAR_DOORBELLS_SIZE, PAGE_SIZE};
use svmx_abi::pte::{self, Pte};
use svmx_abi::regs::{self, Control};
use svmx_abi::ring;
use svmx_abi::status::Status;
use svmx_device::chaos::Settings;
use svmx_device::check::Findings;
use svmx_device::device::{Device, Region};
use svmx_device::instruments::{Request, Watchers};
use svmx_device::memory::{DmaMap, GuestMemory};
use svmx_device::model::Options;

pub use meeting::Meeting;
pub use rings::{UserQueue, add, add_indexed, add_strided};

/// Bytes of guest memory, at guest-physical 0, unless more was asked for.
pub const RAM: u64 = 32 << 20;
/// When something is taken to hang.
pub const HANG: Duration = Duration::from_secs(60);

/// Two engines that don't poll for long.
pub fn options() -> Options {
    Options { engines: 2, poll: Duration::from_micros(20), ..Default::default() }
}

const CTL_LOG2: u8 = 6;

/// A device, enabled, and its driver.
pub struct Mock {
    /// The device, as its host has it.
    pub device: Mutex<Device>,
    /// Its instruments.
    pub watchers: Arc<Watchers>,
    /// Set by [`Self::lawless`].
    lawless: AtomicBool,
    /// A view of guest memory of the driver's own.
    pub ram: GuestMemory,
    ram_file: File,
    ram_size: u64,
    doorbells: GuestMemory,
    state: Mutex<State>,
    fault_log2: u8,
    lookahead: AtomicU32,
    ctl_base: u64,
    fault_base: u64,
    notify: u64,
}

#[derive(Default)]
struct State {
    next_page: u64,
    ctl_tail: u32,
    fault_head: u32,
    notified: u64,
    asids: u32,
    queues: u32,
}

/// An address space with its root table.
#[derive(Clone, Copy)]
pub struct Space {
    /// Its number.
    pub asid: u32,
    /// Guest-physical address of its root table.
    pub root: u64,
}

impl Default for Mock {
    fn default() -> Self {
        Self::new()
    }
}

impl Mock {
    /// With the usual options.
    pub fn new() -> Self {
        Self::with(options(), 6)
    }

    /// With these options, and a fault queue of 2^`fault_log2` entries.
    pub fn with(options: Options, fault_log2: u8) -> Self {
        Self::with_ram(options, fault_log2, RAM)
    }

    /// The same with `ram_size` bytes of guest memory, whole pages.
    pub fn with_ram(options: Options, fault_log2: u8, ram_size: u64) -> Self {
        Self::watched(options, fault_log2, ram_size, instruments())
    }

    /// And these instruments.
    pub fn watched(options: Options, fault_log2: u8, ram_size: u64, request: Request) -> Self {
        let (device, watchers) = request.device(options).unwrap();
        let ram_file = memfd(ram_size);
        let ram = mapped(ram_file.try_clone().unwrap(), ram_size);
        let doorbells = mapped(device.doorbell_file().try_clone().unwrap(), BAR_DOORBELLS_SIZE);
        let state = Mutex::new(State { next_page: 1, ..Default::default() });
        let (ctl_base, fault_base, notify) = (0, 0, 0);
        let device = Mutex::new(device);
        let mut mock = Mock {
            device,
            watchers,
            lawless: AtomicBool::new(false),
            ram,
            ram_file,
            ram_size,
            doorbells,
            state,
            fault_log2,
            lookahead: AtomicU32::new(0),
            ctl_base,
            fault_base,
            notify,
        };
        mock.ctl_base = mock.pages(1);
        mock.fault_base = mock.pages(1 << fault_log2 >> 6 | 1);
        mock.notify = mock.pages(1);
        mock.map_ram();
        mock.start();
        mock
    }

    /// This driver stores to pages that the device holds exclusively: the exclusivity checker may say so.
    pub fn lawless(&self) {
        self.lawless.store(true, Ordering::Relaxed);
    }

    /// What the exclusivity checker has found. There is one.
    pub fn findings(&self) -> Findings {
        self.watchers.checker.as_ref().unwrap().findings()
    }

    /// Starts once more, with this in `LOOKAHEAD` (spec 7.3).
    pub fn look_ahead(&self, pages: u32) {
        self.lookahead.store(pages, Ordering::Relaxed);
        self.write(regs::CONTROL, 0, 4);
        self.start();
    }

    /// Gives the device all of guest memory.
    pub fn map_ram(&self) {
        let file = self.ram_file.try_clone().unwrap();
        let map = DmaMap { address: 0, size: self.ram_size, file, offset: 0, writable: true };
        self.device.lock().dma_map(map).unwrap();
    }

    /// Bus master, rings, ENABLE: what follows a reset.
    pub fn start(&self) {
        let mut state = self.state.lock();
        (state.ctl_tail, state.fault_head, state.asids, state.queues) = (0, 0, 0, 0);
        drop(state);
        for at in (0..64 << self.fault_log2).step_by(8) {
            self.ram64(self.fault_base + at).store(0, Ordering::Relaxed);
        }
        self.bus_master(true);
        self.write(regs::CTL_BASE, self.ctl_base, 8);
        self.write(regs::CTL_LOG2, CTL_LOG2.into(), 4);
        self.write(regs::FAULT_BASE, self.fault_base, 8);
        self.write(regs::FAULT_LOG2, self.fault_log2.into(), 4);
        self.write(regs::LOOKAHEAD, self.lookahead.load(Ordering::Relaxed).into(), 4);
        self.write(regs::CONTROL, Control::ENABLE.0.into(), 4);
        assert_eq!(self.read(regs::STATUS, 4), 1, "READY");
    }

    /// Sets COMMAND.BME.
    pub fn bus_master(&self, on: bool) {
        self.device.lock().write(Region::Config, 4, &[if on { 6 } else { 2 }]);
    }

    /// Writes `size` bytes of a register.
    pub fn write(&self, offset: u64, value: u64, size: usize) {
        self.device.lock().write(Region::Registers, offset, &value.to_le_bytes()[..size]);
    }

    /// Reads `size` bytes of a register.
    pub fn read(&self, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.device.lock().read(Region::Registers, offset, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    /// Reads a counter.
    pub fn counter(&self, counter: regs::Counter) -> u64 {
        self.read(counter.offset(), 8)
    }

    /// Zeroed pages that nobody else uses.
    pub fn pages(&self, count: u64) -> u64 {
        let mut state = self.state.lock();
        let page = state.next_page;
        state.next_page += count;
        assert!(state.next_page * PAGE_SIZE <= self.ram_size, "out of memory");
        page * PAGE_SIZE
    }

    /// A word of guest memory.
    pub fn ram64(&self, address: u64) -> &AtomicU64 {
        self.ram.word64(address, true).unwrap()
    }

    /// A word of guest memory.
    pub fn ram32(&self, address: u64) -> &AtomicU32 {
        self.ram.word32(address, true).unwrap()
    }

    /// A byte of guest memory.
    pub fn ram8(&self, address: u64) -> u8 {
        self.ram.page(address, false).unwrap().word8(address).load(Ordering::Relaxed)
    }

    /// A word of a doorbell page.
    pub fn doorbell(&self, page: u32, offset: u64) -> &AtomicU32 {
        self.doorbells.word32(u64::from(page) * PAGE_SIZE + offset, true).unwrap()
    }

    /// Stores a polled word as spec 4.3 says.
    pub fn ring(&self, page: u32, offset: u64, value: u32) {
        self.doorbell(page, offset).store(value, Ordering::Release);
        fence(Ordering::SeqCst);
        // NEED_KICK is at the same place in both kinds of page.
        if self.doorbell(page, driver::NEED_KICK).load(Ordering::Relaxed) == 1 {
            self.write(regs::KICK, page.into(), 4);
        }
    }

    /// Puts an entry on the control queue; the value that its completion word will have.
    pub fn post(&self, entry: impl Into<ControlEntry>) -> u64 {
        let mut state = self.state.lock();
        state.notified += 1;
        let mut entry: ControlEntry = entry.into();
        entry.flags = ControlFlags::NOTIFY;
        entry.notify_addr = self.notify + 8 * (state.notified % 512);
        entry.notify_value = state.notified;
        self.enqueue(&mut state, entry);
        state.notified
    }

    /// Puts an entry on the control queue as it is.
    pub fn post_raw(&self, entry: ControlEntry) {
        self.enqueue(&mut self.state.lock(), entry);
    }

    /// Memory that was handed out may be handed out again, but for the driver's own. All of guest memory is
    /// zeroed: what a hostile driver made the device write may be anywhere. The device is in reset.
    pub fn rewind(&self) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.ram_file, flags, 0, RAM as i64).unwrap();
        self.state.lock().next_page = self.notify / PAGE_SIZE + 1;
    }

    fn enqueue(&self, state: &mut State, entry: ControlEntry) {
        wait_until("room on the control queue", || {
            let head = self.doorbell(DRIVER_PAGE, driver::CTL_HEAD).load(Ordering::Acquire);
            state.ctl_tail.wrapping_sub(head) < ring::entries(CTL_LOG2)
        });
        let words: [u64; 8] = zerocopy::transmute!(entry);
        let slot = self.ctl_base + 64 * u64::from(ring::slot(state.ctl_tail, CTL_LOG2));
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.ram64(slot + at).store(*word, Ordering::Relaxed);
        }
        state.ctl_tail = state.ctl_tail.wrapping_add(1);
        self.ring(DRIVER_PAGE, driver::CTL_TAIL, state.ctl_tail);
    }

    /// Waits for an entry that was posted.
    pub fn done(&self, value: u64) -> Status {
        let word = self.ram64(self.notify + 8 * (value % 512));
        wait_until("a control entry", || CompletionWord(word.load(Ordering::Acquire)).value() == value);
        CompletionWord(word.load(Ordering::Acquire)).status()
    }

    /// Posts and waits.
    pub fn control(&self, entry: impl Into<ControlEntry>) -> Status {
        self.done(self.post(entry))
    }

    /// Makes an address space.
    pub fn space(&self) -> Space {
        let root = self.pages(1);
        let mut state = self.state.lock();
        state.asids += 1;
        let asid = state.asids;
        drop(state);
        assert_eq!(self.control(CreateContext { asid, root, ..Default::default() }), Status::SUCCESS);
        Space { asid, root }
    }

    /// A queue number that nobody has used since the last start.
    pub fn next_queue(&self) -> u32 {
        let mut state = self.state.lock();
        state.queues += 1;
        state.queues
    }

    /// Where the entry of `level` for an address is, tables made on the way.
    pub fn pte_at(&self, space: Space, va: u64, level: u32) -> u64 {
        let mut table = space.root;
        for at in (level + 1..pte::LEVELS).rev() {
            let entry = self.ram64(table + 8 * pte::index(va, at) as u64);
            if entry.load(Ordering::Relaxed) == 0 {
                entry.store(Pte::table(self.pages(1)).0, Ordering::Release);
            }
            table = Pte(entry.load(Ordering::Relaxed)).address();
        }
        table + 8 * pte::index(va, level) as u64
    }

    /// Sets the entry of a 4 KiB page.
    pub fn map(&self, space: Space, va: u64, entry: Pte) {
        self.ram64(self.pte_at(space, va, 0)).store(entry.0, Ordering::Release);
    }

    /// The next fault record, if there is one.
    pub fn fault(&self) -> Option<FaultRecord> {
        let mut state = self.state.lock();
        let slot = self.fault_base + 64 * u64::from(ring::slot(state.fault_head, self.fault_log2));
        let _order = self.ram64(slot).load(Ordering::Acquire);
        let record: FaultRecord = zerocopy::transmute!(self.ram.copy::<8>(slot).unwrap());
        if record.head.phase() != ring::phase(state.fault_head, self.fault_log2) {
            return None;
        }
        state.fault_head = state.fault_head.wrapping_add(1);
        self.ring(DRIVER_PAGE, driver::FAULT_HEAD, state.fault_head);
        Some(record)
    }

    /// Waits for a fault.
    pub fn next_fault(&self) -> FaultRecord {
        let mut fault = None;
        wait_until("a fault", || {
            fault = self.fault();
            fault.is_some()
        });
        fault.unwrap()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.device.get_mut().end();
        self.watchers.finish();
        let changed = self.watchers.checker.as_ref().map_or(0, |checker| checker.findings().changed);
        let lawful = !*self.lawless.get_mut() && !std::thread::panicking();
        assert!(changed == 0 || !lawful, "{changed} values changed in pages that the device held");
    }
}

/// The instruments of every device of this process, by its environment: `SVMX_CHECK_EXCLUSIVE`, and faults as
/// `--chaos` has them in `SVMX_CHAOS`, with their seed in `SVMX_SEED`.
fn instruments() -> Request {
    let variable = |name| std::env::var(name).ok();
    let seed = variable("SVMX_SEED").map_or(1, |seed| seed.parse().unwrap());
    let chaos = |list: String| Settings { faults: list.parse().unwrap(), seed };
    Request {
        check_exclusive: variable("SVMX_CHECK_EXCLUSIVE").is_some(),
        chaos: variable("SVMX_CHAOS").map(chaos),
        trace: None,
    }
}

/// Memory of that size.
pub fn memfd(size: u64) -> File {
    let file = File::from(memfd_create("mock", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

fn mapped(file: File, size: u64) -> GuestMemory {
    GuestMemory::default().with_map(DmaMap { address: 0, size, file, offset: 0, writable: true }).unwrap()
}

/// Waits for what must come, and gives up when it must be taken to hang.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < HANG, "hang: waiting for {what}");
        std::thread::yield_now();
    }
}

/// Says stop to other threads when it is dropped, by a failed assertion too: a test that fails must not
/// hang.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
