// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The sandbox: that the real binary is in it, what can't be done there, and what can. What is tried is tried
//! by this program itself, started once more as a child that confines itself first.

#![expect(
    unsafe_code,
    reason = "makes system calls that have no safe form, and filters a child's before exec"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use mock_driver::binary::{Binary, patiently};
use mock_driver::memfd;
use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::socket::{self, ControlMessage, MsgFlags};
use nix::unistd::{Pid, execv};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use svmx_abi::pci::{BAR_DOORBELLS, BAR_REGS, NUM_VECTORS};
use svmx_device::device::Device;
use svmx_device::memory::{DmaMap, GuestMemory, MAX_MAPS};
use svmx_device::model::Options;
use svmx_device::sandbox::{self, Landlock};
use svmx_device::vfio::{self, Listener, Serve, Stop};

const PROGRAM: &str = env!("CARGO_BIN_EXE_svmx-device");
const PAGE: u64 = 4096;
/// Indices of a region and of a kind of interrupt.
const PCI_CONFIG: u32 = 7;
const MSIX: u32 = 2;
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
    ("look at files by a path that may be empty", libc::SYS_statx, || {
        let (path, status) = (c"/etc/passwd".as_ptr(), &mut [0u64; 32]);
        // SAFETY: a path, and room for a `struct statx`, which has 256 bytes.
        unsafe { libc::syscall(libc::SYS_statx, 0, path, libc::AT_EMPTY_PATH, 0, status) };
    }),
    ("look by the older call", libc::SYS_newfstatat, || {
        let (path, status) = (c"/etc/passwd".as_ptr(), &mut [0u64; 32]);
        // SAFETY: a path, and room for a `struct stat`, which has less than 256 bytes.
        unsafe { libc::syscall(libc::SYS_newfstatat, 0, path, status, libc::AT_EMPTY_PATH) };
    }),
    ("send without a message", libc::SYS_sendto, || _ = socket::send(0, b"", MsgFlags::empty())),
    ("receive without a message", libc::SYS_recvfrom, || _ = socket::recv(0, &mut [], MsgFlags::empty())),
    ("shut a socket down", libc::SYS_shutdown, || _ = socket::shutdown(0, socket::Shutdown::Both)),
    ("make an event", libc::SYS_eventfd2, || drop(EventFd::new())),
    ("read a file from where it is", libc::SYS_read, || _ = std::io::stdin().read(&mut [0])),
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
    assert!(log.contains("the VMM is gone") && !log.contains("refused"), "{log}");
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
            sandbox::forbid_syscalls(Landlock::Restricts).unwrap();
            memory.word64(8, true).unwrap().store(1, Ordering::SeqCst);
        }
        "ask" => {
            sandbox::forbid_syscalls(Landlock::Missing).unwrap();
            let file = File::open("/etc/passwd").map(drop);
            let thread = std::thread::Builder::new().spawn(|| ()).map(drop);
            assert!(refused(file) && refused(thread));
            assert!(refused(fs::remove_file("/no/such/file")), "where landlock is not there to choose");
        }
        "panic" => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            sandbox::forbid_syscalls(Landlock::Restricts).unwrap();
            let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
            assert!(panicked.is_err());
            std::process::abort();
        }
        _ => {
            let (.., act) = FORBIDDEN.iter().find(|(name, ..)| *name == what).unwrap();
            sandbox::forbid_syscalls(Landlock::Restricts).unwrap();
            act();
        }
    }
    std::process::exit(0);
}

/// All that a client asks of the device between its start and its end, by the code that does it there.
fn work(own: &Path) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let listener = Listener::bind(own).unwrap();
    let stop = Stop::new().unwrap();
    // The client speaks and is done before the walls go up; its answers fit into the socket.
    let client = UnixStream::connect(own).unwrap();
    let (ram, event) = (memfd(16 * PAGE), EventFd::new().unwrap());
    converse(&client, ram.as_raw_fd(), event.as_fd().as_raw_fd());
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let landlock = sandbox::forbid_files(own).unwrap();
    let mut device = Device::new(Options { engines: 2, ..Default::default() }).unwrap();
    let (sender, receiver) = channel::<Box<dyn FnOnce() + Send>>();
    let thread = std::thread::spawn(move || receiver.iter().for_each(|work| work()));
    sandbox::forbid_syscalls(landlock).unwrap();

    vfio::serve(&listener, &mut device, &stop, Serve::Once).unwrap();
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
    device.end();
    drop(device);
    stop.stop();
    drop(listener);
}

