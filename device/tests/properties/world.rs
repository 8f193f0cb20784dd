// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device, its mock driver, and beside each queue the reference's idea of its memory. Here is how they
//! are made, and how guest memory is reached as a CPU reaches it. What happens to them is in
//! [`crate::steps`] and [`crate::answers`], what is right in [`crate::ledger`].

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use mock_driver::{Mock, Space, UserQueue, memfd};
use svmx_abi::control::CreateContext;
use svmx_abi::fault::{AccessKind, FaultRecord};
use svmx_abi::pci::{PAGE_SIZE, VA_END};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::Sqe;
use svmx_abi::status::Status;
use svmx_device::memory::{DmaMap, GuestMemory};
use svmx_device::model::Options;

use crate::program::{Kind, Layout, QueueLayout, Window};
use crate::reference::{Backing, Memory, Page};

/// Guest-physical address of memory that the host takes away and gives back.
pub(crate) const REMOVABLE: u64 = 1 << 32;
/// Guest-physical address of memory that is read-only to the device.
const READ_ONLY: u64 = 2 << 32;
const EXTRA_SIZE: u64 = 64 * PAGE_SIZE;
/// Guest-physical address of the first queue's 2 MiB page.
const HUGE: u64 = 16 << 20;
/// What is in every byte of a frame that was taken for good.
pub(crate) const POISON: u8 = 0xa5;
pub(crate) const HUGE_SIZE: u64 = 2 << 20;

/// A command that was submitted and not completed.
#[derive(Clone, Debug)]
pub(crate) struct Submitted {
    pub(crate) sqe: Sqe,
    /// When, by the world's clock.
    pub(crate) at: u64,
    pub(crate) faulted: bool,
}

/// A CANCEL that was put on the control queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cancelled {
    pub(crate) va: u64,
    pub(crate) kind: AccessKind,
    pub(crate) status: Status,
}

pub(crate) struct Queue<'m> {
    pub(crate) user: UserQueue<'m>,
    pub(crate) space: Space,
    /// What it should be after every command that was completed. The shared pages are this queue's own here:
    /// they hold what it has added.
    pub(crate) memory: Memory,
    pub(crate) pending: VecDeque<Submitted>,
    /// What was cancelled, by tag.
    pub(crate) cancelled: BTreeMap<u32, Cancelled>,
    /// Pages whose entry is in the page table, and since when.
    pub(crate) granted: BTreeMap<u64, u64>,
    pub(crate) fault_ids: HashSet<u32>,
    pub(crate) last_fault: Option<FaultRecord>,
    /// How many pages were reported ahead for the last fault.
    pub(crate) ahead: u32,
    /// Pages and kinds of access that were reported for this command, and not granted since.
    pub(crate) reported: BTreeSet<(u64, u8)>,
    /// Every page that can be granted and taken away, in a row for programs to choose from.
    pub(crate) pages: Vec<u64>,
}

pub(crate) struct World<'m> {
    pub(crate) mock: &'m Mock,
    pub(crate) queues: Vec<Queue<'m>>,
    pub(crate) lookahead: u32,
    /// Counts steps.
    pub(crate) now: u64,
    pub(crate) tags: u32,
    /// When what does not come is taken to hang.
    pub(crate) patience: Duration,
    /// Faults that are answered later.
    pub(crate) waiting: Vec<FaultRecord>,
    /// When the removable memory was away.
    pub(crate) removed_at: Vec<u64>,
    /// Frames that nothing leads to any more; they hold [`POISON`].
    pub(crate) retired: Vec<u64>,
    removable: std::fs::File,
    extra: GuestMemory,
    used: [u64; 2],
    pub(crate) shared: [Shared; 2],
}

/// A page to which every queue and the CPU add.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) frame: u64,
    pub(crate) access: Access,
    /// What the CPU has added to each word.
    pub(crate) cpu: Vec<u64>,
    /// What commands that were cut short may have added to each word besides.
    pub(crate) slack: Vec<u64>,
}

/// The device's options for a layout.
pub(crate) fn options(layout: &Layout) -> Options {
    let poll = if layout.poll { Duration::from_micros(200) } else { Duration::ZERO };
    // Long enough for an element to be under way when its page is taken.
    let rmw_delay = if layout.slow { Duration::from_micros(20) } else { Duration::ZERO };
    Options { engines: layout.engines, poll, rmw_delay, ..mock_driver::options() }
}

