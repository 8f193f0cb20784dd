// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a litmus test often: many instances of it, each on a cache line of its own, one behind the other in
//! both agents. Two queues meet before every few of them, each adding to a word and waiting for the other to
//! have done so; the CPU's side is paced by how long the device takes. A CPU that only loads looks again and again: each look is a run of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use mock_driver::{Mock, UserQueue};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Condition, Cqe, Opcode, Sqe, SqeFlags, WAIT_FOREVER, WidthLog2};
use svmx_abi::status::Status;
use svmx_device::model::Options;

use crate::parse::{Agent, Instruction, Outcome, Row};

/// Instances in a batch; the commands of all fit in a ring.
const INSTANCES: u64 = 256;
const RING_LOG2: u8 = 12;
/// Instances between two meetings of queues, batch by batch: how close they stay, and whether both are served at
/// the same time, depends on it, and on the host.
const GROUPS: [u64; 3] = [4, 32, INSTANCES];
/// Bytes between two instances' words: a cache line.
const APART: u64 = 64;
/// Bytes of all instances of one word.
const SPAN: u64 = INSTANCES * APART;
/// Words of FILL and COPY.
const MANY: u64 = APART / 8;
/// How often both agents add.
const TIMES: u64 = 3;
/// Where a word's page is: by its name.
const VA: u64 = 0x7000_0000;
/// Offsets from one word to another, for the bulk command.
const INDICES: char = 'i';
/// What queues count at when they meet.
const MEETING: char = 'm';

/// How often the outcome was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) outcomes: u64,
    pub(crate) runs: u64,
    /// Every combination of results, and how often: that there are several shows that the agents met.
    pub(crate) results: BTreeMap<Results, u64>,
}

/// What one instance resulted in.
pub(crate) type Results = BTreeMap<char, u64>;

struct Race<'m> {
    mock: &'m Mock,
    row: &'m Row,
    frames: BTreeMap<char, u64>,
    queues: [UserQueue<'m>; 2],
    /// How long the device took for a batch, at the least.
    took: Duration,
    random: u64,
    seen: Seen,
}

/// Races a row so many times on pages of this kind.
pub(crate) fn race(row: &Row, access: Access, batches: u64) -> Seen {
    let options = Options { engines: 2, poll: Duration::from_millis(2), ..Default::default() };
    let mock = Mock::with(options, 6);
    // The CPU is at exclusive pages as well.
    mock.lawless();
    let space = mock.space();
    let frames: BTreeMap<char, u64> =
        "xyabim".chars().map(|name| (name, mock.pages(SPAN / PAGE_SIZE))).collect();
    for (&name, &frame) in &frames {
        let access = if name == MEETING { Access::COHERENT } else { access };
        for at in (0..SPAN).step_by(PAGE_SIZE as usize) {
            mock.map(space, page(name) + at, Pte::leaf(frame + at, access));
        }
    }
    let queues = [0, 1].map(|_| UserQueue::sized(&mock, space, RING_LOG2));
    let (took, seen) = (Duration::MAX, Seen::default());
    let mut race = Race { mock: &mock, row, frames, queues, took, random: 1, seen };
    race.write_indices();
    for batch in 0..batches {
        race.batch(batch % 2 == 0, GROUPS[batch as usize % GROUPS.len()]);
    }
    race.seen
}

fn page(name: char) -> u64 {
    VA + (u64::from(name) << 20)
}

fn address(name: char, instance: u64) -> u64 {
    page(name) + instance * APART
}

