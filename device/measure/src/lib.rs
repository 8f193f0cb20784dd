// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How figures are measured, compared and shown; and which there are. Shared by the benchmark, which takes
//! them (`device/benches/figures`), and `cargo xtask bench`, which shows them. Nothing here knows a device.

pub mod cpu;
pub mod row;
pub mod sample;
pub mod show;
pub mod table;

pub use row::{Aim, Row};
pub use sample::{Comparison, Samples, alternate};
