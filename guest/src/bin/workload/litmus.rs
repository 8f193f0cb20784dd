// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `litmus`: a CPU thread against a queue, on the rows of spec 10.6 that have one of each. What is forbidden
//! never happens, neither on pages that both have nor on pages that go back and forth.
//!
//! What it can show: the guest's CPUs are threads of the host. On an x86 host they are ordered as x86 is, with
//! KVM because they are the host's CPUs, and with TCG because it turns a guest's loads, stores and barriers
//! into the host's own: store buffers are real, and a barrier that is missing on either side can be seen. On
//! another host TCG adds barriers to the guest's side, and only the device's is tested. What it can't show is
//! what the machine that it runs on never reorders. That the device's own threads keep the model among
//! themselves is tested next to the device.
//!
//! The thread that submits is the CPU thread: it looks, or stores, while the device works. No word is ever
//! reset: round *n* stores *n*, and a word is "1" if it is at least that.
#![expect(unsafe_code, reason = "submits entries that name an area")]

use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::link::metric;
use crate::random::Random;
use crate::scenario::{Run, Shown, step};
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::time::{Duration, Instant};
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WAIT_FOREVER, WidthLog2};
use svmx::{Condition, Device, QueueSize};

const W64: WidthLog2 = WidthLog2::W64;
/// What a queue's submissions have room for.
const DEPTH: usize = 64;
/// How long a test goes on at most once it has shown something.
const ENOUGH: Duration = Duration::from_secs(1);
/// How often each outcome has to be seen that says that the two sides met.
const MEETINGS: u64 = 20;

/// Where the words are, and with which commands the queue reaches them.
struct Pages {
    name: &'static str,
    x: u64,
    y: u64,
    store: Opcode,
    load: Opcode,
    /// As many are enough, and fewer if they take too long.
    rounds: u64,
}

impl Pages {
    fn exclusive(&self) -> bool {
        self.load != Opcode::READ
    }
}

const SHARED: Pages =
    Pages { name: "", x: 64, y: 512, store: Opcode::WRITE, load: Opcode::READ, rounds: 5000 };
/// Atomics, so that the CPU takes the page from the device each time.
const EXCLUSIVE: Pages = Pages { store: Opcode::SWAP, load: Opcode::FETCH_OR, rounds: 200, ..SHARED };
const PAGES: [Pages; 4] = [
    Pages { name: "page", ..SHARED },
    Pages { name: "pages", y: PAGE, ..SHARED },
    Pages { name: "exclusive_page", ..EXCLUSIVE },
    Pages { name: "exclusive_pages", y: PAGE, ..EXCLUSIVE },
];

/// How often which pair (a, b) was seen.
#[derive(Debug, Default)]
struct Tally([[u64; 2]; 2]);

/// A row of the table.
struct Litmus {
    name: &'static str,
    round: fn(&mut Court, &mut Tally) -> Result<()>,
    /// Consists of atomics whatever the pages.
    atomics: bool,
    forbidden: Option<(bool, bool)>,
    /// Without these nothing was shown.
    needed: &'static [(bool, bool)],
}

