// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The sandbox: that the real binary is in it, what can't be done there, and what can. What is tried is tried
//! by this program itself, started once more as a child that confines itself first.

#![expect(
    unsafe_code,
    reason = "makes system calls that have no safe form, and filters a child's before exec"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, execv};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use svmx_abi::pci::NUM_VECTORS;
use svmx_device::memory::{DmaMap, GuestMemory, MAX_MAPS};
use svmx_device::sandbox;
use tempfile::TempDir;

const HANG: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;
/// Tells the child what to try.
const ATTEMPT: &str = "SVMX_TEST_ATTEMPT";
/// Tells the child of a folder of its own.
const FOLDER: &str = "SVMX_TEST_FOLDER";

/// What a device never does, and the number of the system call that gives it away.
const FORBIDDEN: &[(&str, libc::c_long, fn())] = &[
    ("make a folder", MKDIR, || _ = fs::create_dir("/never")),
    ("make a socket", libc::SYS_socket, || drop(TcpListener::bind("127.0.0.1:0"))),
    ("make a pair of sockets", libc::SYS_socketpair, || drop(UnixStream::pair())),
    ("be another program", libc::SYS_execve, || _ = execv(c"/bin/true", &[c"true"])),
    ("trace", libc::SYS_ptrace, || {
        // SAFETY: asks for nothing but to be traced by the parent.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
    }),
    ("signal others", libc::SYS_kill, || _ = kill(Pid::from_raw(1), None)),
    ("signal itself by anything but abort", libc::SYS_tgkill, || {
        _ = nix::sys::signal::raise(Signal::SIGUSR1)
    }),
    ("take the handler away", libc::SYS_rt_sigaction, || {
        // SAFETY: to ignore a signal is always possible.
        let _ = unsafe { signal(Signal::SIGSYS, SigHandler::SigIgn) };
    }),
    ("be dumpable again", libc::SYS_prctl, || _ = nix::sys::prctl::set_dumpable(true)),
    ("map memory that can be executed", libc::SYS_mmap, || {
        _ = map(ProtFlags::PROT_READ | ProtFlags::PROT_EXEC)
    }),
    ("make memory executable", libc::SYS_mprotect, || {
        let page = map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).unwrap();
        // SAFETY: the page is this function's own.
        let _ = unsafe { mprotect(page, PAGE as usize, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) };
    }),
    ("look at files by name", libc::SYS_statx, || drop(fs::metadata("/etc/passwd"))),
];

#[cfg(target_arch = "x86_64")]
const MKDIR: libc::c_long = libc::SYS_mkdir;
#[cfg(not(target_arch = "x86_64"))]
const MKDIR: libc::c_long = libc::SYS_mkdirat;

fn map(protection: ProtFlags) -> nix::Result<std::ptr::NonNull<libc::c_void>> {
    let page = (PAGE as usize).try_into().unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
    unsafe { mmap_anonymous(None, page, protection, MapFlags::MAP_PRIVATE) }
}

#[test]
fn what_is_forbidden_ends_the_process_and_is_reported() {
    for (what, number, _) in FORBIDDEN {
        let output = attempt(what, Path::new("/"));
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{what}: {:?} {log}", output.status);
        assert!(!output.status.core_dumped(), "{what}");
        let line = format!(" ERROR svmx_device::sandbox: system call {number} is not allowed");
        assert!(log.contains(&line), "{what}: {log}");
    }
}

#[test]
fn what_a_device_does_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let output = attempt("work", folder.path());
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{:?}: {log}", output.status);
    assert!(!folder.path().join("own.sock").exists());
}

