// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Engines: threads that poll active queues and execute their commands.
//!
//! Any engine takes any queue, in turn, for a bounded number of accesses, so none starves; but each prefers those
//! that it served before, whose pages it owns, and leaves others to their engines until these don't come; or until it has
//! nothing to do itself while they are busy elsewhere. An engine
//! holds a queue's mutex while it works on it and never waits for one. It looks up between two accesses:
//! at invalidations, at the run state, and at queues that somebody else wants.
//!
//! Going to sleep: while a queue is active one engine at least is awake; it disarms queues that have been
//! quiet (spec 4.3), and sleeps when none is left. Others sleep when they have found nothing for as long.
//! An engine that finds work while there is more than one active queue wakes another. While all that is left is
//! WAITs, one engine naps between looks.

mod ahead;
mod batch;
mod transfer;
mod turn;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::complain::complain;
use crate::doorbells::QueuePage;
use crate::host;
use crate::instrument::Instrument;
use crate::invalidate::User;
use crate::memory::GuestMemory;
use crate::model::Model;
use crate::ownership::Claimant;
use crate::queue::{Look, RingLost, State};
use crate::tlb::Tlb;

/// Accesses on one queue before the next queue has its turn (spec 5.1); fewer if they are made slow.
pub const BUDGET: u32 = 8192;
/// What a turn of slow accesses may take, in nanoseconds.
const SLOW_TURN: u128 = 1_000_000;
/// Times that an engine looks at every queue before it rests: more than it passes by those of others.
const ROUNDS: u32 = 3;
/// How long an engine leaves queues alone that wait for memory to change, at first and later. The second must
/// stay well below the millisecond that spec 5.7 promises while there is nothing else to do.
const SHORTEST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_micros(500);
/// Hosts with fewer CPUs run guest CPUs on those that engines would spin on.
const SPINNABLE_CPUS: usize = 4;

/// One engine.
#[derive(Debug)]
pub struct Engine<I> {
    model: Arc<Model>,
    number: usize,
    user: User<GuestMemory>,
    tlb: Tlb,
    claimant: Claimant,
    instrument: I,
    /// Gives its time away while it polls.
    yields: bool,
    /// Accesses in a turn.
    budget: u32,
    /// How long it has napped since there was work.
    nap: Duration,
    /// Does elements many at a time: nobody watches each of them.
    batches: bool,
}

/// What a turn at a queue came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Something was done.
    Worked,
    /// A WAIT looked in vain.
    Waiting,
    /// Nothing was to be done, or somebody else has the queue.
    Nothing,
}

/// Why an engine has polled long enough.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// No queue is active, or the device does not run.
    Nothing,
    /// Other engines can poll those that are active.
    Others,
    /// The same, but some wait for a word of memory to change: somebody must look at that.
    Waiting,
}

impl<I: Instrument> Engine<I> {
    /// The engine of that number.
    ///
    /// # Errors
    ///
    /// The host has no memory for its TLB.
    pub fn new(model: Arc<Model>, number: usize, instrument: I) -> std::io::Result<Self> {
        let user = User::new(model.invalidations.clone(), number);
        let tlb = Tlb::new(model.invalidations.snapshot())?;
        let yields = host::cpus() < SPINNABLE_CPUS;
        let slow = SLOW_TURN / model.options.rmw_delay.as_nanos().max(1);
        let budget = u32::try_from(slow).unwrap_or(BUDGET).clamp(1, BUDGET);
        let batches = !I::ELEMENTS && model.options.rmw_delay.is_zero();
        Ok(Engine {
            model,
            number,
            user,
            tlb,
            claimant: Claimant::new(number),
            instrument,
            yields,
            budget,
            nap: Duration::ZERO,
            batches,
        })
    }

    /// Runs until the device ends.
    pub fn run(mut self) {
        let model = self.model.clone();
        while !model.exiting() {
            self.user.enter(|change| self.tlb.apply(change));
            let rest = if model.running() { self.poll(&model) } else { Rest::Nothing };
            self.user.leave();
            let slept = model.engines.sleep(|others_awake| {
                let others = rest != Rest::Nothing && others_awake > 0;
                let idle = !model.running() || !model.queues.any_active() || others;
                idle && !model.exiting()
            });
            if rest == Rest::Waiting && !slept {
                self.nap = (2 * self.nap).clamp(SHORTEST_NAP, LONGEST_NAP);
                model.engines.nap(self.nap, || model.running() && !model.exiting());
            }
        }
    }

