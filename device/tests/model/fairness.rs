// SPDX-License-Identifier: Apache-2.0 OR MIT

//! No queue waits for ever while another submits (spec 5.1), measured in what the others do meanwhile, not in
//! time: queues with work that never ends count in words of their own, and a queue between them reads these
//! words as it goes. What the words have advanced by from one READ to the next is what it has waited for.

use std::sync::atomic::Ordering;

use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Condition, Cqe, Opcode, Sqe, WAIT_FOREVER, WidthLog2};
use svmx_abi::status::Status;
use svmx_device::engine::BUDGET;
use svmx_device::model::Options;

use mock_driver::{Mock, Space, UserQueue, add, add_strided, options, wait_until};

const VA: u64 = 0x7000_0000;
/// Elements that one turn may have.
const TURN: u64 = BUDGET as u64;
/// Elements of others after which a queue that got nothing done is taken to starve.
const STARVED: u64 = 1 << 27;
/// Queues that never end.
const BUSY: u64 = 3;
/// Elements of the patient queue between two looks; in all they are more than a turn.
const SMALL: u32 = 100;
const LOOKS: usize = 1000;

/// A word for each queue, each on a page of its own.
fn words(mock: &Mock, space: Space, count: u64) -> u64 {
    let frames = mock.pages(count);
    for at in (0..count * PAGE_SIZE).step_by(PAGE_SIZE as usize) {
        mock.map(space, VA + at, Pte::leaf(frames + at, Access::EXCLUSIVE));
    }
    frames
}

fn read(addr: u64) -> Sqe {
    Sqe { opcode: Opcode::READ, width: WidthLog2::W64, addr, ..Default::default() }
}

fn wait_for(addr: u64, compare: u64) -> Sqe {
    let (opcode, width, arg0, arg1) = (Opcode::WAIT, WidthLog2::W64, WAIT_FOREVER, Condition::Eq as u64);
    Sqe { opcode, width, addr, compare, arg0, arg1, ..Default::default() }
}

/// Takes so many completions, all of success, while others go on as `done` says: some come before those have
/// done too much.
fn take(queue: &mut UserQueue<'_>, count: usize, done: impl Fn() -> u64) -> Vec<Cqe> {
    let mut completions = vec![];
    let mut progress = done();
    while completions.len() < count {
        // Read before the look, so that what is missed does not depend on when this thread runs.
        let now = done();
        match queue.take() {
            Some(cqe) => {
                assert_eq!(cqe.head.status(), Status::SUCCESS);
                completions.push(cqe);
                progress = now;
            }
            None => {
                let meanwhile = now - progress;
                assert!(meanwhile < STARVED, "nothing done while others did {meanwhile}");
                std::thread::yield_now();
            }
        }
    }
    completions
}

/// How far the busy queues came between two looks of the patient one, each time; sorted.
fn waited(engines: usize) -> Vec<u64> {
    let mock = Mock::with(Options { engines, ..options() }, 6);
    let space = mock.space();
    let frames = words(&mock, space, BUSY + 1);
    let word = |queue: u64| VA + queue * PAGE_SIZE;
    // On both sides of the patient one.
    let mut before = UserQueue::new(&mock, space);
    let mut patient = UserQueue::sized(&mock, space, 12);
    let mut after = [UserQueue::new(&mock, space), UserQueue::new(&mock, space)];
    for (queue, at) in [&mut before].into_iter().chain(&mut after).zip(0..) {
        queue.submit(add_strided(word(at), u32::MAX, 0));
    }
    let done =
        || -> u64 { (0..BUSY).map(|at| mock.ram64(frames + at * PAGE_SIZE).load(Ordering::Relaxed)).sum() };
    wait_until("work", || done() > 0);
    for _ in 0..LOOKS {
        patient.stage(add_strided(word(BUSY), SMALL, 0));
        (0..BUSY).for_each(|at| patient.stage(read(word(at))));
    }
    patient.ring();
    let completions = take(&mut patient, LOOKS * (1 + BUSY as usize), done);
    assert!(before.peek().is_none() && after.iter().all(|queue| queue.peek().is_none()), "they never end");
    let looks: Vec<u64> = completions
        .chunks(1 + BUSY as usize)
        .map(|looks| looks[1..].iter().map(|cqe| cqe.result).sum())
        .collect();
    let mut waited: Vec<u64> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    waited.sort_unstable();
    let (most, sum) = (waited[waited.len() - 1], waited.iter().sum::<u64>());
    println!("{engines} engines: others did at most {most} elements between two looks, {sum} in all");
    waited
}

#[test]
fn one_engine_gives_every_queue_its_turn() {
    let waited = waited(1);
    // One turn of each other queue, whatever the host's scheduler does.
    assert!(*waited.last().unwrap() <= BUSY * TURN);
    // And the others are not starved by the patient one, which has more to do than a turn.
    assert!(waited.iter().sum::<u64>() > 0);
}

