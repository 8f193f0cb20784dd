// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the host gives this process: CPUs, and how many files it may have open. Asked and settled at the
//! start, because a process that has confined itself ([`crate::sandbox`]) can't ask any more.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use svmx_abi::pci::NUM_VECTORS;

use crate::memory::MAX_MAPS;

/// Files beside those of the maps and of the vectors: the standard ones, sockets, the doorbells, a log, and
/// what comes with a message that is not accepted.
const OTHER_FILES: u64 = 64;
/// What a device needs that has reached all its limits.
const FILES: u64 = MAX_MAPS as u64 + NUM_VECTORS as u64 + OTHER_FILES;

/// CPUs that this process may run on, by its affinity and its cgroup at the first call. At least one.
pub fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get()))
}

/// Allows as many open files as the limits of the device come to, if the host lets it. Each DMA map and each
/// vector holds one.
pub fn raise_file_limit() {
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < FILES {
            setrlimit(Resource::RLIMIT_NOFILE, FILES.min(hard), hard)?;
        }
        nix::Result::Ok(hard)
    };
    match raise() {
        Ok(hard) if hard >= FILES => {}
        Ok(hard) => tracing::info!("the host allows {hard} open files: fewer than {MAX_MAPS} DMA maps"),
        Err(error) => tracing::info!("the limit on open files can't be raised: {error}"),
    }
}
