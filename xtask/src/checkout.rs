// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are: the repository this xtask was built from, its target folder, and cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ is a folder of the repository")
}

/// Cargo's target folder, which also holds what is built from this checkout alone.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// A folder under [`target`] of xtask's own.
pub(crate) fn work() -> PathBuf {
    target().join("svmx")
}

/// The cargo that runs us, or the one on the PATH.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
