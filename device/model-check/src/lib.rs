// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device's lock-free parts, to be run in many interleavings, with the stale values that the memory model allows.
//!
//! They are not copies: the modules below are the device's own files, which take atomics and locks from
//! `crate::sync`. Here that is [`sync`], made of loom's. What is checked is in `tests/`.

// The device's own tests are in those files too, and run with the device.
#![cfg(not(test))]

#[path = "../../src/invalidate.rs"]
pub mod invalidate;
#[path = "../../src/ownership.rs"]
pub mod ownership;
#[path = "../../src/sleep.rs"]
pub mod sleep;
pub mod sync;