#[test]
fn a_panic_is_reported_and_ends_by_abort() {
    let output = attempt("panic", Path::new("/"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{log}");
    assert!(log.contains("panicked at") && log.contains("on purpose"), "{log}");
}

#[test]
fn a_map_whose_file_was_cut_ends_it_by_sigbus() {
    let output = attempt("cut", Path::new("/"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{:?}: {log}", output.status);
}

#[test]
fn files_and_threads_are_refused_with_an_error() {
    let output = attempt("ask", Path::new("/"));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn files_are_out_of_reach_by_landlock_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = attempt("files", folder.path());
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{:?}: {log}", output.status);
    if log.contains("NO LANDLOCK") {
        eprintln!("no landlock here: shown only that this is no error");
    }
}

/// Starts this program again, for one attempt in the sandbox.
fn attempt(what: &str, folder: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(ATTEMPT, what).env(FOLDER, folder);
    // Whatever the caller likes: a backtrace would be a file that is opened.
    command.env("RUST_BACKTRACE", "1");
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait(child)
}

/// Not a test, but the child of those above; without a parent's word it does nothing.
#[test]
#[ignore = "the child of other tests"]
fn child() {
    let (Ok(what), Some(folder)) = (std::env::var(ATTEMPT), std::env::var_os(FOLDER)) else { return };
    let own = PathBuf::from(folder).join("own.sock");
    match what.as_str() {
        "files" => use_files(&own),
        "work" => work(&own),
        "cut" => {
            let ram = memfd(PAGE);
            let file = ram.try_clone().unwrap();
            let memory = GuestMemory::default()
                .with_map(DmaMap { address: 0, size: PAGE, file, offset: 0, writable: true })
                .unwrap();
            ram.set_len(0).unwrap();
            sandbox::forbid_syscalls().unwrap();
            memory.word64(8, true).unwrap().store(1, Ordering::SeqCst);
        }
        "ask" => {
            sandbox::forbid_syscalls().unwrap();
            let file = File::open("/etc/passwd").map(drop);
            let thread = std::thread::Builder::new().spawn(|| ()).map(drop);
            assert!(refused(file) && refused(thread));
        }
        "panic" => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            sandbox::forbid_syscalls().unwrap();
            let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
            assert!(panicked.is_err());
            std::process::abort();
        }
        _ => {
            let (.., act) = FORBIDDEN.iter().find(|(name, ..)| *name == what).unwrap();
            sandbox::forbid_syscalls().unwrap();
            act();
        }
    }
    std::process::exit(0);
}

/// What the device does between its start and its end.
fn work(own: &Path) {
    let listener = UnixListener::bind(own).unwrap();
    let mut client = UnixStream::connect(own).unwrap();
    let ram = memfd(16 * PAGE);
    let event = EventFd::new().unwrap();
    sandbox::forbid_files(own).unwrap();
    let (sender, receiver) = channel::<Box<dyn FnOnce() + Send>>();
    let thread = std::thread::spawn(move || receiver.iter().for_each(|work| work()));
    sandbox::forbid_syscalls().unwrap();

    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    std::io::Read::read_exact(&mut server, &mut bytes).unwrap();
    // Guest memory, mapped and unmapped.
    let file = ram.try_clone().unwrap();
    let memory = GuestMemory::default()
        .with_map(DmaMap { address: 0, size: 16 * PAGE, file, offset: 0, writable: true })
        .unwrap();
    memory.word64(8, true).unwrap().store(1, Ordering::SeqCst);
    drop(memory.without(0, 16 * PAGE).unwrap());
    drop(memory);
    event.write(1).unwrap();
    // The allocator's large blocks, on a thread whose arena is new, that grow and shrink.
    sender
        .send(Box::new(|| {
            let mut block = vec![1u8; 1 << 20];
            block.resize(64 << 20, 2);
            block.truncate(1);
            block.shrink_to_fit();
            let blocks: Vec<_> = (1..2000).map(|kib| vec![0u8; kib << 4]).collect();
            assert_eq!((block.len(), blocks.len()), (1, 1999));
            std::thread::sleep(Duration::from_millis(1));
            std::thread::yield_now();
            let _: BTreeMap<u32, u32> = std::collections::HashMap::from([(1, 2)]).into_iter().collect();
        }))
        .unwrap();
    drop(sender);
    thread.join().unwrap();
    fs::remove_file(own).unwrap();
}

/// What landlock alone leaves.
fn use_files(own: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let others = folder.path().join("others");
    for path in [own, &others] {
        fs::write(path, "").unwrap();
    }
    sandbox::forbid_files(own).unwrap();
    // SAFETY: with this flag (LANDLOCK_CREATE_RULESET_VERSION) it only says its version.
    if unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) } < 1 {
        eprintln!("NO LANDLOCK");
        return;
    }
    assert!(refused(File::open("/etc/passwd").map(drop)), "reading what is elsewhere");
    assert!(refused(File::open(own).map(drop)), "reading");
    assert!(refused(fs::write(own.with_file_name("new"), "")), "making");
    assert!(refused(fs::remove_file(&others)), "removing what is elsewhere");
    assert!(refused(Command::new("/bin/true").spawn().map(drop)), "a program");
    // A thread that is started afterwards is no way out.
    assert!(std::thread::spawn(|| File::open("/etc/passwd").is_err()).join().unwrap());
    fs::remove_file(own).unwrap();
}

fn memfd(size: u64) -> File {
    let file = File::from(memfd_create("ram", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

fn refused(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The real binary, its log in a file. Killed when dropped.
struct Device {
    child: Option<Child>,
    folder: TempDir,
}

impl Device {
    fn command(folder: &TempDir, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svmx-device"));
        command.arg("--socket").arg(folder.path().join("device.sock")).args(arguments);
        command.stdout(Stdio::null()).stderr(File::create(folder.path().join("log")).unwrap());
        command
    }

    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Some(Device::command(&folder, arguments).spawn().unwrap());
        let device = Device { child, folder };
        wait_until("the device", || device.log().contains("listening on"));
        device
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed())
    }

    /// A line of each thread's status.
    fn status(&self, key: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        statuses
            .map(|status| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned())
            .collect()
    }

    fn end(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.ended()
    }

    fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        wait_until("the device's end", || child.try_wait().unwrap().is_some());
        child.wait().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < HANG, "hang: waiting for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait(mut child: Child) -> Output {
    wait_until("a child's end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

#[test]
fn every_thread_of_the_device_is_confined() {
    let mut device = Device::start(&["--engines", "5"]);
    // Five engines, control, signals, transport.
    assert_eq!(device.status("Seccomp:"), ["2"; 8]);
    assert_eq!(device.status("NoNewPrivs:"), ["1"; 8]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", device.pid())).unwrap();
    let limit = |name: &str| {
        let values = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
        values.map(|value| value.parse().unwrap_or(u64::MAX)).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size")[..2], [0, 0]);
    // Each DMA map and each vector holds a file.
    let (soft, hard) = (limit("Max open files")[0], limit("Max open files")[1]);
    assert!(soft >= hard.min(MAX_MAPS as u64 + u64::from(NUM_VECTORS)), "{soft} of {hard}");
    assert_eq!(device.end().code(), Some(0));
    assert!(!device.folder.path().join("device.sock").exists());
}

#[test]
fn no_sandbox_is_no_sandbox() {
    let before = fs::read_to_string("/proc/self/status").unwrap();
    let before = before.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap().trim().to_owned();
    let mut device = Device::start(&["--engines", "1", "--no-sandbox"]);
    assert_eq!(device.status("Seccomp:"), vec![before; 4]);
    assert_eq!(device.end().code(), Some(0));
}

#[test]
fn a_thread_that_begins_late_is_no_offender() {
    for _ in 0..10 {
        let mut device = Device::start(&["--engines", "64"]);
        assert_eq!(device.end().code(), Some(0), "{}", device.log());
    }
}

#[test]
fn every_map_at_once_though_the_caller_has_few_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Device::command(&folder, &[]);
    // SAFETY: between fork and exec only a system call is made.
    unsafe { command.pre_exec(|| Ok(few_files()?)) };
    let mut device = Device { child: Some(command.spawn().unwrap()), folder };
    wait_until("the device", || device.log().contains("listening on"));
    let mut client = vfio_user::Client::new(&device.folder.path().join("device.sock")).unwrap();
    let file = memfd(PAGE);
    for number in 0..MAX_MAPS as u64 {
        client.dma_map(0, number * PAGE, PAGE, file.as_raw_fd()).unwrap();
    }
    let mut bytes = [0; 4];
    client.region_read(0, svmx_abi::regs::MAGIC, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), svmx_abi::regs::MAGIC_VALUE, "{}", device.log());
    drop(client);
    assert_eq!(device.end().code(), Some(0), "{}", device.log());
}

/// What a login shell allows, or less.
fn few_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard)
}

/// Starts the device in what such a container is: some system calls fail with EPERM.
fn start_where_forbidden(calls: &[libc::c_long]) -> Device {
    let rules = calls.iter().map(|&call| (call, vec![])).collect();
    let (other, listed) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram = SeccompFilter::new(rules, other, listed, arch).unwrap().try_into().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Device::command(&folder, &[]);
    // SAFETY: between fork and exec only system calls are made; an error has nothing to free.
    unsafe {
        command.pre_exec(move || apply_filter(&filter).map_err(|_| std::io::Error::from(Errno::EPERM)))
    };
    Device { child: Some(command.spawn().unwrap()), folder }
}

#[test]
fn where_seccomp_is_forbidden_it_says_what_to_do() {
    let mut device = start_where_forbidden(&[libc::SYS_seccomp]);
    let (status, log) = (device.ended(), device.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("seccomp: ") && log.contains("--no-sandbox"), "{log}");
    assert!(!device.folder.path().join("device.sock").exists());
}

#[test]
fn without_landlock_it_says_so_and_goes_on() {
    let landlock = [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self];
    let mut device = start_where_forbidden(&landlock);
    wait_until("the device", || device.log().contains("listening on"));
    assert_eq!(device.status("Seccomp:").first().map(String::as_str), Some("2"));
    let log = device.log();
    assert!(log.contains("INFO svmx_device::sandbox: no landlock here"), "{log}");
    assert_eq!(device.end().code(), Some(0));
}