#[test]
fn two_engines_give_every_queue_its_turn() {
    let waited = waited(2);
    // One engine may lose its CPU while the other goes on, so the worst says nothing, but the median does.
    assert!(waited[waited.len() / 2] <= BUSY * TURN);
}

#[test]
fn queues_that_submit_all_the_time_are_served_alike() {
    let mock = Mock::with(Options { engines: 1, ..options() }, 6);
    let space = mock.space();
    // Small commands and large ones: more of the one, or of the other, is no way to get more. The last never ends.
    const SIZES: [u32; 4] = [25, 250, 2500, u32::MAX];
    const SHARE: u32 = 100_000;
    const { assert!(SHARE > 10 * BUDGET) };
    let count = SIZES.len() as u64;
    let frames = words(&mock, space, count);
    let word = |queue: u64| VA + queue * PAGE_SIZE;
    let mut queues: Vec<_> = (0..count).map(|_| UserQueue::sized(&mock, space, 12)).collect();
    for ((queue, size), at) in queues.iter_mut().zip(SIZES).zip(0..) {
        (0..(SHARE / size).max(1)).for_each(|_| queue.stage(add_strided(word(at), size, 0)));
        // How far everybody is when this one has done its share: the engine looks, so nothing comes between.
        (0..count).for_each(|other| queue.stage(read(word(other))));
    }
    queues.iter().for_each(|queue| queue.ring());
    let endless = mock.ram64(frames + (count - 1) * PAGE_SIZE);
    for (queue, size) in queues.iter_mut().zip(&SIZES[..3]) {
        let commands = (SHARE / size) as usize;
        let completions = take(queue, commands + SIZES.len(), || endless.load(Ordering::Relaxed));
        let shares: Vec<_> = completions[commands..].iter().map(|cqe| cqe.result).collect();
        let alike = u64::from(SHARE) / 4..=u64::from(SHARE) * 4;
        assert!(shares.iter().all(|share| alike.contains(share)), "commands of {size}: {shares:?}");
    }
}

#[test]
fn a_wait_is_looked_at_in_each_round_however_busy_others_are() {
    const ROUNDS: u64 = 100;
    let mock = Mock::with(Options { engines: 1, ..options() }, 6);
    let space = mock.space();
    let frames = words(&mock, space, 3);
    let [busy, ping, pong] = [VA, VA + PAGE_SIZE, VA + 2 * PAGE_SIZE];
    let mut endless = UserQueue::new(&mock, space);
    let mut players = [UserQueue::sized(&mock, space, 9), UserQueue::sized(&mock, space, 9)];
    endless.submit(add_strided(busy, u32::MAX, 0));
    // Each says how far the busy queue is after it has called, and after it has heard.
    for round in 1..=ROUNDS {
        [add(ping, 1), read(busy), wait_for(pong, round)].into_iter().for_each(|sqe| players[0].stage(sqe));
        [wait_for(ping, round), read(busy), add(pong, 1)].into_iter().for_each(|sqe| players[1].stage(sqe));
    }
    players.iter().for_each(|player| player.ring());
    let done = || mock.ram64(frames).load(Ordering::Relaxed);
    let [calls, answers] = players.each_mut().map(|player| {
        let completions = take(player, 3 * ROUNDS as usize, done);
        completions.chunks(3).map(|round| round[1].result).collect::<Vec<_>>()
    });
    let waited: Vec<_> = calls.iter().zip(&answers).map(|(call, heard)| heard - call).collect();
    // One turn of the other queue, and what is left of the one that it has.
    assert!(waited.iter().all(|waited| *waited <= 2 * TURN), "{waited:?}");
}

#[test]
fn queues_that_wait_keep_nobody_from_their_turn() {
    let mock = Mock::with(Options { engines: 1, ..options() }, 6);
    let space = mock.space();
    let frames = words(&mock, space, 2);
    let mut waiting: Vec<_> = (0..6).map(|_| UserQueue::sized(&mock, space, 2)).collect();
    let mut other = UserQueue::new(&mock, space);
    for queue in &mut waiting {
        queue.submit(wait_for(VA, 7));
    }
    for _ in 0..200 {
        assert_eq!(other.run(add(VA + PAGE_SIZE, 1)).head.status(), Status::SUCCESS);
    }
    assert!(waiting.iter().all(|queue| queue.peek().is_none()));
    other.run(add(VA, 7));
    for queue in &mut waiting {
        let cqe = queue.wait();
        assert_eq!((cqe.head.status(), cqe.applied, cqe.result), (Status::SUCCESS, 1, 7));
    }
    assert_eq!(mock.ram64(frames + PAGE_SIZE).load(Ordering::Relaxed), 200);
}
