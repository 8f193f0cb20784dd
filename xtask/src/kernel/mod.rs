// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's kernel: built once per flavour from the packaged source, or from a tree of the user's.

mod config;
mod source;

pub(crate) use source::{Source, offered};

use crate::cache::{self, Cache, Key};
use crate::checkout;
use crate::failure::bad_request;
use crate::process;
use crate::progress::{Progress, Step};
use crate::toolchain::{Manifest, Sandbox, Toolchain, Version};
use anyhow::{Context, Result, bail};
use config::Fragment;
use nix::fcntl::Flock;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use tokio::process::Command;

/// Raised when the way a kernel is built changes.
const RECIPE: &str = "1";
/// Where the source tree and the build folder are in the sandbox, wherever they are on the host: the
/// build embeds these paths, and a cache entry may be moved.
pub(crate) const SOURCE: &str = "/svmx/source";
pub(crate) const BUILD: &str = "/svmx/kernel";

/// A configuration of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flavour {
    /// No checks beyond a production kernel's
    #[default]
    Fast,
    /// lockdep, DEBUG_VM, page-table checks, kmemleak
    Debug,
    /// KASAN on top of it, built with clang
    Kasan,
}

impl Flavour {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Flavour::Fast => "fast",
            Flavour::Debug => "debug",
            Flavour::Kasan => "kasan",
        }
    }

    /// How much longer than `fast` a guest with it may take.
    pub(crate) fn slowdown(self) -> u32 {
        match self {
            Flavour::Fast => 1,
            Flavour::Debug => 4,
            Flavour::Kasan => 8,
        }
    }

    /// What `make` is told in every call, for the kernel and for modules.
    pub(crate) fn make_variables(self) -> &'static [&'static str] {
        match self {
            Flavour::Kasan => &["LLVM=1"],
            Flavour::Fast | Flavour::Debug => &[],
        }
    }

    fn fragment(self) -> Result<Fragment> {
        let files: &[&str] = match self {
            Flavour::Fast => &["base", "fast"],
            Flavour::Debug => &["base", "debug"],
            Flavour::Kasan => &["base", "debug", "kasan"],
        };
        let mut fragment = Fragment::default();
        for name in files {
            let path = checkout::root().join("images/kernel").join(format!("{name}.config"));
            fragment
                .add(&fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?);
        }
        Ok(fragment)
    }
}

/// Which kernel the guest has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice<'a> {
    /// A packaged one: of a certain series, or of the newest that there is.
    Packaged(Option<Version>),
    /// That of a source tree of the user's.
    Tree(&'a Path),
}

impl Choice<'_> {
    /// Refuses at once what can't be built.
    ///
    /// # Errors
    /// A bad request.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Choice::Tree(tree) => check_tree(tree).map(drop),
            Choice::Packaged(None) => Ok(()),
            Choice::Packaged(Some(series)) => {
                let kernel = Manifest::load()?.kernel;
                if kernel.supports(series) {
                    return Ok(());
                }
                let (oldest, newest) = (kernel.oldest, kernel.newest);
                Err(bad_request(format!("--kernel {series}: the driver is for {oldest} to {newest}")))
            }
        }
    }
}

/// A built kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Names its content, as far as it is known: a user's tree may change under the same key.
    pub(crate) key: String,
    pub(crate) flavour: Flavour,
    pub(crate) build: PathBuf,
    source: PathBuf,
    /// Keeps others from changing a build that is not content-addressed, as long as it is used.
    lock: Option<Arc<Flock<File>>>,
}

impl Kernel {
    /// The uncompressed kernel that QEMU starts through PVH.
    pub(crate) fn image(&self) -> PathBuf {
        self.build.join("vmlinux")
    }

    /// Its version, for example `7.3.4-svmx-fast`.
    pub(crate) fn release(&self) -> Result<String> {
        Ok(fs::read_to_string(self.build.join("include/config/kernel.release"))?.trim().to_owned())
    }

    /// The source that it was built from.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// Whether that is a tree of the user's.
    pub(crate) fn is_own_tree(&self) -> bool {
        self.lock.is_some()
    }

    /// A sandbox in which modules can be built against it.
    pub(crate) fn sandbox(&self, toolchain: &Toolchain) -> Sandbox {
        sandbox(toolchain, &self.source).read_only(&self.build, Path::new(BUILD))
    }