/// One message of each kind.
fn converse(client: &UnixStream, ram: RawFd, event: RawFd) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let access = |region, offset, count| words(&[offset, 0, region, count]);
    let command_register = [access(PCI_CONFIG, 4, 2), vec![6, 0]].concat();
    for (command, payload, fd) in [
        (1u16, b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8}}\0".to_vec(), None),
        (2, words(&[32, 3, 0, 0, 0, 0, 16 * PAGE as u32, 0]), Some(ram)),
        (4, words(&[16, 0, 0, 0]), None),
        (5, words(&[100, 0, BAR_DOORBELLS, 0, 0, 0, 0, 0]), None),
        (6, words(&[16, 0, 0, 0]), None),
        (7, words(&[16, 0, MSIX, 0]), None),
        (8, words(&[20, 0x24, MSIX, 0, 1]), Some(event)),
        (10, command_register, None),
        (8, words(&[20, 0x21, MSIX, 0, 1]), None),
        (9, access(BAR_REGS, 0, 4), None),
        (9, access(BAR_DOORBELLS, 0, 4), None),
        (10, [access(BAR_DOORBELLS, 4096, 4), vec![1; 4]].concat(), None),
        (3, words(&[24, 0, 0, 0, 16 * PAGE as u32, 0]), None),
        (13, vec![], None),
    ] {
        let size = 16 + payload.len() as u32;
        let header = [&1u16.to_ne_bytes()[..], &command.to_ne_bytes(), &words(&[size, 0, 0])].concat();
        let bytes = [header, payload].concat();
        let control: Vec<_> =
            fd.iter().map(|fd| ControlMessage::ScmRights(std::slice::from_ref(fd))).collect();
        let parts = [IoSlice::new(&bytes)];
        let sent = socket::sendmsg::<()>(client.as_raw_fd(), &parts, &control, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(bytes.len()));
    }
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

fn refused(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// A line of each thread's status.
fn status(device: &Binary, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(device.proc("task")).unwrap();
    let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    statuses
        .map(|status| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned())
        .collect()
}

fn end(mut device: Binary) {
    device.signal(Signal::SIGTERM);
    device.ends_well();
}

fn wait(mut child: Child) -> Output {
    patiently("a child's end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

#[test]
fn every_thread_of_the_device_is_confined() {
    let device = Binary::start(PROGRAM, &["--engines", "5"]);
    // Five engines, control, signals, transport.
    assert_eq!(status(&device, "Seccomp:"), ["2"; 8]);
    assert_eq!(status(&device, "NoNewPrivs:"), ["1"; 8]);
    let limits = fs::read_to_string(device.proc("limits")).unwrap();
    let limit = |name: &str| {
        let values = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
        values.map(|value| value.parse().unwrap_or(u64::MAX)).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size")[..2], [0, 0]);
    // Each DMA map and each vector holds a file.
    let (soft, hard) = (limit("Max open files")[0], limit("Max open files")[1]);
    assert!(soft >= hard.min(MAX_MAPS as u64 + u64::from(NUM_VECTORS)), "{soft} of {hard}");
    end(device);
}

#[test]
fn no_sandbox_is_no_sandbox() {
    let before = fs::read_to_string("/proc/self/status").unwrap();
    let before = before.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap().trim().to_owned();
    let device = Binary::start(PROGRAM, &["--engines", "1", "--no-sandbox"]);
    assert_eq!(status(&device, "Seccomp:"), vec![before; 4]);
    end(device);
}

#[test]
fn a_thread_that_begins_late_is_no_offender() {
    for _ in 0..10 {
        let device = Binary::start(PROGRAM, &["--engines", "64"]);
        end(device);
    }
}

#[test]
fn every_map_at_once_though_the_caller_has_few_files() {
    // SAFETY: between fork and exec only a system call is made.
    let few = |command: &mut Command| _ = unsafe { command.pre_exec(|| Ok(few_files()?)) };
    let device = Binary::spawn(PROGRAM, &[], few);
    device.says("listening on");
    let mut client = vfio_user::Client::new(&device.socket()).unwrap();
    let file = memfd(PAGE);
    for number in 0..MAX_MAPS as u64 {
        client.dma_map(0, number * PAGE, PAGE, file.as_raw_fd()).unwrap();
    }
    // The client does not look at answers; the log does.
    assert!(!device.log().contains("refused"), "{}", device.log());
    client.dma_map(0, MAX_MAPS as u64 * PAGE, PAGE, file.as_raw_fd()).unwrap();
    device.says("DmaMap refused: more than 1024 maps");
    drop(client);
    end(device);
}

/// What a login shell allows, or less.
fn few_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard)
}

/// Starts the device in what such a container is: some system calls fail with EPERM.
fn start_where_forbidden(calls: &[libc::c_long]) -> Binary {
    let rules = calls.iter().map(|&call| (call, vec![])).collect();
    let (other, listed) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram = SeccompFilter::new(rules, other, listed, arch).unwrap().try_into().unwrap();
    // SAFETY: between fork and exec only system calls are made; an error has nothing to free.
    Binary::spawn(PROGRAM, &[], |command| unsafe {
        command.pre_exec(move || apply_filter(&filter).map_err(|_| std::io::Error::from(Errno::EPERM)));
    })
}

#[test]
fn where_seccomp_is_forbidden_it_says_what_to_do() {
    let mut device = start_where_forbidden(&[libc::SYS_seccomp]);
    let (status, log) = (device.ended(), device.log());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("seccomp: ") && log.contains("--no-sandbox"), "{log}");
    assert!(!device.socket().exists());
}

#[test]
fn without_landlock_it_says_so_and_goes_on() {
    let landlock = [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self];
    let mut device = start_where_forbidden(&landlock);
    device.says("listening on");
    assert_eq!(status(&device, "Seccomp:").first().map(String::as_str), Some("2"));
    let log = device.log();
    assert!(log.contains("INFO svmx_device::sandbox: no landlock here"), "{log}");
    device.signal(Signal::SIGTERM);
    assert_eq!(device.ended().code(), Some(0), "{}", device.log());
    assert!(device.socket().exists(), "it could have removed any file");
}
