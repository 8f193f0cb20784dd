// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory of a cell, and what must be in it. It is reached through its addresses only, as events
//! move and unmap it; it is never a Rust object.
#![expect(unsafe_code, reason = "maps memory and reaches it by its address")]

use super::table::{Shape, State};
use crate::area::PAGE;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Since Linux 6.13; the C library's headers are older.
pub(crate) const MADV_GUARD_INSTALL: i32 = 102;
pub(crate) const MADV_GUARD_REMOVE: i32 = 103;

/// A huge page.
pub(crate) const HUGE: u64 = 2 << 20;
/// Where a cell's memory is: far from everything else.
const BASE: u64 = 0x2000_0000_0000;
/// Where events move it to.
pub(crate) const ELSEWHERE: u64 = 0x2100_0000_0000;
/// How far that is.
pub(crate) const DISTANCE: u64 = ELSEWHERE - BASE;
/// What the device needs besides: indices and old values.
pub(crate) const AUXILIARY: u64 = 0x2200_0000_0000;

/// Offsets of the words of a page that are used.
pub(crate) mod word {
    /// Device and CPU add to it.
    pub(crate) const COUNTER: u64 = 0;
    /// Written by the CPU before, and never changed.
    pub(crate) const PATTERN: u64 = 8;
    /// Written by the device.
    pub(crate) const DEVICE: u64 = 16;
    /// Written by somebody else, in some events.
    pub(crate) const OTHER: u64 = 24;
}

/// Which memory a page is of. Each has counters that begin at another number, so that every old value of an
/// addition says to which memory it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Pages that were zero when they came, after the event.
    Fresh,
    /// The cell's own.
    Own,
    /// What takes its place in some events.
    Other,
}

impl Origin {
    const SHIFT: u32 = 40;

    /// What its counters begin at.
    pub(crate) fn first(self) -> u64 {
        (self as u64) << Self::SHIFT
    }

    /// The memory in which a counter has this value.
    pub(crate) fn of(value: u64) -> Option<Origin> {
        match value >> Self::SHIFT {
            0 => Some(Origin::Fresh),
            1 => Some(Origin::Own),
            2 => Some(Origin::Other),
            _ => None,
        }
    }
}

/// Additions to a page's counter, by memory.
pub(crate) type Additions = [u64; 3];

/// A page that the device uses.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) addr: u64,
    /// What is in its pattern word.
    pub(crate) pattern: u64,
    /// What is in the device's word.
    pub(crate) device: u64,
    pub(crate) additions: Additions,
}

impl Page {
    /// What its counter must be.
    pub(crate) fn counter(&self, origin: Origin) -> u64 {
        origin.first() + self.additions[origin as usize]
    }

    /// What its pattern word must be.
    pub(crate) fn pattern(&self, origin: Origin) -> u64 {
        match origin {
            Origin::Fresh => 0,
            Origin::Own => self.pattern,
            Origin::Other => !self.pattern,
        }
    }
}

/// The memory of a cell.
pub(crate) struct Scene {
    pub(crate) base: u64,
    pub(crate) len: u64,
    /// Where its second part begins, for events that are about a part.
    pub(crate) tail: u64,
    pub(crate) pages: Vec<Page>,
}

impl Scene {
    /// Maps it and fills it by the CPU.
    pub(crate) fn new(shape: Shape, random: &mut Random) -> Result<Self> {
        let (base, len, tail, pages): (_, _, _, &[u64]) = match shape {
            // One more, that a part can be cut off.
            Shape::Page => (BASE, 2 * PAGE, PAGE, &[0]),
            Shape::Spans => (BASE - 2 * PAGE, 4 * PAGE, 2 * PAGE, &[0, 1, 2, 3]),
            Shape::Huge => (BASE, HUGE, HUGE / 2, &[3, 4, 300]),
        };
        map(base, len)?;
        if shape == Shape::Huge {
            advise(base, len, libc::MADV_HUGEPAGE)?;
        }
        let page = |index: &u64| {
            let (addr, pattern) = (base + index * PAGE, random.next());
            Page { addr, pattern, device: 0, additions: [0; 3] }
        };
        let scene = Scene { base, len, tail: base + tail, pages: pages.iter().map(page).collect() };
        scene.fill(0, Origin::Own);
        if shape == Shape::Huge {
            ensure!(is_huge(base)?, "no huge page is free");
        }
        Ok(scene)
    }

