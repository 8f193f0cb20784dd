// SPDX-License-Identifier: Apache-2.0 OR MIT

//! svmx.ko: guest-driver/ and abi/ copied to a build folder per kernel, and built there by Kbuild. The
//! source tree stays clean; only files that changed are copied, so Kbuild rebuilds no more than it must.

use crate::cache::{self, Cache, Key};
use crate::checkout;
use crate::kernel::{BUILD, Kernel};
use crate::process;
use crate::progress::Progress;
use crate::toolchain::Toolchain;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the copy is in the sandbox.
const MODULE: &str = "/svmx/module";
/// Source folders: siblings, as the driver includes `../abi/src/lib.rs`.
const SOURCES: [&str; 2] = ["abi/src", "guest-driver"];

/// Builds the driver against `kernel`; returns the folder with `svmx.ko`.
pub(crate) async fn build(kernel: &Kernel, toolchain: &Toolchain, progress: &Progress) -> Result<PathBuf> {
    let place = checkout::work().join(format!("driver-{}-{}", kernel.flavour.name(), kernel.key));
    let output = place.join("guest-driver");
    fs::create_dir_all(&place)?;
    let _lock = cache::lock(&place.with_extension("lock"), progress).await?;
    let sources = sources(checkout::root())?;
    let stamp = stamp(&sources, kernel)?;
    let stamp_file = place.join("stamp");
    let module = output.join("svmx.ko");
    if module.exists() && fs::read_to_string(&stamp_file).is_ok_and(|text| text == stamp) {
        progress.detail(format!("cached: {}", module.display()));
        return Ok(output);
    }

    let step = progress.step(format!("driver for {}", kernel.release()?));
    let log = Cache::open()?.log("driver")?;
    File::create(&log)?;
    synchronize(&sources, &place)?;
    let inside = kernel.sandbox(toolchain).writable(&place, Path::new(MODULE));
    let mut make = inside.command("make");
    make.args(["-C", BUILD, &format!("M={MODULE}/guest-driver")]);
    make.args(kernel.flavour.make_variables()).arg("modules");
    process::logged(&mut make, &log, &step, |step, line| step.note(line.trim()))
        .await
        .context("the driver can't be built")?;
    ensure!(module.exists(), "Kbuild made no svmx.ko\n{}", process::tail(&log, 10));
    fs::write(&stamp_file, stamp)?;
    step.done();
    Ok(output)
}

/// Every source file by its path in the repository.
fn sources(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for dir in SOURCES {
        collect(root, Path::new(dir), &mut found)?;
    }
    Ok(found)
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let entries = fs::read_dir(root.join(dir)).with_context(|| format!("can't read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Names everything that a build depends on. A user's own kernel may change in its place.
fn stamp(sources: &BTreeMap<PathBuf, Vec<u8>>, kernel: &Kernel) -> Result<String> {
    let image = fs::metadata(kernel.image())?;
    let mut key = Key::new().part(&kernel.key).part(format!("{}.{}", image.mtime(), image.mtime_nsec()));
    for (path, bytes) in sources {
        key = key.part(path.as_os_str().as_encoded_bytes()).part(bytes);
    }
    Ok(key.finish())
}

/// Makes the copy equal to the sources, and leaves alone what Kbuild has put beside them.
fn synchronize(sources: &BTreeMap<PathBuf, Vec<u8>>, place: &Path) -> Result<()> {
    let list = place.join("sources");
    for old in fs::read_to_string(&list).unwrap_or_default().lines().map(Path::new) {
        if !sources.contains_key(old) {
            let _ = fs::remove_file(place.join(old));
        }
    }
    let names: String = sources.keys().map(|path| format!("{}\n", path.display())).collect();
    fs::write(&list, names)?;
    for (path, bytes) in sources {
        let copy = place.join(path);
        if fs::read(&copy).is_ok_and(|old| old == *bytes) {
            continue;
        }
        fs::create_dir_all(copy.parent().expect("it is in `place`"))?;
        fs::write(&copy, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_follows_the_sources_and_keeps_what_was_built() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path();
        let mut files = BTreeMap::from([
            (PathBuf::from("guest-driver/a.rs"), b"a".to_vec()),
            (PathBuf::from("guest-driver/mm/b.rs"), b"b".to_vec()),
        ]);
        synchronize(&files, place).unwrap();
        fs::write(place.join("guest-driver/a.o"), "built").unwrap();
        let untouched = fs::metadata(place.join("guest-driver/a.rs")).unwrap().mtime_nsec();
        files.remove(Path::new("guest-driver/mm/b.rs"));
        synchronize(&files, place).unwrap();
        assert!(!place.join("guest-driver/mm/b.rs").exists());
        assert!(place.join("guest-driver/a.o").exists());
        assert_eq!(fs::metadata(place.join("guest-driver/a.rs")).unwrap().mtime_nsec(), untouched);
    }
}
