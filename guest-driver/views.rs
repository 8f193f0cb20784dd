// SPDX-License-Identifier: GPL-2.0

//! What debugfs shows: `svmx/ended`, `svmx/svmxN/device` and `svmx/svmxN/ASID/{context,stats,latency}`.
//! docs/debugging.md says what it means. A line is a name and a value, for people and programs.

use super::abi::hist;
use super::context::Context;
use super::device::Device;
use super::hw::debugfs::{Dir, Files, View};
use super::stats::{Latency, Stats, ENDED};
use kernel::{fmt, prelude::*, str::CString, sync::Arc};

/// Percentiles that are shown, in thousandths.
const PERCENTILES: [(u64, &str); 4] = [(500, "p50"), (900, "p90"), (990, "p99"), (999, "p99.9")];
/// Columns of the largest bucket's bar.
const BAR: u64 = 50;

/// The module's own file: the sum over all contexts that have ended.
pub(crate) fn of_module() -> Result<Files<Ended>> {
    Ok(Files::new(Dir::root(), Arc::new(Ended, GFP_KERNEL)?).with::<EndedView>(c"ended"))
}

/// The folder of a device, for [`of_device`] and [`of_context`].
pub(crate) fn folder(number: u32) -> Dir {
    match CString::try_from_fmt(fmt!("svmx{number}")) {
        Ok(name) => Dir::root().dir(&name),
        Err(_) => Dir::none(),
    }
}

/// A device's file.
pub(crate) fn of_device(folder: Dir, device: Arc<Device>) -> Files<Device> {
    Files::new(folder, device).with::<DeviceView>(c"device")
}

/// A context's folder in its device's, and the files in it.
pub(crate) fn of_context(folder: &Dir, context: Arc<Context>) -> Files<Context> {
    let dir = match CString::try_from_fmt(fmt!("{}", context.asid)) {
        Ok(name) => folder.dir(&name),
        Err(_) => Dir::none(),
    };
    Files::new(dir, context)
        .with::<ContextView>(c"context")
        .with::<StatsView>(c"stats")
        .with::<LatencyView>(c"latency")
}

/// Contexts that have ended, all devices' together.
pub(crate) struct Ended;

struct EndedView;

impl View<Ended> for EndedView {
    fn show(_: &Ended, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        numbers(&ENDED, f)?;
        ENDED.latencies().into_iter().try_for_each(|(name, latency)| summary(name, latency, f))
    }
}

struct DeviceView;

impl View<Device> for DeviceView {
    fn show(device: &Device, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = device.identity();
        writeln!(f, "state {}", if device.is_dead() { "dead" } else { "alive" })?;
        writeln!(f, "version {}.{}", identity.version.major(), identity.version.minor())?;
        writeln!(f, "engines {}", identity.num_engines)?;
        writeln!(f, "contexts {} of {}", device.count_contexts(), identity.max_contexts)?;
        writeln!(f, "queues {} of {}", device.count_queues(), identity.max_queues)?;
        // Nothing of a device that is being unbound.
        let Some(rings) = device.rings() else { return Ok(()) };
        writeln!(f, "control_tail {}", rings.control_tail)?;
        writeln!(f, "control_head {}", rings.control_head)?;
        writeln!(f, "syncs_submitted {}", rings.syncs_submitted)?;
        writeln!(f, "synced_position {}", rings.synced_position)?;
        writeln!(f, "fault_head {}", device.faults_taken())?;
        writeln!(f, "fault_waiting {}", u32::from(device.has_fault()))
    }
}

struct ContextView;

impl View<Context> for ContextView {
    fn show(context: &Context, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pid {}", context.opener.pid())?;
        writeln!(f, "comm {}", context.opener.comm())?;
        let queues = context.queues.lock();
        writeln!(f, "queues {}", queues.len())?;
        for queue in queues.iter() {
            writeln!(f, "queue {} cq_head {}", queue.id(), queue.consumer_head())?;
        }
        drop(queues);
        writeln!(f, "faults_waiting {}", context.count_faults())?;
        writeln!(f, "spans {}", context.space.lock().as_ref().map_or(0, |space| space.count()))?;
        for (name, pages) in context.stats.held() {
            writeln!(f, "{name} {pages}")?;
        }
        Ok(())
    }
}

struct StatsView;

impl View<Context> for StatsView {
    fn show(context: &Context, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        numbers(&context.stats, f)
    }
}

fn numbers(stats: &Stats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    stats.numbers().into_iter().try_for_each(|(name, number)| writeln!(f, "{name} {number}"))
}

struct LatencyView;

impl View<Context> for LatencyView {
    fn show(context: &Context, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, latency) in context.stats.latencies() {
            summary(name, latency, f)?;
            bars(latency, f)?;
        }
        Ok(())
    }
}

/// The count, and lower bounds of the buckets that hold the percentiles.
fn summary(name: &str, latency: &Latency, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{name}_count {}", latency.total())?;
    for (thousandths, label) in PERCENTILES {
        if let Some(ns) = latency.percentile(thousandths) {
            writeln!(f, "{name}_{label} {ns}")?;
        }
    }
    Ok(())
}

/// A line for each bucket that is not empty.
fn bars(latency: &Latency, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let most = latency.buckets().max().unwrap_or(0).max(1);
    for (index, count) in latency.buckets().enumerate().filter(|(_, count)| *count > 0) {
        let bar = (count * BAR / most) as usize;
        writeln!(f, "  >= {:>11} ns {:>9} {:#<3$}", hist::lower_bound(index), count, "", bar)?;
    }
    Ok(())
}
