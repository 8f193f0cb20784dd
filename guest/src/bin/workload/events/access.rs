// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events in which another process reads or writes the memory: a debugger, or whoever may do what one does.
#![expect(unsafe_code, reason = "traces a process and reaches its memory")]

use super::cell::Cell;
use super::scene::word;
use super::table::{Event, Fates};
use crate::process::{Process, listen, tell};
use crate::scenario::patience;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What a read or write from outside does: pages are looked up as for a CPU's access.
const ROW: Event = Event { fates: Fates::TOUCHED, ..Event::ROW };

pub(crate) const EVENTS: &[Event] = &[
    Event {
        name: "process-vm-readv",
        kernel: "pin_user_pages_remote(), remove_device_exclusive_entry(): CLEAR of the page",
        run: |cell| reads(cell, "readv"),
        ..ROW
    },
    Event {
        name: "process-vm-writev",
        kernel: "pin_user_pages_remote(), remove_device_exclusive_entry(): CLEAR of the page; copy_page_to_iter() later",
        pins: true,
        run: |cell| writes(cell, "writev"),
        ..ROW
    },
    Event {
        name: "ptrace-peek",
        kernel: "get_user_page_vma_remote(), remove_device_exclusive_entry(): CLEAR of the page",
        run: |cell| reads(cell, "peek"),
        ..ROW
    },
    Event {
        name: "ptrace-poke",
        kernel: "get_user_page_vma_remote(), remove_device_exclusive_entry(): CLEAR of the page; copy_to_user_page() later",
        pins: true,
        run: |cell| writes(cell, "poke"),
        ..ROW
    },
    Event {
        name: "proc-mem-read",
        kernel: "get_user_page_vma_remote(), remove_device_exclusive_entry(): CLEAR of the page",
        run: |cell| reads(cell, "mem-read"),
        ..ROW
    },
    Event {
        name: "proc-mem-write",
        kernel: "get_user_page_vma_remote(), remove_device_exclusive_entry(): CLEAR of the page; copy_to_user_page() later",
        pins: true,
        run: |cell| writes(cell, "mem-write"),
        ..ROW
    },
];

/// The other process sees what is there.
fn reads(cell: &mut Cell, how: &str) -> Result<()> {
    let mut peer = Peer::start()?;
    let least = cell.least();
    let mut seen = Vec::new();
    for page in &cell.scene.pages {
        let found = peer.ask(how, page.addr + word::PATTERN, 0)?;
        ensure!(found == page.pattern, "the other process expected {:#x}, found {found:#x}", page.pattern);
        seen.push(peer.ask(how, page.addr + word::COUNTER, 0)?);
    }
    cell.done()?;
    cell.was_at(least, seen)?;
    peer.end()
}

/// What the other process wrote is there, and nothing else of the page is changed.
fn writes(cell: &mut Cell, how: &str) -> Result<()> {
    let mut peer = Peer::start()?;
    for page in &mut cell.scene.pages {
        page.pattern = !page.pattern;
        peer.ask(how, page.addr + word::PATTERN, page.pattern)?;
    }
    cell.done()?;
    peer.end()
}

/// The other process. It is not forked, which would be an event, but spawned, in which the memory is shared until
/// it is a program of its own.
struct Peer(Process);

impl Peer {
    fn start() -> Result<Self> {
        let mut process = Process::start("events-peer", &[std::process::id().to_string()])?;
        process.expect("ready", patience())?;
        Ok(Peer(process))
    }

    fn ask(&mut self, how: &str, addr: u64, value: u64) -> Result<u64> {
        self.0.say(&format!("{how} {addr} {value}"))?;
        let answer = self.0.line(patience())?;
        answer.parse().with_context(|| format!("the other process: {answer}"))
    }

    fn end(mut self) -> Result<()> {
        let status = self.0.wait(patience())?;
        ensure!(status.success(), "the other process ended with {status}");
        Ok(())
    }
}

/// `workload child events-peer PID`: the other process.
pub(crate) fn peer(arguments: &[String]) -> Result<()> {
    let pid = arguments.first().context("no process")?.parse()?;
    tell("ready")?;
    loop {
        let line = listen()?;
        let words: Vec<&str> = line.split(' ').collect();
        let [how, addr, value] = words[..] else { return Ok(()) };
        match reach(pid, how, addr.parse()?, value.parse()?) {
            Ok(found) => tell(&found.to_string())?,
            Err(error) => tell(&format!("{how}: {error:#}"))?,
        }
    }
}

/// Reads or writes a word of process `pid`.
fn reach(pid: i32, how: &str, addr: u64, value: u64) -> Result<u64> {
    match how {
        "readv" => vm(pid, addr, 0, false),
        "writev" => vm(pid, addr, value, true),
        "peek" => stopped(pid, || {
            let mut word = 0u64;
            trace(libc::PTRACE_PEEKDATA, pid, addr, &raw mut word as u64).map(|()| word)
        }),
        "poke" => stopped(pid, || trace(libc::PTRACE_POKEDATA, pid, addr, value).map(|()| value)),
        "mem-read" => {
            let mut bytes = [0; 8];
            File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, addr)?;
            Ok(u64::from_le_bytes(bytes))
        }
        "mem-write" => {
            let file = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
            file.write_all_at(&value.to_le_bytes(), addr)?;
            Ok(value)
        }
        _ => bail!("unknown"),
    }
}

/// process_vm_readv and process_vm_writev.
fn vm(pid: i32, addr: u64, value: u64, write: bool) -> Result<u64> {
    let mut word = value;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: addr as *mut _, iov_len: 8 };
    // SAFETY: the local part is `word`; the remote one is an address of another process, which the kernel checks.
    let result = unsafe {
        match write {
            true => libc::process_vm_writev(pid, &local, 1, &remote, 1, 0),
            false => libc::process_vm_readv(pid, &local, 1, &remote, 1, 0),
        }
    };
    ensure!(Errno::result(result)? == 8, "{result} bytes");
    Ok(word)
}

/// Does something with the process's first thread stopped, as a debugger does; its others go on.
fn stopped<T>(pid: i32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    trace(libc::PTRACE_SEIZE, pid, 0, 0).context("PTRACE_SEIZE")?;
    trace(libc::PTRACE_INTERRUPT, pid, 0, 0).context("PTRACE_INTERRUPT")?;
    let mut status = 0;
    // SAFETY: `status` is written.
    Errno::result(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }).context("waitpid")?;
    ensure!(libc::WIFSTOPPED(status), "the process ended: {status:#x}");
    let result = work();
    trace(libc::PTRACE_DETACH, pid, 0, 0).context("PTRACE_DETACH")?;
    result
}

/// The system call itself: unlike the C library's function it stores what it read at `data`.
fn trace(request: libc::c_uint, pid: i32, addr: u64, data: u64) -> Result<()> {
    // SAFETY: `data` is a number, or where a word may be written; the rest concerns another process.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, u64::from(request), pid, addr, data) };
    Ok(Errno::result(result).map(drop)?)
}
