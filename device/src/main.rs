// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `svmx-device`: one device on one socket, for one VMM at a time.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use svmx_abi::regs::Counter;
use svmx_device::chaos::{Settings, spec::Faults};
use svmx_device::instruments::{Request, Watchers};
use svmx_device::model::{Model, Options};
use svmx_device::vfio::{self, Listener, Serve, Stop};
use svmx_device::{host, sandbox};
use tracing_subscriber::EnvFilter;

/// The most threads that may execute commands.
const MAX_ENGINES: u16 = 64;
/// What can be done about that.
const NOT_CONFINED: &str = "can't confine the process (--no-sandbox runs it as it is)";

/// The svmx accelerator as a vfio-user device. It serves one VMM at a time, each with the device in its reset
/// state, until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// UNIX socket to listen on; made with mode 0600, removed at the end
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// End when the first VMM has gone
    #[arg(long)]
    once: bool,
    /// Engines: threads that execute commands, 1 to 64 [default: the host's CPUs less one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_ENGINES)))]
    engines: Option<u16>,
    /// Microseconds that an idle thread polls before it sleeps [default: by the host's CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    poll_us: Option<u64>,
    /// Nanoseconds between the read and the write of an atomic on an exclusively held page
    #[arg(long, value_name = "NS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    rmw_delay: u64,
    /// Watches the pages that the device holds exclusively, and reports stores there that are not its own
    #[arg(long)]
    check_exclusive: bool,
    /// Misbehaves as far as the specification allows: light, all, or a list of faults such as
    /// irq-delay=100us:0.3,tlb-evict=0.01 (README.md has them)
    #[arg(long, value_name = "SPEC")]
    chaos: Option<Faults>,
    /// Decides what chaos does when [default: a new one, which is logged]
    #[arg(long, value_name = "N", requires = "chaos")]
    seed: Option<u64>,
    /// Writes what it does to this file, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Doesn't confine itself: for debuggers, profilers, and kernels or containers without seccomp
    #[arg(long)]
    no_sandbox: bool,
    /// More log lines; twice for more still. SVMX_LOG in the environment counts instead, if it is set: a filter
    /// such as warn,svmx_device::vfio_user=trace
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let filter = match log_filter(arguments.verbose) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Which lines are logged.
///
/// # Errors
/// When `SVMX_LOG` is no filter: somebody who looks for certain lines would wait for them in vain.
fn log_filter(verbose: u8) -> anyhow::Result<EnvFilter> {
    match std::env::var_os("SVMX_LOG") {
        Some(text) if !text.is_empty() => {
            let text = text.to_string_lossy();
            EnvFilter::try_new(&text).with_context(|| format!("SVMX_LOG={text}"))
        }
        _ => {
            let level = ["info", "debug", "trace"][usize::from(verbose.min(2))];
            Ok(EnvFilter::new(format!("warn,svmx_device={level}")))
        }
    }
}

/// One line and exit code 2 for what can't be run; help and version as they are.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    eprintln!("{}", text.lines().next().unwrap_or("bad arguments"));
    ExitCode::from(2)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // Before any thread begins, so that all inherit it and only the waiting one takes signals.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;

    let options = Options {
        engines: arguments.engines.unwrap_or_else(default_engines).into(),
        poll: arguments.poll_us.map_or_else(default_poll, Duration::from_micros),
        rmw_delay: Duration::from_nanos(arguments.rmw_delay),
        ..Default::default()
    };
    let request = instruments(arguments)?;
    host::raise_file_limit();
    let listener = Listener::bind(&arguments.socket)?;
    let stop = Stop::new()?;
    // What is opened is opened above, what is started is started below.
    let confined = (!arguments.no_sandbox).then(|| sandbox::forbid_files(listener.path()));
    let landlock = confined.transpose().context(NOT_CONFINED)?;
    let (mut device, watchers) = request.device(options)?;
    end_on(signals, stop.clone())?;
    // Nothing is opened or started from here on.
    if let Some(landlock) = landlock {
        sandbox::forbid_syscalls(landlock).context(NOT_CONFINED)?;
    }
    tracing::info!("listening on {}", listener.path().display());
    let how = if arguments.once { Serve::Once } else { Serve::Forever };
    let served = vfio::serve(&listener, &mut device, &stop, how);
    device.end();
    summarize(device.model(), &watchers);
    Ok(served?)
}

/// What is asked for; the trace's file is opened.
fn instruments(arguments: &Arguments) -> anyhow::Result<Request> {
    let chaos = arguments.chaos.map(|faults| {
        // A hasher of the standard library is seeded at random.
        let seed = arguments.seed.unwrap_or_else(|| RandomState::new().hash_one(faults.silent_after));
        tracing::info!("chaos: seed {seed}, {faults:?}");
        Settings { faults, seed }
    });
    let create = |path: &PathBuf| File::create(path).with_context(|| format!("--trace {}", path.display()));
    let trace = arguments.trace.as_ref().map(create).transpose()?;
    Ok(Request { check_exclusive: arguments.check_exclusive, chaos, trace })
}

/// A CPU is left to the guest.
fn default_engines() -> u16 {
    u16::try_from(host::cpus() - 1).unwrap_or(MAX_ENGINES).clamp(1, MAX_ENGINES)
}

/// On a small host polling takes time from the guest's CPUs.
fn default_poll() -> Duration {
    Duration::from_micros(if host::cpus() >= 4 { 50 } else { 20 })
}

/// The first signal ends the transport, and with it everything in order; a second one does not wait for that.
fn end_on(signals: SigSet, stop: Stop) -> anyhow::Result<()> {
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        tracing::info!("{signal}");
        stop.stop();
        if signals.wait().is_ok() {
            std::process::exit(1);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

fn summarize(model: &Model, watchers: &Watchers) {
    let total = |counter| model.counters.total(counter);
    tracing::info!(
        commands = total(Counter::Commands),
        elements = total(Counter::Elements),
        faults = total(Counter::Faults),
        interrupts = total(Counter::Interrupts),
        "ended"
    );
    watchers.finish();
}
