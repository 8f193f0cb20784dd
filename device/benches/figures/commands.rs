// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Single commands: their rate, their latency, and what a fault costs without a guest.

use std::cell::RefCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use measure::cpu::{self, Places};
use measure::sample::Side;
use measure::{Aim, Comparison, Row, Samples, alternate};
use mock_driver::{HANG, Mock, Space, add};
use svmx_abi::control::Replay;
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_device::instruments::Request;
use svmx_device::model::Options;

use crate::arena::Arena;
use crate::process::{Mode, Process};
use crate::ring::Ring;

const VA: u64 = 1 << 40;
/// Binary logarithm of the entries of a ring that is kept full.
const LOG2: u8 = 6;
/// Binary logarithm of the entries of one that is filled once.
pub(crate) const LONG_LOG2: u8 = 12;
/// Commands at a stretch through a full ring: much more than the ring has, and done in less than a time slice.
const STRETCH: u32 = 1 << 9;
/// Stretches of a round.
const STRETCHES: usize = 256;
/// Trapped writes of a round.
const WRITES: usize = 2_000;
/// Round trips of a round.
const TRIPS: usize = 4_000;
/// Faults of a round.
const FAULTS: usize = 256;

/// A device with one engine that goes on polling between the commands of these figures.
fn polling() -> (Arena, Space, u64) {
    let options = Options { engines: 1, poll: Duration::from_millis(2), ..Default::default() };
    let arena = Arena::new(options, 16 << 20);
    let (space, frame) = (arena.mock.space(), arena.mock.pages(1));
    arena.mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    (arena, space, frame)
}

fn submitter() -> Option<usize> {
    Places::find().map(|places| places.submitter)
}

/// A ring that is kept full, against trapped writes. Both by the median of many short times: who loses a CPU
/// now and then, to other work on the machine, is not slower for that.
pub(crate) fn rate(name: &str, rounds: usize) -> Vec<Row> {
    let process = RefCell::new(Process::start(&[]).bound());
    let (arena, space, frame) = polling();
    let mut ring = Ring::new(&arena.mock, space, LOG2);
    let full: Side<'_> = Box::new(|| {
        let _bound = cpu::bound(submitter());
        f64::from(STRETCH) / median_of(STRETCHES, || keep_full(&mut ring, STRETCH))
    });
    let trapped = |mode| -> Side<'_> {
        let process = &process;
        Box::new(move || 1.0 / process.borrow_mut().trip(mode, WRITES, Process::trapped_write))
    };
    let mut samples = alternate(rounds, [full].into_iter().chain(Mode::ALL.map(trapped)).collect());
    let done = arena.mock.ram64(frame).load(Ordering::Relaxed);
    assert_eq!(done % u64::from(STRETCH), 0, "commands were lost");
    let figure = format!("single FETCH_ADD, ring of {} kept full, in cache", 1 << LOG2);
    let baselines = samples.split_off(1);
    let row = |(mode, baseline): (Mode, Samples)| {
        let comparison = Comparison { value: samples[0].clone(), baseline };
        let with = format!("trapped register write, {}", mode.text());
        // Who fills the ring and who empties it are on two CPUs as well.
        let aim = if mode == Mode::TwoCpus { Aim::RatioAtLeast(100.0) } else { Aim::None };
        let row = Row::compared(name, &figure, "M/s", &with, &comparison, aim);
        row.with_note("a round trip on the socket; a guest's takes an exit and QEMU's work on top of it")
    };
    let mut rows: Vec<Row> = Mode::ALL.into_iter().zip(baselines).map(row).collect();
    rows.push(in_the_engine(name, rounds));
    rows
}

fn in_the_engine(name: &str, rounds: usize) -> Row {
    let (arena, space) = sleeping(Request::default());
    let mut ring = Ring::new(&arena.mock, space, LONG_LOG2);
    let samples = alternate(rounds, vec![Box::new(|| engine_time_of_each(&arena, &mut ring))]);
    let figure = format!("single FETCH_ADD, engine's CPU time for each of {}", 1 << LONG_LOG2);
    Row::alone(name, &figure, "ns", &Comparison::of(samples).value, Aim::None)
}

/// A device with one engine that sleeps at once when it has nothing to do, and an element at [`VA`].
pub(crate) fn sleeping(request: Request) -> (Arena, Space) {
    let options = Options { engines: 1, poll: Duration::ZERO, ..Default::default() };
    let arena = Arena::watched(options, 16 << 20, request);
    let (space, frame) = (arena.mock.space(), arena.mock.pages(1));
    arena.mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    (arena, space)
}

