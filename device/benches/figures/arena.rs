// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device in this process with memory to work on, its engines bound to CPUs; and stopwatches for it and
//! for native loops.

use std::thread;
use std::time::{Duration, Instant};

use measure::cpu::{self, Places};
use mock_driver::{HANG, Mock, Space, UserQueue, add_indexed, wait_until};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::Cqe;
use svmx_abi::status::Status;
use svmx_device::instruments::Request;
use svmx_device::model::Options;

use crate::native::Scatter;

/// Where elements are mapped.
const ELEMENTS: u64 = 1 << 40;
/// Where index arrays are mapped.
const INDICES: u64 = 2 << 40;
/// Guest memory beside elements and index arrays: rings, and tables, of which a page maps 512.
const REST: u64 = 16 << 20;
/// How often a sleeping submitter looks for its completion.
const LOOK: Duration = Duration::from_micros(50);

/// A device and its driver.
pub(crate) struct Arena {
    /// The driver.
    pub(crate) mock: Mock,
    /// The engines' threads.
    pub(crate) engines: Vec<i32>,
}

/// One queue with its own elements and indices.
pub(crate) struct Region<'m> {
    queue: UserQueue<'m>,
    /// The same work for native loops.
    pub(crate) scatter: Scatter<'m>,
    va: u64,
    index_va: u64,
}

impl Arena {
    /// A device whose guest has `bytes` for elements and indices.
    pub(crate) fn new(options: Options, bytes: u64) -> Self {
        Self::watched(options, bytes, Request::default())
    }

    /// The same with these instruments.
    pub(crate) fn watched(options: Options, bytes: u64, request: Request) -> Self {
        let ram = (bytes + bytes / 512 + REST).next_multiple_of(PAGE_SIZE);
        let before: Vec<i32> = cpu::threads().iter().map(|thread| thread.id).collect();
        let count = options.engines;
        let mock = Mock::watched(options, 6, ram, request);
        let mut new = Vec::new();
        // A thread names itself, so it may be there without its name.
        wait_until("the engines' names", || {
            new = cpu::threads();
            new.retain(|thread| !before.contains(&thread.id) && thread.name.starts_with("engine-"));
            new.len() == count
        });
        new.sort_by(|one, other| one.name.cmp(&other.name));
        let engines: Vec<i32> = new.iter().map(|thread| thread.id).collect();
        if let Some(Places { first, second, .. }) = Places::find() {
            for (engine, place) in engines.iter().zip([first, second]) {
                cpu::bind(*engine, &[place]);
            }
        }
        Arena { mock, engines }
    }

    /// Elements of 64 bits, as many as fit, mapped with this access, for the `number`-th queue; and an index
    /// array that addresses them.
    pub(crate) fn region(
        &self,
        space: Space,
        number: u64,
        bytes: u64,
        access: Access,
        indices: &[u32],
    ) -> Region<'_> {
        let index_bytes = (4 * indices.len() as u64).next_multiple_of(PAGE_SIZE);
        let (va, index_va) = (ELEMENTS + (number << 36), INDICES + (number << 36));
        let read_only = Access { read: true, ..Access::default() };
        let at = self.mapped(space, va, bytes, access);
        let index_array = self.mapped(space, index_va, index_bytes, read_only);
        let scatter = Scatter::new(&self.mock, (at, bytes as usize / 8), index_array, indices);
        Region { queue: UserQueue::new(&self.mock, space), scatter, va, index_va }
    }

    /// Memory at a virtual address, by pages of 4 KiB.
    pub(crate) fn mapped(&self, space: Space, va: u64, bytes: u64, access: Access) -> u64 {
        let count = bytes / PAGE_SIZE;
        let frame = self.mock.pages(count);
        for page in 0..count {
            self.mock.map(space, va + page * PAGE_SIZE, Pte::leaf(frame + page * PAGE_SIZE, access));
        }
        frame
    }

    /// CPU time of the engines together.
    pub(crate) fn engine_time(&self) -> Duration {
        self.engine_times().iter().sum()
    }

    /// CPU time of each engine.
    pub(crate) fn engine_times(&self) -> Vec<Duration> {
        self.engines.iter().map(|&engine| cpu::thread_time(engine)).collect()
    }
}

impl Region<'_> {
    /// Submits the bulk command.
    pub(crate) fn submit(&mut self) {
        self.queue.submit(add_indexed(self.va, self.scatter.count() as u32, self.index_va));
    }

    /// Waits until it is completed.
    pub(crate) fn wait(&mut self) {
        assert_eq!(wait_asleep(&mut self.queue).applied as usize, self.scatter.count());
    }
}

/// Sleeps until the next completion, which must be a success: no CPU is taken from the engines.
pub(crate) fn wait_asleep(queue: &mut UserQueue<'_>) -> Cqe {
    let start = Instant::now();
    loop {
        if let Some(completion) = queue.take() {
            assert_eq!(completion.head.status(), Status::SUCCESS);
            return completion;
        }
        assert!(start.elapsed() < HANG, "no completion");
        thread::sleep(LOOK);
    }
}

/// A native loop's CPU time, on the CPU of the first engine.
pub(crate) fn native_time(work: impl FnOnce() + Send) -> Duration {
    let timed = || {
        let _bound = cpu::bound(Places::find().map(|places| places.first));
        let before = cpu::thread_time(cpu::this_thread());
        work();
        cpu::thread_time(cpu::this_thread()) - before
    };
    thread::scope(|scope| scope.spawn(timed).join()).unwrap()
}

/// Millions of things in a second.
pub(crate) fn millions_per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e6
}

/// As random as figures need; the same for the same seed.
pub(crate) fn random_indices(count: usize, below: u64, seed: u64) -> Vec<u32> {
    endless_indices(below, seed).take(count).collect()
}

/// The same without end.
pub(crate) fn endless_indices(below: u64, seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed;
    let mut next = move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    std::iter::repeat_with(move || ((u128::from(next()) * u128::from(below)) >> 64) as u32)
}
