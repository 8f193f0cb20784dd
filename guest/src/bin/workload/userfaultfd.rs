// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `userfaultfd`: a command that needs a page which its process brings itself waits, as a thread would, for as long as
//! that takes. Nothing else waits with it: not other queues of its context, not the end of its queue, nor
//! that of its process.
#![expect(
    unsafe_code,
    reason = "submits entries that name the scenario's memory, and takes a file of another process"
)]

use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::exit_while_busy::all_contexts;
use crate::link::metric;
use crate::process::{Process, listen, tell};
use crate::scenario::{Run, Shown, patience, step};
use crate::system::uffd::{self, Kind, Uffd};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::status::Status;
use svmx::{Completion, Device, QueueSize};

/// Pages of an area, each of which a queue waits for.
const PAGES: u64 = 8;

type Test = fn(&Device) -> Result<()>;

pub(crate) fn run(_: &Run) -> Result<Shown> {
    let device = Device::open_nth(0)?;
    let tests: [(&str, Test); 8] = [
        ("missing pages, for each kind of access", missing),
        ("many queues that wait, served in another order", many),
        ("write-protected pages", write_protected),
        ("pages that the file has", minor),
        ("pages that are errors", errors),
        ("a queue that ends while it waits", queue_ends),
        ("a queue that ends and one that goes on", unregistered),
        ("a process that ends while it waits", process_ends),
    ];
    for (name, test) in tests {
        step(name);
        test(&device).context(name)?;
    }
    metric("waits", tests.len());
    Ok(Shown::Pass(format!(
        "{} kinds of waits ended as they should, and nothing waited with them",
        tests.len()
    )))
}

fn queue(device: &Device) -> Result<RawQueue> {
    // SAFETY: its entries name areas.
    Ok(unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) })
}

/// A page full of a byte.
fn page_of(byte: u8) -> [u8; PAGE as usize] {
    [byte; PAGE as usize]
}

/// Memory whose missing pages are served by the answer.
fn watched(mode: u64, features: u64) -> Result<(Area, Uffd)> {
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    let uffd = Uffd::new(features)?;
    uffd.register(area.address(0), area.len(), mode)?;
    Ok((area, uffd))
}

/// The fault that a command caused.
fn next(uffd: &Uffd) -> Result<uffd::Fault> {
    let start = Instant::now();
    loop {
        if let Some(fault) = uffd.next(1000)? {
            return Ok(fault);
        }
        ensure!(start.elapsed() < patience(), "no fault is there to be served");
    }
}

fn must_be(found: &Completion, result: u128) -> Result<()> {
    ensure!(found.status.is_success() && found.result == result, "expected {result:#x}, found {found:x?}");
    Ok(())
}

/// While a command waits, another queue of the same context works, on other memory and on a page next to
/// the one that is waited for.
fn others_work(device: &Device, present: u64) -> Result<()> {
    let mut other = queue(device)?;
    let area = Area::new(Backing::Private, PAGE)?;
    for round in 0..10 {
        let add = scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1);
        must_be(&other.execute(&add)?, round)?;
        let read = scalar(Opcode::READ, WidthLog2::W64, present, 0);
        must_be(&other.execute(&read)?, 0x0101_0101_0101_0101)?;
    }
    other.destroy()
}

fn missing(device: &Device) -> Result<()> {
    let (area, uffd) = watched(uffd::MISSING, 0)?;
    let mut queue = queue(device)?;
    // A neighbour that is there.
    ensure!(uffd.copy(area.address(7 * PAGE), &page_of(1), false)?, "there is a page already");
    for (n, opcode) in [Opcode::READ, Opcode::WRITE, Opcode::FETCH_ADD].into_iter().enumerate() {
        let at = n as u64 * PAGE;
        let operand = if opcode == Opcode::READ { 0 } else { 2 };
        queue.submit(&scalar(opcode, WidthLog2::W64, area.address(at), operand))?;
        let fault = next(&uffd)?;
        ensure!(fault == uffd::Fault { page: area.address(at), kind: Kind::Missing }, "found {fault:x?}");
        others_work(device, area.address(7 * PAGE))?;
        ensure!(queue.running() == 1, "the command did not wait");
        ensure!(uffd.copy(area.address(at), &page_of(3), false)?, "there is a page already");
        let found = queue.complete()?;
        let was = 0x0303_0303_0303_0303;
        let result = if opcode == Opcode::WRITE { 0 } else { was.into() };
        must_be(&found, result).with_context(|| format!("{opcode:?}"))?;
        let expected = match opcode {
            Opcode::READ => was,
            Opcode::WRITE => 2,
            _ => was + 2,
        };
        let found = area.load(at, WidthLog2::W64);
        ensure!(found == expected, "{opcode:?}: the CPU expected {expected:#x}, found {found:#x}");
    }
    // Neither does the zero page need anything but an answer.
    let at = 4 * PAGE;
    queue.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(at), 2))?;
    next(&uffd)?;
    ensure!(uffd.zero(area.address(at))?, "there is a page already");
    must_be(&queue.complete()?, 0)?;
    queue.destroy()
}

