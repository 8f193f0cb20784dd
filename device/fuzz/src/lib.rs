// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fuzz targets: each takes any bytes, plays them against a device from one side that can be hostile, and
//! then looks whether the device still does what it must. They are plain functions, so libFuzzer runs them
//! (`fuzz_targets/`) and so does every test run, over the inputs that are kept (`tests/replay.rs`).
//!
//! Engines and control thread run as they always do, so an input is not replayed to the instruction. What
//! must hold, holds in every interleaving.

mod entries;
mod input;
mod machine;
mod messages;
mod scene;
pub mod seeds;

pub use machine::end;

use input::Input;
use scene::{Powers, Scene};

/// A target's body.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 4] =
    [("messages", messages), ("registers", registers), ("memory", memory), ("sequences", sequences)];

/// A VMM that sends anything. The first byte says whether it begins with VERSION, as it should.
pub fn messages(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    machine::with(|mock| messages::converse(mock, &mut Input::new(rest), first.is_multiple_of(2)));
}

/// A guest that reads and writes every region of the device, while queues of its own run.
pub fn registers(input: &[u8]) {
    play(input, Powers::Registers);
}

/// Rubbish in guest memory: queues, commands, page tables. The first byte says whose: a process's, which may
/// not harm anybody else, or the driver's, which may stop the device.
pub fn memory(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    play(rest, if first.is_multiple_of(2) { Powers::Process } else { Powers::Driver });
}

/// All of that in any order, and a host that maps, unmaps and resets.
pub fn sequences(input: &[u8]) {
    play(input, Powers::Host);
}

fn play(input: &[u8], powers: Powers) {
    machine::with(|mock| {
        let mut scene = Scene::new(mock, powers);
        let mut input = Input::new(input);
        scene.play(&mut input);
        scene.verify();
    });
}
