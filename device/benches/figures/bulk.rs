// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bulk atomics by one engine, against native loops on its CPU.
//!
//! Both sides are measured in CPU time of the thread that does the work, from the engine's waking to its
//! sleeping: one thread works alone here, and what else the machine does would only be noise. Each turn of
//! each side has indices of its own, or a last-level cache would still have some of the elements.

use std::sync::atomic::{AtomicU64, Ordering};

use measure::sample::{Side, WARM_UP};
use measure::{Aim, Comparison, Row, Samples, alternate};
use svmx_abi::pte::Access;
use svmx_device::model::Options;

use crate::arena::{Arena, Region, endless_indices, millions_per_second, native_time, random_indices};
use crate::native::{Prefetch, Scatter};

/// The memory that random accesses go to.
const LARGE: u64 = 1 << 30;
/// Memory that stays in the first cache.
const SMALL: u64 = 16 << 10;
/// Elements of a command.
const COUNT: usize = 1 << 22;
/// Distances that native loops try.
const DISTANCES: [usize; 5] = [4, 8, 16, 32, 64];
const UNIT: &str = "M/s";

/// Random over 1 GiB of pages of 4 KiB.
pub(crate) fn random(name: &str, rounds: usize) -> Vec<Row> {
    on_region(LARGE, Access::EXCLUSIVE, |arena, region| {
        let scatter = region.scatter;
        let (prefetch, compared_with) = best_plain(scatter);
        let samples = in_turns(
            rounds,
            arena,
            region,
            vec![
                Box::new(move || native(scatter, |scatter| scatter.plain(1, prefetch))),
                Box::new(move || native(scatter, |scatter| scatter.xadd(1))),
            ],
        );
        let figure = "bulk FETCH_ADD, atomic page, random over 1 GiB, one engine";
        rows(
            name,
            figure,
            &samples,
            &[(&compared_with, Aim::RatioAtLeast(0.8)), ("native lock xadd loop", Aim::RatioAtLeast(2.0))],
        )
    })
}

/// In 16 KiB.
pub(crate) fn cache(name: &str, rounds: usize) -> Vec<Row> {
    on_region(SMALL, Access::EXCLUSIVE, |arena, region| {
        let scatter = region.scatter;
        let none = Prefetch { distance: 0, exclusive: false };
        let samples = in_turns(
            rounds,
            arena,
            region,
            vec![
                Box::new(move || native(scatter, |scatter| scatter.xadd(1))),
                Box::new(move || native(scatter, |scatter| scatter.plain(1, none))),
            ],
        );
        let figure = "bulk FETCH_ADD, atomic page, in 16 KiB, one engine";
        let with =
            [("native lock xadd loop", Aim::RatioAtLeast(0.8)), ("native load, add, store", Aim::None)];
        rows(name, figure, &samples, &with)
    })
}

/// On a coherent page the device uses the host's atomic instructions.
pub(crate) fn coherent(name: &str, rounds: usize) -> Vec<Row> {
    let small = on_region(SMALL, Access::COHERENT, |arena, region| {
        let scatter = region.scatter;
        let side: Side<'_> = Box::new(move || native(scatter, |scatter| scatter.xadd(1)));
        let samples = in_turns(rounds, arena, region, vec![side]);
        let figure = "bulk FETCH_ADD, coherent page, in 16 KiB, one engine";
        rows(name, figure, &samples, &[("native lock xadd loop", Aim::None)])
    });
    let large = on_region(LARGE, Access::COHERENT, |arena, region| {
        let scatter = region.scatter;
        let (distance, compared_with) = best_xadd(scatter);
        let side: Side<'_> =
            Box::new(move || native(scatter, |scatter| scatter.xadd_prefetched(1, distance)));
        let samples = in_turns(rounds, arena, region, vec![side]);
        let figure = "bulk FETCH_ADD, coherent page, random over 1 GiB, one engine";
        rows(name, figure, &samples, &[(&compared_with, Aim::None)])
    });
    [small, large].concat()
}