    /// The packaged kernel if it has been built.
    pub(crate) fn find(
        cache: &Cache,
        manifest: &Manifest,
        series: Option<Version>,
        flavour: Flavour,
    ) -> Result<Option<Self>> {
        let Some(toolchain) = Toolchain::find(cache, manifest, flavour)? else { return Ok(None) };
        let Some(source) = Source::find(cache, manifest, series)? else { return Ok(None) };
        let key = packaged_key(&toolchain, &source, flavour)?;
        let build = cache.find(&format!("kernel-{}-{key}", flavour.name()));
        Ok(build.map(|build| Kernel { key, flavour, build, source: source.tree, lock: None }))
    }

    /// A packaged kernel, built first if need be.
    pub(crate) async fn ensure(
        cache: &Cache,
        manifest: &Manifest,
        series: Option<Version>,
        toolchain: &Toolchain,
        flavour: Flavour,
        progress: &Progress,
    ) -> Result<Self> {
        let source = Source::ensure(cache, manifest, series, toolchain, progress).await?;
        let key = packaged_key(toolchain, &source, flavour)?;
        let name = format!("kernel-{}-{key}", flavour.name());
        let log = cache.log(&name)?;
        let make = async |build: &Path| {
            let step = progress.step(format!("kernel {} ({})", flavour.name(), source.package));
            File::create(&log)?;
            let inside = sandbox(toolchain, &source.tree).writable(build, Path::new(BUILD));
            let building = Build { inside, flavour, dir: build, own: None, log: &log, step: &step };
            building.configure().await?;
            building.make().await?;
            step.done();
            Ok(())
        };
        let build = cache.entry(&name, progress, make).await?;
        Ok(Kernel { key, flavour, build, source: source.tree, lock: None })
    }

    /// The kernel of a tree of the user's own, brought up to date.
    pub(crate) async fn from_tree(
        cache: &Cache,
        toolchain: &Toolchain,
        tree: &Path,
        flavour: Flavour,
        progress: &Progress,
    ) -> Result<Self> {
        let tree = check_tree(tree)?;
        let path = tree.as_os_str().as_encoded_bytes();
        let key = Key::new().part(RECIPE).part(&toolchain.key).part(flavour.name()).part(path).finish();
        let name = format!("kernel-tree-{}-{key}", flavour.name());
        let build = cache.dir().join(&name);
        let lock = cache::lock(&cache.dir().join(format!("{name}.lock")), progress).await?;
        fs::create_dir_all(&build)?;
        let log = cache.log(&name)?;
        File::create(&log)?;
        let step = progress.step(format!("kernel {} of {}", flavour.name(), tree.display()));
        let inside = sandbox(toolchain, &tree).writable(&build, Path::new(BUILD));
        let building = Build { inside, flavour, dir: &build, own: Some(&tree), log: &log, step: &step };
        building.configure().await?;
        building.make().await?;
        step.done();
        let lock = Some(Arc::new(cache::share(lock).await?));
        Ok(Kernel { key, flavour, build, source: tree, lock })
    }
}

fn packaged_key(toolchain: &Toolchain, source: &Source, flavour: Flavour) -> Result<String> {
    let fragment = flavour.fragment()?.text();
    Ok(Key::new().part(RECIPE).part(&toolchain.key).part(&source.package).part(fragment).finish())
}

/// Says early what would end in a page of make's errors.
fn check_tree(tree: &Path) -> Result<PathBuf> {
    let shown = tree.display();
    let real = tree.canonicalize().map_err(|error| bad_request(format!("--kernel-src {shown}: {error}")))?;
    if !real.join("Kbuild").is_file() || !real.join("rust/kernel").is_dir() {
        return Err(bad_request(format!("--kernel-src {shown}: not a Linux source tree with Rust support")));
    }
    if real.join(".config").exists() || real.join("include/config").exists() {
        return Err(bad_request(format!(
            "--kernel-src {shown}: the tree holds a build of its own; run `make mrproper` there (svmx builds outside it)"
        )));
    }
    Ok(real)
}

fn sandbox(toolchain: &Toolchain, source: &Path) -> Sandbox {
    toolchain
        .sandbox()
        .set("KBUILD_BUILD_USER", "svmx")
        .set("KBUILD_BUILD_HOST", "svmx")
        .read_only(source, Path::new(SOURCE))
}