fn extra(address: u64, file: &std::fs::File, writable: bool) -> DmaMap {
    DmaMap { address, size: EXTRA_SIZE, file: file.try_clone().unwrap(), offset: 0, writable }
}

impl<'m> World<'m> {
    pub(crate) fn new(mock: &'m Mock, layout: &Layout, patience: Duration) -> Self {
        let (removable, read_only) = (memfd(EXTRA_SIZE), memfd(EXTRA_SIZE));
        mock.device.lock().dma_map(extra(REMOVABLE, &removable, true)).unwrap();
        mock.device.lock().dma_map(extra(READ_ONLY, &read_only, false)).unwrap();
        let view = GuestMemory::default().with_map(extra(REMOVABLE, &removable, true)).unwrap();
        let view = view.with_map(extra(READ_ONLY, &read_only, true)).unwrap();
        let shared = [Access::EXCLUSIVE, Access::COHERENT].map(|access| {
            let nothing = vec![0; PAGE_SIZE as usize / 8];
            Shared { frame: mock.pages(1), access, cpu: nothing.clone(), slack: nothing }
        });
        let mut world = World {
            mock,
            queues: vec![],
            lookahead: layout.lookahead.min(svmx_abi::regs::MAX_LOOKAHEAD),
            now: 1,
            patience,
            tags: 0,
            waiting: vec![],
            removed_at: vec![],
            retired: vec![],
            removable,
            extra: view,
            used: [0; 2],
            shared,
        };
        for queue in &layout.queues {
            world.add_queue(queue);
        }
        if layout.granted {
            for at in 0..world.queues.len() {
                world.queues[at].pages.clone().into_iter().for_each(|va| world.grant(at, va));
            }
        }
        world
    }

    fn add_queue(&mut self, layout: &QueueLayout) {
        let number = self.queues.len() as u64;
        let space = self.mock.space();
        let mut queue = Queue {
            user: UserQueue::new(self.mock, space),
            space,
            memory: Memory::default(),
            pending: VecDeque::new(),
            cancelled: BTreeMap::new(),
            granted: BTreeMap::new(),
            fault_ids: HashSet::new(),
            last_fault: None,
            ahead: 0,
            reported: BTreeSet::new(),
            pages: vec![],
        };
        let mut random = Random(layout.seed);
        let windows = [
            (Window::Targets, &layout.targets),
            (Window::Indices, &layout.indices),
            (Window::Operands, &layout.operands),
            (Window::OldValues, &layout.old_values),
        ];
        for (window, kinds) in windows {
            for (va, kind) in page_addresses(window).zip(kinds) {
                self.add_page(&mut queue, va, kind);
                self.initialize(&mut queue, va, &mut random);
            }
        }
        let plain = Kind { access: Access::EXCLUSIVE, backing: Backing::Ram, removable: false };
        for va in [Window::Floats32.base(), Window::Floats64.base(), 0, VA_END - PAGE_SIZE] {
            self.add_page(&mut queue, va, &plain);
        }
        for (va, &access) in page_addresses(Window::Alias).zip(&layout.alias) {
            let page = queue.memory.page(va - Window::Alias.base() + Window::Targets.base());
            self.place(&mut queue, va, Page { access, ..page });
        }
        for (page, va) in page_addresses(Window::Huge).enumerate() {
            let frame = HUGE + number * HUGE_SIZE + page as u64 * PAGE_SIZE;
            queue.memory.map(va, Page { access: Access::EXCLUSIVE, backing: Backing::Ram, frame });
        }
        queue.pages.push(Window::Huge.base());
        for (va, shared) in page_addresses(Window::Shared).zip(&self.shared) {
            queue.memory.map(va, Page { access: shared.access, backing: Backing::Ram, frame: shared.frame });
            queue.pages.push(va);
        }
        self.queues.push(queue);
    }

    fn add_page(&mut self, queue: &mut Queue<'_>, va: u64, kind: &Kind) {
        let mut of = |which: usize, base| {
            self.used[which] += 1;
            base + (self.used[which] - 1) * PAGE_SIZE
        };
        let frame = match kind.backing {
            Backing::ReadOnly => of(0, READ_ONLY),
            Backing::Ram if kind.removable => of(1, REMOVABLE),
            _ => self.mock.pages(1),
        };
        self.place(queue, va, Page { access: kind.access, backing: kind.backing, frame });
    }

