// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `events-system`: the cells that need more of a system than one process has. What they need is set up once, for
//! all of them.

use super::some;
use super::table::{SYSTEM_CELLS, system_cells};
use crate::scenario::{Run, Shown};
use crate::system::memcg::Group;
use crate::system::numa;
use crate::system::swap::Swap;
use anyhow::{Context, Result, ensure};

/// The control group of all cells: theirs is the only memory in it.
pub(super) const GROUP: &str = "cells";
const SWAP_SPACE: u64 = 128 << 20;
/// Where cells have their memory, and where it is moved to.
pub(super) const HOME: u32 = 0;
pub(super) const AWAY: u32 = 1;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let nodes = numa::nodes()?;
    ensure!(nodes.contains(&HOME) && nodes.contains(&AWAY), "the machine has the nodes {nodes:?}");
    let _swap = Swap::on(SWAP_SPACE)?;
    let _group = Group::new(GROUP)?;
    numa::prefer(HOME)?;
    some(run, system_cells(), SYSTEM_CELLS, |_| true)
}

/// Of a cell's process, before it has any memory.
pub(super) fn enter() -> Result<()> {
    Group::join(GROUP).context("joining the group of the cells")
}
