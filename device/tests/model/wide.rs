// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk commands whose elements are all over memory, which engines look up far ahead of what they do: every element
//! is still done once, in order, with the index that is there when its turn comes.

use std::sync::atomic::Ordering;

use svmx_abi::control::{Replay, Sync, TlbInvalidate};
use svmx_abi::pci::{PAGE_SIZE, VA_END, page_base};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, SqeFlags};
use svmx_abi::status::Status;

use svmx_device::model::Options;

use mock_driver::{Mock, UserQueue, add, add_indexed, add_strided, options};

const VA: u64 = 0x7000_0000;
/// Where the index array is read.
const INDICES: u64 = 0x9000_0000;
/// Where old values go.
const OLD: u64 = 0xa000_0000;
/// Pages of elements: more than elements in one place are apart.
const PAGES: u64 = 1024;
/// Frames that they lead to, in turn.
const FRAMES: u64 = 8;
const WORDS: u64 = PAGE_SIZE / 8;
/// More than a page has indices, and no multiple of anything.
const COUNT: u32 = 3_333;

/// What is added: an index leads to another page afterwards.
const STEP: u64 = 5 * WORDS;

/// A fixed sequence that looks random (splitmix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The reference: one element after the other. `memory` is what the frames hold, `first` the word at which the index array
/// begins among them.
fn reference(memory: &mut [u64], first: usize) -> Vec<u64> {
    let mut old = Vec::new();
    for k in 0..COUNT as usize {
        let pair = memory[first + k / 2];
        let index = if k.is_multiple_of(2) { pair as u32 } else { (pair >> 32) as u32 };
        let (page, word) = (u64::from(index) / WORDS, u64::from(index) % WORDS);
        let place = &mut memory[(page % FRAMES * WORDS + word) as usize];
        old.push(*place);
        *place = place.wrapping_add(STEP);
    }
    old
}

/// `holes`: pages that are mapped only when they are asked for.
fn scatter(seed: u64, access: Access, holes: impl Fn(u64) -> bool) {
    let mock = Mock::new();
    let space = mock.space();
    let frames = mock.pages(FRAMES + 8);
    let pte = |page: u64| Pte::leaf(frames + page % FRAMES * PAGE_SIZE, access);
    (0..PAGES)
        .filter(|page| !holes(*page))
        .for_each(|page| mock.map(space, VA + page * PAGE_SIZE, pte(page)));
    // The index array lies in the last four frames, and elements of theirs change indices that are yet to come.
    let first = (FRAMES - 4) * WORDS;
    for page in 0..4 {
        let leaf = |frame: u64, access| Pte::leaf(frames + frame * PAGE_SIZE, access);
        mock.map(space, INDICES + page * PAGE_SIZE, leaf(FRAMES - 4 + page, Access::READ));
    }
    for page in 0..8 {
        mock.map(
            space,
            OLD + page * PAGE_SIZE,
            Pte::leaf(frames + (FRAMES + page) * PAGE_SIZE, Access::READ_WRITE),
        );
    }
    let mut state = seed;
    let mut memory: Vec<u64> = (0..FRAMES * WORDS)
        .map(|_| {
            // Every word may be an index, and stays one with what is added to it: a word is hit a few times.
            let mut index = || random(&mut state) % (PAGES / 2 * WORDS);
            index() | index() << 32
        })
        .collect();
    for (at, value) in (0..).zip(&memory) {
        mock.ram64(frames + 8 * at).store(*value, Ordering::Relaxed);
    }
    let old = reference(&mut memory, first as usize);

    let mut queue = UserQueue::new(&mock, space);
    let flags = SqeFlags::BULK.with(SqeFlags::INDEXED).with(SqeFlags::STORE_OLD);
    queue.submit(Sqe { flags, operand: STEP, arg0: OLD, ..add_indexed(VA, COUNT, INDICES) });
    let completion = loop {
        if let Some(completion) = queue.take() {
            break completion;
        }
        if let Some(fault) = mock.fault() {
            let page = (fault.va - VA) / PAGE_SIZE;
            mock.map(space, page_base(fault.va), pte(page));
            let replay = Replay { queue: queue.id, fault_id: fault.fault_id, ..Default::default() };
            assert_eq!(mock.control(replay), Status::SUCCESS);
        }
        std::thread::yield_now();
    };
    assert_eq!((completion.head.status(), completion.applied), (Status::SUCCESS, COUNT));
    let words = |at: u64, count: u64| -> Vec<u64> {
        (0..count).map(|word| mock.ram64(at + 8 * word).load(Ordering::Relaxed)).collect()
    };
    assert_eq!(words(frames + FRAMES * PAGE_SIZE, COUNT.into()), old, "old values, seed {seed}");
    assert_eq!(words(frames, FRAMES * WORDS), memory, "elements, seed {seed}");
}

#[test]
fn elements_all_over_memory_are_done_in_order() {
    (0..20).for_each(|seed| scatter(seed, Access::EXCLUSIVE, |_| false));
    (0..5).for_each(|seed| scatter(seed, Access::COHERENT, |_| false));
}

/// An address that is nowhere has no translation, whatever the engine has cached: here it has all that it can.
#[test]
fn an_address_that_is_nowhere_ends_the_command() {
    const CACHED: u64 = 1 << 18;
    let mock = Mock::with(Options { engines: 1, ..options() }, 6);
    let space = mock.space();
    let frames = mock.pages(2);
    let leaf = |at, access| Pte::leaf(frames + at * PAGE_SIZE, access);
    mock.map(space, INDICES, leaf(1, Access::READ_WRITE));
    for access in [Access::EXCLUSIVE, Access::COHERENT] {
        (0..CACHED).for_each(|page| mock.map(space, page * PAGE_SIZE, leaf(0, access)));
        mock.control(TlbInvalidate { asid: space.asid, va: 0, len: u64::MAX, ..Default::default() });
        mock.control(Sync::default());
        let mut queue = UserQueue::new(&mock, space);
        assert_eq!(queue.run(add_strided(8, CACHED as u32, PAGE_SIZE as i32)).applied as u64, CACHED);
        for nowhere in [u64::MAX, VA_END / 8, VA_END] {
            let before = mock.ram64(frames).load(Ordering::Relaxed);
            for (at, index) in (0..).zip([2, nowhere, 2, nowhere]) {
                mock.ram64(frames + PAGE_SIZE + 8 * at).store(index, Ordering::Relaxed);
            }
            // Once so that the array's own translation is cached.
            queue.run(Sqe { opcode: Opcode::READ, ..add(INDICES, 0) });
            let flags = SqeFlags::BULK.with(SqeFlags::INDEXED).with(SqeFlags::INDEX64);
            let completion = queue.run(Sqe { flags, ..add_indexed(0, 4, INDICES) });
            assert_eq!((completion.head.status(), completion.applied), (Status::ADDRESS_RANGE, 1));
            assert_eq!(mock.ram64(frames).load(Ordering::Relaxed), before, "index {nowhere:#x}");
        }
    }
}

#[test]
fn a_fault_among_elements_that_were_looked_up_changes_nothing() {
    (0..10).for_each(|seed| scatter(seed, Access::EXCLUSIVE, |page| page.is_multiple_of(11)));
}
