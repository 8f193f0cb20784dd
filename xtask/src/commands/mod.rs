// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The commands, a file each.

pub(crate) mod bench;
pub(crate) mod doctor;
pub(crate) mod fuzz;
pub(crate) mod run;
pub(crate) mod setup;
pub(crate) mod shell;
pub(crate) mod test;
