// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `looking`: a series of accesses whose every consequence is known. The trace must tell them all, in order,
//! with page and reason, and no more; the STATS ioctl and debugfs must count the same. Then debugfs is read without
//! end while contexts come and go.
#![expect(unsafe_code, reason = "submits entries that name areas")]

use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use crate::tracing::{Event, Recording};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::abi::status::Status;
use svmx::abi::uapi::Stats;
use svmx::{Device, QueueSize, debugfs};

/// What the areas of a page each are there for, by index.
const TOUCHED: usize = 0;
const UPGRADED: usize = 1;
const PROTECTED: usize = 2;
const KEPT: usize = 3;
const FORBIDDEN: usize = 4;
const AREAS: usize = 5;
/// What the driver handles together.
const SPAN: u64 = 2 << 20;

/// What the series leads to: event, area, and what the event says about it.
const EXPECTED: [(&str, usize, &str); 24] = [
    // An atomic on a page that nobody has used, and a touch by the CPU.
    ("fault", TOUCHED, "access=atomic"),
    ("grant", TOUCHED, "access=atomic result=granted"),
    ("replay", TOUCHED, "access=atomic"),
    ("revoke", TOUCHED, "access=atomic reason=CLEAR"),
    ("invalidate", TOUCHED, "reason=CLEAR"),
    // A read, then an atomic on the same page, and a discard.
    ("fault", UPGRADED, "access=read"),
    ("grant", UPGRADED, "access=read result=granted"),
    ("replay", UPGRADED, "access=read"),
    ("fault", UPGRADED, "access=atomic"),
    ("grant", UPGRADED, "access=atomic result=granted"),
    ("replay", UPGRADED, "access=atomic"),
    ("revoke", UPGRADED, "access=atomic reason=CLEAR"),
    ("invalidate", UPGRADED, "reason=CLEAR"),
    // An atomic, and mprotect().
    ("fault", PROTECTED, "access=atomic"),
    ("grant", PROTECTED, "access=atomic result=granted"),
    ("replay", PROTECTED, "access=atomic"),
    ("revoke", PROTECTED, "access=atomic reason=PROTECTION_VMA"),
    ("invalidate", PROTECTED, "reason=PROTECTION_VMA"),
    // An atomic where the process may do nothing.
    ("fault", FORBIDDEN, "access=atomic"),
    ("grant", FORBIDDEN, "access=atomic result=EFAULT"),
    ("cancel", FORBIDDEN, "status=PERMISSION"),
    // An atomic on a page that the context has until it ends.
    ("fault", KEPT, "access=atomic"),
    ("grant", KEPT, "access=atomic result=granted"),
    ("replay", KEPT, "access=atomic"),
];
const AT_THE_END: [(&str, usize, &str); 1] = [("revoke", KEPT, "access=atomic reason=end")];

pub(crate) fn run(_run: &Run) -> Result<Shown> {
    if !Recording::is_possible() {
        return Ok(Shown::Skip("this kernel has no trace events".into()));
    }
    let recording = Recording::start()?;
    let device = Device::open_nth(0)?;
    // In one span of the driver: whether a page's span was there makes a difference where the process may do nothing.
    let base = Area::room(2 * SPAN)?.next_multiple_of(SPAN);
    let areas: Result<Vec<_>> = (0..AREAS).map(|area| Area::at(base + area as u64 * PAGE, PAGE)).collect();
    let mut areas = areas?;
    series(&device, &mut areas)?;
    // For whoever reads the log of a failure.
    println!("{}", recording.text()?);
    step("comparing");
    let events = recording.events()?;
    compare(&events, &EXPECTED, &areas)?;
    let stats = device.stats()?;
    agree(&events, &stats)?;
    let folder = debugfs::of_context(0, events[0].number("asid")?);
    shown(&folder, &stats)?;
    step("the end of the context");
    let ended = debugfs::ended()?;
    let mut open = File::open(folder.join("stats"))?;
    drop(device);
    ensure!(!folder.exists(), "{} is still there", folder.display());
    ensure!(
        open.read_to_end(&mut Vec::new()).is_err(),
        "a file of a context that has ended can still be read"
    );
    // Closed when the context, and all that it showed, is gone.
    drop(open);
    for (name, value) in numbers(&stats) {
        let expected = ended.get(name).copied().unwrap_or(0) + value + u64::from(name == "revocations");
        let found = debugfs::ended()?.get(name).copied();
        ensure!(found == Some(expected), "of contexts that have ended {name} is {found:?}, not {expected}");
    }
    let all = recording.events()?;
    compare(&all[events.len()..], &AT_THE_END, &areas)?;
    metric("events", all.len());
    drop(recording);
    let reads = read_meanwhile()?;
    metric("debugfs_reads", reads);
    Ok(Shown::Pass(format!(
        "{} events, all as expected, and the counters agree; {reads} reads while contexts ended",
        all.len()
    )))
}

