// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device stores to a file's pages gets to the disk, although no CPU has touched them: the kernel is told of a
//! dirty page when it takes it from the device to write it back.

use super::disk::Disk;
use super::{Cost, Side};
use crate::area::{Area, PAGE};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use svmx::Policy;
use svmx::abi::queue::Opcode;
use svmx::abi::status::Status;

const PAGES: u64 = 32;
const ROUNDS: u64 = 20;
const RACING: u64 = 600;
const NAME: &str = "written";

/// Returns how often the device added to the file.
pub(super) fn survives(disk: &mut Disk) -> Result<u64> {
    // Who cleans pages is the one who says so.
    fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    let file = disk.file(NAME, PAGES * PAGE)?;
    let mut side = Side::new(0)?;
    let area = Area::of_file(&file, PAGES * PAGE)?;
    side.device.set_policy(area.range(), Policy::COHERENT)?;
    for round in 0..ROUNDS {
        rounds(&mut side, &area).with_context(|| format!("round {round}"))?;
    }
    race(&mut side, &area)?;
    let expected = ROUNDS + RACING;
    // Of these the CPU has never touched one.
    side.command(Opcode::WRITE, &area, 8, 77)?;
    beyond_the_end(&mut side, disk)?;
    drop((area, file));
    disk.remount()?;
    let bytes = fs::read(disk.path(NAME))?;
    for page in 0..PAGES as usize {
        let word = bytes.get(page * PAGE as usize..).and_then(|rest| rest.first_chunk());
        let found = u64::from_le_bytes(*word.context("the file is too short")?);
        ensure!(found == expected, "page {page}: expected {expected} on the disk, found {found}");
    }
    ensure!(bytes.get(8) == Some(&77), "the device's last store is not on the disk");
    Ok(expected * PAGES)
}

/// The device adds to each page, which it has to be given each time, since writing back takes it away.
fn rounds(side: &mut Side, area: &Area) -> Result<()> {
    let before = side.so_far()?;
    side.add_all(area, PAGE, PAGES)?;
    let after = side.so_far()?;
    let found = after.shared - before.shared;
    ensure!(found == PAGES, "expected {PAGES} pages to be given anew, found {found}");
    side.costs(Cost::default(), |side| side.command(Opcode::READ, area, 0, 0))?;
    area.sync()
}

/// The same while pages are written back at any moment.
fn race(side: &mut Side, area: &Area) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let syncer = scope.spawn(|| {
            let mut times = 0u64;
            while !over.load(Relaxed) {
                area.sync()?;
                times += 1;
            }
            anyhow::Ok(times)
        });
        let raced = (0..RACING).try_for_each(|_| side.add_all(area, PAGE, PAGES).map(drop));
        over.store(true, Relaxed);
        let times = syncer.join().map_err(|_| anyhow::anyhow!("the syncing thread panicked"))??;
        ensure!(times > 0, "nothing was written back meanwhile");
        raced
    })
}

/// Where a file has become shorter there is no memory, for the device as for the CPU.
fn beyond_the_end(side: &mut Side, disk: &Disk) -> Result<()> {
    let file = disk.file("truncated", PAGE)?;
    let area = Area::of_file(&file, PAGE)?;
    side.device.set_policy(area.range(), Policy::AUTO)?;
    side.command(Opcode::FETCH_ADD, &area, 0, 1)?;
    file.set_len(0)?;
    for opcode in [Opcode::READ, Opcode::WRITE, Opcode::FETCH_ADD] {
        side.refused(opcode, &area, Status::FAULT)?;
    }
    file.set_len(PAGE)?;
    let found = side.command(Opcode::FETCH_ADD, &area, 0, 1)?;
    ensure!(found == 0, "what was cut off is there again: {found}");
    Ok(())
}
