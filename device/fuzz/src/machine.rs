// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device that all inputs share, and what must hold when one of them is over: it comes back from a reset,
//! executes a command and a SYNC, has written nothing that it was not given, and when it ends leaves neither
//! a thread nor a mapping.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mock_driver::{Mock, RAM, UserQueue, add, memfd};
use parking_lot::Mutex;
use svmx_abi::control::Sync;
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::status::Status;
use svmx_device::memory::DmaMap;
use svmx_device::model::Options;

use crate::input::VA;

/// A range that takes every map.
pub(crate) const EVERYTHING: u64 = !0xfff;
/// Where the device is given a page that it may only read.
pub(crate) const READ_ONLY: u64 = RAM;
/// What that page and its neighbours in the file hold.
const CANARY: u8 = 0xa5;
const CANARY_BYTES: usize = 3 * PAGE_SIZE as usize;
/// Inputs that a device lives through.
const LIFE: u32 = 4096;

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

struct Machine {
    mock: Mock,
    /// One page of it is mapped read-only, those before and behind it not at all.
    canary: File,
    inputs: u32,
    /// What the process had before.
    before: (usize, usize),
}

/// Plays one input, which finds a device that was reset and started.
pub(crate) fn with(play: impl FnOnce(&Mock)) {
    let mut place = MACHINE.lock();
    let machine = place.get_or_insert_with(Machine::new);
    play(&machine.mock);
    machine.recover();
    machine.inputs += 1;
    if machine.inputs == LIFE {
        place.take().into_iter().for_each(Machine::end);
    }
}

/// Ends the device, if there is one, and sees that nothing of it is left.
pub fn end() {
    MACHINE.lock().take().into_iter().for_each(Machine::end);
}

impl Machine {
    fn new() -> Self {
        let before = resources();
        let options = Options { engines: 2, poll: Duration::from_micros(100), ..Default::default() };
        let machine =
            Machine { mock: Mock::with(options, 6), canary: memfd(CANARY_BYTES as u64), inputs: 0, before };
        machine.canary.write_all_at(&[CANARY; CANARY_BYTES], 0).expect("a memfd can be written");
        machine.map_canary();
        machine
    }

    fn map_canary(&self) {
        let file = self.canary.try_clone().expect("a descriptor is left");
        let map = DmaMap { address: READ_ONLY, size: PAGE_SIZE, file, offset: PAGE_SIZE, writable: false };
        self.mock.device.lock().dma_map(map).expect("nothing is mapped there");
    }

    /// Back to what a new device is, which must work.
    fn recover(&self) {
        let mock = &self.mock;
        let mut device = mock.device.lock();
        device.reset();
        device.dma_unmap(0, EVERYTHING).expect("a good range");
        device.disable_interrupts();
        drop(device);
        let mut canary = [0; CANARY_BYTES];
        self.canary.read_exact_at(&mut canary, 0).expect("as long as it was made");
        assert!(canary.iter().all(|&byte| byte == CANARY), "memory changed that the device may not write");
        mock.rewind();
        mock.map_ram();
        self.map_canary();
        mock.start();
        self.work();
    }

    /// A command whose result is known.
    fn work(&self) {
        let mock = &self.mock;
        let space = mock.space();
        let frame = mock.pages(1);
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        let completion = UserQueue::new(mock, space).run(add(VA, 3));
        assert_eq!((completion.head.status(), completion.result), (Status::SUCCESS, 0));
        assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 3);
        assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    }

    fn end(self) {
        let before = self.before;
        drop(self);
        assert_eq!(threads(), Vec::<String>::new(), "threads of a device that has ended");
        assert_eq!(resources(), before, "mappings and descriptors of a device that has ended");
    }
}

/// The device's threads, by name.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs is mounted");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("engine-") || name.starts_with("control")).collect()
}

/// How many memfds are mapped, and how many of these and of eventfds are open.
fn resources() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs is mounted");
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs is mounted");
    let links = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let ours = |link: &std::path::Path| {
        let link = link.to_string_lossy();
        link.starts_with("/memfd:") || link.contains("[eventfd]")
    };
    (maps.lines().filter(|line| line.contains("/memfd:")).count(), links.filter(|link| ours(link)).count())
}
