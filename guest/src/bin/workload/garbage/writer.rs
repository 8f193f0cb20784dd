// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A process that writes garbage. The device may overwrite anything in it, so anything may become of it;
//! it gives up its rights first, for what it may be made to do.
#![expect(unsafe_code, reason = "sends garbage to the kernel and the device")]

use super::entry;
use crate::process;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Uid, setuid};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use svmx::Device;
use svmx::abi::doorbell::queue as doorbell;
use svmx::abi::uapi;
use zerocopy::IntoBytes;

/// Actions from one line of output to the next.
pub(crate) const REPORT: u64 = 100;
const LASTS: Duration = Duration::from_secs(2);
const ARENA: usize = 16 * 4096;
const MOST_MAPPINGS: usize = 24;

/// `workload child garbage SEED DEVICES`.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let number =
        |n: usize| arguments.get(n).context("needs seed and devices")?.parse::<u64>().context("a number");
    let mut writer = Writer::new(Random::new(number(0)?), number(1)?)?;
    let start = Instant::now();
    for action in 1.. {
        writer.act();
        if action % REPORT == 0 {
            process::tell(".")?;
            if start.elapsed() > LASTS {
                break;
            }
        }
    }
    Ok(())
}

/// Something mapped from a device's file.
#[derive(Clone, Copy)]
struct Mapped {
    address: u64,
    len: usize,
}

struct Writer {
    random: Random,
    files: Vec<File>,
    /// The queues that were made, with their file.
    queues: Vec<(usize, uapi::QueueCreate)>,
    rings: Vec<Mapped>,
    doorbells: Vec<Mapped>,
    /// Memory for commands to work on.
    arena: u64,
    ferry: Ferry,
}

