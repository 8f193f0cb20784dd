// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which a process begins or ends.
#![expect(unsafe_code, reason = "submits entries that name a cell's memory, and ends a process")]

use super::cell::Cell;
use super::child::{Child, Line};
use super::scene::{self, ELSEWHERE, Page, Scene, advise, load, map, store, word};
use super::table::{Event, Fates, Memory, Shape};
use crate::area::{PAGE, RawQueue, scalar};
use crate::process::tell;
use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command as Program;
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::uapi;
use svmx::{Device, QueueSize};

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "fork",
        kernel: "copy_page_range(): PROTECTION_PAGE; copy_nonpresent_pte() restores exclusive pages",
        run: |cell| forks(cell, copy_stays),
        ..Event::ROW
    },
    Event {
        name: "fork-dontfork",
        kernel: "dup_mmap() leaves the mapping out: no event",
        fates: Fates::STAYS,
        run: forks_without,
        ..Event::ROW
    },
    Event {
        name: "fork-wipeonfork",
        kernel: "dup_mmap() copies the mapping and no page: no event",
        fates: Fates::STAYS,
        run: forks_empty,
        ..Event::ROW
    },
    Event {
        name: "exit",
        kernel: "exit_mmap(): RELEASE, then UNMAP of everything",
        memory: Memory::Ended { signal: None },
        run: |cell| {
            witness(cell)?;
            // SAFETY: ends the process, as it is: that is the event.
            unsafe { libc::_exit(0) }
        },
        ..Event::ROW
    },
    Event {
        name: "kill",
        kernel: "exit_mmap(): RELEASE, then UNMAP of everything",
        memory: Memory::Ended { signal: Some(libc::SIGKILL) },
        run: |cell| {
            witness(cell)?;
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL)?;
            bail!("it survived")
        },
        ..Event::ROW
    },
    Event {
        name: "exec",
        kernel: "exec_mmap(), exit_mmap(): RELEASE, then UNMAP of everything",
        memory: Memory::Ended { signal: None },
        run: executes,
        ..Event::ROW
    },
];

/// A child sees what it should, before and after the device has gone on in the parent.
fn forks(cell: &mut Cell, work: impl FnOnce(&[Page], &mut Line) -> Result<()>) -> Result<()> {
    let least = cell.least();
    let mut child = Child::fork(cell, work)?;
    cell.done()?;
    let seen = child.numbers(cell.scene.pages.len())?;
    if seen.iter().any(|seen| *seen != 0) {
        cell.was_at(least, seen)?;
    }
    // The device changes what both may have in common.
    cell.goes_on().context("in the parent, with the child alive")?;
    child.go_on()?;
    child.end()
}

/// The child has what was there at the moment of the fork, whatever the device then does to the parent's
/// memory and the child to its own; and a context of its own finds the same.
fn copy_stays(pages: &[Page], line: &mut Line) -> Result<()> {
    let seen = say_counters(pages, line)?;
    ensure!(seen.iter().all(|seen| *seen != 0), "the child has nothing: {seen:x?}");
    line.wait()?;
    has(pages, &seen, |page| page.pattern)
}

/// The child has no such mapping.
fn forks_without(cell: &mut Cell) -> Result<()> {
    advise(cell.scene.base, cell.scene.len, libc::MADV_DONTFORK)?;
    forks(cell, |pages, line| {
        line.say(&vec![0; pages.len()])?;
        ensure!(!pages.iter().any(|page| scene::is_mapped(page.addr)), "the child has the mapping");
        line.wait()
    })
}

/// The child has zeros.
fn forks_empty(cell: &mut Cell) -> Result<()> {
    advise(cell.scene.base, cell.scene.len, libc::MADV_WIPEONFORK)?;
    forks(cell, |pages, line| {
        let seen = say_counters(pages, line)?;
        ensure!(seen.iter().all(|seen| *seen == 0), "the child has {seen:x?}");
        line.wait()?;
        has(pages, &seen, |_| 0)
    })
}

fn say_counters(pages: &[Page], line: &mut Line) -> Result<Vec<u64>> {
    let seen: Vec<u64> = pages.iter().map(|page| load(page.addr + word::COUNTER)).collect();
    line.say(&seen)?;
    Ok(seen)
}

