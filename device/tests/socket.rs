// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real binary over a real socket, with a client that is not ours.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use mock_driver::binary::{Binary, command, patiently};
use mock_driver::memfd;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use svmx_abi::control::{ControlEntry, ControlFlags, CreateContext, CreateQueue};
use svmx_abi::doorbell::{driver, queue};
use svmx_abi::pci::{BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_REGS};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Cqe, Opcode, Sqe, WidthLog2};
use svmx_abi::regs;
use svmx_abi::status::Status;
use svmx_device::memory::{DmaMap, GuestMemory};
use vfio_user::Client;

const RAM: u64 = 1 << 20;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;
const PROGRAM: &str = env!("CARGO_BIN_EXE_svmx-device");
// Guest-physical pages.
const CTL: u64 = 0x1000;
const FAULTS: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLES: [u64; 4] = [0x4000, 0x5000, 0x6000, 0x7000];
const SQ: u64 = 0x8000;
const CQ: u64 = 0x9000;
const DATA: u64 = 0xa000;

/// A VMM and driver in one.
struct Vmm {
    client: Client,
    ram: GuestMemory,
    doorbells: GuestMemory,
}

impl Vmm {
    fn new(process: &Binary) -> Self {
        let mut client = Client::new(&process.socket()).unwrap();
        let file = memfd(RAM);
        client.dma_map(0, 0, RAM, file.as_raw_fd()).unwrap();
        let region = client.region(BAR_DOORBELLS).unwrap();
        assert_eq!((region.size, region.sparse_areas.len()), (BAR_DOORBELLS_SIZE, 1));
        let bar = region.file_offset.as_ref().unwrap().file().try_clone().unwrap();
        let map = |file, size| {
            GuestMemory::default()
                .with_map(DmaMap { address: 0, size, file, offset: 0, writable: true })
                .unwrap()
        };
        Vmm { client, ram: map(file, RAM), doorbells: map(bar, BAR_DOORBELLS_SIZE) }
    }

    fn read(&mut self, region: u32, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(region, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, region: u32, offset: u64, value: u64, size: usize) {
        self.client.region_write(region, offset, &value.to_le_bytes()[..size]).unwrap();
    }

    fn put<const N: usize>(&self, address: u64, words: [u64; N]) {
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.ram.word64(address + at, true).unwrap().store(*word, Ordering::Relaxed);
        }
    }