fn many(device: &Device) -> Result<()> {
    let (area, uffd) = watched(uffd::MISSING, 0)?;
    let mut queues = (0..PAGES).map(|_| queue(device)).collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        for (n, queue) in queues.iter_mut().enumerate() {
            queue.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(n as u64 * PAGE), 1))?;
        }
        let mut waiting = Vec::new();
        for _ in 0..PAGES {
            waiting.push(next(&uffd)?.page);
        }
        waiting.sort_unstable();
        let all: Vec<u64> = (0..PAGES).map(|n| area.address(n * PAGE)).collect();
        ensure!(waiting == all, "expected {all:x?}, found {waiting:x?}");
        for (n, queue) in queues.iter_mut().enumerate().rev() {
            ensure!(uffd.copy(all[n], &page_of(0), false)?, "there is a page already");
            must_be(&queue.complete()?, 0).with_context(|| format!("queue {n}"))?;
        }
        area.discard()?;
    }
    queues.into_iter().try_for_each(RawQueue::destroy)
}

fn write_protected(device: &Device) -> Result<()> {
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    let uffd = Uffd::new(0)?;
    let mut queue = queue(device)?;
    let add = |at: u64| scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(at), 1);
    let read = |at: u64| scalar(Opcode::READ, WidthLog2::W64, area.address(at), 0);
    // The device holds the pages when they are protected.
    for n in 0..PAGES {
        must_be(&queue.execute(&add(n * PAGE))?, 0)?;
    }
    uffd.register(area.address(0), area.len(), uffd::WRITE_PROTECT)?;
    uffd.protect(area.address(0), area.len(), true)?;
    for n in 0..PAGES {
        must_be(&queue.execute(&read(n * PAGE))?, 1).context("reading needs nobody")?;
        ensure!(uffd.next(0)?.is_none(), "a READ waited");
        queue.submit(&add(n * PAGE))?;
        let fault = next(&uffd)?;
        let expected = uffd::Fault { page: area.address(n * PAGE), kind: Kind::WriteProtected };
        ensure!(fault == expected, "expected {expected:x?}, found {fault:x?}");
        ensure!(queue.running() == 1, "the command did not wait");
        ensure!(area.load(n * PAGE, WidthLog2::W64) == 1, "written, though it is protected");
        uffd.protect(fault.page, PAGE, false)?;
        must_be(&queue.complete()?, 1)?;
        ensure!(area.load(n * PAGE, WidthLog2::W64) == 2);
    }
    queue.destroy()
}

fn minor(device: &Device) -> Result<()> {
    let area = Area::new(Backing::Memfd, PAGES * PAGE)?;
    for n in 0..PAGES {
        area.store(n * PAGE, WidthLog2::W64, n + 1);
    }
    let uffd = Uffd::new(uffd::FEATURE_MINOR_SHMEM)?;
    uffd.register(area.address(0), area.len(), uffd::MINOR)?;
    // The file keeps them.
    area.discard()?;
    let mut queue = queue(device)?;
    for n in 0..PAGES {
        let opcode = if n % 2 == 0 { Opcode::READ } else { Opcode::WRITE };
        let operand = if opcode == Opcode::READ { 0 } else { 100 + n };
        queue.submit(&scalar(opcode, WidthLog2::W64, area.address(n * PAGE), operand))?;
        let fault = next(&uffd)?;
        ensure!(fault.kind == Kind::Minor, "found {fault:x?}");
        ensure!(uffd.map_minor(fault.page)?, "there is a page already");
        must_be(&queue.complete()?, if n % 2 == 0 { u128::from(n) + 1 } else { 0 })?;
        let expected = if n % 2 == 0 { n + 1 } else { 100 + n };
        let found = area.load(n * PAGE, WidthLog2::W64);
        ensure!(found == expected, "the CPU expected {expected}, found {found}");
    }
    queue.destroy()
}

