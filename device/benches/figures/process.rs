// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real binary with a VMM: what trapped accesses cost, and what it costs to have it there.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use measure::cpu::{self, Places};
use measure::{Aim, Row, Samples};
use mock_driver::{HANG, memfd};
use svmx_abi::pci::BAR_REGS;
use svmx_abi::regs;
use tempfile::TempDir;
use vfio_user::Client;

use crate::commands::median_of;
use crate::transport::FOREIGN_SERVER;
use crate::used;

/// Guest memory that is mapped into the device.
pub(crate) const RAM: u64 = 1 << 30;
/// How long an idle device is watched, once for each round.
const IDLE: Duration = Duration::from_millis(500);

/// `svmx-device` and its VMM. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
    pub(crate) ram: File,
    _folder: TempDir,
}

/// Where the client and the other process are while one waits for the other: on two CPUs one has to be woken
/// from its idleness, on one it only has to be switched to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    TwoCpus,
    OneCpu,
}

impl Mode {
    pub(crate) const ALL: [Mode; 2] = [Mode::TwoCpus, Mode::OneCpu];

    /// For a row.
    pub(crate) fn text(self) -> String {
        match (Places::find(), self) {
            (None, _) => "on the only CPU".to_owned(),
            (Some(Places { submitter, first, .. }), Mode::TwoCpus) => {
                format!("client on CPU {submitter}, device on {first}")
            }
            (Some(Places { first, .. }), Mode::OneCpu) => format!("both on CPU {first}"),
        }
    }

    fn client(self) -> Option<usize> {
        Places::find().map(|places| match self {
            Mode::TwoCpus => places.submitter,
            Mode::OneCpu => places.first,
        })
    }
}

impl Process {
    /// Starts it, connects, and gives it guest memory.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svmx-device"));
        command.args(arguments).arg("--socket");
        Process::connected(command)
    }

    /// The same device behind the server of the `vfio_user` crate, in a process of its own too.
    pub(crate) fn foreign() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(FOREIGN_SERVER);
        Process::connected(command)
    }

    /// Starts what takes a socket's path as its last argument.
    fn connected(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("device.sock");
        let child = command.arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        let mut client = connect(&socket);
        let ram = memfd(RAM);
        client.dma_map(0, 0, RAM, ram.as_raw_fd()).unwrap();
        Process { child, client, ram, _folder: folder }
    }

    /// All its threads where [`Mode`] has the device.
    pub(crate) fn bound(self) -> Self {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        if let Some(Places { first, .. }) = Places::find() {
            threads.for_each(|thread| cpu::bind(thread, &[first]));
        }
        self
    }

    /// The median of `trips` trips, in microseconds, the client where `mode` has it.
    pub(crate) fn trip(&mut self, mode: Mode, trips: usize, trip: fn(&mut Process)) -> f64 {
        let _bound = cpu::bound(mode.client());
        median_of(trips, || trip(self))
    }

    /// A write to a register without effect, and its answer.
    pub(crate) fn trapped_write(&mut self) {
        self.client.region_write(BAR_REGS, regs::CTL_BASE, &[0; 8]).unwrap();
    }

    /// A read of a register.
    pub(crate) fn trapped_read(&mut self) {
        let mut magic = [0; 4];
        self.client.region_read(BAR_REGS, regs::MAGIC, &mut magic).unwrap();
        assert_eq!(u32::from_le_bytes(magic), regs::MAGIC_VALUE);
    }

    /// Bytes that it has for itself: all that is resident but the shared memory, which is the guest's and
    /// the doorbells'.
    fn own_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        of("RssAnon:") + of("RssFile:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The socket's file is there a moment before it is listened on.
fn connect(socket: &Path) -> Client {
    let start = Instant::now();
    loop {
        match Client::new(socket) {
            Ok(client) => return client,
            Err(error) => assert!(start.elapsed() < HANG, "{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A device that has worked on all of its guest's memory, and does nothing now; and how to call it.
fn used() -> (Process, String) {
    let mut process = Process::start(&[]);
    let engines = used::work(&mut process);
    let plural = if engines == 1 { "" } else { "s" };
    // What has just ended is not idle yet.
    thread::sleep(IDLE);
    (process, format!("idle device with {engines} engine{plural} that worked on 1 GiB of 4 KiB pages"))
}

/// CPU time, by the scheduler's own count in nanoseconds.
pub(crate) fn idle_cpu(name: &str, rounds: usize) -> Vec<Row> {
    let (process, what) = used();
    let id = process.child.id();
    let percent = |_| {
        let (start, before) = (Instant::now(), cpu::process_time(id));
        thread::sleep(IDLE);
        100.0 * (cpu::process_time(id) - before).as_secs_f64() / start.elapsed().as_secs_f64()
    };
    let samples: Samples = (0..rounds).map(percent).collect();
    vec![Row::alone(name, &format!("{what}: of one CPU"), "%", &samples, Aim::ValueAtMost(0.0))]
}

/// Resident memory.
pub(crate) fn idle_memory(name: &str, rounds: usize) -> Vec<Row> {
    let (process, what) = used();
    let samples: Samples = (0..rounds).map(|_| process.own_memory() as f64 / f64::from(1 << 20)).collect();
    vec![Row::alone(name, &format!("{what}: own memory"), "MiB", &samples, Aim::ValueAtMost(32.0))]
}