    /// spec 4.3.
    fn ring(&mut self, page: u32, offset: u64, value: u32) {
        let base = 4096 * u64::from(page);
        self.doorbells.word32(base + offset, true).unwrap().store(value, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.doorbells.word32(base + queue::NEED_KICK, false).unwrap().load(Ordering::Relaxed) == 1 {
            self.write(BAR_REGS, regs::KICK, page.into(), 4);
        }
    }

    fn enable(&mut self) {
        self.write(CONFIG, 4, 6, 2);
        self.write(BAR_REGS, regs::CTL_BASE, CTL, 8);
        self.write(BAR_REGS, regs::CTL_LOG2, 4, 4);
        self.write(BAR_REGS, regs::FAULT_BASE, FAULTS, 8);
        self.write(BAR_REGS, regs::FAULT_LOG2, 4, 4);
        self.write(BAR_REGS, regs::CONTROL, 1, 4);
        assert_eq!(self.read(BAR_REGS, regs::STATUS), 1);
    }

    /// A context with one page at address 0, and a queue in it, by two control entries.
    fn make_queue(&mut self) {
        let context = CreateContext { asid: 1, root: TABLES[0], ..Default::default() };
        let (sq_base, cq_base, vector) = (SQ, CQ, 2);
        let queue = CreateQueue {
            queue: 1,
            asid: 1,
            sq_base,
            cq_base,
            sq_log2: 4,
            cq_log2: 4,
            vector,
            ..Default::default()
        };
        let notified = ControlEntry {
            flags: ControlFlags::NOTIFY,
            notify_addr: NOTIFY,
            notify_value: 7,
            ..ControlEntry::from(queue)
        };
        for level in 0..3 {
            self.put(TABLES[level], [Pte::table(TABLES[level + 1]).0]);
        }
        self.put(TABLES[3], [Pte::leaf(DATA, Access::EXCLUSIVE).0]);
        self.put::<8>(CTL, zerocopy::transmute!(ControlEntry::from(context)));
        self.put::<8>(CTL + 64, zerocopy::transmute!(notified));
        self.ring(0, driver::CTL_TAIL, 2);
        let word = self.ram.word64(NOTIFY, false).unwrap();
        patiently("the control queue", || word.load(Ordering::Acquire) == 7);
    }

    fn submit(&mut self, index: u32, operand: u64) {
        let (opcode, width) = (Opcode::FETCH_ADD, WidthLog2::W64);
        let sqe = Sqe { opcode, width, tag: index, addr: 8, operand, ..Default::default() };
        self.put::<8>(SQ + 64 * u64::from(index % 16), zerocopy::transmute!(sqe));
        self.ring(1, queue::SQ_TAIL, index + 1);
    }
}

fn maps(process: &Binary) -> String {
    std::fs::read_to_string(process.proc("maps")).unwrap()
}

#[test]
fn a_command_and_its_interrupt() {
    let mut process = Binary::start(PROGRAM, &["--once"]);
    let mode = std::fs::metadata(process.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut vmm = Vmm::new(&process);
    assert_eq!(vmm.read(CONFIG, 0), 0x5356_1b36);
    assert_eq!(vmm.read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    let engines = std::thread::available_parallelism().unwrap().get() - 1;
    assert_eq!(vmm.read(BAR_REGS, regs::NUM_ENGINES), engines.clamp(1, 64) as u32);
    assert_eq!(vmm.client.get_irq_info(MSIX).unwrap().count, 16);
    vmm.enable();
    vmm.make_queue();
    // As QEMU does it: first no event, then one.
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    vmm.client.set_irqs(MSIX, 0x24, 2, 1, &[]).unwrap();
    vmm.client.set_irqs(MSIX, 0x24, 2, 1, &[event.as_fd().as_raw_fd()]).unwrap();
    vmm.doorbells.word32(4096 + queue::CQ_ARM, true).unwrap().store(1, Ordering::SeqCst);
    vmm.submit(0, 5);
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)).unwrap(), 1, "interrupt");
    let cqe: Cqe = zerocopy::transmute!(vmm.ram.copy::<4>(CQ).unwrap());
    assert!(cqe.head.phase());
    assert_eq!((cqe.head.status(), cqe.applied), (Status::SUCCESS, 1));
    assert_eq!(vmm.ram.word64(DATA + 8, false).unwrap().load(Ordering::Relaxed), 5);
    // All of RAM goes and the device with it; then a reset brings it back.
    vmm.client.dma_unmap(0, RAM).unwrap();
    assert_eq!(vmm.read(BAR_REGS, regs::FATAL_ERROR), 4);
    vmm.client.reset().unwrap();
    assert_eq!(vmm.read(BAR_REGS, regs::STATUS), 0);
    vmm.client.shutdown().unwrap();
    let log = process.ends_well();
    assert!(log.contains("commands=1 elements=1 faults=0 interrupts="), "{log}");
}

#[test]
fn signals_end_it_at_any_time() {
    for (signal, when) in [(Signal::SIGTERM, 0), (Signal::SIGINT, 1), (Signal::SIGTERM, 2)] {
        let mut process = Binary::start(PROGRAM, &["--engines", "3", "--poll-us", "0", "--rmw-delay", "50"]);
        let mut vmm = (when > 0).then(|| Vmm::new(&process));
        if let Some(vmm) = vmm.as_mut().filter(|_| when > 1) {
            vmm.enable();
            vmm.make_queue();
            (0..16).for_each(|index| vmm.submit(index, 1));
        }
        process.signal(signal);
        process.ends_well();
    }
}

#[test]
fn with_once_it_ends_when_the_client_goes() {
    // At once; with work under way; in the middle of a message.
    for when in 0..3 {
        let mut process = Binary::start(PROGRAM, &["-v", "--once"]);
        if when < 2 {
            let mut vmm = Vmm::new(&process);
            if when == 1 {
                vmm.enable();
                vmm.make_queue();
                (0..16).for_each(|index| vmm.submit(index, 1));
            }
        } else {
            // A header that announces more than comes: region read.
            let mut header = [0u8; 20];
            (header[2], header[4]) = (9, 32);
            process.connect().write_all(&header[..16]).unwrap();
        }
        process.ends_well();
    }
}

#[test]
fn memory_that_is_refused_is_not_there_and_all_goes_on() {
    let mut process = Binary::start(PROGRAM, &["--once"]);
    let mut vmm = Vmm::new(&process);
    let file = memfd(RAM);
    // It overlaps what is mapped; it is longer than its file. The client reads the answer but does not look.
    vmm.client.dma_map(0, RAM / 2, RAM, file.as_raw_fd()).unwrap();
    vmm.client.dma_map(0, 1 << 30, 2 * RAM, file.as_raw_fd()).unwrap();
    vmm.enable();
    vmm.make_queue();
    vmm.submit(0, 1);
    let word = vmm.ram.word64(DATA + 8, false).unwrap();
    patiently("the addition", || word.load(Ordering::Relaxed) == 1);
    drop(vmm);
    let log = process.ends_well();
    assert!(log.contains("overlaps another map") && log.contains("file too short"), "{log}");
}

