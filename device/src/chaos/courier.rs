// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Carries interrupts late. It stands between the model, which raises a vector, and the vector's event.
//!
//! What spec 4.4 allows is all that it does: an interrupt may be late, interrupts of different vectors may
//! change their order, and those of one vector may become one, as each of them only says "look". None is lost:
//! whatever was raised, one is delivered afterwards, but for a reset, which forgets it with all else (spec 1.1).
//! Without bus mastering the model holds what is delivered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use svmx_abi::pci::NUM_VECTORS;

use super::decide::{Purpose, Stream};
use super::spec::{Delay, Faults};
use crate::model::Model;

/// Interrupts of one vector that may be late at a time. Those that come then are one with them.
const MOST: u32 = 64;

/// The model's side.
#[derive(Debug)]
pub struct Courier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bag: Mutex<Bag>,
    changed: Condvar,
    delay: Delay,
    coalesce: Duration,
}

#[derive(Debug)]
struct Bag {
    /// When which vector is due; the earliest is the greatest.
    due: BinaryHeap<Reverse<(Instant, u16)>>,
    vectors: Vec<Vector>,
    over: bool,
}

#[derive(Debug)]
struct Vector {
    stream: Stream,
    carried: u32,
    /// When the last one that was raised is, or was, due.
    last: Option<Instant>,
}

impl Courier {
    /// A courier for `model`, if there is something for one to do. Its thread ends when the courier is dropped.
    pub(super) fn start(faults: &Faults, seed: u64, model: Weak<Model>) -> std::io::Result<Option<Self>> {
        let Faults { irq_delay: delay, irq_coalesce: coalesce, .. } = *faults;
        if delay == Delay::default() && coalesce.is_zero() {
            return Ok(None);
        }
        let vector =
            |number| Vector { stream: Stream::new(seed, Purpose::Interrupt, number), carried: 0, last: None };
        let vectors = (0..NUM_VECTORS).map(vector).collect();
        let bag = Mutex::new(Bag { due: BinaryHeap::new(), vectors, over: false });
        let shared = Arc::new(Shared { bag, changed: Condvar::new(), delay, coalesce });
        let thread = thread::Builder::new().name("courier".into());
        thread.spawn({
            let shared = shared.clone();
            move || shared.deliver(&model)
        })?;
        Ok(Some(Courier { shared }))
    }

    /// Takes an interrupt that is raised now, to deliver it later; false: deliver it yourself.
    pub fn take(&self, vector: u16) -> bool {
        let Shared { bag, changed, delay, coalesce } = &*self.shared;
        let mut bag = bag.lock();
        let Bag { due, vectors, .. } = &mut *bag;
        let Some(state) = vectors.get_mut(usize::from(vector)) else { return false };
        let now = Instant::now();
        if state.carried > 0 && (!coalesce.is_zero() || state.carried >= MOST) {
            // One that is on its way says the same.
            return true;
        }
        let mut when = now + state.stream.delay(*delay).unwrap_or_default();
        if let Some(last) = state.last.filter(|_| !coalesce.is_zero()) {
            when = when.max(last + *coalesce);
        }
        state.last = Some(when);
        if when <= now {
            return false;
        }
        state.carried += 1;
        due.push(Reverse((when, vector)));
        changed.notify_one();
        true
    }

    /// Forgets what was taken. When this returns, none of it is delivered any more.
    pub fn empty(&self) {
        let mut bag = self.shared.bag.lock();
        bag.due.clear();
        bag.vectors.iter_mut().for_each(|vector| (vector.carried, vector.last) = (0, None));
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.shared.bag.lock().over = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn deliver(&self, model: &Weak<Model>) {
        let mut bag = self.bag.lock();
        while !bag.over {
            let Some(&Reverse((when, vector))) = bag.due.peek() else {
                self.changed.wait(&mut bag);
                continue;
            };
            if when > Instant::now() {
                self.changed.wait_until(&mut bag, when);
                continue;
            }
            bag.due.pop();
            // Before it is delivered: one that is raised from now on may be about something newer.
            bag.vectors[usize::from(vector)].carried -= 1;
            if let Some(model) = model.upgrade() {
                // With the bag locked, so that nothing is on its way when it has been emptied.
                model.interrupts.deliver_now(vector);
                // If this is the last of the model, its courier's side goes too, which locks the bag.
                MutexGuard::unlocked(&mut bag, || drop(model));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Options;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::fs::File;
    use std::os::fd::AsFd;

    /// A model that delivers, and the event of vector 3.
    fn a_model() -> (Arc<Model>, EventFd) {
        let model = Arc::new(Model::new(Options::default()).unwrap());
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        model.interrupts.set(3, Some(File::from(event.as_fd().try_clone_to_owned().unwrap())));
        model.interrupts.permit(true);
        (model, event)
    }

    fn courier(list: &str, model: &Arc<Model>) -> Courier {
        Courier::start(&list.parse().unwrap(), 1, Arc::downgrade(model)).unwrap().unwrap()
    }

    #[test]
    fn what_is_taken_arrives() {
        let (model, event) = a_model();
        let courier = courier("irq-delay=1ms", &model);
        let taken = (0..20).filter(|_| courier.take(3)).count() as u64;
        assert!(taken > 0);
        let mut arrived = 0;
        while arrived < taken {
            arrived += event.read().unwrap_or(0);
        }
        assert_eq!(arrived, taken);
    }

    #[test]
    fn what_is_coalesced_arrives_once() {
        let (model, event) = a_model();
        let courier = courier("irq-coalesce=60s", &model);
        assert!(!courier.take(3), "the first one is not late");
        assert!((0..10).all(|_| courier.take(3)));
        assert!(!courier.take(4), "another vector");
        assert_eq!(courier.shared.bag.lock().due.len(), 1);
        assert!(event.read().is_err());
    }

    #[test]
    fn there_is_none_without_work() {
        let (model, _event) = a_model();
        let faults = "tlb-evict=1".parse().unwrap();
        assert!(Courier::start(&faults, 1, Arc::downgrade(&model)).unwrap().is_none());
    }
}