/// What a single command takes of the engine when it does a ringful of them at a stretch, in nanoseconds of
/// CPU time: without the polling between commands.
pub(crate) fn engine_time_of_each(arena: &Arena, ring: &mut Ring<'_>) -> f64 {
    let before = arena.engine_time();
    let mut count = 0;
    while ring.put(add(VA, 1)) {
        count += 1;
    }
    ring.ring();
    let (start, mut left) = (Instant::now(), count);
    while left > 0 {
        thread::sleep(Duration::from_micros(50));
        left -= ring.take();
        assert!(start.elapsed() < HANG, "no completion");
    }
    (arena.engine_time() - before).as_secs_f64() * 1e9 / f64::from(count)
}

fn keep_full(ring: &mut Ring<'_>, commands: u32) {
    let (mut submitted, mut completed) = (0, 0);
    while completed < commands {
        let before = submitted;
        while submitted < commands && ring.put(add(VA, 1)) {
            submitted += 1;
        }
        if submitted != before {
            ring.ring();
        }
        completed += ring.take();
    }
}

/// One command at a time.
pub(crate) fn latency(name: &str, rounds: usize) -> Vec<Row> {
    let (arena, space, _) = polling();
    let mut ring = Ring::new(&arena.mock, space, LOG2);
    let sides: Vec<Side<'_>> = vec![
        Box::new(|| {
            let _bound = cpu::bound(submitter());
            median_of(TRIPS, || one(&mut ring))
        }),
        Box::new(word_between_threads),
    ];
    let comparison = Comparison::of(alternate(rounds, sides));
    let figure = "doorbell to completion, single FETCH_ADD, polling device";
    let with = "a word in shared memory to another thread and back";
    vec![Row::compared(name, figure, "us", with, &comparison, Aim::ValueAtMost(2.0))]
}

fn one(ring: &mut Ring<'_>) {
    assert!(ring.put(add(VA, 1)));
    ring.ring();
    while ring.take() == 0 {
        spin_loop();
    }
}

/// A command on a page that is not there, until its completion: fault record, page table, REPLAY.
pub(crate) fn fault(name: &str, rounds: usize) -> Vec<Row> {
    let (arena, space, frame) = polling();
    let mock = &arena.mock;
    let mut ring = Ring::new(mock, space, LOG2);
    let mut page = 1;
    let sides: Vec<Side<'_>> = vec![
        Box::new(|| {
            let _bound = cpu::bound(submitter());
            median_of(FAULTS, || {
                faulting(mock, space, &mut ring, VA + page * PAGE_SIZE, frame);
                page += 1;
            })
        }),
        Box::new(word_between_threads),
    ];
    let comparison = Comparison::of(alternate(rounds, sides));
    let figure = "doorbell to completion, FETCH_ADD that faults and is replayed";
    let with = "a word in shared memory to another thread and back";
    vec![Row::compared(name, figure, "us", with, &comparison, Aim::None)]
}

fn faulting(mock: &Mock, space: Space, ring: &mut Ring<'_>, va: u64, frame: u64) {
    assert!(ring.put(add(va, 1)));
    ring.ring();
    let fault = mock.next_fault();
    assert_eq!((fault.va, fault.head.queue()), (va, ring.id));
    let pte = Pte::leaf(frame, Access::EXCLUSIVE);
    mock.map(space, va, pte);
    mock.post(Replay { queue: ring.id, fault_id: fault.fault_id, pte: pte.0, ..Default::default() });
    while ring.take() == 0 {
        spin_loop();
    }
}

/// The median of single durations, in microseconds.
pub(crate) fn median_of(count: usize, mut trip: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        trip();
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..count).map(time).collect::<Samples>().median()
}

/// A word goes to a thread on the engine's CPU, and its answer comes back in another.
fn word_between_threads() -> f64 {
    let (there, back) = (Line::default(), Line::default());
    let last = TRIPS as u32;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _bound = cpu::bound(Places::find().map(|places| places.first));
            for value in 1..=last {
                await_value(&there, value);
                back.0.store(value, Ordering::Release);
            }
        });
        let _bound = cpu::bound(submitter());
        let mut value = 0;
        median_of(TRIPS, || {
            value += 1;
            there.0.store(value, Ordering::Release);
            await_value(&back, value);
        })
    })
}

/// A word alone in its cache line.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU32);

fn await_value(word: &Line, value: u32) {
    let mut spins = 0u64;
    let start = Instant::now();
    while word.0.load(Ordering::Acquire) != value {
        spin_loop();
        spins += 1;
        assert!(!spins.is_multiple_of(1 << 24) || start.elapsed() < HANG, "no answer");
    }
}
