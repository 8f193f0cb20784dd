// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that a fork shares until somebody writes: the device's stores and atomics make a copy, as the CPU's do.
#![expect(unsafe_code, reason = "forks")]

use super::Side;
use crate::area::{Area, Backing, PAGE};
use anyhow::{Result, bail, ensure};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe, read, write};
use std::os::fd::AsFd;
use svmx::Policy;
use svmx::abi::queue::{Opcode, WidthLog2};

const W: WidthLog2 = WidthLog2::W64;
/// By page: read before the fork and after it; read, then written; atomic before and after; written by a CPU only.
const PAGES: u64 = 4;

pub(super) fn shares_until_written() -> Result<()> {
    for (_, policy) in Policy::ALL {
        one(policy)?;
    }
    Ok(())
}

fn one(policy: Policy) -> Result<()> {
    let mut side = Side::new(0)?;
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    side.device.set_policy(area.range(), policy)?;
    for page in 0..PAGES {
        area.store(page * PAGE, W, 100 + page);
        side.command(Opcode::READ, &area, page * PAGE, 0)?;
    }
    side.command(Opcode::FETCH_ADD, &area, 2 * PAGE, 10)?;
    let (wait, go) = pipe()?;
    // SAFETY: the child loads words and makes system calls; it touches no lock and no allocator.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let mut byte = [0];
            let heard = read(wait.as_fd(), &mut byte).is_ok();
            let expected = [100, 101, 112, 103];
            let wrong = (0..PAGES).find(|page| area.load(page * PAGE, W) != expected[*page as usize]);
            let code = if heard { wrong.map_or(0, |page| 1 + page as i32) } else { 100 };
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => child,
    };
    ensure!(side.command(Opcode::READ, &area, 0, 0)? == 100);
    ensure!(side.command(Opcode::READ, &area, PAGE, 0)? == 101);
    side.command(Opcode::WRITE, &area, PAGE, 201)?;
    ensure!(side.command(Opcode::FETCH_ADD, &area, 2 * PAGE, 10)? == 112);
    area.store(3 * PAGE, W, 203);
    ensure!(side.command(Opcode::READ, &area, 3 * PAGE, 0)? == 203, "the device has the page of the child");
    write(go.as_fd(), &[0])?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => {}
        other => bail!("the child found its memory changed: {other:?}"),
    }
    let found: Vec<u64> = (0..PAGES).map(|page| area.load(page * PAGE, W)).collect();
    ensure!(found == [100, 201, 122, 203], "the parent has {found:?}");
    Ok(())
}
