// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The events of the mixture. All of them leave the memory's content as it is.
#![expect(unsafe_code, reason = "changes mappings, and forks")]

use super::World;
use super::region::{COUNTER, Kind, Region, UNUSED};
use crate::area::PAGE;
use crate::events::scene::{advise, increment, load, protect, store};
use crate::random::Random;
use crate::system::blocks::Block;
use crate::system::ksm::{Ksm, mergeable, unmergeable};
use crate::system::memcg::Group;
use crate::system::pagemap::frame;
use crate::system::uffd::{self, Kind as Fault, Uffd};
use crate::system::{compact, numa, write};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// An event.
pub(super) struct Event {
    pub(super) name: &'static str,
    /// Memory of which kinds it is for.
    pub(super) fits: fn(Kind) -> bool,
    /// Whether CPU threads and other events must keep out of the region, which can't be reached meanwhile. The device
    /// does not.
    pub(super) alone: bool,
    pub(super) run: fn(&World, &Region, &mut Random) -> Result<()>,
}

/// What events need of the system.
pub(super) struct Tools {
    group: Group,
    nodes: Vec<u32>,
    pub(super) uffd: Uffd,
    ksm: Ksm,
    movable: Vec<Block>,
    /// One block of memory at a time.
    offline: Mutex<()>,
    /// Nobody can have a fault any more.
    pub(super) over: AtomicBool,
    /// How often a page that was moved out had become a child's as well.
    pub(super) shared: AtomicU64,
}

impl Tools {
    pub(super) fn new(group: Group, nodes: Vec<u32>) -> Result<Self> {
        let uffd = Uffd::new(uffd::FEATURE_MOVE)?;
        let (ksm, offline) = (Ksm::start()?, Mutex::new(()));
        Ok(Tools {
            group,
            nodes,
            uffd,
            ksm,
            movable: Block::movable()?,
            offline,
            over: AtomicBool::new(false),
            shared: AtomicU64::new(0),
        })
    }
}

fn any(_: Kind) -> bool {
    true
}

fn steady(kind: Kind) -> bool {
    matches!(kind, Kind::Small | Kind::Huge)
}

/// UFFDIO_MOVE wants both mappings locked, or none.
fn unserved(kind: Kind) -> bool {
    kind != Kind::Served
}

fn huge(kind: Kind) -> bool {
    kind == Kind::Huge
}

fn alike(kind: Kind) -> bool {
    kind == Kind::Alike
}

fn served(kind: Kind) -> bool {
    kind == Kind::Served
}

const fn event(
    name: &'static str,
    fits: fn(Kind) -> bool,
    run: fn(&World, &Region, &mut Random) -> Result<()>,
) -> Event {
    Event { name, fits, alone: false, run }
}

const fn alone(
    name: &'static str,
    fits: fn(Kind) -> bool,
    run: fn(&World, &Region, &mut Random) -> Result<()>,
) -> Event {
    Event { name, fits, alone: true, run }
}

/// All of them, equally often.
pub(super) const EVENTS: &[Event] = &[
    event("touch", any, touch),
    event("fork", any, forks),
    event("cold", any, |_, region, _| tolerant(region, libc::MADV_COLD)),
    event("page-out", any, |_, region, _| tolerant(region, libc::MADV_PAGEOUT)),
    event("reclaim", any, |world, region, _| {
        world.tools.group.reclaim(region.len);
        Ok(())
    }),
    event("move-pages", any, moves),
    event("migrate-pages", any, migrates),
    event("mbind", any, binds),
    event("compact", any, |_, _, _| compact()),
    event("offline", any, offlines),
    event("mlock", unserved, locks),
    event("soft-dirty", any, |_, _, _| write("/proc/self/clear_refs", 4)),
    event("collapse", huge, |_, region, _| tolerant(region, libc::MADV_COLLAPSE)),
    event("no-huge", huge, |_, region, _| advise(region.base, region.len, libc::MADV_NOHUGEPAGE)),
    event("huge", huge, |_, region, _| advise(region.base, region.len, libc::MADV_HUGEPAGE)),
    event("ksm-scan", alike, |world, _, _| world.tools.ksm.scans(2, crate::scenario::patience())),
    event("ksm-unmerge", alike, unmerges),
    event("uffd-wp", served, |world, region, _| world.tools.uffd.protect(region.base, region.len, true)),
    event("uffd-move", served, moves_out),
    alone("mprotect", steady, protects),
    alone("mremap", steady, remaps),
];

fn touch(_: &World, region: &Region, random: &mut Random) -> Result<()> {
    let page = random.below(region.pages());
    ensure!(region.has_pattern(page), "page {page} has lost its pattern");
    Ok(())
}