    fn place(&self, queue: &mut Queue<'_>, va: u64, page: Page) {
        queue.memory.map(va, page);
        let leaf = Pte::leaf(page.frame, page.access);
        match page.backing {
            Backing::Nothing => {}
            Backing::Malformed => self.mock.map(queue.space, va, Pte(leaf.0 | 1 << 60)),
            Backing::Outside => self.mock.map(queue.space, va, Pte::leaf(1 << 45, page.access)),
            Backing::Ram | Backing::ReadOnly => queue.pages.push(va),
        }
    }

    /// Something to begin with, for CPU, device and reference: indices that mostly hit, and anything else.
    fn initialize(&self, queue: &mut Queue<'_>, va: u64, random: &mut Random) {
        let page = queue.memory.page(va);
        if !matches!(page.backing, Backing::Ram | Backing::ReadOnly) {
            return;
        }
        let index_bytes = if va == Window::Indices.base() { 4 } else { 8 };
        let bytes: Vec<u8> = if Window::Indices.contains(va) {
            let index = |_| random.index().to_le_bytes().into_iter().take(index_bytes);
            (0..PAGE_SIZE as usize / index_bytes).flat_map(index).collect()
        } else {
            (0..PAGE_SIZE / 8).flat_map(|_| random.number().to_le_bytes()).collect()
        };
        self.put(page.frame, &bytes);
        queue.memory.fill(page.frame, &bytes);
    }

    /// A frame of guest memory, as a CPU has it.
    pub(crate) fn frame(&self, address: u64) -> svmx_device::memory::Page<'_> {
        let memory = if address >= REMOVABLE { &self.extra } else { &self.mock.ram };
        memory.page(address, true).expect("a frame of this world")
    }

    /// A frame's bytes, as a CPU sees them.
    pub(crate) fn get(&self, frame: u64) -> Vec<u8> {
        let page = self.frame(frame);
        let mut bytes = vec![0; PAGE_SIZE as usize];
        for (into, at) in bytes.chunks_exact_mut(8).zip((0..).step_by(8)) {
            into.copy_from_slice(&page.word64(at).load(Ordering::Relaxed).to_le_bytes());
        }
        bytes
    }

    /// Writes a frame's bytes, as a CPU does.
    pub(crate) fn put(&self, frame: u64, bytes: &[u8]) {
        let page = self.frame(frame);
        for (word, at) in bytes.chunks_exact(8).zip((0..).step_by(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            page.word64(at).store(word, Ordering::Relaxed);
        }
    }

    /// Takes the removable memory away from the device, or gives it back.
    pub(crate) fn map_removable(&self, there: bool) {
        let mut device = self.mock.device.lock();
        if there {
            device.dma_map(extra(REMOVABLE, &self.removable, true)).unwrap();
        } else {
            device.dma_unmap(REMOVABLE, EXTRA_SIZE).unwrap();
        }
    }

    /// Whether the host took this frame's memory away at some time since.
    pub(crate) fn was_removed(&self, frame: u64, since: u64) -> bool {
        is_removable(frame) && self.removed_at.iter().any(|&at| at >= since)
    }

    /// After a reset: address spaces and queues once more, memory and page tables as they are.
    pub(crate) fn set_up_again(&mut self) {
        for queue in &mut self.queues {
            let Space { asid, root } = queue.space;
            let context = CreateContext { asid, root, ..Default::default() };
            assert_eq!(self.mock.control(context), Status::SUCCESS);
            queue.user.create(queue.space);
        }
    }
}

pub(crate) fn is_removable(frame: u64) -> bool {
    (REMOVABLE..REMOVABLE + EXTRA_SIZE).contains(&frame)
}

pub(crate) fn page_addresses(window: Window) -> impl Iterator<Item = u64> {
    (0..window.pages()).map(move |page| window.base() + page * PAGE_SIZE)
}

/// Numbers that look random (splitmix64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn number(&mut self) -> u64 {
        let bits = self.next();
        if bits & 1 == 0 { (bits >> 1) % 5 } else { self.next() }
    }

    /// Mostly an element of a window, sometimes one beyond, rarely one beyond the address space.
    fn index(&mut self) -> u64 {
        match self.next() % 512 {
            0 => self.next(),
            1 => u64::MAX,
            2 => VA_END / 8,
            3..16 => self.next() % 4000,
            16..100 => self.next() % 8,
            _ => self.next() % 1024,
        }
    }
}