    /// Pages in the second part.
    pub(crate) fn pages_in_tail(&self) -> u64 {
        self.pages.iter().filter(|page| page.addr >= self.tail).count() as u64
    }

    /// Writes what the pages of a memory have at first, at a distance from where the scene is.
    pub(crate) fn fill(&self, distance: u64, origin: Origin) {
        for page in &self.pages {
            let addr = page.addr.wrapping_add(distance);
            store(addr + word::COUNTER, page.counter(origin));
            store(addr + word::PATTERN, page.pattern(origin));
        }
    }
}

/// Why cells of this state are not there yet.
pub(crate) fn missing(state: State) -> Option<&'static str> {
    (state == State::Coherent).then_some("what an event does to coherent pages is not tried yet")
}

/// Private anonymous memory at an address where nothing is.
pub(crate) fn map(addr: u64, len: u64) -> Result<()> {
    map_as(addr, len, libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE).context("mapping memory of a cell")
}

fn map_as(addr: u64, len: u64, flags: i32) -> Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_ANONYMOUS;
    // SAFETY: the addresses are a cell's own, where no Rust object is.
    let found = unsafe { libc::mmap(addr as *mut _, len as usize, prot, flags, -1, 0) };
    ensure!(found != libc::MAP_FAILED, "mmap: {}", Errno::last());
    ensure!(found as u64 == addr, "mapped at {found:?}, not {addr:#x}");
    Ok(())
}

/// The same, instead of whatever is there.
pub(crate) fn map_over(addr: u64, len: u64) -> Result<()> {
    map_as(addr, len, libc::MAP_PRIVATE | libc::MAP_FIXED).context("mapping over memory of a cell")
}