/// Advice that the kernel may decline for the moment.
fn tolerant(region: &Region, advice: i32) -> Result<()> {
    match advise(region.base, region.len, advice) {
        Err(error)
            if matches!(
                error.downcast_ref(),
                Some(Errno::EAGAIN | Errno::EBUSY | Errno::EINVAL | Errno::ENOMEM)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn moves(world: &World, region: &Region, random: &mut Random) -> Result<()> {
    let node = *random.pick(&world.tools.nodes);
    numa::move_pages(region.base, region.pages(), node).map(drop)
}

fn migrates(world: &World, _: &Region, random: &mut Random) -> Result<()> {
    let (from, to) = (*random.pick(&world.tools.nodes), *random.pick(&world.tools.nodes));
    numa::migrate_pages(from, to).map(drop)
}

fn binds(world: &World, region: &Region, random: &mut Random) -> Result<()> {
    numa::bind(region.base, region.len, *random.pick(&world.tools.nodes))?;
    numa::unbind(region.base, region.len)
}

/// Takes the block of some page offline, if all of it can move.
fn offlines(world: &World, region: &Region, random: &mut Random) -> Result<()> {
    let _one = world.tools.offline.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(frame) = frame(region.address(random.below(region.pages()))) else { return Ok(()) };
    let block = Block::of_frame(frame)?;
    if !world.tools.movable.contains(&block) {
        return Ok(());
    }
    match block.offline() {
        Ok(offline) => offline.online(),
        // Something stays: what is pinned for a moment, or the firmware's.
        Err(error) => match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => Ok(()),
            _ => Err(error),
        },
    }
}

fn locks(_: &World, region: &Region, _: &mut Random) -> Result<()> {
    let (address, len) = (region.base as *const libc::c_void, region.len as usize);
    // SAFETY: content and addresses of the pages stay.
    unsafe {
        match Errno::result(libc::mlock(address, len)) {
            // A part of it can't be reached at the moment.
            Ok(_) | Err(Errno::ENOMEM | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno).context("mlock"),
        }
        match Errno::result(libc::munlock(address, len)) {
            Ok(_) | Err(Errno::ENOMEM) => Ok(()),
            Err(errno) => Err(errno).context("munlock"),
        }
    }
}

fn unmerges(_: &World, region: &Region, _: &mut Random) -> Result<()> {
    unmergeable(region.base, region.len)?;
    mergeable(region.base, region.len)
}

/// No access, then all of it again.
fn protects(_: &World, region: &Region, random: &mut Random) -> Result<()> {
    let less = *random.pick(&[libc::PROT_NONE, libc::PROT_READ]);
    protect(region.base, region.len, less)?;
    protect(region.base, region.len, libc::PROT_READ | libc::PROT_WRITE)
}

/// Away and back.
fn remaps(_: &World, region: &Region, _: &mut Random) -> Result<()> {
    let (here, there) = (region.base, Region::elsewhere(region.base));
    for (from, to) in [(here, there), (there, here)] {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let len = region.len as usize;
        // SAFETY: nothing is at the new address, and CPU threads keep out of the region.
        let found = unsafe { libc::mremap(from as *mut _, len, len, flags, to as *mut libc::c_void) };
        ensure!(found as u64 == to, "mremap: {}", Errno::last());
    }
    Ok(())
}

/// A child finds at least what was there, and what it adds stays its own.
fn forks(_: &World, region: &Region, random: &mut Random) -> Result<()> {
    // A child has no userfaultfd: what was moved out would be empty there.
    if region.kind == Kind::Served {
        return Ok(());
    }
    let page = random.below(region.pages());
    let (least, at) = (region.least(page), region.address(page) + COUNTER);
    for _ in 0..10_000 {
        // SAFETY: the child touches the region by atomics, and ends.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let good = load(at) >= least && region.has_pattern(page);
                increment(at);
                // SAFETY: ends the child without running anything of its parent's.
                unsafe { libc::_exit(i32::from(!good)) }
            }
            Ok(ForkResult::Parent { child }) => {
                let status = waitpid(child, None)?;
                ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the child ended with {status:?}");
                return Ok(());
            }
            // It met an exclusive page whose folio was locked.
            Err(Errno::ENOMEM) => {}
            Err(errno) => return Err(errno).context("fork"),
        }
    }
    bail!("fork always fails with ENOMEM")
}

/// Some pages go elsewhere, until somebody misses them.
fn moves_out(world: &World, region: &Region, random: &mut Random) -> Result<()> {
    for _ in 0..4 {
        let page = region.address(random.below(region.pages()));
        match world.tools.uffd.transfer(page, Region::elsewhere(page)) {
            Ok(_) => {}
            // The device has it, or it is elsewhere already.
            Err(error)
                if matches!(error.downcast_ref(), Some(Errno::EFAULT | Errno::EBUSY | Errno::ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has the page copied if it is shared with another process. It is there: nobody else moves it back.
fn own(page: u64) {
    store(page + UNUSED, 0);
}

/// Serves the faults on regions that are served.
pub(super) fn serve(world: &World) {
    let uffd = &world.tools.uffd;
    while !world.tools.over.load(Relaxed) {
        let served = uffd.next(100).and_then(|fault| match fault {
            None => Ok(()),
            Some(fault) if fault.kind == Fault::WriteProtected => uffd.protect(fault.page, PAGE, false),
            Some(fault) => match uffd.transfer(Region::elsewhere(fault.page), fault.page) {
                Ok(true) => Ok(()),
                // It is back, or has not gone: whoever missed it looks again.
                Ok(false) => uffd.wake(fault.page, PAGE),
                Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => uffd.wake(fault.page, PAGE),
                // A fork came between: the page was, or is, a child's as well, and only pages of one process move. It is
                // that after a write, for which nobody else is there to make it.
                Err(error) if error.downcast_ref() == Some(&Errno::EBUSY) => {
                    own(Region::elsewhere(fault.page));
                    world.tools.shared.fetch_add(1, Relaxed);
                    uffd.wake(fault.page, PAGE)
                }
                Err(error) => Err(error),
            },
        });
        if let Err(error) = served {
            world.fail(error.context("serving a fault"));
            // Nobody shall wait for what does not come.
            for region in world.regions.iter().filter(|region| region.kind == Kind::Served) {
                for base in [region.base, Region::elsewhere(region.base)] {
                    let _ = uffd.unregister(base, region.len);
                }
            }
            return;
        }
    }
}