const LITMUS: [Litmus; 7] = [
    Litmus {
        name: "MP+queue+cpu",
        round: Court::queue_passes,
        atomics: false,
        forbidden: Some((true, false)),
        needed: &[(false, false), (true, true)],
    },
    Litmus {
        name: "MP+bulk+cpu",
        round: Court::bulk_passes,
        atomics: true,
        forbidden: Some((true, false)),
        needed: &[(false, false), (true, true)],
    },
    Litmus {
        name: "MP+cpu+queue",
        round: Court::cpu_passes,
        atomics: false,
        forbidden: Some((true, false)),
        needed: &[(false, false), (true, true)],
    },
    // Not in the table: what a WAIT is for (spec 10.4).
    Litmus {
        name: "MP+cpu+wait",
        round: Court::cpu_wakes,
        atomics: false,
        forbidden: Some((true, false)),
        needed: &[(true, true)],
    },
    Litmus {
        name: "SB+fence+cpu",
        round: |court, tally| court.store_buffers(true, tally),
        atomics: false,
        forbidden: Some((false, false)),
        needed: &[(false, true), (true, false)],
    },
    // Allowed without the barriers, and counted: where it is seen, the row above was put to the test.
    Litmus {
        name: "SB+cpu",
        round: |court, tally| court.store_buffers(false, tally),
        atomics: false,
        forbidden: None,
        needed: &[(false, true), (true, false)],
    },
    Litmus {
        name: "COMPLETION",
        round: Court::completion,
        atomics: false,
        forbidden: Some((true, false)),
        needed: &[(true, true)],
    },
];

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let size = QueueSize { sq_log2: DEPTH.ilog2() as u8, cq_log2: DEPTH.ilog2() as u8 };
    // SAFETY: every entry names the area, which nothing but atomics reaches.
    let queue = unsafe { RawQueue::new(device.create_queue(size)?) };
    let area = Area::new(Backing::Private, 2 * PAGE)?;
    let random = Random::part(run.seed, 1);
    let mut court = Court { queue, area, random, pages: &PAGES[0], n: 0, aim: Duration::from_micros(10) };
    let mut seen = 0;
    for litmus in &LITMUS {
        let mut tally = Tally::default();
        for pages in PAGES.iter().filter(|pages| pages.exclusive() || !litmus.atomics) {
            step(format!("{} on {}", litmus.name, pages.name));
            court.pages = pages;
            court.hear(litmus, run.part(1, 8), &mut tally).context(litmus.name)?;
        }
        for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
            metric(&format!("{}_{}{}", litmus.name, u8::from(a), u8::from(b)), tally.of((a, b)));
            seen += tally.of((a, b));
        }
    }
    crate::counter::statistics(&*device.stats()?, "");
    Ok(Shown::Pass(format!("nothing forbidden among {seen} outcomes of {} litmus tests", LITMUS.len())))
}

/// Where the tests are done.
struct Court {
    queue: RawQueue,
    area: Area,
    random: Random,
    pages: &'static Pages,
    /// The round.
    n: u64,
    /// From a submission to where the device is to be met, about.
    aim: Duration,
}

impl Court {
    /// Does a litmus test often enough, and adds what was seen to `sum`.
    fn hear(&mut self, litmus: &Litmus, limit: Duration, sum: &mut Tally) -> Result<()> {
        let mut tally = Tally::default();
        let start = Instant::now();
        let mut rounds = 0;
        loop {
            let shown = litmus.needed.iter().all(|seen| tally.of(*seen) >= MEETINGS);
            if shown && (rounds >= self.pages.rounds || start.elapsed() > ENOUGH) {
                break;
            }
            self.n += 1;
            rounds += 1;
            (litmus.round)(self, &mut tally)?;
            if let Some((a, b)) = litmus.forbidden {
                ensure!(tally.of((a, b)) == 0, "round {rounds}: a={a}, b={b} was seen: {tally:?}");
            }
            ensure!(start.elapsed() < limit, "the sides don't meet: {tally:?} in {rounds} rounds");
        }
        sum.0.iter_mut().flatten().zip(tally.0.into_iter().flatten()).for_each(|(sum, n)| *sum += n);
        Ok(())
    }

    /// Q: x=1; y=1. C: a=y; b=x.
    fn queue_passes(&mut self, tally: &mut Tally) -> Result<()> {
        let entries = [self.store(self.pages.x), self.store(self.pages.y)];
        self.submit(&entries)?;
        self.look(tally)?;
        self.complete(&entries).map(drop)
    }

    /// Q: bulk SWAP x=1, y=1. C: a=y; b=x.
    fn bulk_passes(&mut self, tally: &mut Tally) -> Result<()> {
        let stride = (self.pages.y - self.pages.x) as i32;
        let swap = scalar(Opcode::SWAP, W64, self.area.address(self.pages.x), self.n);
        let entries = [Sqe { flags: SqeFlags::BULK, count: 2, stride, ..swap }];
        self.submit(&entries)?;
        self.look(tally)?;
        self.complete(&entries).map(drop)
    }

    /// C: x=1; y=1. Q: a=y; b=x, again and again.
    fn cpu_passes(&mut self, tally: &mut Tally) -> Result<()> {
        let pair = [self.load(self.pages.y), self.load(self.pages.x)];
        let entries: Vec<Sqe> = pair.into_iter().cycle().take(DEPTH).collect();
        self.submit(&entries)?;
        self.pause();
        self.area.release(self.pages.x, self.n);
        self.area.release(self.pages.y, self.n);
        let seen = self.complete(&entries)?;
        // In the middle of them.
        let early = seen.iter().filter(|seen| **seen).count() > DEPTH / 2;
        self.correct(early, !early);
        seen.chunks(2).for_each(|pair| tally.add(pair[0], pair[1]));
        Ok(())
    }

