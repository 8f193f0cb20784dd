// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's initramfs: a `newc` archive, uncompressed, with what images/initramfs.toml lists.

use crate::checkout;
use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, trailer};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER: u32 = 0o020_000;

/// The folders that the first part of `from` stands for.
#[derive(Clone, Debug)]
pub(crate) struct Origins {
    pub(crate) guest: PathBuf,
    pub(crate) c: PathBuf,
    pub(crate) driver: PathBuf,
    pub(crate) kernel: PathBuf,
    /// Not every kernel has them.
    pub(crate) selftests: Option<PathBuf>,
    pub(crate) toolchain: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    directories: Vec<String>,
    #[serde(rename = "node")]
    nodes: Vec<Node>,
    #[serde(rename = "file")]
    files: Vec<FileEntry>,
    #[serde(rename = "symlink")]
    symlinks: Vec<Symlink>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    path: String,
    mode: u32,
    major: u32,
    minor: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    path: String,
    from: String,
    mode: u32,
    #[serde(default)]
    optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Symlink {
    path: String,
    to: String,
}

impl Origins {
    /// The file that `from` stands for; `None` if its origin has nothing.
    fn resolve(&self, from: &str) -> Result<Option<PathBuf>> {
        let (origin, rest) = from.split_once('/').with_context(|| format!("{from:?} has no origin"))?;
        let dir = match origin {
            "guest" => Some(&self.guest),
            "c" => Some(&self.c),
            "driver" => Some(&self.driver),
            "kernel" => Some(&self.kernel),
            "selftests" => self.selftests.as_ref(),
            "toolchain" => Some(&self.toolchain),
            _ => bail!("{from:?}: unknown origin"),
        };
        Ok(dir.map(|dir| dir.join(rest)))
    }
}

/// Writes the archive to `to`.
pub(crate) fn write(origins: &Origins, to: &Path) -> Result<()> {
    let list = checkout::root().join("images/initramfs.toml");
    let text = fs::read_to_string(&list).with_context(|| format!("can't read {}", list.display()))?;
    let archive = archive(&text, origins).with_context(|| list.display().to_string())?;
    fs::write(to, archive).with_context(|| format!("can't write {}", to.display()))
}

fn archive(list: &str, origins: &Origins) -> Result<Vec<u8>> {
    let contents: Contents = toml::from_str(list)?;
    let mut archive = Archive::default();
    for directory in &contents.directories {
        archive.entry(directory, |entry| entry.mode(TYPE_DIRECTORY | 0o755), b"")?;
    }
    for node in &contents.nodes {
        let device = |entry: Builder| {
            entry.mode(TYPE_CHARACTER | node.mode).rdev_major(node.major).rdev_minor(node.minor)
        };
        archive.entry(&node.path, device, b"")?;
    }
    for file in &contents.files {
        let from = match origins.resolve(&file.from)? {
            Some(from) if !file.optional || from.exists() => from,
            _ if file.optional => continue,
            _ => bail!("{}: its origin has nothing (for {})", file.from, file.path),
        };
        let bytes = fs::read(&from).with_context(|| format!("{} (for {})", from.display(), file.path))?;
        archive.entry(&file.path, |entry| entry.mode(TYPE_REGULAR | file.mode), &bytes)?;
    }
    for symlink in &contents.symlinks {
        archive.entry(&symlink.path, |entry| entry.mode(TYPE_SYMLINK | 0o777), symlink.to.as_bytes())?;
    }
    Ok(trailer(archive.bytes)?)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<String>,
}

impl Archive {
    fn entry(&mut self, path: &str, shape: impl FnOnce(Builder) -> Builder, data: &[u8]) -> Result<()> {
        let name = path.strip_prefix('/').with_context(|| format!("{path:?} must begin with a slash"))?;
        let parent = name.rsplit_once('/').map(|(parent, _)| parent);
        if parent.is_some_and(|parent| !self.paths.contains(parent)) {
            bail!("{path:?}: its folder is not listed before it");
        }
        if !self.paths.insert(name.to_owned()) {
            bail!("{path:?} is listed twice");
        }
        let inode = u32::try_from(self.paths.len())?;
        let size = u32::try_from(data.len()).with_context(|| format!("{path:?} is too large"))?;
        let mut writer = shape(Builder::new(name).ino(inode).nlink(1)).write(&mut self.bytes, size);
        writer.write_all(data)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(dir: &Path) -> Origins {
        let [guest, c, driver, kernel, toolchain] = ["g", "c", "d", "k", "t"].map(|name| dir.join(name));
        Origins { guest, c, driver, kernel, selftests: None, toolchain }
    }

    #[test]
    fn the_list_makes_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["g/init", "g/workload", "c/fetch_add", "d/svmx.ko", "t/usr/bin/busybox"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let to = dir.path().join("initramfs");
        write(&origins(dir.path()), &to).unwrap();
        let bytes = fs::read(&to).unwrap();
        let mut found = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut data).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), data));
            rest = reader.finish().unwrap();
        }
        let get = |name: &str| found.iter().find(|(found, ..)| found == name).unwrap();
        assert_eq!(get("dev/console").1, 0o020_600);
        assert_eq!(get("init"), &("init".into(), 0o100_755, b"g/init".to_vec()));
        assert_eq!(get("bin/sh").2, b"busybox");
        for optional in ["lib/test_hmm.ko", "bin/hmm-tests"] {
            assert!(found.iter().all(|(name, ..)| name != optional), "{optional} is optional, and not there");
        }
    }

    #[test]
    fn mistakes_in_the_list_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let refuse = |list: &str| {
            let list = format!("{list}\nnode = []\nfile = []\nsymlink = []\n");
            format!("{:#}", archive(&list, &origins(dir.path())).unwrap_err())
        };
        assert!(refuse(r#"directories = ["/a", "/a"]"#).contains("twice"));
        assert!(refuse(r#"directories = ["/a/b"]"#).contains("not listed before"));
        assert!(refuse(r#"directories = ["a"]"#).contains("slash"));
    }
}
