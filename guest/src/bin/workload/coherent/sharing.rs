// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two processes with the same memory, each with a CPU thread and a context on every device, which all add to the same
//! words: the sums are exact. Each process has the memory at two addresses.

use super::disk::Disk;
use super::{Side, additions};
use crate::area::{Area, PAGE};
use crate::process::{self, Process};
use crate::scenario::{Run, patience, step};
use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use svmx::Policy;
use svmx::abi::queue::WidthLog2;

/// Two words on each of four pages.
const STRIDE: u64 = PAGE / 2;
const WORDS: u64 = 8;
/// Commands of each context; each adds to all words.
const COMMANDS: u64 = 1500;
/// Hugetlb memory comes in whole ones.
const HUGE: u64 = 2 << 20;

/// Returns how many additions were made.
pub(super) fn contests(run: &Run, disk: Option<&Disk>) -> Result<u64> {
    let mut memory =
        vec![("shmem", of(memfd(MFdFlags::empty())?)), ("hugetlb", of(huge()?)), ("tmpfs", tmpfs()?)];
    if let Some(disk) = disk {
        memory.push(("ext2", (disk.file("shared", HUGE)?, disk.path("shared"))));
    }
    let mut sum = 0;
    for (name, (file, path)) in memory {
        step(format!("two processes on {name}"));
        sum += contest(run, &file, path).with_context(|| name)?;
    }
    Ok(sum)
}

/// A file that has no name but in this process.
fn of(file: File) -> (File, PathBuf) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    (file, path.into())
}

fn memfd(flags: MFdFlags) -> Result<File> {
    let file = File::from(memfd_create(c"shared", flags).context("memfd_create")?);
    file.set_len(HUGE)?;
    Ok(file)
}

fn huge() -> Result<File> {
    fs::write("/proc/sys/vm/nr_hugepages", "2")?;
    memfd(MFdFlags::MFD_HUGETLB)
}

fn tmpfs() -> Result<(File, PathBuf)> {
    let path = PathBuf::from("/tmp/shared");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.set_len(HUGE)?;
    Ok((file, path))
}

fn contest(run: &Run, file: &File, path: PathBuf) -> Result<u64> {
    let path = path.into_os_string().into_string().map_err(|_| anyhow::anyhow!("not a path in UTF-8"))?;
    let mut other = Process::start("coherent", &[path, run.devices.to_string()])?;
    let mut party = Party::new(file, run.devices, Policy::COHERENT)?;
    other.expect("ready", patience())?;
    other.say("go")?;
    let mine = party.work()?;
    let line = other.line(patience())?;
    let theirs: u64 = line.strip_prefix("added ").context(line.clone())?.parse()?;
    let area = Area::of_file(file, HUGE)?;
    for word in 0..WORDS {
        let found = area.load(word * STRIDE, WidthLog2::W64);
        let expected = mine + theirs;
        ensure!(found == expected, "word {word}: expected {expected}, found {found}");
    }
    let status = other.wait(patience())?;
    ensure!(status.success(), "the other process ended with {status}");
    Ok((mine + theirs) * WORDS)
}

/// `workload child coherent PATH DEVICES`.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [path, devices] = arguments else { anyhow::bail!("needs a path and devices") };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // What can't be exclusive is coherent by this policy as well.
    let mut party = Party::new(&file, devices.parse()?, Policy::AUTO)?;
    process::tell("ready")?;
    process::listen()?;
    let added = party.work()?;
    process::tell(&format!("added {added}"))
}

/// One of the processes: its contexts, each with an address of the memory.
struct Party {
    contexts: Vec<(Side, Area)>,
    /// The CPU's.
    area: Area,
}

impl Party {
    fn new(file: &File, devices: u32, policy: Policy) -> Result<Self> {
        let mut contexts = Vec::new();
        for device in 0..devices {
            let (side, area) = (Side::new(device)?, Area::of_file(file, HUGE)?);
            side.device.set_policy(area.range(), policy)?;
            contexts.push((side, area));
        }
        Ok(Party { contexts, area: Area::of_file(file, HUGE)? })
    }

    /// Adds until the contexts have done all their commands. Returns what was added to each word.
    fn work(&mut self) -> Result<u64> {
        let (area, contexts) = (&self.area, &mut self.contexts);
        let over = AtomicBool::new(false);
        let (added, turns) = thread::scope(|scope| {
            let cpu = scope.spawn(|| {
                let mut turns = 0;
                while !over.load(Relaxed) {
                    for word in 0..WORDS {
                        area.increment(word * STRIDE);
                    }
                    turns += 1;
                }
                turns
            });
            let added = (0..COMMANDS).try_fold(0, |added, _| anyhow::Ok(added + round(contexts)?));
            over.store(true, Relaxed);
            (added, cpu.join())
        });
        let turns: u64 = turns.map_err(|_| anyhow::anyhow!("the CPU's thread panicked"))?;
        for (side, _) in contexts {
            let cost = side.so_far()?;
            ensure!(
                cost.grants == 0 && cost.cancels == 0 && cost.shared >= WORDS * STRIDE / PAGE,
                "nothing here can be exclusive, and all was used: {cost:?}"
            );
        }
        Ok(added? + turns)
    }
}

/// A command in every context at the same time. Returns how many there were.
fn round(contexts: &mut [(Side, Area)]) -> Result<u64> {
    for (side, area) in &mut *contexts {
        side.queue.submit(&additions(area, STRIDE, WORDS)?)?;
    }
    for (side, _) in &mut *contexts {
        let found = side.queue.complete()?;
        ensure!(found.status.is_success() && u64::from(found.applied) == WORDS, "{found:?}");
    }
    Ok(contexts.len() as u64)
}
