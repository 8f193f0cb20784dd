// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What it costs to watch the device: the same work with an instrument and without, in CPU time of the engine.

use std::fs::File;
use std::time::Duration;

use measure::sample::Side;
use measure::{Aim, Comparison, Row, alternate};
use svmx_abi::pte::Access;
use svmx_device::instruments::Request;
use svmx_device::model::Options;

use crate::arena::{Arena, Region, millions_per_second, random_indices};
use crate::commands::{LONG_LOG2, engine_time_of_each, sleeping};
use crate::ring::Ring;

/// Elements of a command.
const COUNT: usize = 1 << 20;
/// Places for them, and how that is called. The checker's shadow takes as much again.
const PLACES: [(&str, u64); 2] = [("in 16 KiB", 16 << 10), ("random over 256 MiB", 256 << 20)];
const WITHOUT: &str = "the same without it";

/// The exclusivity checker.
pub(crate) fn check(name: &str, rounds: usize) -> Vec<Row> {
    let request = || Request { check_exclusive: true, ..Request::default() };
    let bulk = PLACES.map(|place| bulk(name, "--check-exclusive", request, rounds, place));
    bulk.into_iter().chain([single(name, "--check-exclusive", request, rounds)]).collect()
}

/// The trace.
pub(crate) fn trace(name: &str, rounds: usize) -> Vec<Row> {
    let file = || File::options().write(true).open("/dev/null").unwrap();
    let request = || Request { trace: Some(file()), ..Request::default() };
    let bulk = PLACES.map(|place| bulk(name, "--trace", request, rounds, place));
    bulk.into_iter().chain([single(name, "--trace", request, rounds)]).collect()
}

/// A bulk command.
fn bulk(
    name: &str,
    option: &str,
    request: impl Fn() -> Request,
    rounds: usize,
    (place, bytes): (&str, u64),
) -> Row {
    let arena = |request| {
        let options = Options { engines: 1, poll: Duration::ZERO, ..Default::default() };
        Arena::watched(options, bytes + 4 * COUNT as u64, request)
    };
    let (with, without) = (arena(request()), arena(Request::default()));
    let indices = random_indices(COUNT, bytes / 8, 1);
    let region = |arena| -> Region<'_> {
        Arena::region(arena, arena.mock.space(), 0, bytes, Access::EXCLUSIVE, &indices)
    };
    let (mut watched, mut plain) = (region(&with), region(&without));
    let sides: Vec<Side<'_>> =
        vec![Box::new(|| rate(&with, &mut watched)), Box::new(|| rate(&without, &mut plain))];
    let comparison = Comparison::of(alternate(rounds, sides));
    let figure = format!("bulk FETCH_ADD, {place}, with {option}");
    Row::compared(name, &figure, "M/s", WITHOUT, &comparison, Aim::None)
}

fn rate(arena: &Arena, region: &mut Region<'_>) -> f64 {
    let before = arena.engine_time();
    region.submit();
    region.wait();
    millions_per_second(COUNT, arena.engine_time() - before)
}

/// Single commands.
fn single(name: &str, option: &str, request: impl Fn() -> Request, rounds: usize) -> Row {
    let ((with, space), (without, plain_space)) = (sleeping(request()), sleeping(Request::default()));
    let (mut watched, mut plain) =
        (Ring::new(&with.mock, space, LONG_LOG2), Ring::new(&without.mock, plain_space, LONG_LOG2));
    let sides: Vec<Side<'_>> = vec![
        Box::new(|| engine_time_of_each(&with, &mut watched)),
        Box::new(|| engine_time_of_each(&without, &mut plain)),
    ];
    let comparison = Comparison::of(alternate(rounds, sides));
    let figure = format!("single FETCH_ADD, engine's CPU time, with {option}");
    Row::compared(name, &figure, "ns", WITHOUT, &comparison, Aim::None)
}