/// Where nobody brings the page, a command ends with FAULT, at once.
fn errors(device: &Device) -> Result<()> {
    let mut queue = queue(device)?;
    let mut refused = |area: &Area| -> Result<()> {
        for opcode in [Opcode::READ, Opcode::WRITE, Opcode::FETCH_ADD] {
            let operand = u64::from(opcode != Opcode::READ);
            let found = queue.execute(&scalar(opcode, WidthLog2::W64, area.address(0), operand))?;
            ensure!(found.status.0 == Status::FAULT && found.applied == 0, "{opcode:?} found {found:x?}");
        }
        Ok(())
    };
    let (area, uffd) = watched(uffd::MISSING, uffd::FEATURE_SIGBUS)?;
    refused(&area).context("UFFD_FEATURE_SIGBUS")?;
    ensure!(uffd.next(0)?.is_none(), "somebody is told");
    let area = Area::new(Backing::Private, PAGES * PAGE)?;
    let uffd = Uffd::user_mode_only()?;
    uffd.register(area.address(0), area.len(), uffd::MISSING)?;
    // handle_userfault() serves no fault of the kernel's then, and the driver's are.
    refused(&area).context("UFFD_USER_MODE_ONLY")?;
    let (area, uffd) = watched(uffd::MISSING, uffd::FEATURE_POISON)?;
    ensure!(uffd.poison(area.address(0))?, "there is a page already");
    refused(&area).context("UFFDIO_POISON")?;
    queue.destroy()
}

fn queue_ends(device: &Device) -> Result<()> {
    let (area, uffd) = watched(uffd::MISSING, 0)?;
    for round in 0..20 {
        let mut queue = queue(device)?;
        queue.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1))?;
        next(&uffd).with_context(|| format!("round {round}"))?;
        queue.destroy()?;
    }
    // Nobody waits any more, and whoever comes next is served.
    let mut queue = queue(device)?;
    queue.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1))?;
    next(&uffd)?;
    ensure!(uffd.copy(area.address(0), &page_of(0), false)?, "there is a page already");
    must_be(&queue.complete()?, 0)?;
    queue.destroy()
}

/// Who waits when the range is served no more goes on as if it had never been.
fn unregistered(device: &Device) -> Result<()> {
    let (area, uffd) = watched(uffd::MISSING, 0)?;
    let (mut one, mut other) = (queue(device)?, queue(device)?);
    one.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1))?;
    other.submit(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(PAGE), 1))?;
    next(&uffd)?;
    next(&uffd)?;
    one.destroy()?;
    uffd.unregister(area.address(0), area.len())?;
    must_be(&other.complete()?, 0)?;
    ensure!(area.load(PAGE, WidthLog2::W64) == 1);
    other.destroy()
}

/// A process that waits is killed, while another one has its userfaultfd open and does not answer.
fn process_ends(_: &Device) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut process = Process::start("userfaultfd", &[])?;
        let line = process.line(patience())?;
        let numbers: Vec<i32> =
            line.split(' ').map(str::parse).collect::<Result<_, _>>().context(line.clone())?;
        let [pid, fd] = numbers[..] else { bail!("the child said {line:?}") };
        let uffd = Uffd::from(file_of(pid, fd)?);
        process.say("go")?;
        next(&uffd).context("the child's command does not wait")?;
        process.kill()?;
        process.wait(patience())?;
        held.push(uffd);
    }
    // All that the processes had is free again.
    let start = Instant::now();
    while let Err(error) = all_contexts(1) {
        ensure!(start.elapsed() < patience(), "{error:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A file of another process.
fn file_of(pid: i32, fd: i32) -> Result<OwnedFd> {
    // SAFETY: takes numbers alone; the descriptors are nobody else's.
    unsafe {
        let process = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0)).context("pidfd_open")?;
        let process = OwnedFd::from_raw_fd(process as i32);
        let file = libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&process), fd, 0);
        Ok(OwnedFd::from_raw_fd(Errno::result(file).context("pidfd_getfd")? as i32))
    }
}

/// The process that is killed.
pub(crate) fn child(_: &[String]) -> Result<()> {
    let device = Device::open_nth(0)?;
    let (area, uffd) = watched(uffd::MISSING, 0)?;
    tell(&format!("{} {}", std::process::id(), uffd.number()))?;
    listen()?;
    let mut queue = queue(&device)?;
    let found = queue.execute(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1))?;
    bail!("nobody has brought the page, but {found:?}")
}