/// Each command is waited for, so that the order of the events is that of the series.
fn series(device: &Device, areas: &mut [Area]) -> Result<()> {
    let addresses: Vec<u64> = areas.iter().map(|area| area.address(0)).collect();
    areas[FORBIDDEN].protect(false, false)?;
    areas[UPGRADED].store(0, WidthLog2::W64, 7);
    // SAFETY: it names the areas, which nothing but atomics reaches, if anything.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    let mut execute = |opcode, area: usize, expected| {
        step(format!("{opcode:?} on area {area}"));
        let operand = u64::from(opcode != Opcode::READ);
        let done = queue.execute(&scalar(opcode, WidthLog2::W64, addresses[area], operand))?;
        ensure!(done.status.0 == expected, "{opcode:?} on area {area}: {done:?}");
        anyhow::Ok(())
    };
    execute(Opcode::FETCH_ADD, TOUCHED, Status::SUCCESS)?;
    ensure!(areas[TOUCHED].load(0, WidthLog2::W64) == 1, "the addition is lost");
    execute(Opcode::READ, UPGRADED, Status::SUCCESS)?;
    execute(Opcode::FETCH_ADD, UPGRADED, Status::SUCCESS)?;
    areas[UPGRADED].discard()?;
    execute(Opcode::FETCH_ADD, PROTECTED, Status::SUCCESS)?;
    areas[PROTECTED].flicker()?;
    execute(Opcode::FETCH_ADD, FORBIDDEN, Status::PERMISSION)?;
    execute(Opcode::FETCH_ADD, KEPT, Status::SUCCESS)
}

/// Whether the events are these, about these areas.
fn compare(events: &[Event], expected: &[(&str, usize, &str)], areas: &[Area]) -> Result<()> {
    let mut found = events.iter();
    for (number, (name, area, says)) in expected.iter().enumerate() {
        let event = found.next().with_context(|| format!("event {number} did not come: {name} {says}"))?;
        let place = areas[*area].address(0);
        let agrees = says.split(' ').all(|field| event.says(field));
        if event.name != *name || !agrees || pages(event)? != (place..place + PAGE) {
            bail!("event {number}: expected {name} {says} at {place:#x}, found {event:?}");
        }
    }
    match found.next() {
        Some(event) => bail!("one event more than expected: {event:?}"),
        None => Ok(()),
    }
}

/// The pages that an event is about.
fn pages(event: &Event) -> Result<std::ops::Range<u64>> {
    let start = match event.name.as_str() {
        "invalidate" => return Ok(event.number("start")?..event.number("end")?),
        "fault" => event.number("va")? / PAGE * PAGE,
        _ => event.number("page")?,
    };
    Ok(start..start + PAGE)
}

/// Whether the context's counters say what the events of its time say.
fn agree(events: &[Event], stats: &Stats) -> Result<()> {
    let count = |name: &str, says: &[&str]| {
        let agrees = |event: &&Event| event.name == name && says.iter().all(|field| event.says(field));
        events.iter().filter(agrees).count() as u64
    };
    let (atomic, granted) = ("access=atomic", "result=granted");
    let pairs = [
        ("faults", stats.faults, count("fault", &[])),
        ("grants", stats.grants, count("grant", &[atomic, granted])),
        ("shared_grants", stats.shared_grants, count("grant", &["access=read", granted])),
        ("retries", stats.retries, count("grant", &["result=raced"])),
        ("replays", stats.replays, count("replay", &[])),
        ("cancels", stats.cancels, count("cancel", &[])),
        ("revocations", stats.revocations, count("revoke", &[atomic])),
        ("invalidations", stats.invalidations, count("invalidate", &[])),
    ];
    for (name, counted, traced) in pairs {
        ensure!(counted == traced, "{name} is {counted}, but the trace has {traced}");
    }
    Ok(())
}