/// One build under way.
struct Build<'a> {
    inside: Sandbox,
    flavour: Flavour,
    dir: &'a Path,
    /// The tree, if it is the user's: what is wrong with it is the user's to mend.
    own: Option<&'a Path>,
    log: &'a Path,
    step: &'a Step,
}

impl Build<'_> {
    fn command(&self, targets: &[&str]) -> Command {
        let mut make = self.inside.command("make");
        make.args(["-C", SOURCE, &format!("O={BUILD}")]).args(self.flavour.make_variables()).args(targets);
        make
    }

    /// tinyconfig plus the fragments, checked to be still there after `olddefconfig`.
    async fn configure(&self) -> Result<()> {
        let fragment = self.flavour.fragment()?;
        let asked = self.dir.join("svmx-fragment.config");
        self.step.note("configuring");
        if !fs::read_to_string(&asked).is_ok_and(|text| text == fragment.text()) {
            process::logged(&mut self.command(&["tinyconfig"]), self.log, self.step, |_, _| ()).await?;
            let path = self.dir.join(".config");
            let config = fs::read_to_string(&path)?;
            fs::write(&path, format!("{config}\n{}", fragment.text()))?;
        }
        process::logged(&mut self.command(&["olddefconfig"]), self.log, self.step, |_, _| ()).await?;
        let config = fs::read_to_string(self.dir.join(".config"))?;
        let lost = fragment.lost(&config);
        if !lost.is_empty() {
            // The next attempt starts from the fragment again.
            let _ = fs::remove_file(&asked);
            return self.explain(&lost).await;
        }
        fs::write(&asked, fragment.text())?;
        Ok(())
    }

    /// Fails naming the options that this tree, with these tools, does not grant.
    async fn explain(&self, lost: &[&str]) -> Result<()> {
        let mut reason = String::new();
        if lost.contains(&"CONFIG_RUST=y") {
            let log = fs::read_to_string(self.log)?.len();
            // It fails, or there is nothing to explain; what matters is what it prints.
            let _ =
                process::logged(&mut self.command(&["rustavailable"]), self.log, self.step, |_, _| ()).await;
            let said = fs::read_to_string(self.log)?.split_off(log);
            let lines = said.lines().filter(|line| line.starts_with("***") && line.len() > 3);
            reason = lines.map(|line| line.trim_matches(['*', ' '])).collect::<Vec<_>>().join(" ");
            reason = format!("; `make rustavailable` says: {}", reason.trim());
        }
        let (shown, log) = (lost.join(", "), self.log.display());
        match self.own {
            Some(tree) => Err(bad_request(format!(
                "--kernel-src {}: can't be configured as images/kernel/ asks; lost: {shown}{reason} (log: {log})",
                tree.display()
            ))),
            None => bail!(
                "this kernel can't be configured as images/kernel/ asks; lost: {shown}{reason} (log: {log})"
            ),
        }
    }

    async fn make(&self) -> Result<()> {
        let jobs = thread::available_parallelism().map_or(1, |cores| cores.get() + 1);
        let mut objects = 0_u32;
        let count = |step: &Step, line: &str| {
            // Kbuild's short form: two blanks, what it does, and to which file.
            if let Some((_, file)) = line.strip_prefix("  ").and_then(|line| line.split_once("  ")) {
                objects += 1;
                step.note(format!("{objects} done, {}", file.trim()));
            }
        };
        let mut make = self.command(&[&format!("-j{jobs}"), "vmlinux", "modules"]);
        process::logged_within(process::LONG_STEP_LIMIT, &mut make, self.log, self.step, count).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flavour_has_its_fragments() {
        for flavour in [Flavour::Fast, Flavour::Debug, Flavour::Kasan] {
            assert!(flavour.fragment().unwrap().text().contains("CONFIG_RUST=y\n"), "{}", flavour.name());
        }
    }

    #[test]
    fn what_is_no_kernel_tree_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_tree(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a Linux source tree"), "{error}");
        fs::create_dir_all(dir.path().join("rust/kernel")).unwrap();
        fs::write(dir.path().join("Kbuild"), "").unwrap();
        assert!(check_tree(dir.path()).is_ok());
        fs::write(dir.path().join(".config"), "").unwrap();
        assert!(check_tree(dir.path()).unwrap_err().to_string().contains("mrproper"));
    }
}
