// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One boot of the guest with its devices, from start to verdict.

pub(crate) mod accel;
pub(crate) mod clock;
mod device;
mod logs;
pub(crate) mod probe;
mod qemu;
mod qmp;
mod rundir;
mod terminal;
mod verdict;
mod watch;

pub(crate) use accel::{Accel, AccelChoice};
pub(crate) use qemu::Qemu;
pub(crate) use verdict::Verdict;

use crate::artifacts::initramfs::{self, Origins};
use crate::failure::bad_request;
use crate::kernel::{Flavour, Kernel};
use crate::options::{Switch, VmOptions};
use crate::process::{self, Running};
use crate::progress::Progress;
use crate::scenario::Scenario;
use anyhow::{Context, Result};
use device::Device;
use logs::Logs;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use watch::Watch;

/// Everything that boots, built and ready.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: Kernel,
    pub(crate) origins: Origins,
    pub(crate) device: PathBuf,
    pub(crate) qemu: Qemu,
    pub(crate) accel: Accel,
    /// The frequency of the guest's timestamp counter, if the guest must be told.
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) verbose: bool,
}

/// What a run does on the machine.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: &'static Scenario,
    pub(crate) devices: u32,
    /// Instead of the scenario's own.
    pub(crate) engines: Option<u16>,
    /// Instead of the scenario's own.
    pub(crate) rmw_delay: Option<u64>,
    pub(crate) instruments: Instruments,
    pub(crate) seed: u64,
    /// Parts of the scenario to keep to.
    pub(crate) only: Option<String>,
    /// Seconds that a workload without an end of its own works.
    pub(crate) duration: Option<u32>,
    /// `None`: no limit, somebody sits at the console.
    pub(crate) timeout: Option<Duration>,
}

/// Who watches or disturbs the devices.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    pub(crate) check_exclusive: bool,
    /// Besides the scenario's own.
    pub(crate) chaos: Option<String>,
    /// The folder.
    pub(crate) trace: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// The guest's own words.
    pub(crate) detail: String,
    pub(crate) metrics: Map<String, Value>,
    /// What is wrong beside the guest's verdict. Not empty: the verdict is `Fail`.
    pub(crate) problems: Vec<String>,
    pub(crate) duration: Duration,
    /// Where the logs are.
    pub(crate) dir: PathBuf,
}

/// How long QEMU may take from the guest's end, or from `quit`, to its own.
const QEMU_PATIENCE: Duration = Duration::from_secs(10);

