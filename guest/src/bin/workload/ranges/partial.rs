// SPDX-License-Identifier: Apache-2.0 OR MIT

//! ACQUIRE that ends early: each error, after exactly the pages before the one that can't be had; and signals.
#![expect(unsafe_code, reason = "sets a signal's handler, and sends it to a thread")]

use super::{Side, expect};
use crate::area::{Area, Backing, PAGE};
use crate::scenario::{Run, patience};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Instant;
use svmx::{Device, Error, Policy};

const FEW: u64 = 8;

pub(super) fn each_error(side: &Side) -> Result<()> {
    let device = &side.device;
    let mut area = Area::new(Backing::Private, FEW * PAGE)?;
    area.unmap_from(5 * PAGE)?;
    partial(device, area.range(), Errno::EFAULT, 5)?;
    let mut area = Area::new(Backing::Private, FEW * PAGE)?;
    area.protect(true, false)?;
    partial(device, area.range(), Errno::EACCES, 0)?;
    area.protect(false, false)?;
    partial(device, area.range(), Errno::EACCES, 0)?;
    for backing in [Backing::SharedAnonymous, Backing::Memfd] {
        let area = Area::new(backing, FEW * PAGE)?;
        partial(device, area.range(), Errno::EOPNOTSUPP, 0)?;
        // Of policy AUTO all but the last three.
        device.set_policy(area.range().start..area.address(5 * PAGE), Policy::AUTO)?;
        partial(device, area.range(), Errno::EOPNOTSUPP, 5)?;
        expect("released pages", device.release(area.range())?, 5)?;
        // The next area may get the same addresses.
        device.set_policy(area.range(), Policy::EXCLUSIVE)?;
    }
    Ok(())
}

/// Acquires `range` and fails with `errno` after exactly `done` pages.
fn partial(device: &Device, range: Range<u64>, errno: Errno, done: u64) -> Result<()> {
    match device.acquire(range) {
        Err(Error::Partial { errno: found, done: pages, .. }) if (found, pages) == (errno, done) => Ok(()),
        other => bail!("expected {errno} after {done} pages, found {other:?}"),
    }
}

/// A signal ends an ACQUIRE of many pages, whose caller goes on behind those that are done.
pub(super) fn signals(run: &Run) -> Result<()> {
    const MANY: u64 = 16384;
    extern "C" fn ignore(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let device = Device::open_nth(0)?;
    let area = Area::new(Backing::Private, MANY * PAGE)?;
    let (over, target) = (AtomicBool::new(false), pthread_self());
    let (done, grants) = thread::scope(|scope| {
        let over = &over;
        let sender = scope.spawn(|| interrupt(&device, target, over));
        let result = device.acquire(area.range());
        over.store(true, Relaxed);
        let grants = device.stats()?.grants;
        sender.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
        match result {
            Err(Error::Partial { errno: Errno::EINTR, done, .. }) => anyhow::Ok((done, grants)),
            other => bail!("expected EINTR, found {other:?}"),
        }
    })?;
    ensure!(done > 0 && done < MANY && done == grants, "{done} pages done, {grants} granted, of {MANY}");
    // A signal may come once more.
    let start = Instant::now();
    let mut from = done;
    while let Err(error) = device.acquire(area.address(from * PAGE)..area.range().end) {
        let Error::Partial { errno: Errno::EINTR, done, .. } = error else { return Err(error.into()) };
        from += done;
        ensure!(start.elapsed() < run.part(1, 2), "still at page {from}");
    }
    expect("grants", device.stats()?.grants, MANY)?;
    expect("released pages", device.release(area.range())?, MANY)
}

/// Sends a signal when some pages are granted, until it was heard.
fn interrupt(device: &Device, target: Pthread, over: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    while device.stats()?.grants < 100 && !over.load(Relaxed) {
        ensure!(start.elapsed() < patience(), "no page was granted");
    }
    pthread_kill(target, Signal::SIGUSR1).context("pthread_kill")
}