    /// Polls active queues until there is reason to sleep.
    fn poll(&mut self, model: &Model) -> Rest {
        let mut queue = self.number as u32;
        let mut quiet_since: Option<Instant> = None;
        let (mut waiting, mut rounds) = (false, 0);
        loop {
            if self.user.behind() {
                self.catch_up();
            }
            if !model.running() {
                return Rest::Nothing;
            }
            let Some(next) = model.queues.next_active(queue) else { return Rest::Nothing };
            let several = next != queue;
            rounds += u32::from(next <= queue);
            queue = next;
            match self.visit(model, queue, rounds > 1) {
                Turn::Worked => {
                    (quiet_since, waiting, rounds) = (None, false, 0);
                    self.nap = Duration::ZERO;
                    if several && model.engines.any() {
                        model.engines.wake_one();
                    }
                    continue;
                }
                Turn::Waiting => waiting = true,
                Turn::Nothing => {}
            }
            let now = Instant::now();
            // Whoever has napped in vain looks at each queue once, and naps on.
            let patience = if self.nap.is_zero() { 2 * model.options.poll } else { Duration::ZERO };
            if now - *quiet_since.get_or_insert(now) >= patience && rounds > ROUNDS {
                return if waiting { Rest::Waiting } else { Rest::Others };
            }
            if self.yields { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn catch_up(&mut self) {
        self.user.catch_up(|change| self.tlb.apply(change));
    }

    /// One turn at a queue. An engine that is `hungry` has found nothing to do in a whole round.
    fn visit(&mut self, model: &Model, number: u32, hungry: bool) -> Turn {
        let Some(queue) = model.queues.get(number) else {
            model.queues.deactivate(number);
            return Turn::Nothing;
        };
        if queue.wanted() || queue.state.is_locked() {
            return Turn::Nothing;
        }
        let elsewhere = |engine| model.queues.is_at_other(engine, number);
        if queue.leave_to_home(self.number, hungry, elsewhere) {
            return Turn::Nothing;
        }
        let Some(mut guard) = queue.state.try_lock() else { return Turn::Nothing };
        let Some(state) = guard.as_mut().filter(|state| !state.broken && state.stall.is_none()) else {
            model.queues.deactivate(number);
            return Turn::Nothing;
        };
        let page = model.doorbells.queue(number);
        if !state.polled {
            poll_again(model, state, page);
        }
        self.instrument.turn(number);
        model.queues.move_to(self.number, Some(number));
        let turn = self.work(model, queue, state, page).unwrap_or_else(|RingLost| {
            complain!("queue {number}: its rings are not in guest memory; ignored from now on");
            state.broken = true;
            Turn::Worked
        });
        model.queues.move_to(self.number, None);
        queue.served(self.number, turn != Turn::Nothing);
        if turn == Turn::Nothing {
            rest(model, state, page);
        } else {
            state.quiet_since = None;
        }
        turn
    }
}

/// Polls a queue that was not polled: from here on nobody kicks (spec 4.3).
///
/// It may have been disarmed after this engine found it active, so it is made active under its mutex: a
/// queue without NEED_KICK that is neither active nor stalled would never be looked at again.
fn poll_again(model: &Model, state: &mut State, page: QueuePage<'_>) {
    state.polled = true;
    state.quiet_since = None;
    model.queues.activate(state.rings.queue);
    page.need_kick.store(0);
}

/// Nothing is to be done: after a while, stop polling the queue (spec 4.3).
fn rest(model: &Model, state: &mut State, page: QueuePage<'_>) {
    let now = Instant::now();
    if now - *state.quiet_since.get_or_insert(now) < model.options.poll {
        return;
    }
    // In this order: a kick comes from somebody who saw NEED_KICK, so it activates the queue after
    // this deactivation. And whoever stored a doorbell without seeing it is seen by the last look.
    let queue = state.rings.queue;
    model.queues.deactivate(queue);
    page.need_kick.raise();
    if state.look(page) == Look::Idle {
        state.polled = false;
    } else {
        page.need_kick.store(0);
        model.queues.activate(queue);
        state.quiet_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instrument::Plain;
    use crate::model::Options;
    use crate::queue::Rings;
    use mock_driver::Meeting;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering, fence};
    use std::time::Duration;
    use svmx_abi::doorbell;
    use svmx_abi::pci::PAGE_SIZE;

    fn a_queue(poll: Duration) -> (Arc<Model>, State) {
        let model = Model::new(Options { engines: 1, poll, ..Default::default() }).unwrap();
        let (sq_log2, cq_log2, vector) = (4, 4, 2);
        let rings = Rings { queue: 1, asid: 1, root: 0, sq_base: 0, sq_log2, cq_base: 0, cq_log2, vector };
        (Arc::new(model), State::new(rings))
    }

    #[test]
    fn a_queue_visited_after_it_was_disarmed_stays_active() {
        let (model, mut state) = a_queue(Duration::MAX);
        state.polled = false;
        model.queues.get(1).unwrap().state.lock().replace(state);
        // Another engine found it active, disarmed it, and left before this one came.
        model.doorbells.queue(1).need_kick.raise();
        assert!(Engine::new(model.clone(), 0, Plain).unwrap().visit(&model, 1, false) == Turn::Nothing);
        assert!(model.queues.any_active(), "NEED_KICK is taken back, so nobody will kick");
    }

    #[test]
    fn a_tail_stored_before_need_kick_is_not_missed() {
        let (model, mut state) = a_queue(Duration::ZERO);
        state.polled = true;
        let page = model.doorbells.queue(1);
        let need_kick = || {
            let mut bytes = [0; 4];
            let at = PAGE_SIZE + doorbell::queue::NEED_KICK;
            model.doorbells.file().read_exact_at(&mut bytes, at).unwrap();
            u32::from_le_bytes(bytes)
        };
        model.queues.activate(1);
        rest(&model, &mut state, page);
        assert_eq!((need_kick(), state.polled, model.queues.any_active()), (1, false, false));
        // The submitter saw NEED_KICK = 0 when it stored this, and does not kick.
        (state.polled, state.quiet_since) = (true, None);
        page.need_kick.store(0);
        model.queues.activate(1);
        let tail = PAGE_SIZE + doorbell::queue::SQ_TAIL;
        model.doorbells.file().write_all_at(&1u32.to_le_bytes(), tail).unwrap();
        rest(&model, &mut state, page);
        assert_eq!((need_kick(), state.polled, model.queues.any_active()), (0, true, true));
    }

    /// As above, but stored at any moment of the device's last look: raced.
    #[test]
    fn a_tail_stored_while_need_kick_is_raised_is_not_missed() {
        const ROUNDS: u32 = 200_000;
        let (model, mut state) = a_queue(Duration::ZERO);
        let file = model.doorbells.file().try_clone().unwrap();
        let size = svmx_abi::pci::BAR_DOORBELLS_SIZE;
        let map = crate::memory::DmaMap { address: 0, size, file, offset: 0, writable: true };
        let submitters = GuestMemory::default().with_map(map).unwrap();
        let word = |offset| submitters.word32(PAGE_SIZE + offset, true).unwrap();
        let (tail, need_kick) = (word(doorbell::queue::SQ_TAIL), word(doorbell::queue::NEED_KICK));
        let meeting = Meeting::default();
        let meet = |me| meeting.meet(me);
        let page = model.doorbells.queue(1);
        let resting = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    (state.polled, state.quiet_since) = (true, None);
                    page.need_kick.store(0);
                    meet(0);
                    rest(&model, &mut state, page);
                    resting.store(!state.polled, Ordering::Relaxed);
                    meet(0);
                }
            });
            let mut lost = 0;
            for round in 0..ROUNDS {
                tail.store(0, Ordering::Relaxed);
                meet(1);
                (0..round % 256).for_each(|turn| _ = std::hint::black_box(turn));
                tail.store(1, Ordering::Release);
                fence(Ordering::SeqCst);
                let kicks = need_kick.load(Ordering::Relaxed) == 1;
                meet(1);
                lost += u32::from(!kicks && resting.load(Ordering::Relaxed));
            }
            assert_eq!(lost, 0, "of {ROUNDS} doorbells nobody heard");
        });
    }
}