    /// C: x=1; y=1. Q: WAIT y=1; b=x.
    fn cpu_wakes(&mut self, tally: &mut Tally) -> Result<()> {
        let wait = Sqe {
            compare: self.n,
            arg0: WAIT_FOREVER,
            arg1: Condition::Uge as u64,
            ..scalar(Opcode::WAIT, W64, self.area.address(self.pages.y), 0)
        };
        let entries = [wait, self.load(self.pages.x)];
        self.submit(&entries)?;
        self.pause();
        self.area.release(self.pages.x, self.n);
        self.area.release(self.pages.y, self.n);
        let seen = self.complete(&entries)?;
        tally.add(seen[0], seen[1]);
        Ok(())
    }

    /// Q: x=1; FENCE; a=y. C: y=1; full barrier; b=x. Or the same without both barriers.
    fn store_buffers(&mut self, barriers: bool, tally: &mut Tally) -> Result<()> {
        let between = if barriers { Opcode::FENCE } else { Opcode::NOP };
        let between = Sqe { opcode: between, ..Sqe::default() };
        let entries = [self.store(self.pages.x), between, self.load(self.pages.y)];
        self.submit(&entries)?;
        self.pause();
        self.area.release(self.pages.y, self.n);
        if barriers {
            // Partner: the FENCE (spec 10.5).
            fence(SeqCst);
        }
        let b = self.area.acquire(self.pages.x) >= self.n;
        let seen = self.complete(&entries)?;
        let a = seen[2];
        self.correct(a && !b, b && !a);
        tally.add(a, b);
        Ok(())
    }

    /// Q: x=1. C: sees its completion; b=x.
    fn completion(&mut self, tally: &mut Tally) -> Result<()> {
        let entries = [self.store(self.pages.x)];
        self.submit(&entries)?;
        self.complete(&entries)?;
        let b = self.area.acquire(self.pages.x) >= self.n;
        tally.add(true, b);
        Ok(())
    }

    /// C: a=y; b=x, until y is there.
    fn look(&mut self, tally: &mut Tally) -> Result<()> {
        let start = Instant::now();
        loop {
            let a = self.area.acquire(self.pages.y) >= self.n;
            let b = self.area.acquire(self.pages.x) >= self.n;
            tally.add(a, b);
            if a {
                return Ok(());
            }
            ensure!(start.elapsed() < crate::scenario::patience(), "the store does not come");
            if self.pages.exclusive() {
                // Leaves the page to the device for a moment.
                std::thread::yield_now();
            }
        }
    }

    fn store(&self, offset: u64) -> Sqe {
        scalar(self.pages.store, W64, self.area.address(offset), self.n)
    }

    fn load(&self, offset: u64) -> Sqe {
        scalar(self.pages.load, W64, self.area.address(offset), 0)
    }

    fn submit(&mut self, entries: &[Sqe]) -> Result<()> {
        entries.iter().try_for_each(|entry| self.queue.submit(entry))
    }

    /// Whether each of the commands saw a "1".
    fn complete(&mut self, entries: &[Sqe]) -> Result<Vec<bool>> {
        let mut seen = Vec::with_capacity(entries.len());
        for entry in entries {
            let found = self.queue.complete()?;
            ensure!(found.status.is_success(), "{found:?} for {entry:x?}");
            seen.push(found.result >= self.n.into());
        }
        Ok(seen)
    }

    /// Lets the device come to where the CPU is to meet it, more or less.
    fn pause(&mut self) {
        let aim = self.aim.as_nanos() as u64;
        let time = Duration::from_nanos(aim - aim / 4 + self.random.below(aim / 2));
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// The CPU was early, or late: it comes a little later, or earlier, the next time.
    fn correct(&mut self, early: bool, late: bool) {
        if early {
            self.aim += self.aim / 32;
        } else if late {
            self.aim -= self.aim / 32;
        }
        self.aim = self.aim.clamp(Duration::from_nanos(200), Duration::from_millis(10));
    }
}

impl Tally {
    fn add(&mut self, a: bool, b: bool) {
        self.0[usize::from(a)][usize::from(b)] += 1;
    }

    fn of(&self, (a, b): (bool, bool)) -> u64 {
        self.0[usize::from(a)][usize::from(b)]
    }
}