/// Counters by the names that debugfs has for them.
fn numbers(stats: &Stats) -> [(&'static str, u64); 12] {
    [
        ("faults", stats.faults),
        ("grants", stats.grants),
        ("revocations", stats.revocations),
        ("shared_grants", stats.shared_grants),
        ("replays", stats.replays),
        ("cancels", stats.cancels),
        ("retries", stats.retries),
        ("invalidations", stats.invalidations),
        ("ahead", stats.ahead),
        ("ahead_lost", stats.ahead_lost),
        ("evictions", stats.evictions),
        ("huge_grants", stats.huge_grants),
    ]
}

/// Whether the context's files say what is so.
fn shown(folder: &Path, stats: &Stats) -> Result<()> {
    step("debugfs");
    let counters = debugfs::numbers(folder.join("stats"))?;
    for (name, value) in numbers(stats) {
        ensure!(counters.get(name) == Some(&value), "STATS has {name} = {value}, debugfs {counters:?}");
    }
    ensure!(counters.len() == numbers(stats).len(), "debugfs has more counters: {counters:?}");
    let context = debugfs::read(folder.join("context"))?;
    // What the device has is one page, that which was kept; the queue is gone.
    let pid = std::process::id().to_string();
    let expected = [("pid", pid.as_str()), ("queues", "0"), ("pages_exclusive", "1"), ("pages_shared", "0")];
    for (name, value) in expected {
        ensure!(context.get(name).map(String::as_str) == Some(value), "{name} is not {value}: {context:?}");
    }
    let latency = debugfs::numbers(folder.join("latency"))?;
    let samples = [("replay_ns_count", &stats.replay_ns), ("revoke_ns_count", &stats.revoke_ns)];
    for (name, histogram) in samples {
        let total: u64 = histogram.iter().sum();
        ensure!(total > 0 && latency.get(name) == Some(&total), "{name} is not {total}: {latency:?}");
    }
    let device = debugfs::read(debugfs::of_device(0).join("device"))?;
    for (name, value) in [("state", "alive"), ("fault_waiting", "0")] {
        ensure!(device.get(name).map(String::as_str) == Some(value), "{name} is not {value}: {device:?}");
    }
    // For whoever wants to see what it looks like.
    for path in [debugfs::of_device(0).join("device"), folder.join("context"), folder.join("latency")] {
        println!("{}:\n{}", path.display(), fs::read_to_string(&path)?);
    }
    Ok(())
}

/// Contexts that are opened, used and closed while somebody reads all there is to read.
fn read_meanwhile() -> Result<u64> {
    const CONTEXTS: u32 = 100;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !over.load(Relaxed) {
                reads += read_all(Path::new(debugfs::FOLDER));
            }
            reads
        });
        let used = (0..CONTEXTS).try_for_each(|round| {
            step(format!("context {round} under debugfs"));
            use_context()
        });
        over.store(true, Relaxed);
        let reads = reader.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        used.map(|()| reads)
    })
}

fn use_context() -> Result<()> {
    let area = Area::new(Backing::Private, PAGE)?;
    let device = Device::open_nth(0)?;
    // SAFETY: it names `area`, which nothing but atomics reaches.
    let mut queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
    let done = queue.execute(&scalar(Opcode::FETCH_ADD, WidthLog2::W64, area.address(0), 1))?;
    ensure!(done.status.is_success(), "{done:?}");
    Ok(())
}

/// Reads every file below; returns how many could be read. What is not there any more is no error.
fn read_all(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.map(|path| if path.is_dir() { read_all(&path) } else { fs::read(path).is_ok().into() }).sum()
}