/// A device with one engine, and one queue with `bytes` of elements to add to in random order.
fn on_region<R>(bytes: u64, access: Access, body: impl FnOnce(&Arena, &mut Region<'_>) -> R) -> R {
    // An idle engine sleeps at once: while a native loop runs, and when it has done what is measured.
    let options = Options { engines: 1, poll: std::time::Duration::ZERO, ..Default::default() };
    let arena = Arena::new(options, bytes + 4 * COUNT as u64);
    let indices = random_indices(COUNT, bytes / 8, 1);
    let mut region = arena.region(arena.mock.space(), 0, bytes, access, &indices);
    body(&arena, &mut region)
}

/// The device takes turns with native loops; its samples come first. No addition of any is missing.
fn in_turns(rounds: usize, arena: &Arena, region: &mut Region<'_>, native: Vec<Side<'_>>) -> Vec<Samples> {
    let (scatter, sides) = (region.scatter, 1 + native.len());
    let device: Side<'_> = Box::new(move || {
        renew(scatter);
        let before = arena.engine_time();
        region.submit();
        region.wait();
        millions_per_second(scatter.count(), arena.engine_time() - before)
    });
    let sum = scatter.sum();
    let samples = alternate(rounds, std::iter::once(device).chain(native).collect());
    let expected = sides * (WARM_UP + rounds) * scatter.count();
    assert_eq!(scatter.sum().wrapping_sub(sum), expected as u64, "additions were lost");
    samples
}

fn native(scatter: Scatter<'_>, work: impl FnOnce(Scatter<'_>) + Send) -> f64 {
    renew(scatter);
    millions_per_second(scatter.count(), native_time(move || work(scatter)))
}

/// Gives it indices that nobody had before.
fn renew(scatter: Scatter<'_>) {
    static TURNS: AtomicU64 = AtomicU64::new(1);
    let seed = TURNS.fetch_add(1, Ordering::Relaxed);
    scatter.renew(endless_indices(scatter.elements() as u64, seed));
}

fn rows(name: &str, figure: &str, samples: &[Samples], with: &[(&str, Aim)]) -> Vec<Row> {
    let Some((value, baselines)) = samples.split_first() else { return Vec::new() };
    let row = |(baseline, (with, aim)): (&Samples, &(&str, Aim))| {
        let comparison = Comparison { value: value.clone(), baseline: baseline.clone() };
        Row::compared(name, figure, UNIT, with, &comparison, *aim)
    };
    baselines.iter().zip(with).map(row).collect()
}

/// How the plain loop prefetches best here, and how to call it.
fn best_plain(scatter: Scatter<'_>) -> (Prefetch, String) {
    let ways: Vec<Prefetch> = DISTANCES
        .iter()
        .flat_map(|&distance| [true, false].map(|exclusive| Prefetch { distance, exclusive }))
        .collect();
    let best = best(&ways, |way| native(scatter, |scatter| scatter.plain(1, way)));
    let instruction = if best.exclusive { "prefetchw" } else { "prefetcht0" };
    let text = format!("native load, add, store, {instruction} {} ahead (the best)", best.distance);
    (best, text)
}

fn best_xadd(scatter: Scatter<'_>) -> (usize, String) {
    let best = best(&DISTANCES, |distance| native(scatter, |scatter| scatter.xadd_prefetched(1, distance)));
    (best, format!("native lock xadd, prefetchw {best} ahead (the best)"))
}

/// The way with the greatest median rate.
fn best<W: Copy>(ways: &[W], rate: impl Fn(W) -> f64) -> W {
    let rate = &rate;
    let sides = ways.iter().map(|&way| -> Side<'_> { Box::new(move || rate(way)) }).collect();
    let medians: Vec<f64> = alternate(3, sides).iter().map(Samples::median).collect();
    let best = (0..ways.len()).max_by(|&one, &other| medians[one].total_cmp(&medians[other]));
    ways[best.unwrap_or(0)]
}