impl Race<'_> {
    fn word(&self, name: char, instance: u64) -> &std::sync::atomic::AtomicU64 {
        self.mock.ram64(self.frames[&name] + instance * APART)
    }

    /// Elements of a bulk command are counted from `x`, one index for each word's page.
    fn write_indices(&self) {
        for (name, at) in [('x', 0), ('y', 8)] {
            let index = (page(name) - page('x')) / 8;
            self.mock.ram64(self.frames[&INDICES] + at).store(index, Ordering::Relaxed);
        }
    }

    /// All instances once, the first agent's doorbell first or last; queues meet before each group.
    fn batch(&mut self, first: bool, group: u64) {
        for name in ['x', 'y', 'a', 'b', MEETING] {
            for at in (0..SPAN).step_by(8) {
                self.mock.ram64(self.frames[&name] + at).store(0, Ordering::Relaxed);
            }
        }
        let agents = [&self.row.first, &self.row.second];
        for (queue, agent) in self.queues.iter_mut().zip(agents).filter(|(_, agent)| agent.queue) {
            self.row.commands(agent, group).into_iter().for_each(|(_, sqe)| queue.stage(sqe));
        }
        let start = Instant::now();
        for queue in if first { [0, 1] } else { [1, 0] } {
            if agents[queue].queue {
                self.queues[queue].ring();
            }
        }
        let mut results = vec![Results::new(); INSTANCES as usize];
        let mut completed = [vec![], vec![]];
        for (at, agent) in agents.iter().enumerate().filter(|(_, agent)| !agent.queue) {
            self.cpu(agent, 1 - at, &mut results, &mut completed);
        }
        for (at, agent) in agents.iter().enumerate().filter(|(_, agent)| agent.queue) {
            let commands = self.row.commands(agent, group);
            while completed[at].len() < commands.len() {
                completed[at].push(self.queues[at].wait());
            }
            for ((step, sqe), cqe) in commands.iter().zip(&completed[at]) {
                assert_eq!(cqe.head.status(), Status::SUCCESS, "{step:?}: {cqe:x?}");
                if let Some(Instruction::Read(to, _)) = step {
                    results[sqe.tag as usize].insert(*to, cqe.result);
                }
            }
        }
        self.took = self.took.min(start.elapsed());
        for (at, results) in (0..).zip(results) {
            self.judge(at, &results);
        }
    }

    /// The CPU's side; the queue `other` is the other agent.
    fn cpu(&mut self, agent: &Agent, other: usize, results: &mut [Results], completed: &mut [Vec<Cqe>; 2]) {
        let loads_only = agent.steps.iter().all(|step| matches!(step, Instruction::Load(..)));
        if loads_only {
            let all = self.row.commands([&self.row.first, &self.row.second][other], INSTANCES).len();
            while completed[other].len() < all {
                completed[other].extend(self.queues[other].take());
                // Where the device is now.
                let near = (completed[other].len() * INSTANCES as usize / all) as u64;
                for instance in near..INSTANCES.min(near + 2) {
                    let mut seen = Results::new();
                    agent.steps.iter().for_each(|&step| self.cpu_step(step, instance, &mut seen));
                    self.judge(instance, &seen);
                }
            }
        }
        for instance in 0..INSTANCES {
            if !loads_only {
                self.pause();
            }
            for &step in &agent.steps {
                if step == Instruction::SeeCompletion {
                    completed[other].push(self.queues[other].wait());
                } else {
                    self.cpu_step(step, instance, &mut results[instance as usize]);
                }
            }
        }
    }

    fn cpu_step(&self, step: Instruction, instance: u64, results: &mut Results) {
        match step {
            Instruction::Store(word, value) => self.word(word, instance).store(value, Ordering::Release),
            Instruction::Load(to, word) => {
                results.insert(to, self.word(word, instance).load(Ordering::Acquire));
            }
            Instruction::Barrier => fence(Ordering::SeqCst),
            other => panic!("{other:?} is not for a CPU"),
        }
    }

    /// About as long as the device takes for an instance, more or less.
    fn pause(&mut self) {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if self.took == Duration::MAX {
            return;
        }
        let most = 2 * self.took.as_nanos() as u64 / INSTANCES;
        let pause = Duration::from_nanos((self.random >> 33) % (most + 1));
        let start = Instant::now();
        while start.elapsed() < pause {
            std::hint::spin_loop();
        }
    }

    fn judge(&mut self, instance: u64, results: &Results) {
        self.seen.runs += 1;
        *self.seen.results.entry(results.clone()).or_default() += 1;
        let seen = match &self.row.outcome {
            Outcome::Results(wanted) => wanted.iter().all(|(name, value)| results.get(name) == Some(value)),
            Outcome::AnyOther(name, value) => {
                let first = self.frames[name] + instance * APART;
                let mut words = (0..MANY).map(|at| self.mock.ram64(first + 8 * at).load(Ordering::Relaxed));
                words.any(|word| word != *value)
            }
            Outcome::NotTheSum(name) => self.word(*name, instance).load(Ordering::Relaxed) != 2 * TIMES,
        };
        self.seen.outcomes += u64::from(seen);
    }
}

