// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device against a mock driver in the same process: no transport, no guest.

mod ahead;
mod commands;
mod fairness;
mod faults;
mod forms;
mod hostile;
mod invalidation;
mod lifecycle;
mod limits;
mod sharing;
mod waking;
mod wide;