impl Writer {
    fn new(random: Random, devices: u64) -> Result<Self> {
        let mut files = Vec::new();
        for n in 0..4 {
            let path = Device::path((n % devices.max(1)) as u32);
            files.push(OpenOptions::new().read(true).write(true).open(path)?);
        }
        setrlimit(Resource::RLIMIT_AS, 1 << 30, 1 << 30)?;
        setrlimit(Resource::RLIMIT_NPROC, 16, 16)?;
        setuid(Uid::from_raw(65534))?;
        let (queues, rings, doorbells) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Writer { random, files, queues, rings, doorbells, arena: arena()?, ferry: Ferry::new()? })
    }

    fn act(&mut self) {
        match self.random.below(100) {
            0..3 => self.make_queue(),
            3..6 => self.map(),
            6..20 => self.ioctl(),
            20..60 => self.submit(),
            60..75 => self.ring(),
            75..85 => self.scribble(),
            85..95 => self.touch(),
            95..97 => self.unmap(),
            97 => self.destroy(),
            98 => self.protect(),
            _ => std::thread::sleep(Duration::from_micros(self.random.below(500))),
        }
    }

    fn value(&mut self) -> u64 {
        entry::value(&mut self.random, self.arena, ARENA as u64)
    }

    /// A proper queue, mapped as it should be, so that garbage gets further.
    fn make_queue(&mut self) {
        let file = self.random.below(self.files.len() as u64) as usize;
        let size = size_of::<uapi::QueueCreate>() as u32;
        let (sq_log2, cq_log2) = (1 + self.random.below(7) as u8, 1 + self.random.below(7) as u8);
        let mut create = uapi::QueueCreate { size, sq_log2, cq_log2, ..Default::default() };
        let fd = self.files[file].as_raw_fd();
        // SAFETY: the number is that of the structure.
        if unsafe { libc::ioctl(fd, uapi::IOC_QUEUE_CREATE.into(), &raw mut create) } != 0 {
            return;
        }
        self.queues.push((file, create));
        let maps =
            [(create.sq_offset, create.sq_bytes as usize, false), (create.doorbell_offset, 4096, true)];
        for (offset, len, is_doorbell) in maps {
            if let Some(mapped) = map(fd, offset, len, libc::PROT_READ | libc::PROT_WRITE) {
                if is_doorbell { &mut self.doorbells } else { &mut self.rings }.push(mapped);
            }
        }
    }

    /// Something at some offset, of some size, with some rights.
    fn map(&mut self) {
        if self.rings.len() > MOST_MAPPINGS {
            return self.unmap();
        }
        let known = self.queues.last().map_or(0, |(_, create)| create.sq_offset.max(create.doorbell_offset));
        let offset = match self.random.below(3) {
            0 => known.wrapping_add(4096 * self.random.below(8)),
            1 => self.value() & !4095,
            _ => self.value(),
        };
        let len = 1 + self.random.below(5 * 4096) as usize;
        let prot = self.random.below(8) as i32;
        let file = self.random.pick(&self.files).as_raw_fd();
        let writable = prot & libc::PROT_WRITE != 0;
        if let Some(mapped) = map(file, offset, len, prot).filter(|_| writable) {
            self.rings.push(mapped);
        }
    }

    fn ioctl(&mut self) {
        let known = *self.random.pick(&uapi::IOCTLS);
        let number = match self.random.below(5) {
            0 => self.random.next() as u32,
            // Another size, or another direction.
            1 => known ^ (1 << (16 + self.random.below(16))),
            2 => (known & !0xff) | self.random.below(256) as u32,
            _ => known,
        };
        let mut buffer = [0u64; 512];
        for word in &mut buffer[..16] {
            *word = self.value();
        }
        if !self.random.one_in(4) {
            // Right size, no flags; then the first field is a queue that may be there.
            buffer[0] = u64::from((known >> 16) & 0x3fff);
            buffer[1] = self.queues.last().map_or(1, |(_, create)| u64::from(create.queue));
            if known == uapi::IOC_WAIT && !self.random.one_in(50) {
                buffer[2] = self.random.below(1_000_000);
            }
            let ranges = [uapi::IOC_ACQUIRE_EXCLUSIVE, uapi::IOC_RELEASE, uapi::IOC_POLICY];
            if ranges.contains(&known) && !self.random.one_in(8) {
                // Whole pages, in the arena and perhaps beyond; a policy that is there or nearly so.
                buffer[1] = self.arena + 4096 * self.random.below(ARENA as u64 / 4096);
                buffer[2] = 4096 * (1 + self.random.below(24));
                buffer[3] = self.random.below(4);
            }
        }
        let argument = match self.random.below(8) {
            0 => self.value(),
            // It ends in the middle of what can't be read.
            1 => self.arena + ARENA as u64 - self.random.below(64),
            _ => buffer.as_mut_ptr() as u64,
        };
        let fd = self.random.pick(&self.files).as_raw_fd();
        // SAFETY: none is claimed: the kernel may be told to write anywhere in this process, which is
        // here to be spoiled and has nothing that outlives it.
        unsafe { libc::ioctl(fd, number.into(), argument) };
    }

    fn submit(&mut self) {
        let entry = entry::nearly_right(&mut self.random, self.arena, ARENA as u64);
        let Some(ring) = self.pick_ring() else { return };
        let slot = self.random.below((ring.len / 64).max(1) as u64) as usize;
        self.ferry.write(ring, 64 * slot, entry.as_bytes());
        if self.random.one_in(2) {
            self.step_tail();
        }
    }

    /// Rings a doorbell by one.
    fn step_tail(&mut self) {
        if self.doorbells.is_empty() {
            return;
        }
        let page = *self.random.pick(&self.doorbells);
        for word in [doorbell::SQ_TAIL, doorbell::CQ_HEAD] {
            let value = self.ferry.read_u32(page, word);
            let step = u32::from(word == doorbell::SQ_TAIL || self.random.one_in(2));
            self.ferry.write(page, word as usize, &value.wrapping_add(step).to_ne_bytes());
        }
    }

    /// Writes anything to a doorbell page.
    fn ring(&mut self) {
        if self.doorbells.is_empty() || !self.random.one_in(20) {
            return self.step_tail();
        }
        let page = *self.random.pick(&self.doorbells);
        let words = [doorbell::SQ_TAIL, doorbell::CQ_HEAD, doorbell::NEED_KICK, doorbell::CQ_ARM];
        let offset = match self.random.below(2) {
            0 => *self.random.pick(&words),
            _ => 4 * self.random.below(1024),
        };
        let value = self.value() as u32;
        self.ferry.write(page, offset as usize, &value.to_ne_bytes());
    }

    /// Random bytes somewhere in a ring.
    fn scribble(&mut self) {
        let Some(ring) = self.pick_ring() else { return };
        for _ in 0..1 + self.random.below(16) {
            let offset = 8 * self.random.below((ring.len / 8).max(1) as u64) as usize;
            let value = self.value();
            self.ferry.write(ring, offset, &value.to_ne_bytes());
        }
    }

    /// The CPU's share in the arena's pages.
    fn touch(&mut self) {
        let arena = Mapped { address: self.arena, len: ARENA };
        let offset = 8 * self.random.below(ARENA as u64 / 8) as usize;
        let value = self.random.below(ARENA as u64 / 8);
        self.ferry.write(arena, offset, &value.to_ne_bytes());
    }

    fn unmap(&mut self) {
        let list = if self.random.one_in(2) { &mut self.rings } else { &mut self.doorbells };
        if list.is_empty() {
            return;
        }
        let mapped = list.swap_remove(self.random.below(list.len() as u64) as usize);
        // SAFETY: it was mapped here, and it is not in the list any more.
        unsafe { libc::munmap(mapped.address as *mut libc::c_void, mapped.len) };
    }

    /// Destroys a queue, but goes on with its mappings.
    fn destroy(&mut self) {
        let Some((file, create)) = self.queues.pop() else { return };
        let size = size_of::<uapi::QueueDestroy>() as u32;
        let mut destroy = uapi::QueueDestroy { size, queue: create.queue, ..Default::default() };
        // SAFETY: the number is that of the structure.
        unsafe {
            libc::ioctl(self.files[file].as_raw_fd(), uapi::IOC_QUEUE_DESTROY.into(), &raw mut destroy)
        };
    }

    /// Takes the arena away from under commands, for a moment.
    fn protect(&mut self) {
        let arena = self.arena as *mut libc::c_void;
        // SAFETY: nothing but this process's writes is in the arena, and it is whole again at the end.
        unsafe {
            match self.random.below(3) {
                0 => drop(libc::madvise(arena, ARENA, libc::MADV_DONTNEED)),
                1 => drop(libc::mprotect(arena, ARENA, libc::PROT_READ)),
                _ => drop(libc::mprotect(arena, ARENA, libc::PROT_NONE)),
            }
            std::thread::yield_now();
            libc::mprotect(arena, ARENA, libc::PROT_READ | libc::PROT_WRITE);
        }
    }

    fn pick_ring(&mut self) -> Option<Mapped> {
        (!self.rings.is_empty()).then(|| *self.random.pick(&self.rings))
    }
}

