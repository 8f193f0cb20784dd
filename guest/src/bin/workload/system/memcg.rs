// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Control groups (version 2) that limit memory.

use super::write;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A group. It is removed when it is dropped, if nobody is in it.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// An empty one, without limits.
    pub(crate) fn new(name: &str) -> Result<Self> {
        match mount(Some("none"), ROOT, Some("cgroup2"), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno).context("cgroup2"),
        }
        write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
        let path = Path::new(ROOT).join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Group(path))
    }

    /// Moves this process into the group of that name, which exists.
    pub(crate) fn join(name: &str) -> Result<()> {
        write(Path::new(ROOT).join(name).join("cgroup.procs"), std::process::id())
    }

    /// The group of that name, which exists and is somebody else's to remove.
    pub(crate) fn reclaim_of(name: &str, bytes: u64) -> bool {
        write(Path::new(ROOT).join(name).join("memory.reclaim"), bytes).is_ok()
    }

    /// Reclaims this many bytes. False if there were fewer that could be.
    pub(crate) fn reclaim(&self, bytes: u64) -> bool {
        write(self.0.join("memory.reclaim"), bytes).is_ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Takes this process out, if it is in.
        let _ = write(Path::new(ROOT).join("cgroup.procs"), std::process::id());
        let _ = fs::remove_dir(&self.0);
    }
}
