// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process that gives up while its commands run.
#![expect(unsafe_code, reason = "forks, execs with an open device, and unmaps memory under commands")]

use super::Kind;
use crate::area::{Area, Backing, PAGE, RawQueue};
use crate::process;
use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command as Program;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;
use svmx::abi::uapi;
use svmx::{Device, QueueSize};

const PAGES: u64 = 32;
/// Elements of a command on a single page: enough to be still at it after the delay.
const COUNT: u32 = 200_000;
/// The same where all commands are waited for while a CPU thread takes the pages away.
const FEW: u32 = 3000;
const DEPTH: u64 = 4;

/// `workload child busy KIND SEED`.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [name, seed] = arguments else { bail!("needs kind and seed") };
    let (_, kind) = Kind::ALL.into_iter().find(|(kind, _)| kind == name).context("no such kind")?;
    let mut random = Random::new(seed.parse()?);
    let device = Device::open_nth(0)?;
    let mut queues = Vec::new();
    for _ in 0..2 {
        // SAFETY: it names `area`, which nothing but atomics reaches, or where that was.
        queues.push(unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) });
    }
    let mut area = Area::new(Backing::Private, PAGES * PAGE)?;
    let count = if kind == Kind::Fork { FEW } else { COUNT };
    let mut sent = Vec::new();
    for queue in &mut queues {
        let entries: Vec<Sqe> = (0..DEPTH).map(|_| entry(&area, &mut random, count)).collect();
        entries.iter().try_for_each(|entry| queue.submit(entry))?;
        sent.push(entries);
    }
    let delay = Duration::from_micros(random.below(3000));
    match kind {
        Kind::Fork => return forks(&area, queues, delay),
        Kind::Unmap => {
            thread::sleep(delay);
            tell_running(&queues)?;
            return unmaps(&mut area, queues, &sent, random.below(PAGES));
        }
        _ => {}
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| hammer(&area, &stop));
        thread::sleep(delay);
        tell_running(&queues)?;
        match kind {
            Kind::Exec => Err(execs(&device)),
            Kind::Exit => std::process::exit(0),
            // Killed meanwhile.
            _ => loop {
                queues[0].complete()?;
                queues[0].submit(&entry(&area, &mut random, count))?;
            },
        }
        .inspect_err(|_: &anyhow::Error| stop.store(true, Relaxed))
    })
}

/// Tells how many commands the device has not completed, right before the process gives up.
fn tell_running(queues: &[RawQueue]) -> Result<()> {
    let running: usize = queues.iter().map(RawQueue::running).sum();
    process::tell(&format!("running {running}"))
}

/// Adds 1 to the word 0 of every page, so that a command touches them all.
fn entry(area: &Area, random: &mut Random, count: u32) -> Sqe {
    let entry = Sqe { opcode: Opcode::FETCH_ADD, width: WidthLog2::W64, operand: 1, ..Sqe::default() };
    if random.one_in(2) {
        let page = random.below(PAGES);
        return Sqe { flags: SqeFlags::BULK, addr: area.address(page * PAGE), count, stride: 0, ..entry };
    }
    Sqe { flags: SqeFlags::BULK, addr: area.address(0), count: PAGES as u32, stride: PAGE as i32, ..entry }
}

fn hammer(area: &Area, stop: &AtomicBool) -> u64 {
    let mut ops = 0;
    while !stop.load(Relaxed) {
        for page in 0..PAGES {
            area.increment(page * PAGE);
            ops += 1;
        }
    }
    ops
}

/// Becomes another program, with the device's file open.
fn execs(device: &Device) -> anyhow::Error {
    if let Err(errno) = fcntl(device, FcntlArg::F_SETFD(FdFlag::empty())) {
        return errno.into();
    }
    let fd = device.as_fd().as_raw_fd().to_string();
    Program::new("/proc/self/exe").args(["child", "after-exec", &fd]).exec().into()
}

