// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU's command line, and which QEMU it is for: the toolchain root's or one of the user's.

use super::accel::Accel;
use crate::checkout;
use crate::failure::bad_request;
use crate::process;
use crate::toolchain::Toolchain;
use anyhow::Result;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// The guest's virtual CPUs can't be fewer for the atomics of TCG to be atomic.
const LEAST_CPUS: u32 = 2;

/// What the guest's kernel takes offline at once, in MiB.
const BLOCK_MIB: u64 = 128;

/// Name of the initramfs.
pub(crate) const INITRAMFS: &str = "initramfs";

/// Which QEMU.
#[derive(Clone, Debug)]
pub(crate) enum Qemu {
    /// The toolchain root's.
    Packaged(Toolchain),
    /// The user's, run on the host as it is.
    Own(PathBuf),
}

/// What differs from run to run.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) accel: Accel,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    /// NUMA nodes: each has a part of the memory, in a memfd of its own, and of the CPUs.
    pub(crate) nodes: u32,
    pub(crate) kernel: &'a Path,
    pub(crate) command_line: &'a str,
    /// The names of the devices' sockets.
    pub(crate) devices: &'a [String],
    /// How long a device may take to answer, in seconds, before QEMU gives it up for good.
    pub(crate) device_timeout: u32,
    /// Folder of them, of [`INITRAMFS`], and of the sockets `qmp.sock`, `verdict.sock` and `console.sock`, on
    /// which we listen.
    pub(crate) sockets: &'a Path,
    /// Where the console's log goes.
    pub(crate) run_dir: &'a Path,
    /// Whether somebody sits at the console.
    pub(crate) interactive: bool,
}

impl Qemu {
    /// The user's QEMU, if it can do what we need.
    pub(crate) async fn own(path: &Path) -> Result<Self> {
        let shown = path.display();
        let answer = process::answer(Command::new(path).args(["-device", "help"])).await;
        let output = answer.map_err(|error| bad_request(format!("--qemu {shown}: {error}")))?;
        if !output.status.success() {
            return Err(bad_request(format!(
                "--qemu {shown}: it does not answer `-device help`; is it QEMU?"
            )));
        }
        if !String::from_utf8_lossy(&output.stdout).contains("\"vfio-user-pci\"") {
            return Err(bad_request(format!(
                "--qemu {shown}: it has no vfio-user-pci (needs QEMU 10.1 or newer, for x86-64, built with it)"
            )));
        }
        Ok(Qemu::Own(path.to_owned()))
    }

    /// The whole command.
    pub(crate) fn command(&self, guest: &Guest<'_>) -> Command {
        let on_host = Places {
            config: checkout::root().join("qemu-config"),
            kernel: guest.kernel.to_owned(),
            sockets: guest.sockets.to_owned(),
            run_dir: guest.run_dir.to_owned(),
        };
        match self {
            Qemu::Own(path) => {
                let mut command = Command::new(path);
                command.args(arguments(guest, &on_host));
                command
            }
            Qemu::Packaged(toolchain) => {
                let inside = Places::inside();
                let sandbox = toolchain
                    .sandbox()
                    .read_only(&on_host.config, &inside.config)
                    .read_only(&on_host.kernel, &inside.kernel)
                    .writable(&on_host.sockets, &inside.sockets)
                    .writable(&on_host.run_dir, &inside.run_dir);
                let mut command = sandbox.command("qemu-system-x86_64");
                command.args(arguments(guest, &inside));
                command
            }
        }
    }
}

/// Where QEMU finds its files.
struct Places {
    config: PathBuf,
    kernel: PathBuf,
    sockets: PathBuf,
    run_dir: PathBuf,
}

impl Places {
    /// In the sandbox: fixed, as the host's own paths may be taken there.
    fn inside() -> Self {
        let [config, kernel, sockets, run_dir] =
            ["config", "vmlinux", "sockets", "run"].map(|name| Path::new("/svmx").join(name));
        Places { config, kernel, sockets, run_dir }
    }
}

