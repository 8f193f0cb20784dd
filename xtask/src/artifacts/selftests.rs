// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own test of HMM: a program for user space, built from the kernel's source. It is linked
//! statically, as the guest has no libraries.

use crate::cache::{Cache, Key};
use crate::kernel::{Kernel, SOURCE};
use crate::process;
use crate::progress::Progress;
use crate::toolchain::{Sandbox, Toolchain};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The program, and its source beside [`SELFTESTS`]' Makefile.
const PROGRAM: &str = "hmm-tests";
/// Where it is in the kernel's source.
const SELFTESTS: &str = "tools/testing/selftests/mm";
/// Where the program is put in the sandbox.
const OUTPUT: &str = "/svmx/selftests";

/// As the Makefile has it with lib.mk, but linked statically.
const COMPILER: [&str; 9] =
    ["gcc", "-static", "-no-pie", "-Wall", "-O2", "-D_GNU_SOURCE=", "-U_FORTIFY_SOURCE", "-o", PROGRAM];
const INCLUDES: [&str; 4] = ["-I.", "-Itools/testing/selftests", "-isystem", "tools/include/uapi"];
const LIBRARIES: [&str; 3] = ["-lrt", "-lpthread", "-lm"];

/// Builds what the source of `kernel` has; returns the folder that it is in. `None`: it has no such program, or,
/// being a tree of the user's own, one that can't be built.
pub(crate) async fn build(
    kernel: &Kernel,
    toolchain: &Toolchain,
    progress: &Progress,
) -> Result<Option<PathBuf>> {
    let Some(sources) = sources(kernel.source())? else { return Ok(None) };
    let cache = Cache::open()?;
    let name = format!("selftests-{}", key(kernel.source(), &sources, toolchain)?);
    let log = cache.log(&name)?;
    let make = async |output: &Path| {
        let step = progress.quiet_step(PROGRAM);
        File::create(&log)?;
        let inside = kernel.sandbox(toolchain).writable(output, Path::new(OUTPUT)).directory(SOURCE);
        process::logged(&mut compiler(&inside, &sources), &log, &step, |_, _| ()).await?;
        step.done();
        Ok(())
    };
    match cache.entry(&name, progress, make).await {
        Ok(dir) => Ok(Some(dir)),
        // It has nothing to do with what the user wants to run, as a rule.
        Err(error) if kernel.is_own_tree() => {
            progress.say(format!("this tree's {PROGRAM} can't be built, and is left out: {error:#}"));
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("{PROGRAM} can't be built")),
    }
}

fn compiler(inside: &Sandbox, sources: &[PathBuf]) -> tokio::process::Command {
    let [compiler, flags @ ..] = COMPILER;
    let mut command = inside.command(compiler);
    let (last, flags) = flags.split_last().expect("it names the program last");
    command.args(flags).arg(Path::new(OUTPUT).join(last)).args(INCLUDES).args(sources).args(LIBRARIES);
    command
}

/// The files that are compiled: the program's own, and those that the Makefile links to every program. `None` if
/// there is no such program.
fn sources(tree: &Path) -> Result<Option<Vec<PathBuf>>> {
    let dir = Path::new(SELFTESTS);
    let own = dir.join(format!("{PROGRAM}.c"));
    if !tree.join(&own).is_file() {
        return Ok(None);
    }
    let makefile = tree.join(dir).join("Makefile");
    let text = fs::read_to_string(&makefile).with_context(|| format!("can't read {}", makefile.display()))?;
    let common = linked_to_all(&text).into_iter().map(|name| dir.join(name));
    Ok(Some(std::iter::once(own).chain(common).collect()))
}

/// What stands behind `$(TEST_GEN_FILES):` in the Makefile.
fn linked_to_all(makefile: &str) -> Vec<&str> {
    let prerequisites = makefile.lines().filter_map(|line| line.strip_prefix("$(TEST_GEN_FILES):"));
    prerequisites.flat_map(str::split_whitespace).filter(|name| name.ends_with(".c")).collect()
}

/// Names all that the program is made from, but for the toolchain's own files.
fn key(tree: &Path, sources: &[PathBuf], toolchain: &Toolchain) -> Result<String> {
    let mut inputs = sources.to_vec();
    for dir in [SELFTESTS, "tools/testing/selftests", "lib", "mm"] {
        let headers = fs::read_dir(tree.join(dir)).with_context(|| format!("can't read {dir}"))?;
        let names = headers.filter_map(|file| file.ok()?.file_name().into_string().ok());
        inputs.extend(names.filter(|name| name.ends_with(".h")).map(|name| Path::new(dir).join(name)));
    }
    inputs.sort();
    let mut key = Key::new().part(&toolchain.key);
    for word in COMPILER.iter().chain(&INCLUDES).chain(&LIBRARIES) {
        key = key.part(word);
    }
    for path in inputs {
        key = key.part(path.as_os_str().as_encoded_bytes()).part(fs::read(tree.join(&path))?);
    }
    Ok(key.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makefile_says_what_is_linked_to_all() {
        let makefile =
            "TEST_GEN_FILES = cow\n$(TEST_GEN_PROGS): vm_util.c\n$(TEST_GEN_FILES): vm_util.c x.c local.h\n";
        assert_eq!(linked_to_all(makefile), ["vm_util.c", "x.c"]);
        assert!(linked_to_all("").is_empty());
    }

    #[test]
    fn a_tree_without_the_program_has_no_sources() {
        let tree = tempfile::tempdir().unwrap();
        assert_eq!(sources(tree.path()).unwrap(), None);
        let dir = tree.path().join(SELFTESTS);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hmm-tests.c"), "").unwrap();
        fs::write(dir.join("Makefile"), "$(TEST_GEN_FILES): vm_util.c\n").unwrap();
        let expected = ["hmm-tests.c", "vm_util.c"].map(|name| Path::new(SELFTESTS).join(name));
        assert_eq!(sources(tree.path()).unwrap().unwrap(), expected);
    }
}