/// The calling process has these counters and patterns, and a context of its own finds and changes them.
fn has(pages: &[Page], counters: &[u64], pattern: impl Fn(&Page) -> u64) -> Result<()> {
    let device = Device::open_nth(0).context("a context of its own")?;
    // SAFETY: its entries name the cell's memory only, which is no Rust object.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    for (page, counter) in pages.iter().zip(counters) {
        let addr = page.addr + word::COUNTER;
        let found = load(addr);
        ensure!(found == *counter, "its memory changed from {counter:#x} to {found:#x}");
        let found = queue.execute(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, addr, 1))?;
        let good = found.status.is_success() && found.result == u128::from(*counter);
        ensure!(good, "the device expected {counter:#x}, found {found:x?}");
        let found = load(addr);
        ensure!(found == counter + 1, "its CPU expected {:#x}, found {found:#x}", counter + 1);
        let (found, expected) = (load(page.addr + word::PATTERN), pattern(page));
        ensure!(found == expected, "its pattern is {found:#x}, not {expected:#x}");
        store(page.addr + word::PATTERN, 0);
    }
    Ok(())
}

/// Forks a child that outlives the event, sees what became of memory, and says how the cell ended. Afterwards the
/// device has the pages again.
fn witness(cell: &mut Cell) -> Result<()> {
    let least = cell.least();
    let counts = cell.counts.clone();
    let mut child = Child::fork(cell, move |pages, line| {
        let seen = say_counters(pages, line)?;
        let result = line.wait_for_the_end().and_then(|()| {
            fresh_memory_is_its_own()?;
            has(pages, &seen, |page| page.pattern)
        });
        match result {
            Ok(()) => tell(&Cell::passed(&counts)),
            Err(error) => tell(&format!("the child, afterwards: {error:#}")),
        }
    })?;
    let seen = child.numbers(cell.scene.pages.len())?;
    cell.was_at(least, seen)?;
    // Its end of the line closes with the process.
    std::mem::forget(child);
    cell.give_again()
}

/// Pages that a process gets after another's end, perhaps of those that the other had, are nobody else's.
fn fresh_memory_is_its_own() -> Result<()> {
    const PAGES: u64 = 1024;
    map(ELSEWHERE, PAGES * PAGE)?;
    let pages = || (0..PAGES).map(|page| ELSEWHERE + page * PAGE);
    pages().for_each(|addr| store(addr + PAGE - 8, 1));
    for addr in pages() {
        for offset in [word::COUNTER, word::PATTERN, word::DEVICE, word::OTHER] {
            let found = load(addr + offset);
            ensure!(found == 0, "new memory has {found:#x}: somebody writes to it");
        }
    }
    Ok(())
}

/// Becomes another program, with the device's file open.
fn executes(cell: &mut Cell) -> Result<()> {
    witness(cell)?;
    fcntl(&cell.device, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let fd = cell.device.as_fd().as_raw_fd().to_string();
    let error = Program::new("/proc/self/exe").args(["child", "events-after-exec", &fd]).exec();
    Err(error).context("exec")
}

/// `workload child events-after-exec FD`: the file's context is not this process's, and at the same addresses it has
/// memory of its own.
pub(crate) fn after_exec(arguments: &[String]) -> Result<()> {
    let fd: i32 = arguments.first().context("no descriptor")?.parse()?;
    let mut info = uapi::Info { size: size_of::<uapi::Info>() as u32, ..Default::default() };
    // SAFETY: the number is that of the structure; the descriptor is whatever it is.
    let result = Errno::result(unsafe { libc::ioctl(fd, uapi::IOC_INFO.into(), &raw mut info) });
    ensure!(result == Err(Errno::EPERM), "expected EPERM after exec, found {result:?}");
    for shape in Shape::SMALL {
        let mut scene = Scene::new(*shape, &mut Random::new(1))?;
        scene.pages.iter_mut().for_each(|page| page.pattern = load(page.addr + word::PATTERN));
        let counters: Vec<u64> = scene.pages.iter().map(|page| load(page.addr + word::COUNTER)).collect();
        has(&scene.pages, &counters, |page| page.pattern)?;
        scene::unmap(scene.base, scene.len)?;
    }
    Ok(())
}