/// mremap of memory of a cell, to `to` if that is an address.
pub(crate) fn remap(addr: u64, len: u64, new_len: u64, to: Option<u64>, flags: i32) -> Result<()> {
    let fixed = to.map_or(0, |_| libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let target = to.unwrap_or(0) as *mut libc::c_void;
    // SAFETY: the addresses are a cell's own, where no Rust object is.
    let found =
        unsafe { libc::mremap(addr as *mut _, len as usize, new_len as usize, flags | fixed, target) };
    ensure!(found != libc::MAP_FAILED, "mremap: {}", Errno::last());
    let expected = to.unwrap_or(addr);
    ensure!(found as u64 == expected, "remapped to {found:?}, not {expected:#x}");
    Ok(())
}

/// madvise of memory of a cell.
pub(crate) fn advise(addr: u64, len: u64, advice: i32) -> Result<()> {
    // SAFETY: the addresses are a cell's own, where no Rust object is.
    let result = unsafe { libc::madvise(addr as *mut _, len as usize, advice) };
    // The errno stays what the error is, for callers who expect one.
    Errno::result(result)
        .map(drop)
        .map_err(|errno| anyhow::Error::new(errno).context(format!("madvise {advice}")))
}

/// mprotect of memory of a cell.
pub(crate) fn protect(addr: u64, len: u64, prot: i32) -> Result<()> {
    // SAFETY: the addresses are a cell's own, where no Rust object is.
    let result = unsafe { libc::mprotect(addr as *mut _, len as usize, prot) };
    Errno::result(result).map(drop).context("mprotect")
}

/// munmap of memory of a cell.
pub(crate) fn unmap(addr: u64, len: u64) -> Result<()> {
    // SAFETY: the addresses are a cell's own, where no Rust object is.
    let result = unsafe { libc::munmap(addr as *mut _, len as usize) };
    Errno::result(result).map(drop).context("munmap")
}

/// Whether anything is mapped at a page.
pub(crate) fn is_mapped(addr: u64) -> bool {
    // SAFETY: MS_ASYNC changes nothing; ENOMEM says that nothing is mapped.
    unsafe { libc::msync(addr as *mut _, PAGE as usize, libc::MS_ASYNC) == 0 }
}

/// Whether mincore says that a page is in memory.
pub(crate) fn is_in_memory(addr: u64) -> Result<bool> {
    let mut found = 0;
    // SAFETY: one page, so one byte is written.
    let result = unsafe { libc::mincore(addr as *mut _, PAGE as usize, &mut found) };
    Errno::result(result).context("mincore")?;
    Ok(found & 1 == 1)
}

fn at<'a>(addr: u64) -> &'a AtomicU64 {
    // SAFETY: callers name aligned words of a cell's memory that is mapped and that only atomics reach. If an event left
    // something else there than it should have, the process ends with a signal, and the cell has failed.
    unsafe { AtomicU64::from_ptr(addr as *mut u64) }
}

/// The word at `addr`, by the CPU.
pub(crate) fn load(addr: u64) -> u64 {
    at(addr).load(SeqCst)
}

pub(crate) fn store(addr: u64, value: u64) {
    at(addr).store(value, SeqCst);
}

/// Adds 1; returns the old value.
pub(crate) fn increment(addr: u64) -> u64 {
    at(addr).fetch_add(1, SeqCst)
}

/// Lets the kernel add 1 to the 64-bit word at `addr`, whose lower half does not overflow, by the CPU's own atomic
/// instruction. Where a thread's own addition would end the process, this returns false.
pub(crate) fn increment_if_mapped(addr: u64) -> bool {
    // FUTEX_OP(ADD, 1, CMP_EQ, 0), which futex(2) does to the second word. Nobody sleeps on either.
    const ADD_ONE: u32 = (libc::FUTEX_OP_ADD as u32) << 28 | 1 << 12;
    const OPERATION: i32 = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel checks the address itself; the addresses are a cell's own.
    let result = unsafe {
        let (none, word) = (std::ptr::null::<libc::timespec>(), addr as *const u32);
        libc::syscall(libc::SYS_futex, word, OPERATION, 0, none, word, ADD_ONE)
    };
    result >= 0
}

/// Whether a huge page is mapped at `addr`, as one.
pub(crate) fn is_huge(addr: u64) -> Result<bool> {
    let text = std::fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    let mut inside = false;
    for line in text.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        if let Some((start, end)) = range.filter(|(start, _)| u64::from_str_radix(start, 16).is_ok()) {
            let bound = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            inside = (bound(start)..bound(end)).contains(&addr);
        } else if let Some(size) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            return Ok(size.trim() != "0 kB");
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_says_which_memory_it_is_of() {
        for origin in [Origin::Fresh, Origin::Own, Origin::Other] {
            let page = Page { addr: 0, pattern: 5, device: 0, additions: [7, 8, 9] };
            assert_eq!(Origin::of(page.counter(origin)), Some(origin));
            assert_eq!(Origin::of(origin.first()), Some(origin));
        }
        assert_eq!(Origin::of(3 << 40), None);
    }

    #[test]
    fn the_kernel_adds_where_memory_is_and_only_there() {
        let addr = 0x2f00_0000_0000;
        map(addr, PAGE).unwrap();
        store(addr, Origin::Own.first());
        assert!(increment_if_mapped(addr));
        assert_eq!(load(addr), Origin::Own.first() + 1);
        unmap(addr, PAGE).unwrap();
        assert!(!is_mapped(addr) && !increment_if_mapped(addr));
    }
}