impl Machine {
    /// Boots, runs the plan, and takes everything down again.
    ///
    /// # Errors
    /// When the run could not begin. Once QEMU runs, whatever goes wrong is in the outcome.
    pub(crate) async fn run(&self, plan: &Plan, progress: &Progress) -> Result<Outcome> {
        let started = Instant::now();
        let dir = rundir::create(plan.scenario.name)?;
        // A socket's path may have 107 bytes at most, so they aren't in `dir`.
        let sockets = tempfile::Builder::new().prefix("svmx-").tempdir()?;
        let listen = |name| UnixListener::bind(sockets.path().join(name)).context("can't listen on a socket");
        let (qmp, verdicts) = (listen("qmp.sock")?, listen("verdict.sock")?);
        let console = plan.timeout.is_none().then(|| listen("console.sock")).transpose()?;

        let initramfs = sockets.path().join(qemu::INITRAMFS);
        initramfs::write(&self.origins, &initramfs)?;
        let mut devices = Vec::new();
        for index in 0..plan.devices as usize {
            let mut options = plan.device_options(index)?;
            if self.verbose {
                options.push("-v".into());
            }
            devices.push(Device::start(&self.device, index, &options, sockets.path(), &dir).await?);
        }

        let names: Vec<String> = (0..devices.len()).map(device::socket_name).collect();
        let image = self.kernel.image();
        let command_line = self.command_line(plan);
        let mut command = self.qemu.command(&qemu::Guest {
            accel: self.accel,
            cpus: self.cpus,
            memory: self.memory,
            nodes: plan.scenario.nodes,
            kernel: &image,
            command_line: &command_line,
            devices: &names,
            device_timeout: plan.scenario.device_timeout,
            sockets: sockets.path(),
            run_dir: &dir,
            interactive: console.is_some(),
        });
        progress.detail(format!("{:?}", command.as_std()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let booted = Instant::now();
        let mut qemu = Running::start(&mut command)?;
        progress.detail(format!("QEMU started {:.3} s after xtask", progress.elapsed().as_secs_f64()));
        let logs = rundir::capture(&mut qemu, &dir)?;

        let mut watch = Watch::new(plan.scenario, &mut devices, &mut qemu, booted);
        let deadline = plan.timeout.map(|timeout| booted + timeout);
        watch.run(&qmp, &verdicts, console.as_ref(), deadline).await;
        let seen = watch.finish();
        let mut problems = seen.problems;
        problems.extend(end_qemu(&mut qemu).await);
        for (index, device) in devices.iter_mut().enumerate() {
            problems.extend(device.finish(index).await);
        }
        logs.finish().await;

        let logs = Logs {
            dir: &dir,
            devices: devices.len(),
            deaths: plan.scenario.kills_devices,
            meddling: plan.scenario.meddling,
            watched: plan.instruments.check_exclusive,
        };
        problems.extend(logs.problems());
        let verdict = match seen.verdict {
            Some(verdict) if problems.is_empty() => verdict,
            _ => Verdict::Fail,
        };
        let duration = started.elapsed();
        let outcome =
            Outcome { verdict, detail: seen.detail, metrics: seen.metrics, problems, duration, dir };
        rundir::record(&outcome, plan)?;
        Ok(outcome)
    }

    fn command_line(&self, plan: &Plan) -> String {
        let slowdown = self.kernel.flavour.slowdown();
        // Notices and worse: each character on the serial line costs an exit.
        let level = if self.verbose { "loglevel=8 earlyprintk=ttyS0" } else { "loglevel=6" };
        // An overloaded host fails the kernel's check that timer interrupts come in time.
        let mut line = format!(
            "console=ttyS0 {level} panic=-1 oops=panic pty.legacy_count=0 random.trust_cpu=on no_timer_check \
             sysctl.kernel.hung_task_timeout_secs={} sysctl.kernel.watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60",
            20 * slowdown,
        );
        if let Some(khz) = self.tsc_khz {
            line.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if self.kernel.flavour == Flavour::Kasan {
            line.push_str(" kasan_multi_shot");
        }
        line.push_str(&format!(
            " svmx_init.scenario={} svmx_init.seed={} svmx_init.cpus={} svmx_init.devices={}",
            plan.scenario.workload(),
            plan.seed,
            self.cpus,
            plan.devices
        ));
        if plan.scenario.nodes > 1 {
            // The kernel's own part of each node is rounded up to 4 MiB and must not exceed half of it by so much: movable
            // memory begins with a block then.
            line.push_str(&format!(" movablecore={}M", (self.memory >> 21) + 4));
        }
        if !plan.scenario.module.is_empty() {
            line.push_str(&format!(" svmx_init.module={}", plan.scenario.module));
        }
        if let Some(only) = &plan.only {
            line.push_str(&format!(" svmx_init.only={only}"));
        }
        if let Some(timeout) = plan.timeout {
            line.push_str(&format!(" svmx_init.limit={}", guest_limit(timeout).as_secs()));
        }
        if let Some(duration) = plan.duration {
            line.push_str(&format!(" svmx_init.duration={duration}"));
        }
        line
    }
}

impl Plan {
    /// How a device misbehaves, in its own words.
    fn chaos(&self) -> Option<String> {
        let lists: Vec<&str> =
            self.instruments.chaos.as_deref().into_iter().chain(self.scenario.chaos).collect();
        (!lists.is_empty()).then(|| lists.join(","))
    }

    /// What device number `index` is started with. A trace's folder is made.
    fn device_options(&self, index: usize) -> Result<Vec<OsString>> {
        let engines = self.engines.unwrap_or(self.scenario.engines);
        let mut options = vec!["--engines".into(), engines.to_string().into()];
        if let Some(delay) = self.rmw_delay.or(self.scenario.rmw_delay) {
            options.extend(["--rmw-delay".into(), delay.to_string().into()]);
        }
        if self.instruments.check_exclusive {
            options.push("--check-exclusive".into());
        }
        if let Some(chaos) = self.chaos() {
            // Devices of a machine don't misbehave in step.
            let seed = self.seed.wrapping_add(index as u64);
            options.extend(["--chaos".into(), chaos.into(), "--seed".into(), seed.to_string().into()]);
        }
        if let Some(folder) = &self.instruments.trace {
            let refused = |error| bad_request(format!("--trace {}: {error}", folder.display()));
            fs::create_dir_all(folder).map_err(refused)?;
            let file = folder.join(format!("{}-device-{index}.json", self.scenario.name));
            options.extend(["--trace".into(), file.into()]);
        }
        Ok(options)
    }
}

impl Instruments {
    /// Those that `options` ask for and `scenario` has.
    pub(crate) fn new(options: &VmOptions, scenario: &Scenario) -> Self {
        Instruments {
            check_exclusive: options.check_exclusive == Switch::On && scenario.watched,
            chaos: options.chaos.clone(),
            trace: options.trace.clone(),
        }
    }
}

impl Outcome {
    /// The ends of all logs of the run, for a failure's report.
    pub(crate) fn log_tails(&self) -> String {
        let mut logs = vec![self.dir.join("console.log")];
        logs.extend(
            (0..).map(|index| self.dir.join(format!("device-{index}.log"))).take_while(|log| log.exists()),
        );
        logs.push(self.dir.join("qemu.log"));
        let shown = logs.iter().map(|log| {
            let lines = if log.ends_with("console.log") { 25 } else { 10 };
            let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("  {name}:\n{}\n", process::tail(log, lines))
        });
        shown.collect()
    }
}

/// The guest gives up before we do, and can say what it was at. It may use its limit and 15 s more.
fn guest_limit(timeout: Duration) -> Duration {
    timeout.saturating_sub(Duration::from_secs(30)).max(timeout / 2)
}

/// Sees to QEMU's end after the guest's; what is wrong with it.
async fn end_qemu(qemu: &mut Running) -> Option<String> {
    match tokio::time::timeout(QEMU_PATIENCE, qemu.wait()).await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => Some(format!("QEMU ended with {}", process::describe(status))),
        Ok(Err(error)) => Some(format!("QEMU can't be waited for: {error}")),
        Err(_) => {
            qemu.signal(nix::sys::signal::Signal::SIGKILL);
            let _ = qemu.wait().await;
            Some("QEMU did not end and had to be killed".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::RunOptions;
    use crate::{batch, scenario};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: RunOptions,
    }

    fn device_options(name: &str, line: &[&str]) -> Vec<String> {
        let line = Line::parse_from(["xtask", "--seed", "7"].iter().chain(line));
        let plan = batch::plan(&line.options, scenario::find(name).unwrap());
        plan.device_options(1).unwrap().into_iter().map(|option| option.into_string().unwrap()).collect()
    }

    #[test]
    fn a_device_gets_what_its_row_and_the_user_say() {
        let plain = ["--engines", "2"];
        assert_eq!(device_options("counter", &[]), [&plain[..], &["--check-exclusive"]].concat());
        assert_eq!(device_options("counter", &["--check-exclusive=off"]), plain);
        assert_eq!(device_options("counter-unwatched", &[]), plain);
        assert_eq!(device_options("counter-unwatched", &["--check-exclusive"]), plain);
        let both = device_options("device-silent", &["--chaos", "light", "--engines", "1"]);
        let chaos = ["--chaos", "light,silent-after=400", "--seed", "8"];
        assert_eq!(both, [&["--engines", "1", "--check-exclusive"][..], &chaos].concat());
    }

    #[test]
    fn more_time_to_work_is_more_time_to_end() {
        let plan = |name: &str, line: &[&str]| {
            let line = Line::parse_from(["xtask"].iter().chain(line));
            let plan = batch::plan(&line.options, scenario::find(name).unwrap());
            (plan.duration, plan.timeout.unwrap().as_secs())
        };
        assert_eq!(plan("garbage", &[]), (Some(60), 300));
        assert_eq!(plan("garbage", &["--duration", "100"]), (Some(100), 340));
        assert_eq!(plan("garbage", &["--duration", "5"]), (Some(5), 300));
        assert_eq!(plan("garbage", &["--duration", "100", "--timeout", "200"]), (Some(100), 200));
        assert_eq!(plan("counter", &["--duration", "100"]), (None, 180), "it ends by itself");
    }

    #[test]
    fn the_guest_gives_up_first() {
        assert_eq!(guest_limit(Duration::from_secs(180)), Duration::from_secs(150));
        assert_eq!(guest_limit(Duration::from_secs(20)), Duration::from_secs(10));
    }
}