/// Maps the arena, with nothing on both sides of it: a command that runs over its end, as most do that are
/// long, ends there, and this process lives to write more.
fn arena() -> Result<u64> {
    const APART: usize = 64 * 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing; the second call changes a
    // part of it.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), ARENA + 2 * APART, libc::PROT_NONE, flags, -1, 0);
        ensure!(start != libc::MAP_FAILED, "no memory for an arena");
        let arena = start.byte_add(APART);
        libc::mprotect(arena, ARENA, libc::PROT_READ | libc::PROT_WRITE);
        Ok(arena as u64)
    }
}

fn map(fd: i32, offset: u64, len: usize, prot: i32) -> Option<Mapped> {
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, offset.cast_signed()) };
    (address != libc::MAP_FAILED).then_some(Mapped { address: address as u64, len })
}

/// Bytes on their way to a mapping or from it. The kernel copies them, so that a mapping whose queue is gone
/// gives an error, where a store of this process would be SIGBUS and the end of it.
struct Ferry(OwnedFd);

impl Ferry {
    fn new() -> Result<Self> {
        Ok(Ferry(memfd_create(c"ferry", MFdFlags::MFD_CLOEXEC)?))
    }

    fn write(&self, to: Mapped, offset: usize, bytes: &[u8]) {
        let len = bytes.len().min(to.len.saturating_sub(offset));
        if pwrite(&self.0, &bytes[..len], 0).is_ok() {
            let address = (to.address + offset as u64) as *mut libc::c_void;
            // SAFETY: inside a mapping that no reference points to; what fails, fails.
            unsafe { libc::pread(self.0.as_raw_fd(), address, len, 0) };
        }
    }

    fn read_u32(&self, from: Mapped, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        // SAFETY: inside a mapping; what fails, fails.
        unsafe { libc::pwrite(self.0.as_raw_fd(), (from.address + offset) as *const libc::c_void, 4, 0) };
        // What was there before will do.
        let _ = pread(&self.0, &mut bytes, 0);
        u32::from_ne_bytes(bytes)
    }
}