fn arguments(guest: &Guest<'_>, places: &Places) -> Vec<OsString> {
    let mut arguments = Arguments::default();
    arguments.add(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    arguments.add(["-action", "panic=exit-failure"]);
    arguments.add(["-readconfig".into(), places.config.join("machine.cfg").into_os_string()]);
    arguments.add(guest.accel.qemu_arguments());
    arguments.memory_and_cpus(guest);

    arguments.add(["-bios", "qboot.rom"]);
    arguments.add([OsStr::new("-kernel"), places.kernel.as_ref()]);
    arguments.add([OsStr::new("-initrd"), places.sockets.join(INITRAMFS).as_ref()]);
    arguments.add(["-append", guest.command_line]);

    arguments.add(["-qmp".into(), option("unix:", &places.sockets.join("qmp.sock"), "")]);
    arguments.chardev("socket,id=verdict", &places.sockets.join("verdict.sock"), "");
    let log = places.run_dir.join("console.log");
    if guest.interactive {
        let logfile = option(",logfile=", &log, "");
        arguments.chardev(
            "socket,id=console",
            &places.sockets.join("console.sock"),
            &logfile.to_string_lossy(),
        );
    } else {
        arguments.chardev("file,id=console", &log, "");
    }
    arguments.add(["-serial", "chardev:console"]);

    for (index, name) in guest.devices.iter().enumerate() {
        // A port of its own each: on the root bus, QEMU would turn the endpoint into an integrated one.
        let port = format!("pcie-root-port,id=port{index},chassis={},slot={}", index + 1, index + 1);
        arguments.add(["-device".to_owned(), port]);
        let device = json!({
            "driver": "vfio-user-pci",
            "id": format!("svmx{index}"),
            "bus": format!("port{index}"),
            "socket": { "type": "unix", "path": places.sockets.join(name) },
            "x-msg-timeout": 1000 * guest.device_timeout,
        });
        arguments.add(["-device".to_owned(), device.to_string()]);
    }
    arguments.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<S: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = S>) {
        self.0.extend(arguments.into_iter().map(Into::into));
    }

    /// One object holds all memory, or each node has its own.
    fn memory_and_cpus(&mut self, guest: &Guest<'_>) {
        let most_cpus = guest.cpus.max(LEAST_CPUS);
        // CPUs of one socket share a cache, and the guest's kernel does not believe that of CPUs in several nodes.
        let sockets = if guest.nodes > 1 { format!(",sockets={most_cpus}") } else { String::new() };
        self.add(["-smp".to_owned(), format!("{},maxcpus={most_cpus}{sockets}", guest.cpus)]);
        let mebibytes = guest.memory >> 20;
        self.add(["-m".to_owned(), format!("{mebibytes}M")]);
        let mut memfd = |id: &str, mebibytes: u64| {
            let object = format!("memory-backend-memfd,id={id},size={mebibytes}M,share=on");
            self.add(["-object".to_owned(), object]);
        };
        if guest.nodes == 1 {
            memfd("mem", mebibytes);
            return self.add(["-machine", "memory-backend=mem"]);
        }
        let nodes = guest.nodes;
        for node in 0..nodes {
            // Whole blocks of 128 MiB, as the guest's kernel counts them; the last node has the rest.
            let share = mebibytes / u64::from(nodes) / BLOCK_MIB * BLOCK_MIB;
            let rest = mebibytes - share * u64::from(nodes - 1);
            memfd(&format!("mem{node}"), if node + 1 == nodes { rest } else { share });
        }
        for node in 0..nodes {
            // QEMU wants to know the node of each CPU that there may be.
            let cpus: String =
                (node..most_cpus).step_by(nodes as usize).map(|cpu| format!(",cpus={cpu}")).collect();
            self.add(["-numa".to_owned(), format!("node,nodeid={node},memdev=mem{node}{cpus}")]);
        }
    }

    fn chardev(&mut self, kind: &str, path: &Path, more: &str) {
        self.add([OsString::from("-chardev"), option(&format!("{kind},path="), path, more)]);
    }
}

/// An option's value with a path in it, whose commas are written twice.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    format!("{before}{}{after}", path.to_string_lossy().replace(',', ",,")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cpus: u32, devices: &[&str]) -> String {
        line_of(cpus, 1, devices)
    }

    fn line_of(cpus: u32, nodes: u32, devices: &[&str]) -> String {
        let devices: Vec<String> = devices.iter().map(|&name| name.to_owned()).collect();
        let guest = Guest {
            accel: Accel::Tcg,
            cpus,
            memory: 1 << 30,
            nodes,
            kernel: Path::new("/k/vmlinux"),
            command_line: "console=ttyS0",
            devices: &devices,
            device_timeout: 120,
            sockets: Path::new("/s"),
            run_dir: Path::new("/run,s"),
            interactive: false,
        };
        let command = Qemu::Own("qemu".into()).command(&guest);
        let words: Vec<_> =
            command.as_std().get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn tcg_always_has_room_for_two_cpus_and_a_thread_each() {
        assert!(line(1, &[]).contains("-smp 1,maxcpus=2"));
        assert!(line(4, &[]).contains("-smp 4,maxcpus=4"));
        assert!(line(1, &[]).contains("tcg,thread=multi"));
    }

    #[test]
    fn each_device_has_a_root_port() {
        let line = line(2, &["a", "b"]);
        assert!(line.contains("id=port0,") && line.contains("id=port1,"));
        assert!(line.contains(r#""bus":"port1""#) && line.contains(r#""path":"/s/b""#));
    }

    #[test]
    fn one_node_has_all_memory_in_one_file() {
        let line = line(2, &[]);
        assert!(line.contains("-object memory-backend-memfd,id=mem,size=1024M,share=on"));
        assert!(line.contains("-machine memory-backend=mem") && !line.contains("-numa"));
    }

    #[test]
    fn each_node_has_a_file_and_every_cpu_has_a_node() {
        let line = line_of(3, 2, &[]);
        assert!(line.contains("-smp 3,maxcpus=3,sockets=3"), "{line}");
        assert_eq!(line.matches("size=512M,share=on").count(), 2);
        assert!(line.contains("nodeid=0,memdev=mem0,cpus=0,cpus=2"), "{line}");
        assert!(line.contains("nodeid=1,memdev=mem1,cpus=1"), "{line}");
        assert!(!line.contains("memory-backend=mem"), "memory of nodes excludes memory of the machine");
    }

    #[test]
    fn commas_in_paths_are_escaped() {
        assert!(line(2, &[]).contains("file,id=console,path=/run,,s/console.log"));
    }
}
