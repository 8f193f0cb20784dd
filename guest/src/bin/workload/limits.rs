// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `limits`: users who take all that they may have leave others theirs; what the driver allocates for a process is
//! charged to its memory cgroup, given back, and refused at the cgroup's limit, which nobody is killed for.
#![expect(unsafe_code, reason = "submits entries that name areas")]

use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::link::metric;
use crate::process::{Process, listen, tell};
use crate::scenario::{Run, Shown, patience, step};
use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use svmx::abi::pci::MAX_RING_LOG2;
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::{Device, Error, Queue, QueueSize};

const CGROUPS: &str = "/tmp/cgroup";
/// The largest rings, to be seen among what else is charged.
const RINGS: QueueSize = QueueSize { sq_log2: MAX_RING_LOG2, cq_log2: MAX_RING_LOG2 };
/// Bytes of both: entries of 64 and of 32 bytes.
const RING_BYTES: u64 = (64 + 32) << MAX_RING_LOG2;
const QUEUES: u64 = 8;
/// Bytes of address space that have a table of their own, a page.
const SPAN: u64 = 2 << 20;
const SPANS: u64 = 128;
/// Rounds of everything, after the first, over which nothing may grow.
const ROUNDS: u64 = 64;
/// What the kernel keeps ready on its CPUs for the next charge, and what it frees a little later: less than a page for
/// each of four rounds, so that 1 KiB left behind a round is seen.
const SLACK: u64 = ROUNDS / 4 * PAGE;

pub(crate) fn run(run: &Run) -> Result<Shown> {
    let limits = [parameter(run, "max_contexts_per_user")?, parameter(run, "max_queues_per_user")?];
    for device in 0..run.devices {
        fchmodat(
            nix::fcntl::AT_FDCWD,
            &Device::path(device),
            Mode::from_bits_truncate(0o666),
            FchmodatFlags::FollowSymlink,
        )?;
    }
    users(limits)?;
    memory()?;
    Ok(Shown::Pass(format!(
        "{} contexts and {} queues a user; memory charged, given back, and refused at its limit",
        limits[0], limits[1]
    )))
}

/// A parameter that the driver was loaded with.
fn parameter(run: &Run, name: &str) -> Result<u64> {
    let value = run.module.split(',').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| format!("the driver was loaded without {name}"))?.parse().context(name.to_owned())
}

fn users(limits: [u64; 2]) -> Result<()> {
    let full = format!("{} EDQUOT {} EDQUOT", limits[0], limits[1]);
    let takes_all = |uid: u32, formerly: u32| -> Result<Process> {
        step(format!("user {uid}, formerly {formerly}, takes what there is"));
        let mut user = Process::start("limits-user", &[uid.to_string(), formerly.to_string()])?;
        user.expect(&full, patience())?;
        step(format!("user {uid} gives one of each back, and takes it again"));
        user.say("again")?;
        user.expect("1 EDQUOT 1 EDQUOT", patience())?;
        Ok(user)
    };
    let mut first = takes_all(1001, 0)?;
    let mut second = takes_all(1002, 0)?;
    step("a user beside one who has all");
    second.say("use")?;
    second.expect("used", patience())?;
    step("root, who may have more");
    let more: Result<Vec<_>, _> = (0..=limits[0]).map(|_| Device::open_nth(0)).collect();
    drop(more.context("root is limited")?);
    step("a user who gave all back");
    ensure!(first.wait(patience())?.success(), "the first user failed");
    let mut again = takes_all(1001, 0)?;
    ensure!(again.wait(patience())?.success() && second.wait(patience())?.success(), "a user failed");
    step("a process that became another user");
    let mut other = takes_all(1003, 1001)?;
    ensure!(takes_all(1001, 0)?.wait(patience())?.success(), "the user that it was failed");
    ensure!(other.wait(patience())?.success(), "the user that it became failed");
    Ok(())
}

