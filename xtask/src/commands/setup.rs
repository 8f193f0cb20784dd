// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask setup`: makes everything that `run` would make first, and says where it is.

use crate::cache::Cache;
use crate::kernel::Flavour;
use crate::progress::Progress;
use crate::{artifacts::programs, prepare};
use anyhow::Result;

/// Options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How the kernel is configured
    #[arg(long, value_enum, default_value_t)]
    flavour: Flavour,
    /// Says what is cached, too
    #[arg(short, long)]
    verbose: bool,
}

/// Fills the caches.
pub(crate) async fn run(options: Options) -> Result<()> {
    let progress = Progress::new(options.verbose);
    let system = prepare::system(options.flavour, None, &progress).await?;
    tokio::try_join!(programs::device(&progress), programs::guest(&progress))?;
    println!(
        "kernel {} and its driver are ready; the cache is {}",
        system.kernel.release()?,
        Cache::open()?.dir().display()
    );
    Ok(())
}