impl Row {
    /// A queue's commands for all instances, the instance as tag; those without an instruction are for queues
    /// to meet.
    fn commands(&self, agent: &Agent, group: u64) -> Vec<(Option<Instruction>, Sqe)> {
        let mut commands = vec![];
        for instance in 0..INSTANCES {
            if self.first.queue && self.second.queue && instance.is_multiple_of(group) {
                let word = Sqe { width: WidthLog2::W64, addr: page(MEETING), ..Default::default() };
                let (compare, arg1) = (2 * (instance / group + 1), Condition::Uge as u64);
                commands.push((None, Sqe { opcode: Opcode::FETCH_ADD, operand: 1, ..word }));
                commands
                    .push((None, Sqe { opcode: Opcode::WAIT, compare, arg0: WAIT_FOREVER, arg1, ..word }));
            }
            for &step in &agent.steps {
                let tagged = |sqe| (Some(step), Sqe { tag: instance as u32, ..sqe });
                commands.extend(command(step, instance).into_iter().map(tagged));
            }
        }
        commands
    }
}

/// A queue's commands for one instruction.
fn command(step: Instruction, instance: u64) -> Vec<Sqe> {
    let at = |name| address(name, instance);
    let one = |opcode, name, operand| Sqe {
        opcode,
        width: WidthLog2::W64,
        addr: at(name),
        operand,
        ..Default::default()
    };
    let sqe = match step {
        Instruction::Write(word, value) => one(Opcode::WRITE, word, value),
        Instruction::Read(_, word) => one(Opcode::READ, word, 0),
        Instruction::Add(word) => one(Opcode::FETCH_ADD, word, 1),
        Instruction::AddMany(word) if instance.is_multiple_of(2) => {
            return vec![one(Opcode::FETCH_ADD, word, 1); TIMES as usize];
        }
        Instruction::AddMany(word) => {
            Sqe { flags: SqeFlags::BULK, count: TIMES as u32, ..one(Opcode::FETCH_ADD, word, 1) }
        }
        Instruction::Fence => Sqe { opcode: Opcode::FENCE, ..Default::default() },
        Instruction::Fill(word, value) => Sqe { count: MANY as u32, ..one(Opcode::FILL, word, value) },
        Instruction::Copy(to, from) => Sqe { count: MANY as u32, arg0: at(from), ..one(Opcode::COPY, to, 0) },
        Instruction::Wait(word, value) => {
            let (arg0, arg1) = (WAIT_FOREVER, Condition::Eq as u64);
            Sqe { compare: value, arg0, arg1, ..one(Opcode::WAIT, word, 0) }
        }
        Instruction::BulkSwap([(first, value), (_, same)]) => {
            assert_eq!((first, value), ('x', same), "indices count from x, and there is one operand");
            Sqe {
                flags: SqeFlags::BULK.with(SqeFlags::INDEXED).with(SqeFlags::INDEX64),
                count: 2,
                index_addr: page(INDICES),
                ..one(Opcode::SWAP, first, value)
            }
        }
        other => panic!("{other:?} is not for a queue"),
    };
    vec![sqe]
}