/// A user: takes contexts and queues until there are no more, says how many, and keeps them. As who it was before it
/// had one of each, which are theirs until it closes them.
pub(crate) fn user(arguments: &[String]) -> Result<()> {
    let [uid, formerly] = arguments else { anyhow::bail!("not two users") };
    let (uid, formerly) = (uid.parse::<u32>()?, Uid::from_raw(formerly.parse()?));
    setresuid(formerly, Uid::from_raw(0), Uid::from_raw(0))?;
    let former = Device::open_nth(0)?;
    let former = (former.create_queue(QueueSize::default())?, former);
    setresgid(Gid::from_raw(uid), Gid::from_raw(uid), Gid::from_raw(uid))?;
    setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    let (mut devices, no_device) = all_of(|| Device::open_nth(0));
    let device = devices.pop().context("no context at all")?;
    let (mut queues, no_queue) = all_of(|| device.create_queue(QueueSize::default()));
    drop(former);
    tell(&format!("{} {no_device} {} {no_queue}", devices.len() + 1, queues.len()))?;
    loop {
        match listen()?.as_str() {
            "again" => {
                drop((devices.pop(), queues.pop()));
                let (more_devices, no_device) = all_of(|| Device::open_nth(0));
                let (more_queues, no_queue) = all_of(|| device.create_queue(QueueSize::default()));
                tell(&format!("{} {no_device} {} {no_queue}", more_devices.len(), more_queues.len()))?;
                devices.extend(more_devices);
                queues.extend(more_queues);
            }
            "use" => {
                let queue = queues.pop().context("no queue at all")?;
                add(queue, &Area::new(Backing::Private, PAGE)?, 1)?;
                tell("used")?;
            }
            _ => return Ok(()),
        }
    }
}

fn all_of<T>(mut make: impl FnMut() -> Result<T, Error>) -> (Vec<T>, String) {
    let mut all = Vec::new();
    loop {
        match make() {
            Ok(one) => all.push(one),
            Err(Error::Open { source, .. }) => {
                let errno = source.raw_os_error().map(nix::errno::Errno::from_raw);
                return (all, errno.map_or("?".into(), |errno| format!("{errno:?}")));
            }
            Err(Error::Ioctl { errno, .. }) => return (all, format!("{errno:?}")),
            Err(error) => return (all, format!("{error}")),
        }
    }
}

/// Adds 1 to the first word of every span of `area`.
fn add(queue: Queue, area: &Area, spans: u64) -> Result<()> {
    // SAFETY: it names `area`, which nothing but atomics reaches.
    let mut queue = unsafe { RawQueue::new(queue) };
    for span in 0..spans {
        let entry = scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(span * SPAN), 1);
        let done = queue.execute(&entry)?;
        ensure!(done.status.is_success(), "span {span}: {done:?}");
        ensure!(area.load(span * SPAN, WidthLog2::W64) == 1, "span {span}: the addition is lost");
    }
    Ok(())
}

fn memory() -> Result<()> {
    let group = Group::new("svmx")?;
    let mut process = Process::start("limits-memory", &[])?;
    process.expect("here", patience())?;
    group.add(process.id())?;
    let mut ask = |what: &str, answer: &str| -> Result<()> {
        step(format!("a process in a cgroup: {what}"));
        process.say(what)?;
        process.expect(answer, patience())
    };
    // What the process and the kernel keep for good is there after the first rounds.
    for _ in 0..ROUNDS / 8 {
        ask("round", "round")?;
    }
    let before = group.kernel()?;
    ask("open", "open")?;
    ask("queues", "queues")?;
    let with_queues =
        group.kernel_when("rings are not charged", |now| now >= before + QUEUES * RING_BYTES)?;
    ask("no queues", "no queues")?;
    let without = group.kernel_when("rings are still charged", |now| now <= before + RING_BYTES)?;
    ask("spans", "spans")?;
    let with_spans = group.kernel_when("tables are not charged", |now| now >= before + SPANS * PAGE)?;
    ask("close", "close")?;
    for _ in 0..ROUNDS {
        ask("round", "round")?;
    }
    let after = group.kernel_when("something stays charged every round", |now| now <= before + SLACK)?;
    metric("charged_rings", with_queues.saturating_sub(before));
    metric("charged_spans", with_spans.saturating_sub(without));
    metric("charged_growth", after.saturating_sub(before));
    step("a process at its cgroup's limit");
    group.limit(group.current()? + 4 * RING_BYTES)?;
    ask("too much", "ENOMEM")?;
    ensure!(group.event("oom_kill")? == 0, "a process was killed");
    let device = Device::open_nth(0)?;
    add(device.create_queue(RINGS)?, &Area::new(Backing::Private, PAGE)?, 1).context("beside it")?;
    ensure!(process.wait(patience())?.success(), "the process failed");
    Ok(())
}

