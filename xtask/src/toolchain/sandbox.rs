// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs programs of the toolchain root with bubblewrap: its `/usr` and `/etc` read-only, the
//! folders that a program needs bound where it expects them, nothing else of the host's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A way to start programs inside the root.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    root: PathBuf,
    arguments: Vec<OsString>,
}

/// Variables of the host's environment that its programs may see.
const PASSED_ON: [&str; 7] =
    ["TERM", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

impl Sandbox {
    pub(crate) fn new(root: &Path) -> Self {
        let mut sandbox = Sandbox { root: root.to_owned(), arguments: Vec::new() };
        // A process of the sandbox outlives neither bwrap nor, by that, us.
        sandbox.add(&["--die-with-parent", "--unshare-pid", "--clearenv"]);
        for (name, value) in [("PATH", "/usr/sbin:/usr/bin"), ("HOME", "/tmp"), ("LC_ALL", "C.UTF-8")] {
            sandbox.add(&["--setenv", name, value]);
        }
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                sandbox = sandbox.set(name, value);
            }
        }
        for dir in ["usr", "etc"] {
            sandbox = sandbox.read_only(&root.join(dir), &Path::new("/").join(dir));
        }
        for dir in ["bin", "sbin", "lib", "lib64"] {
            sandbox.add(&["--symlink", &format!("usr/{dir}"), &format!("/{dir}")]);
        }
        sandbox.add(&["--proc", "/proc", "--dev", "/dev", "--dev-bind-try", "/dev/kvm", "/dev/kvm"]);
        sandbox.add(&["--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/var/tmp"]);
        sandbox
    }

    fn add<S: AsRef<OsStr>>(&mut self, arguments: &[S]) {
        self.arguments.extend(arguments.iter().map(|argument| argument.as_ref().to_owned()));
    }

    /// Sets a variable.
    pub(crate) fn set(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.add(&[OsStr::new("--setenv"), name.as_ref(), value.as_ref()]);
        self
    }

    /// Shows the host's `from` at `to`, read-only.
    pub(crate) fn read_only(mut self, from: &Path, to: &Path) -> Self {
        self.add(&[OsStr::new("--ro-bind"), from.as_ref(), to.as_ref()]);
        self
    }

    /// Shows the host's `from` at `to`.
    pub(crate) fn writable(mut self, from: &Path, to: &Path) -> Self {
        self.add(&[OsStr::new("--bind"), from.as_ref(), to.as_ref()]);
        self
    }

    /// What apt needs: its state, lists that are forgotten with the sandbox, the host's name resolution.
    pub(crate) fn apt(mut self) -> Self {
        let var = self.root.join("var");
        self = self.read_only(&var, Path::new("/var"));
        self.add(&["--tmpfs", "/var/lib/apt/lists", "--tmpfs", "/var/cache/apt"]);
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            if let Ok(real) = std::fs::canonicalize(file) {
                self = self.read_only(&real, Path::new(file));
            }
        }
        self
    }

    /// Starts in this folder.
    pub(crate) fn directory(mut self, dir: &str) -> Self {
        self.add(&["--chdir", dir]);
        self
    }

    /// A command that runs `program` inside.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("bwrap");
        command.args(&self.arguments).arg("--").arg(program);
        command
    }
}
