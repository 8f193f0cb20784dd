// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who is at work in the mixture: queues, CPU threads, and threads that let events happen.
#![expect(unsafe_code, reason = "submits entries that name the mixture's memory")]

use super::events::EVENTS;
use super::region::{COUNTER, Region};
use super::{CPU_THREADS, EVENT_THREADS, QUEUES, World};
use crate::area::{Area, Backing, PAGE, RawQueue};
use crate::events::scene::increment;
use crate::random::Random;
use anyhow::{Context, Result, bail};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Device, QueueSize};

/// Most elements of a command.
const MOST: u64 = 64;
/// Additions of a CPU thread between two looks at the gate.
const BURST: u64 = 256;

pub(super) type Actor = Box<dyn FnOnce(&World) + Send>;

/// All of them. Each has random numbers of its own.
pub(super) fn all(devices: &[Device]) -> Result<Vec<Actor>> {
    let mut actors: Vec<Actor> = Vec::new();
    let mut part = 1;
    for (context, device) in devices.iter().enumerate() {
        for n in 0..QUEUES {
            // SAFETY: its entries name regions and its own areas.
            let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
            let mut adder = Adder::new(queue)?;
            let number = part;
            actors.push(Box::new(move |world| {
                let mut random = Random::part(world.seed, number);
                world.steps(&format!("queue {n} of context {context}"), |_| adder.step(world, &mut random));
            }));
            part += 1;
        }
    }
    for n in 0..CPU_THREADS {
        let number = part;
        actors.push(Box::new(move |world| {
            let mut random = Random::part(world.seed, number);
            world.steps(&format!("CPU thread {n}"), |_| add(world, &mut random));
        }));
        part += 1;
    }
    for n in 0..EVENT_THREADS {
        let number = part;
        actors.push(Box::new(move |world| {
            let mut random = Random::part(world.seed, number);
            world.steps(&format!("event thread {n}"), |step| happen(world, n, step, &mut random));
        }));
        part += 1;
    }
    Ok(actors)
}

/// A queue that adds to pages.
struct Adder {
    queue: RawQueue,
    indices: Area,
}

impl Adder {
    fn new(queue: RawQueue) -> Result<Self> {
        Ok(Adder { queue, indices: Area::new(Backing::Private, PAGE)? })
    }

    /// One command on some pages of a region.
    fn step(&mut self, world: &World, random: &mut Random) -> Result<()> {
        let region = random.pick(&world.regions);
        let count = 1 + random.below(MOST);
        let pages: Vec<u64> = (0..count).map(|_| region.pick(random)).collect();
        for (n, page) in pages.iter().enumerate() {
            self.indices.store(8 * n as u64, WidthLog2::W64, (page * PAGE + COUNTER) / 8);
        }
        let found = self.queue.execute(&Sqe {
            opcode: Opcode::FETCH_ADD,
            width: WidthLog2::W64,
            flags: SqeFlags::BULK.with(SqeFlags::INDEXED).with(SqeFlags::INDEX64),
            addr: region.base,
            operand: 1,
            count: count as u32,
            index_addr: self.indices.address(0),
            ..Sqe::default()
        })?;
        let applied = found.applied as usize;
        pages.iter().take(applied).for_each(|page| region.added(*page));
        world.device_ops.fetch_add(applied as u64, Relaxed);
        match found.status.0 {
            Status::SUCCESS if applied == pages.len() => Ok(()),
            Status::FAULT | Status::PERMISSION if region.unsteady && applied < pages.len() => {
                world.turned_away.fetch_add(1, Relaxed);
                Ok(())
            }
            _ => bail!("{count} additions to {:?} at {:#x} ended with {found:x?}", region.kind, region.base),
        }
    }
}

/// A CPU thread adds to pages of a region.
fn add(world: &World, random: &mut Random) -> Result<()> {
    let region: &Region = random.pick(&world.regions);
    let reachable = region.reachable.read().unwrap_or_else(PoisonError::into_inner);
    let page = region.pick(random);
    let burst = 1 + random.below(BURST);
    for _ in 0..burst {
        increment(region.address(page) + COUNTER);
        region.added(page);
    }
    drop(reachable);
    world.cpu_ops.fetch_add(burst, Relaxed);
    Ok(())
}

/// An event happens to a region, or to the system.
fn happen(world: &World, thread: u64, step: u64, random: &mut Random) -> Result<()> {
    let number = random.below(EVENTS.len() as u64) as usize;
    let event = &EVENTS[number];
    let fitting: Vec<usize> =
        (0..world.regions.len()).filter(|n| (event.fits)(world.regions[*n].kind)).collect();
    let n = *random.pick(&fitting);
    let region = &world.regions[n];
    world.note(format!("{thread}.{step} {} of region {n}", event.name));
    let alone = event.alone.then(|| region.reachable.write().unwrap_or_else(PoisonError::into_inner));
    let among = (!event.alone).then(|| region.reachable.read().unwrap_or_else(PoisonError::into_inner));
    (event.run)(world, region, random)
        .with_context(|| format!("{} of region {n} ({:?})", event.name, region.kind))?;
    drop((alone, among));
    world.happened[number].fetch_add(1, Relaxed);
    Ok(())
}