#[test]
fn one_vmm_after_the_other_each_with_a_fresh_device() {
    let mut process = Binary::start(PROGRAM, &[]);
    let mut connected = None;
    for _ in 0..3 {
        let mut vmm = Vmm::new(&process);
        // As many as the first time: nothing of its predecessors is left.
        let first = *connected.get_or_insert_with(|| process.descriptors());
        patiently("the end of old descriptors", || process.descriptors() == first);
        assert_eq!(vmm.read(CONFIG, 4) & 6, 0, "no memory space, no bus master");
        for register in [regs::STATUS, regs::FATAL_ERROR, regs::CTL_BASE, regs::CTL_LOG2, regs::FAULT_BASE] {
            assert_eq!(vmm.read(BAR_REGS, register), 0, "{register:#x}");
        }
        for page in 0..16 {
            let tail = vmm.doorbells.word32(4096 * page + queue::SQ_TAIL, false).unwrap();
            assert_eq!(tail.load(Ordering::Relaxed), 0);
        }
        // It works, and is left in the middle of it.
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        vmm.client.set_irqs(MSIX, 0x24, 0, 1, &[event.as_fd().as_raw_fd()]).unwrap();
        vmm.enable();
        vmm.make_queue();
        (0..16).for_each(|index| vmm.submit(index, 1));
        let word = vmm.ram.word64(DATA + 8, false).unwrap();
        patiently("an addition", || word.load(Ordering::Relaxed) > 0);
        assert!(maps(&process).contains("memfd:mock"));
        drop(vmm);
        patiently("the end of all maps", || !maps(&process).contains("memfd:mock"));
    }
    process.signal(Signal::SIGTERM);
    process.ends_well();
}