/// The process whose memory is looked at.
pub(crate) fn charged(_: &[String]) -> Result<()> {
    tell("here")?;
    let mut device = None;
    let mut queues = Vec::new();
    loop {
        let what = listen()?;
        match (what.as_str(), &device) {
            ("", _) => return Ok(()),
            ("round", None) => round()?,
            ("open", None) => device = Some(Device::open_nth(0)?),
            ("queues", Some(device)) => queues = large_queues(device)?,
            ("no queues", _) => queues.clear(),
            ("spans", Some(device)) => spans(device)?,
            ("close", _) => device = None,
            ("too much", None) => {
                let device = Device::open_nth(0)?;
                let (_all, error) = all_of(|| device.create_queue(RINGS));
                tell(&error)?;
                continue;
            }
            _ => anyhow::bail!("asked for {what:?}"),
        }
        tell(&what)?;
    }
}

/// Everything once, and nothing left. Spans first: so many rings make the kernel add up what its CPUs have counted.
fn round() -> Result<()> {
    let device = Device::open_nth(0)?;
    spans(&device)?;
    drop(large_queues(&device)?);
    Ok(())
}

fn large_queues(device: &Device) -> Result<Vec<Queue>> {
    (0..QUEUES).map(|_| Ok(device.create_queue(RINGS)?)).collect()
}

fn spans(device: &Device) -> Result<()> {
    let area = Area::new(Backing::Private, SPANS * SPAN)?;
    add(device.create_queue(QueueSize::default())?, &area, SPANS)
}

/// A memory cgroup.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Result<Self> {
        let root = Path::new(CGROUPS);
        fs::create_dir_all(root)?;
        mount(Some("cgroup2"), root, Some("cgroup2"), MsFlags::empty(), None::<&str>).context("cgroup2")?;
        fs::write(root.join("cgroup.subtree_control"), "+memory").context("no memory cgroups")?;
        let group = Group(root.join(name));
        fs::create_dir(&group.0)?;
        Ok(group)
    }

    fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("moving a process into the cgroup")
    }

    fn limit(&self, bytes: u64) -> Result<()> {
        fs::write(self.0.join("memory.max"), bytes.to_string()).context("memory.max")
    }

    fn current(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.0.join("memory.current"))?.trim().parse()?)
    }

    /// What the kernel has allocated for it.
    fn kernel(&self) -> Result<u64> {
        self.number("memory.stat", "kernel")
    }

    /// The same once it is `right`, or an error that says what is `wrong`. The kernel adds up what its CPUs have counted
    /// every two seconds at the latest, and frees some of its own objects after a grace period.
    fn kernel_when(&self, wrong: &str, right: impl Fn(u64) -> bool) -> Result<u64> {
        let (start, first) = (Instant::now(), self.kernel()?);
        loop {
            let now = self.kernel()?;
            if right(now) {
                return Ok(now);
            }
            ensure!(start.elapsed() < patience(), "{wrong}: {now} bytes, {first} at first");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn event(&self, name: &str) -> Result<u64> {
        self.number("memory.events", name)
    }

    fn number(&self, file: &str, name: &str) -> Result<u64> {
        let text = fs::read_to_string(self.0.join(file))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("{file} has no {name}"))?.parse()?)
    }
}
