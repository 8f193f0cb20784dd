// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The programs in C of guest/c/, against abi/include/svmx.h: linked statically, as the guest has no libraries, and
//! without warnings, as they are there to be copied.

use crate::cache::{Cache, Key};
use crate::checkout;
use crate::process;
use crate::progress::Progress;
use crate::toolchain::Toolchain;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The programs, and with `.c` their sources.
const PROGRAMS: [&str; 1] = ["fetch_add"];
const SOURCES: &str = "guest/c";
const INCLUDE: &str = "abi/include";
const HEADER: &str = "svmx.h";

const COMPILER: [&str; 8] =
    ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"];

/// Builds them; returns the folder that they are in.
pub(crate) async fn build(toolchain: &Toolchain, progress: &Progress) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let name = format!("c-programs-{}", key(checkout::root(), toolchain)?);
    let log = cache.log(&name)?;
    let make = async |output: &Path| {
        let step = progress.quiet_step("C programs");
        File::create(&log)?;
        for program in PROGRAMS {
            let mut command = compiler(toolchain, output, program);
            process::logged(&mut command, &log, &step, |_, _| ())
                .await
                .with_context(|| format!("{SOURCES}/{program}.c can't be built"))?;
        }
        step.done();
        Ok(())
    };
    cache.entry(&name, progress, make).await
}

fn compiler(toolchain: &Toolchain, output: &Path, program: &str) -> tokio::process::Command {
    let [sources, include, products] = ["/svmx/c", "/svmx/include", "/svmx/out"].map(Path::new);
    let root = checkout::root();
    let inside = toolchain.sandbox().read_only(&root.join(SOURCES), sources);
    let inside = inside.read_only(&root.join(INCLUDE), include).writable(output, products);
    let [compiler, flags @ ..] = COMPILER;
    let mut command = inside.command(compiler);
    command.args(flags).arg("-I").arg(include);
    command.arg(sources.join(format!("{program}.c"))).arg("-o").arg(products.join(program));
    command
}

/// Names all that they are made from.
fn key(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let mut key = Key::new().part(&toolchain.key);
    for word in COMPILER {
        key = key.part(word);
    }
    let sources = PROGRAMS.map(|program| Path::new(SOURCES).join(format!("{program}.c")));
    for path in sources.iter().chain([&Path::new(INCLUDE).join(HEADER)]) {
        let bytes = fs::read(root.join(path)).with_context(|| format!("can't read {}", path.display()))?;
        key = key.part(path.as_os_str().as_encoded_bytes()).part(bytes);
    }
    Ok(key.finish())
}
