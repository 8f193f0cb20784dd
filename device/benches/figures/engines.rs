// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two engines against one: two queues on pages of their own, on a device with one engine and on one with
//! two. In wall-clock time: a second engine that waits for the first takes no CPU time but is no help.

use std::thread;
use std::time::Instant;

use measure::cpu::{self, Places};
use measure::sample::Side;
use measure::{Aim, Comparison, Row, Samples, alternate};
use svmx_abi::pte::Access;
use svmx_device::model::Options;

use crate::arena::{Arena, Region, millions_per_second, random_indices};
use crate::native::Scatter;

/// Additions of each queue in a round.
const COUNT: usize = 1 << 24;
/// Two native loops that scale less say that there are no two free cores, and that nobody can tell.
const FREE: f64 = 1.85;

/// In cache and out of it.
pub(crate) fn scaling(name: &str, rounds: usize) -> Vec<Row> {
    let places = [("in 16 KiB each", 16 << 10), ("random over 256 MiB each", 256 << 20)];
    places.map(|(place, bytes)| of_size(name, rounds, place, bytes)).into()
}

fn of_size(name: &str, rounds: usize, place: &str, bytes: u64) -> Row {
    let devices = [1, 2].map(|engines| {
        let options = Options { engines, ..Default::default() };
        Arena::new(options, 2 * (bytes + 4 * COUNT as u64))
    });
    let indices = [1, 2].map(|seed| random_indices(COUNT, bytes / 8, seed));
    let mut regions = devices.each_ref().map(|arena| {
        [0, 1].map(|at: usize| {
            let space = arena.mock.space();
            arena.region(space, at as u64, bytes, Access::EXCLUSIVE, &indices[at])
        })
    });
    let scatters = regions[0].each_ref().map(|region| region.scatter);
    let [one, two] = &mut regions;
    let (mut one_busy, mut two_busy) = (Vec::new(), Vec::new());
    let sides: Vec<Side<'_>> = vec![
        Box::new(|| together(&devices[1], two, &mut two_busy)),
        Box::new(|| together(&devices[0], one, &mut one_busy)),
        Box::new(|| natively(&scatters, true)),
        Box::new(|| natively(&scatters, false)),
    ];
    let Ok([value, baseline, parallel, serial]): Result<[Samples; 4], _> =
        alternate(rounds, sides).try_into()
    else {
        unreachable!("a sample for each of four sides")
    };
    let native = parallel.median() / serial.median();
    let busy = Samples::from(two_busy).median() / Samples::from(one_busy).median();
    let figure = format!("bulk FETCH_ADD, two engines, {place}");
    let aim = Aim::RatioAtLeast(1.8);
    let comparison = Comparison { value, baseline };
    let mut row = Row::compared(name, &figure, "M/s", "the same two queues, one engine", &comparison, aim);
    if native < FREE {
        row.met = None;
    }
    row.with_note(format!(
        "two native lock xadd loops instead of one: {native:.2} x{}; by the busier engine's CPU time: {busy:.2} x",
        if native < FREE { " (no two free cores)" } else { "" },
    ))
}

/// Both queues at once; additions in wall-clock time, and in CPU time of the engine that has the most.
fn together(arena: &Arena, regions: &mut [Region<'_>; 2], busy: &mut Vec<f64>) -> f64 {
    let (start, before) = (Instant::now(), arena.engine_times());
    regions.iter_mut().for_each(Region::submit);
    regions.iter_mut().for_each(Region::wait);
    let elapsed = start.elapsed();
    let spent = arena.engine_times().iter().zip(before).map(|(after, before)| *after - before).max();
    busy.push(millions_per_second(2 * COUNT, spent.unwrap_or_default()));
    millions_per_second(2 * COUNT, elapsed)
}

/// The same by native loops: one after the other on one CPU, or at once on two.
fn natively(scatters: &[Scatter<'_>; 2], at_once: bool) -> f64 {
    let cpus =
        Places::find().map(|places| [places.first, if at_once { places.second } else { places.first }]);
    let run = |at: usize| {
        let _bound = cpu::bound(cpus.map(|cpus| cpus[at]));
        scatters[at].xadd(1);
    };
    let start = Instant::now();
    if at_once {
        thread::scope(|scope| {
            [0, 1].map(|at| scope.spawn(move || run(at))).map(|thread| thread.join().unwrap())
        });
    } else {
        thread::scope(|scope| scope.spawn(|| [0, 1].map(run)).join().unwrap());
    }
    millions_per_second(2 * COUNT, start.elapsed())
}
