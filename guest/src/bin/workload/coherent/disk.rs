// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk with a file system whose files are written back: ext2 on a compressed disk in memory.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// In the order in which they need each other. One that the kernel has built in has no file.
const MODULES: [&str; 3] = ["/lib/lzo_compress.ko", "/lib/zsmalloc.ko", "/lib/zram.ko"];
const BYTES: u64 = 32 << 20;
const NODE: &str = "/dev/zram0";
const PLACE: &str = "/tmp/disk";

/// The disk, mounted.
pub(super) struct Disk(());

impl Disk {
    /// `None`: this kernel has none.
    pub(super) fn new() -> Result<Option<Self>> {
        for module in MODULES.into_iter().filter(|module| Path::new(module).exists()) {
            match finit_module(File::open(module)?, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).context(module),
            }
        }
        if !Path::new("/sys/block/zram0").exists() {
            return Ok(None);
        }
        fs::write("/sys/block/zram0/disksize", BYTES.to_string())?;
        // The disk has sectors of a page: a file system can't have smaller blocks.
        let mut make = Command::new("/bin/busybox");
        let made = make.args(["mke2fs", "-b", "4096", NODE]).stdout(Stdio::null()).status()?;
        ensure!(made.success(), "mke2fs ended with {made}");
        fs::create_dir_all(PLACE)?;
        let disk = Disk(());
        disk.mount()?;
        Ok(Some(disk))
    }

    /// A file of `len` zero bytes that take up room on the disk.
    pub(super) fn file(&self, name: &str, len: u64) -> Result<File> {
        let path = self.path(name);
        fs::write(&path, vec![0; usize::try_from(len)?])?;
        Ok(OpenOptions::new().read(true).write(true).open(path)?)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(PLACE).join(name)
    }

    /// Unmounts it, so that nothing is left in memory, and mounts it again. No file is open or mapped.
    pub(super) fn remount(&mut self) -> Result<()> {
        umount2(PLACE, MntFlags::empty()).context("umount")?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        mount(Some(NODE), PLACE, Some("ext2"), MsFlags::empty(), None::<&str>).context("mounting ext2")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The machine ends soon, whatever becomes of it.
        let _ = umount2(PLACE, MntFlags::MNT_DETACH);
    }
}
