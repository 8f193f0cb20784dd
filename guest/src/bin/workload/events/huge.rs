// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events about huge pages: being asked for, made of small ones, and split.

use super::cell::Cell;
use super::scene::{Origin, Scene, advise, is_huge};
use super::table::{Event, Fate, Fates, Shape};
use crate::area::PAGE;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use svmx::abi::queue::Opcode;

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "hugepage",
        kernel: "hugepage_madvise(): no event",
        fates: Fates::STAYS,
        run: |cell| advise(cell.scene.base, cell.scene.len, libc::MADV_HUGEPAGE),
        ..Event::ROW
    },
    Event {
        name: "nohugepage",
        kernel: "hugepage_madvise(): no event",
        fates: Fates::STAYS,
        run: |cell| advise(cell.scene.base, cell.scene.len, libc::MADV_NOHUGEPAGE),
        ..Event::ROW
    },
    Event {
        name: "collapse",
        kernel: "__collapse_huge_page_swapin() restores exclusive pages: CLEAR; collapse_huge_page(): CLEAR of 2 MiB",
        shapes: Shape::HUGE,
        before: make_small,
        run: collapses,
        ..Event::ROW
    },
    Event {
        name: "split",
        kernel: "split_folio(), try_to_migrate_one(): CLEAR of 2 MiB",
        shapes: Shape::HUGE,
        run: splits,
        ..Event::ROW
    },
    Event {
        name: "device-split",
        kernel: "make_device_exclusive() of another page, FOLL_SPLIT_PMD, __split_huge_pmd(): CLEAR of 2 MiB",
        shapes: Shape::HUGE,
        // The entries are one of 2 MiB, which the device can't store by beside exclusive access to a part.
        fates: Fates { held: Fate::Stays, writable: Fate::GivenUp, ..Fates::TAKEN },
        run: splits_by_device,
        ..Event::ROW
    },
];

/// Small pages instead of the huge one, which may become one again.
fn make_small(scene: &Scene) -> Result<()> {
    advise(scene.base, scene.len, libc::MADV_NOHUGEPAGE)?;
    advise(scene.base, scene.len, libc::MADV_DONTNEED)?;
    scene.fill(0, Origin::Own);
    advise(scene.base, scene.len, libc::MADV_HUGEPAGE)?;
    ensure!(!is_huge(scene.base)?, "the pages are not small");
    Ok(())
}

/// While the device is at work it may have a page back, or locked, at the moment at which all are to be isolated:
/// then the kernel gives up, and says so.
fn collapses(cell: &mut Cell) -> Result<()> {
    const MADV_COLLAPSE: i32 = 25;
    let result = advise(cell.scene.base, cell.scene.len, MADV_COLLAPSE);
    cell.done()?;
    if !cell.name.state.is_hammered() {
        result?;
        ensure!(is_huge(cell.scene.base)?, "the page is not huge");
        return Ok(());
    }
    if let Err(error) = result {
        let errno = error.downcast_ref::<Errno>().copied();
        ensure!(matches!(errno, Some(Errno::EAGAIN | Errno::EINVAL)), "{error:#}");
        cell.count("collapse_given_up");
    }
    Ok(())
}

fn splits(cell: &mut Cell) -> Result<()> {
    let Scene { base, len, .. } = cell.scene;
    let command = format!("{},{base:#x},{:#x},0", std::process::id(), base + len);
    std::fs::write("/sys/kernel/debug/split_huge_pages", command).context("split_huge_pages")?;
    cell.done()?;
    ensure!(!is_huge(base)?, "the page is still huge");
    Ok(())
}

fn splits_by_device(cell: &mut Cell) -> Result<()> {
    let addr = cell.scene.base + 100 * PAGE;
    ensure!(cell.scene.pages.iter().all(|page| page.addr != addr), "this is one of the pages");
    let found = cell.command(Opcode::FETCH_ADD, addr, 1)?;
    ensure!(found.status.is_success() && found.result == 0, "expected a page of zeros, found {found:x?}");
    cell.done()?;
    ensure!(!is_huge(cell.scene.base)?, "the page is still mapped as a huge one");
    Ok(())
}
