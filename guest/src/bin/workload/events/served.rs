// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which the process serves the faults on its memory itself, by userfaultfd: those of its threads and those
//! that the driver has on behalf of the device.

use super::cell::Cell;
use super::scene::{ELSEWHERE, load, map, word};
use super::table::{Event, Shape};
use crate::area::PAGE;
use crate::scenario::patience;
use crate::system::uffd::{self, Kind, Uffd};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "uffd-missing",
        kernel: "move_pages_ptes(): CLEAR of the page, but EFAULT if it is exclusive; handle_userfault() when it is missed",
        shapes: Shape::SMALL,
        run: moves_out,
        ..Event::ROW
    },
    Event {
        name: "uffd-wp",
        kernel: "change_protection(): PROTECTION_VMA of the range; handle_userfault() when it is written to",
        run: protects,
        ..Event::ROW
    },
];

/// Moves the pages elsewhere. Whoever misses one has it moved back.
fn moves_out(cell: &mut Cell) -> Result<()> {
    let uffd = Arc::new(Uffd::new(uffd::FEATURE_MOVE)?);
    map(ELSEWHERE, cell.scene.len)?;
    uffd.register(cell.scene.base, cell.scene.len, uffd::MISSING)?;
    uffd.register(ELSEWHERE, cell.scene.len, uffd::MISSING)?;
    let base = cell.scene.base;
    serve(uffd.clone(), move |uffd, fault| match fault.kind {
        Kind::Missing => {
            let elsewhere = fault.page - base + ELSEWHERE;
            match uffd.transfer(elsewhere, fault.page) {
                // It has not gone yet, or is back: whoever missed it looks again.
                Err(error) if is(&error, Errno::ENOENT) => uffd.wake(fault.page, PAGE),
                Ok(false) => uffd.wake(fault.page, PAGE),
                other => other.map(drop),
            }
        }
        kind => bail!("a fault of kind {kind:?}"),
    })?;
    let start = Instant::now();
    for page in &cell.scene.pages {
        loop {
            // Exclusive pages can't be moved; this makes it the CPU's, for a while.
            load(page.addr + word::PATTERN);
            match uffd.transfer(page.addr, page.addr - base + ELSEWHERE) {
                Ok(moved) => break ensure!(moved, "a page is elsewhere already"),
                Err(error) if is(&error, Errno::EFAULT) || is(&error, Errno::EBUSY) => {}
                Err(error) => return Err(error),
            }
            ensure!(start.elapsed() < patience(), "the device always has the page");
        }
    }
    Ok(())
}

fn is(error: &anyhow::Error, errno: Errno) -> bool {
    error.downcast_ref::<Errno>() == Some(&errno)
}

/// Protects the pages from writes. Who writes to one has that ended.
fn protects(cell: &mut Cell) -> Result<()> {
    let uffd = Arc::new(Uffd::new(0)?);
    uffd.register(cell.scene.base, cell.scene.len, uffd::WRITE_PROTECT)?;
    serve(uffd.clone(), |uffd, fault| match fault.kind {
        Kind::WriteProtected => uffd.protect(fault.page, PAGE, false),
        kind => bail!("a fault of kind {kind:?}"),
    })?;
    uffd.protect(cell.scene.base, cell.scene.len, true)
}

/// Serves faults for as long as the process lives. If that fails the process ends, and the cell fails.
fn serve(uffd: Arc<Uffd>, answer: impl Fn(&Uffd, uffd::Fault) -> Result<()> + Send + 'static) -> Result<()> {
    let forever = move || {
        loop {
            let served = uffd.next(1000).and_then(|fault| fault.map_or(Ok(()), |fault| answer(&uffd, fault)));
            if let Err(error) = served {
                println!("serving a fault: {error:#}");
                std::process::exit(1);
            }
        }
    };
    thread::Builder::new().spawn(forever).map(drop).context("no thread")
}