/// `workload child after-exec FD`: the file's context is not this process's.
pub(crate) fn after_exec(arguments: &[String]) -> Result<()> {
    let fd: i32 = arguments.first().context("no descriptor")?.parse()?;
    let mut info = uapi::Info { size: size_of::<uapi::Info>() as u32, ..Default::default() };
    // SAFETY: the number is that of the structure; the descriptor is whatever it is.
    let result = Errno::result(unsafe { libc::ioctl(fd, uapi::IOC_INFO.into(), &raw mut info) });
    ensure!(result == Err(Errno::EPERM), "expected EPERM after exec, found {result:?}");
    Ok(())
}

/// Forks: the child changes its copy of the memory, and the parent's sums stay exact.
fn forks(area: &Area, queues: Vec<RawQueue>, delay: Duration) -> Result<()> {
    let stop = AtomicBool::new(false);
    let (device_ops, cpu_ops) = thread::scope(|scope| {
        let cpu = scope.spawn(|| hammer(area, &stop));
        thread::sleep(delay);
        let result = fork_and_drain(area, queues);
        stop.store(true, Relaxed);
        let cpu_ops = cpu.join().map_err(|_| anyhow::anyhow!("the CPU thread panicked"))?;
        anyhow::Ok((result?, cpu_ops))
    })?;
    let found: u64 = (0..PAGES).map(|page| area.load(page * PAGE, WidthLog2::W64)).sum();
    let expected = device_ops + cpu_ops;
    ensure!(found == expected, "expected {expected} after fork, found {found}");
    Ok(())
}

fn fork_and_drain(area: &Area, mut queues: Vec<RawQueue>) -> Result<u64> {
    tell_running(&queues)?;
    let child = match fork_at_last()? {
        ForkResult::Child => {
            for page in 0..PAGES {
                area.store(page * PAGE, WidthLog2::W64, u64::MAX / 2);
                area.store(page * PAGE + 8, WidthLog2::W64, 1);
            }
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    let mut ops = 0;
    for queue in &mut queues {
        while queue.queue().in_flight() > 0 {
            let found = queue.complete()?;
            ensure!(found.status.is_success(), "{found:?}");
            ops += u64::from(found.applied);
        }
    }
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the forked child ended with {status:?}");
    for page in 0..PAGES {
        let found = area.load(page * PAGE + 8, WidthLog2::W64);
        ensure!(found == 0, "the forked child's store is seen in the parent");
    }
    Ok(ops)
}

/// Forks. While the driver holds the lock of an exclusive page, the kernel can't copy that page's entry
/// and gives up the whole fork; it says ENOMEM for want of a better word.
fn fork_at_last() -> Result<ForkResult> {
    for _ in 0..1000 {
        // SAFETY: the child touches its copy of the area and ends; no lock, no allocation.
        match unsafe { fork() } {
            Err(Errno::ENOMEM) => thread::sleep(Duration::from_micros(100)),
            other => return other.context("fork"),
        }
    }
    bail!("fork failed 1000 times")
}

/// Unmaps the pages from `keep` on; commands end with FAULT there, and the rest is exact.
fn unmaps(area: &mut Area, mut queues: Vec<RawQueue>, sent: &[Vec<Sqe>], keep: u64) -> Result<()> {
    area.unmap_from(keep * PAGE)?;
    let end = area.address(keep * PAGE);
    let mut expected = 0;
    for (queue, entries) in queues.iter_mut().zip(sent) {
        for entry in entries {
            let found = queue.complete()?;
            match found.status.0 {
                Status::SUCCESS if found.applied == entry.count => {}
                Status::FAULT if found.fault_addr >= end => {}
                _ => bail!("expected success, or FAULT from {end:#x} on, found {found:x?} for {entry:x?}"),
            }
            // What was applied to pages that are still there.
            expected += match entry.stride {
                0 if entry.addr < end => u64::from(found.applied),
                0 => 0,
                _ => u64::from(found.applied).min(keep),
            };
        }
    }
    let found: u64 = (0..keep).map(|page| area.load(page * PAGE, WidthLog2::W64)).sum();
    ensure!(found == expected, "expected {expected} additions in {keep} pages, found {found}");
    // What comes to the same addresses later is nobody's business but its own.
    let fresh = Area::at(end, (PAGES - keep) * PAGE)?;
    for page in 0..PAGES - keep {
        let found = fresh.load(page * PAGE, WidthLog2::W64);
        ensure!(found == 0, "a page mapped afterwards has {found}");
    }
    Ok(())
}
