// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask setup`: makes everything that `run` would make first, and says where it is.

use crate::cache::Cache;
use crate::kernel;
use crate::options::KernelOptions;
use crate::progress::Progress;
use crate::toolchain::Manifest;
use crate::{artifacts::programs, prepare};
use anyhow::Result;

/// Options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    kernel: KernelOptions,
    /// Says what is cached, too
    #[arg(short, long)]
    verbose: bool,
}

/// Fills the caches.
pub(crate) async fn run(options: Options) -> Result<()> {
    let progress = Progress::new(options.verbose);
    options.kernel.choice().check()?;
    let system = prepare::system(&options.kernel, &progress).await?;
    tokio::try_join!(programs::device(&progress), programs::guest(&progress))?;
    println!(
        "kernel {} and its driver are ready; the cache is {}",
        system.kernel.release()?,
        Cache::open()?.dir().display()
    );
    match kernel::offered(&system.toolchain, &Manifest::load()?.kernel).await {
        Ok(offered) => println!("the mirror has kernels for --kernel: {offered}"),
        Err(error) => println!("the mirror can't be asked which kernels it has: {error}"),
    }
    Ok(())
}