#[test]
fn a_second_vmm_is_turned_away() {
    let mut process = Binary::start(PROGRAM, &[]);
    let mut vmm = Vmm::new(&process);
    assert!(Client::new(&process.socket()).is_err());
    assert_eq!(vmm.read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    drop(vmm);
    // Its successor is not.
    assert_eq!(Vmm::new(&process).read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    process.signal(Signal::SIGINT);
    let log = process.ends_well();
    assert!(log.contains("another client was turned away"), "{log}");
}

#[test]
fn one_that_can_not_be_turned_away_is_served_next() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let mut process = Binary::start(PROGRAM, &[]);
    let mut vmm = Vmm::new(&process);
    let pid = Pid::from_raw(process.pid().as_raw());
    let limit = getrlimit(Resource::Nofile);
    // No number for another descriptor.
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
    let mut next = process.connect();
    process.says("another client waits, and can't be turned away");
    assert_eq!(vmm.read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    prlimit(pid, Resource::Nofile, limit).unwrap();
    drop(vmm);
    // Refused, as it says nothing sensible, and therefore served.
    next.write_all(&[0; 16]).unwrap();
    assert_eq!(next.read(&mut [0; 16]).unwrap_or(0), 0);
    process.signal(Signal::SIGTERM);
    let log = process.ends_well();
    assert!(log.contains("claims to have 0 bytes") && !log.contains("was turned away"), "{log}");
}

#[test]
fn who_comes_and_goes_does_not_fill_the_log() {
    let start = Instant::now();
    let mut process = Binary::start(PROGRAM, &[]);
    for _ in 0..300 {
        drop(process.connect());
    }
    process.signal(Signal::SIGTERM);
    let log = process.ends_well();
    // Eight in each second that there was, and whoever stopped it.
    let seconds = start.elapsed().as_secs() as usize + 2;
    let lines = log.matches("a VMM connected").count() + log.matches("the VMM is gone").count();
    assert!(lines > 0 && lines <= 8 * seconds, "{lines} lines in {seconds} s");
}

#[test]
fn a_broken_connection_is_an_error_only_if_it_is_the_only_one() {
    for once in [true, false] {
        let mut process = Binary::start(PROGRAM, if once { &["--once"] } else { &[] });
        let mut stream = process.connect();
        stream.write_all(&[0xff; 16]).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
        if !once {
            drop(Vmm::new(&process));
            process.signal(Signal::SIGTERM);
            assert!(process.ends_well().contains("claims to have 4294967295 bytes"));
            continue;
        }
        let (status, log) = (process.ended(), process.log());
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("claims to have 4294967295 bytes") && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn descriptors_for_which_there_is_no_room_are_not_left_behind() {
    use rustix::process::{Pid, Resource, prlimit};
    let mut process = Binary::start(PROGRAM, &["--once"]);
    let mut vmm = Vmm::new(&process);
    let before = process.descriptors();
    let pid = Pid::from_raw(process.pid().as_raw());
    // One more can be received, or a few if the numbers have gaps; some of sixteen are lost.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let little = rustix::process::Rlimit { current: Some(before as u64 + 1), ..limit };
    prlimit(pid, Resource::Nofile, little).unwrap();
    let event = EventFd::new().unwrap();
    vmm.client.set_irqs(MSIX, 0x24, 0, 16, &[event.as_fd().as_raw_fd(); 16]).unwrap();
    assert_eq!(vmm.read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    assert_eq!(process.descriptors(), before);
    drop(vmm);
    let log = process.ends_well();
    assert!(log.contains("DeviceSetIrqs refused: more descriptors than can be received"), "{log}");
}

#[test]
fn who_gives_events_can_not_stop_those_who_raise_them() {
    let mut process = Binary::start(PROGRAM, &[]);
    let mut vmm = Vmm::new(&process);
    vmm.enable();
    vmm.make_queue();
    // Full, and as soon as the device has it a write would wait.
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    event.write(u64::MAX - 1).unwrap();
    vmm.client.set_irqs(MSIX, 0x24, 2, 1, &[event.as_fd().as_raw_fd()]).unwrap();
    fcntl(&event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    // The transport's thread raises it, then an engine.
    vmm.client.set_irqs(MSIX, 0x21, 2, 1, &[]).unwrap();
    assert_eq!(vmm.read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    vmm.doorbells.word32(4096 + queue::CQ_ARM, true).unwrap().store(1, Ordering::SeqCst);
    vmm.submit(0, 1);
    let armed = vmm.doorbells.word32(4096 + queue::CQ_ARM, false).unwrap();
    patiently("the interrupt", || armed.load(Ordering::SeqCst) == 0);
    vmm.submit(1, 1);
    let word = vmm.ram.word64(DATA + 8, false).unwrap();
    patiently("the engine", || word.load(Ordering::Relaxed) == 2);
    // What is no eventfd is not taken.
    let (_reader, writer) = std::io::pipe().unwrap();
    vmm.client.set_irqs(MSIX, 0x24, 3, 1, &[writer.as_raw_fd()]).unwrap();
    vmm.client.reset().unwrap();
    process.signal(Signal::SIGTERM);
    let log = process.ends_well();
    assert!(log.contains("what vector 3 was given is no eventfd"), "{log}");
}

#[test]
fn bad_arguments_get_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in
        [vec!["--engines", "0"], vec!["--engines", "many"], vec!["--rmw-delay", "-1"], vec!["--no"]]
    {
        let mut command = command(PROGRAM, folder.path(), &arguments);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{arguments:?}: {text}");
    }
    let output = Command::new(PROGRAM).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
}

#[test]
fn a_socket_in_use_is_an_error_and_a_dead_one_is_replaced() {
    let mut first = Binary::start(PROGRAM, &[]);
    let mut second = Command::new(PROGRAM);
    let output = second.arg("--socket").arg(first.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("in use"));
    // And it did not disturb who waits there.
    assert_eq!(Vmm::new(&first).read(BAR_REGS, regs::MAGIC), regs::MAGIC_VALUE);
    first.signal(Signal::SIGKILL);
    first.ended();
    assert!(first.socket().exists());
    first.again(PROGRAM, &[]);
    first.says("listening on");
    drop(Vmm::new(&first));
    first.signal(Signal::SIGTERM);
    first.ends_well();
}

#[test]
fn a_process_that_is_stopped_is_late_and_nothing_else() {
    let mut process = Binary::start(PROGRAM, &["--once"]);
    let mut vmm = Vmm::new(&process);
    vmm.enable();
    vmm.make_queue();
    for round in 0..5 {
        (0..8).for_each(|index| vmm.submit(16 * round + index, 1));
        process.signal(Signal::SIGSTOP);
        let stat = process.proc("stat");
        patiently("the stop", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
        // What can be waited for while it is stopped: memory is as good as ever, and messages queue up.
        let before = vmm.ram.word64(DATA + 8, false).unwrap().load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                (8..16).for_each(|index| vmm.submit(16 * round + index, 1));
                vmm.read(BAR_REGS, regs::MAGIC)
            });
            process.signal(Signal::SIGCONT);
            assert_eq!(late.join().unwrap(), regs::MAGIC_VALUE);
        });
        assert!((16 * round..16 * round + 9).contains(&(before as u32)), "{before}");
        let word = vmm.ram.word64(DATA + 8, false).unwrap();
        patiently("all commands", || word.load(Ordering::Relaxed) == u64::from(16 * (round + 1)));
        // Read up to here.
        vmm.ring(1, queue::CQ_HEAD, 16 * (round + 1));
    }
    drop(vmm);
    process.ends_well();
}
