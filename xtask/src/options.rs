// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The options that every command that boots a guest has, and what a good value is.

use crate::kernel::{Choice, Flavour};
use crate::toolchain::Version;
use crate::vm::AccelChoice;
use std::path::PathBuf;

/// Options of the guest and its devices.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VmOptions {
    /// What runs the guest
    #[arg(long, value_enum, default_value_t)]
    pub(crate) accel: AccelChoice,
    /// The guest's CPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) cpus: u32,
    /// The guest's memory, with a suffix M or G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    pub(crate) mem: u64,
    /// Devices to attach [default: what the scenario needs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) devices: Option<u32>,
    /// Engines of each device [default: the scenario's own, as a rule 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) engines: Option<u16>,
    #[command(flatten)]
    pub(crate) kernel: KernelOptions,
    /// Runs the guest with this QEMU, on the host as it is
    #[arg(long, value_name = "PATH")]
    pub(crate) qemu: Option<PathBuf>,
    /// The device waits this long between the read and the write of an atomic [default: the scenario's own]
    #[arg(long, value_name = "NS", value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    pub(crate) rmw_delay: Option<u64>,
    /// Whether the devices report who else stores to pages that they hold exclusively, which fails the scenario;
    /// those of scenarios called *-unwatched never do
    #[arg(long, value_enum, value_name = "WHETHER", num_args = 0..=1, require_equals = true,
          default_value_t, default_missing_value = "on")]
    pub(crate) check_exclusive: Switch,
    /// Lets the devices misbehave as far as the specification allows: light, all, or a list of faults such as
    /// irq-delay=100us:0.3,tlb-evict=0.01; --seed decides when
    #[arg(long, value_name = "SPEC")]
    pub(crate) chaos: Option<String>,
    /// Lets each device write what it does to a file in this folder, for ui.perfetto.dev
    #[arg(long, value_name = "DIR")]
    pub(crate) trace: Option<PathBuf>,
    /// Says more: the guest's whole boot, the device's requests, what is cached
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Options of the guest's kernel.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KernelOptions {
    /// The series of the packaged kernel, such as 7.2; `doctor` says which there are [default: the newest]
    #[arg(long, value_name = "VERSION", conflicts_with = "kernel_src")]
    kernel: Option<Version>,
    /// Builds the guest's kernel from this source tree
    #[arg(long, value_name = "DIR")]
    kernel_src: Option<PathBuf>,
    /// How the kernel is configured [default: fast; `test` also runs a part with debug, unless this says what]
    #[arg(long, value_enum)]
    flavour: Option<Flavour>,
}

impl KernelOptions {
    /// How it is configured.
    pub(crate) fn flavour(&self) -> Flavour {
        self.flavour.unwrap_or_default()
    }

    /// The same kernel as `debug`, if the user leaves the flavour to us. A tree of the user's is built once only.
    pub(crate) fn debug_too(&self) -> Option<Self> {
        let ours = self.flavour.is_none() && self.kernel_src.is_none();
        ours.then(|| KernelOptions { flavour: Some(Flavour::Debug), ..self.clone() })
    }

    /// Which kernel it is.
    pub(crate) fn choice(&self) -> Choice<'_> {
        match &self.kernel_src {
            Some(tree) => Choice::Tree(tree),
            None => Choice::Packaged(self.kernel),
        }
    }
}

/// Something that is on unless it is switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    #[default]
    On,
    Off,
}

/// Options of commands that judge what the guest did.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) vm: VmOptions,
    /// Ends a scenario that has no verdict by then [default: the scenario's own limit]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: Option<u64>,
    /// Seeds what is random in the guest, and chaos in the devices [default: a new one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Keeps to the parts of a scenario whose names contain this, where it has such: cells of events
    #[arg(long, value_name = "TEXT", value_parser = word)]
    pub(crate) only: Option<String>,
    /// Lets scenarios without an end of their own work this long [default: the scenario's own time]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) duration: Option<u32>,
    /// Writes the results to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Less than this, and the guest's own workloads don't fit.
const LEAST_MEMORY: u64 = 256 << 20;
const MOST_MEMORY: u64 = 1 << 40;

/// What can stand in the guest's command line.
fn word(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_".contains(&byte);
    match text.bytes().all(good) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("expected letters, digits, and / - _ only".to_owned()),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    let bad = || "expected a number with a suffix M or G, such as 512M or 2G".to_owned();
    let (digits, unit) = match text.char_indices().next_back() {
        Some((end, 'M' | 'm')) => (&text[..end], 1 << 20),
        Some((end, 'G' | 'g')) => (&text[..end], 1 << 30),
        _ => return Err(bad()),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(bad)?;
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&size) {
        return Err("expected at least 256M, and at most 1024G".to_owned());
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(word("fork/page"), Ok("fork/page".to_owned()));
        for bad in ["", "a b", "a\nb", "a=b", "é"] {
            assert!(word(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_part_runs_with_debug_unless_somebody_chose() {
        let options = |flavour, kernel_src| KernelOptions { kernel: None, kernel_src, flavour };
        let too = options(None, None).debug_too().unwrap();
        assert_eq!((options(None, None).flavour(), too.flavour()), (Flavour::Fast, Flavour::Debug));
        assert!(options(Some(Flavour::Fast), None).debug_too().is_none());
        assert!(options(None, Some("/linux".into())).debug_too().is_none());
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(memory("1G"), Ok(1 << 30));
        assert_eq!(memory("512m"), Ok(512 << 20));
        for bad in
            ["", "G", "1", "1T", "-1G", "1.5G", "255M", "99999999999999999999G", "18446744073709551615G", "é"]
        {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
