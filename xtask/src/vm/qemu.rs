// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU's command line, and which QEMU it is for: the toolchain root's or one of the user's.

use super::accel::Accel;
use crate::checkout;
use crate::failure::bad_request;
use crate::toolchain::{Sandbox, Toolchain};
use anyhow::{Result, bail};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// How long the device may take to answer before QEMU gives it up for good, in milliseconds. Its own
/// limit of 5 s is too short for a device that is being debugged, or a machine that is overloaded.
const DEVICE_TIMEOUT_MS: u32 = 120_000;
/// The guest's virtual CPUs can't be fewer for the atomics of TCG to be atomic.
const LEAST_CPUS: u32 = 2;

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
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) command_line: &'a str,
    /// The devices' sockets.
    pub(crate) devices: &'a [PathBuf],
    /// Folder of the sockets `qmp.sock`, `verdict.sock` and `console.sock`, on which we listen.
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
        let output =
            Command::new(path).args(["-device", "help"]).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = output.await.map_err(|error| bad_request(format!("--qemu {shown}: {error}")))?;
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
    pub(crate) fn command(&self, guest: &Guest<'_>) -> Result<Command> {
        let mut command = match self {
            Qemu::Own(path) => Command::new(path),
            Qemu::Packaged(toolchain) => sandbox(toolchain, guest)?.command("qemu-system-x86_64"),
        };
        command.args(arguments(guest));
        Ok(command)
    }
}

/// The packaged QEMU sees the host's files it needs under their own names.
fn sandbox(toolchain: &Toolchain, guest: &Guest<'_>) -> Result<Sandbox> {
    let config = checkout::root().join("qemu-config");
    let mut sandbox = toolchain
        .sandbox()
        .read_only(&config, &config)
        .read_only(guest.kernel, guest.kernel)
        .writable(guest.run_dir, guest.run_dir)
        .writable(guest.sockets, guest.sockets);
    if !guest.initramfs.starts_with(guest.sockets) {
        sandbox = sandbox.read_only(guest.initramfs, guest.initramfs);
    }
    for dir in ["usr", "etc", "var", "proc", "dev"] {
        if guest.run_dir.starts_with(Path::new("/").join(dir)) && dir != "var" {
            bail!(
                "{} can't be used from the toolchain root; set CARGO_TARGET_DIR elsewhere",
                guest.run_dir.display()
            );
        }
    }
    Ok(sandbox)
}

fn arguments(guest: &Guest<'_>) -> Vec<OsString> {
    let mut arguments = Arguments::default();
    arguments.add(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    arguments.add(["-action", "panic=exit-failure"]);
    arguments.add(["-readconfig".into(), checkout::root().join("qemu-config/machine.cfg").into_os_string()]);
    arguments.add(guest.accel.qemu_arguments());
    arguments.add(["-smp".to_owned(), format!("{},maxcpus={}", guest.cpus, guest.cpus.max(LEAST_CPUS))]);
    let mebibytes = guest.memory >> 20;
    arguments.add(["-m".to_owned(), format!("{mebibytes}M")]);
    arguments.add(["-object".to_owned(), format!("memory-backend-memfd,id=mem,size={mebibytes}M,share=on")]);

    arguments.add(["-bios", "qboot.rom"]);
    arguments.add([OsStr::new("-kernel"), guest.kernel.as_ref()]);
    arguments.add([OsStr::new("-initrd"), guest.initramfs.as_ref()]);
    arguments.add(["-append", guest.command_line]);

    arguments.chardev("socket,id=qmp", &guest.sockets.join("qmp.sock"), "");
    arguments.add(["-mon", "chardev=qmp,mode=control"]);
    arguments.chardev("socket,id=verdict", &guest.sockets.join("verdict.sock"), "");
    let log = guest.run_dir.join("console.log");
    if guest.interactive {
        let logfile = format!(",logfile={}", escaped(&log).to_string_lossy());
        arguments.chardev("socket,id=console", &guest.sockets.join("console.sock"), &logfile);
    } else {
        arguments.chardev("file,id=console", &log, "");
    }
    arguments.add(["-serial", "chardev:console"]);

    for (index, socket) in guest.devices.iter().enumerate() {
        // A port of its own each: on the root bus, QEMU would turn the endpoint into an integrated one.
        let port = format!("pcie-root-port,id=port{index},chassis={},slot={}", index + 1, index + 1);
        arguments.add(["-device".to_owned(), port]);
        let device = json!({
            "driver": "vfio-user-pci",
            "id": format!("svmx{index}"),
            "bus": format!("port{index}"),
            "socket": { "type": "unix", "path": socket },
            "x-msg-timeout": DEVICE_TIMEOUT_MS,
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

    fn chardev(&mut self, kind: &str, path: &Path, more: &str) {
        let mut value = OsString::from(format!("{kind},path="));
        value.push(escaped(path));
        value.push(more);
        self.add([OsString::from("-chardev"), value]);
    }
}

/// A comma in an option's value is written twice.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cpus: u32, devices: &[PathBuf]) -> String {
        let guest = Guest {
            accel: Accel::Tcg,
            cpus,
            memory: 1 << 30,
            kernel: Path::new("/k/vmlinux"),
            initramfs: Path::new("/s/initramfs"),
            command_line: "console=ttyS0",
            devices,
            sockets: Path::new("/s"),
            run_dir: Path::new("/run,s"),
            interactive: false,
        };
        arguments(&guest)
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn tcg_always_has_room_for_two_cpus_and_a_thread_each() {
        assert!(line(1, &[]).contains("-smp 1,maxcpus=2"));
        assert!(line(4, &[]).contains("-smp 4,maxcpus=4"));
        assert!(line(1, &[]).contains("tcg,thread=multi"));
    }

    #[test]
    fn each_device_has_a_root_port() {
        let line = line(2, &["/s/a".into(), "/s/b".into()]);
        assert!(line.contains("id=port0,") && line.contains("id=port1,"));
        assert!(line.contains(r#""bus":"port1""#) && line.contains(r#""path":"/s/b""#));
    }

    #[test]
    fn commas_in_paths_are_escaped() {
        assert!(line(2, &[]).contains("file,id=console,path=/run,,s/console.log"));
    }
}
