// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From a fresh checkout to everything that boots: toolchain, kernel, driver, programs.

use crate::artifacts::initramfs::Origins;
use crate::artifacts::{c_programs, driver, programs, selftests};
use crate::cache::Cache;
use crate::kernel::{Choice, Kernel};
use crate::options::{KernelOptions, VmOptions};
use crate::progress::Progress;
use crate::toolchain::{Manifest, Toolchain};
use crate::vm::{Accel, Machine, Qemu, clock};
use anyhow::Result;
use std::path::PathBuf;

/// What needs nothing built, and is decided before anything is.
#[derive(Clone)]
pub(crate) struct Decided {
    own: Option<Qemu>,
    accel: Accel,
}

/// Refuses at once what can be refused at once.
///
/// # Errors
/// A QEMU, an accelerator or a kernel tree that can't do.
pub(crate) async fn decide(options: &VmOptions, progress: &Progress) -> Result<Decided> {
    let own = match &options.qemu {
        Some(path) => Some(Qemu::own(path).await?),
        None => None,
    };
    options.kernel.choice().check()?;
    let accel = Accel::choose(options.accel, progress).await?;
    progress.detail(format!("accelerator: {}", accel.name()));
    Ok(Decided { own, accel })
}

/// Builds whatever `options` need and the caches don't have.
pub(crate) async fn machine(decided: Decided, options: &VmOptions, progress: &Progress) -> Result<Machine> {
    let (system, device, guest) = tokio::try_join!(
        system(&options.kernel, progress),
        programs::device(progress),
        programs::guest(progress),
    )?;
    let origins = Origins {
        guest,
        c: system.c,
        driver: system.driver,
        kernel: system.kernel.build.clone(),
        selftests: system.selftests,
        toolchain: system.toolchain.root.clone(),
    };
    let tsc_khz = if decided.accel == Accel::Tcg { clock::tsc_khz() } else { None };
    Ok(Machine {
        kernel: system.kernel,
        origins,
        device,
        qemu: decided.own.unwrap_or(Qemu::Packaged(system.toolchain)),
        accel: decided.accel,
        tsc_khz,
        cpus: options.cpus,
        memory: options.mem,
        verbose: options.verbose,
    })
}

/// The parts that come from the toolchain root.
pub(crate) struct System {
    pub(crate) toolchain: Toolchain,
    pub(crate) kernel: Kernel,
    pub(crate) driver: PathBuf,
    /// The folder of our programs in C.
    pub(crate) c: PathBuf,
    /// The folder of the kernel's own tests, if it has them.
    pub(crate) selftests: Option<PathBuf>,
}

/// Toolchain root, kernel, driver and the kernel's own tests.
pub(crate) async fn system(options: &KernelOptions, progress: &Progress) -> Result<System> {
    let flavour = options.flavour();
    let cache = Cache::open()?;
    let manifest = Manifest::load()?;
    let toolchain = Toolchain::ensure(&cache, &manifest, flavour, progress).await?;
    let kernel = match options.choice() {
        Choice::Tree(tree) => Kernel::from_tree(&cache, &toolchain, tree, flavour, progress).await?,
        Choice::Packaged(series) => {
            Kernel::ensure(&cache, &manifest, series, &toolchain, flavour, progress).await?
        }
    };
    let driver = driver::build(&kernel, &toolchain, progress).await?;
    let selftests = selftests::build(&kernel, &toolchain, progress).await?;
    let c = c_programs::build(&toolchain, progress).await?;
    Ok(System { toolchain, kernel, driver, c, selftests })
}
