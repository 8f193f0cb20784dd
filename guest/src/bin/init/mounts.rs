// SPDX-License-Identifier: Apache-2.0 OR MIT

//! File systems and the console.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fs::{self, OpenOptions};
use std::io;

const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("debugfs", "/sys/kernel/debug"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/dev/shm"),
];

pub(crate) fn mount_all() -> io::Result<()> {
    for (kind, place) in MOUNTS {
        // debugfs has its folder already, and none can be made there.
        let _ = fs::create_dir_all(place);
        match mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>) {
            // devtmpfs may have been mounted by the kernel.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(io::Error::other(format!("{kind} on {place}: {errno}"))),
        }
    }
    mount_tracefs();
    Ok(())
}

/// Trace events. A kernel of one's own may be without them, and then nothing but a scenario about them wants them.
fn mount_tracefs() {
    let _ = mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), None::<&str>);
}

/// Standard input, output and error: an initramfs without /dev/console starts its init without them.
pub(crate) fn attach_console() {
    if let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") {
        // Without a console there is nobody to tell.
        let _ = dup2_stdin(&console);
        let _ = dup2_stdout(&console);
        let _ = dup2_stderr(&console);
    }
}
