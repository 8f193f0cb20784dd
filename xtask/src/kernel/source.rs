// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's source: a supported package of the mirror, the newest or that of a certain series, unpacked into the
//! cache.

use crate::cache::{Cache, Key};
use crate::failure::bad_request;
use crate::process;
use crate::progress::{Progress, Step};
use crate::toolchain::{KernelSource, Manifest, Sandbox, Toolchain, Version};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Raised when the way the source is fetched changes.
const RECIPE: &str = "1";

/// A source tree in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) tree: PathBuf,
    /// The package and its version, for example `linux-source-7.3 7.3.4-1`.
    pub(crate) package: String,
}

impl Source {
    fn name(manifest: &Manifest, series: Option<Version>) -> Result<String> {
        let mut key = Key::new()
            .part(RECIPE)
            .part(serde_json::to_vec(&manifest.debian)?)
            .part(serde_json::to_vec(&manifest.kernel)?);
        if let Some(series) = series {
            key = key.part(series.to_string());
        }
        Ok(format!("kernel-source-{}", key.finish()))
    }

    fn at(entry: &Path) -> Result<Self> {
        let package = fs::read_to_string(entry.join("package"))?;
        Ok(Source { tree: entry.join("tree"), package: package.trim().to_owned() })
    }

    /// The source of `series`, or the newest, if it has been fetched.
    pub(crate) fn find(cache: &Cache, manifest: &Manifest, series: Option<Version>) -> Result<Option<Self>> {
        let find =
            |series| cache.find(&Self::name(manifest, series)?).map(|entry| Self::at(&entry)).transpose();
        let newest = find(None)?;
        match series {
            Some(series) if newest.as_ref().is_none_or(|newest| !newest.is_of(manifest, series)) => {
                find(Some(series))
            }
            _ => Ok(newest),
        }
    }

    fn is_of(&self, manifest: &Manifest, series: Version) -> bool {
        self.package.split(' ').next() == Some(&manifest.kernel.package(series))
    }

    /// The source of `series`, or the newest, fetched first if need be.
    ///
    /// # Errors
    /// A bad request if the mirror has no such series.
    pub(crate) async fn ensure(
        cache: &Cache,
        manifest: &Manifest,
        series: Option<Version>,
        toolchain: &Toolchain,
        progress: &Progress,
    ) -> Result<Self> {
        if let Some(there) = Self::find(cache, manifest, series)? {
            progress.detail(format!("cached: {}", there.tree.display()));
            return Ok(there);
        }
        let name = Self::name(manifest, series)?;
        let log = cache.log(&name)?;
        let make = async |entry: &Path| {
            let step = progress.step("kernel source");
            File::create(&log)?;
            fetch(&manifest.kernel, series, toolchain, entry, &log, &step).await?;
            step.done();
            progress.say(format!("kernel source: {}", Self::at(entry)?.package));
            Ok(())
        };
        Self::at(&cache.entry(&name, progress, make).await?)
    }
}

/// Downloads the package into `entry` and leaves `package` and `tree` there.
async fn fetch(
    kernel: &KernelSource,
    series: Option<Version>,
    toolchain: &Toolchain,
    entry: &Path,
    log: &Path,
    step: &Step,
) -> Result<()> {
    let inside = toolchain.sandbox().apt().writable(entry, Path::new("/svmx")).directory("/svmx");
    step.note("asking the mirror which there are");
    let mut names = Vec::new();
    let mut list = list(&inside, kernel);
    let collect = |_: &Step, line: &str| names.push(line.trim().to_owned());
    process::logged_within(process::LONG_STEP_LIMIT, &mut list, log, step, collect).await?;
    let offered = kernel.series_of(names.iter().map(String::as_str));
    let package = kernel.package(choose(kernel, series, &offered)?);
    step.note(format!("downloading {package}"));
    let mut download = inside.command("sh");
    download.args(["-ec", DOWNLOAD, "sh", &package]);
    process::logged_within(process::LONG_STEP_LIMIT, &mut download, log, step, |_, _| ()).await?;
    unpack(&inside, entry, &package, log, step).await
}

// The package lists are in the sandbox's memory, so each of these makes its own. apt's user for downloads
// may not exist in it. Positional parameters, so that nothing needs quoting.
const LIST: &str = "apt-get -q -o APT::Sandbox::User=root update >&2; apt-cache pkgnames \"$1\"";
const DOWNLOAD: &str = "apt-get -q -o APT::Sandbox::User=root update; \
    apt-get -q -o APT::Sandbox::User=root download \"$1\"; \
    mv \"$1\"_*.deb source.deb";

async fn unpack(inside: &Sandbox, entry: &Path, package: &str, log: &Path, step: &Step) -> Result<()> {
    step.note(format!("unpacking {package}"));
    let mut version = inside.command("dpkg-deb");
    version.args(["--field", "source.deb", "Version"]);
    let mut found = String::new();
    process::logged(&mut version, log, step, |_, line| found = line.to_owned()).await?;

    let mut deb = inside.command("dpkg-deb");
    process::logged(deb.args(["--extract", "source.deb", "deb"]), log, step, |_, _| ()).await?;
    let archive = archive(&entry.join("deb/usr/src"))?;
    fs::create_dir(entry.join("tree"))?;
    let mut tar = inside.command("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--directory=tree", "--file"]);
    tar.arg(Path::new("deb/usr/src").join(archive));
    process::logged(&mut tar, log, step, |_, _| ()).await?;

    fs::remove_file(entry.join("source.deb"))?;
    fs::remove_dir_all(entry.join("deb"))?;
    fs::write(entry.join("package"), format!("{package} {found}\n"))?;
    Ok(())
}

fn list(inside: &Sandbox, kernel: &KernelSource) -> Command {
    let mut list = inside.command("sh");
    list.args(["-ec", LIST, "sh", &kernel.prefix]);
    list
}

/// The series that is to be taken of those that the mirror has.
fn choose(kernel: &KernelSource, series: Option<Version>, offered: &[Version]) -> Result<Version> {
    let KernelSource { prefix, oldest, newest } = kernel;
    let Some(last) = offered.last() else {
        bail!("the mirror has no {prefix}X.Y between {oldest} and {newest}")
    };
    match series {
        None => Ok(*last),
        Some(series) if offered.contains(&series) => Ok(series),
        Some(series) => {
            let shown = shown(offered);
            Err(bad_request(format!(
                "--kernel {series}: the mirror has no {}; it has {shown}",
                kernel.package(series)
            )))
        }
    }
}

/// The supported series that the mirror has now, as one says them.
///
/// # Errors
/// The mirror can't be asked.
pub(crate) async fn offered(toolchain: &Toolchain, kernel: &KernelSource) -> Result<String> {
    let answer = process::answer(&mut list(&toolchain.sandbox().apt(), kernel)).await?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        bail!("{}", said.lines().find(|line| line.starts_with("E: ")).unwrap_or("apt-get failed"));
    }
    let offered = kernel.series_of(String::from_utf8_lossy(&answer.stdout).lines().map(str::trim));
    Ok(if offered.is_empty() { "none".to_owned() } else { shown(&offered) })
}

fn shown(offered: &[Version]) -> String {
    offered.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

/// The tarball among the package's files.
fn archive(dir: &Path) -> Result<String> {
    fs::read_dir(dir)?
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .find(|name| name.contains(".tar"))
        .with_context(|| format!("there is no tarball in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_that_the_mirror_has_not_is_a_bad_request() {
        let [oldest, between, newest] = ["7.2", "7.3", "7.4"].map(|series| series.parse().unwrap());
        let kernel = KernelSource { prefix: "linux-source-".into(), oldest, newest };
        assert_eq!(choose(&kernel, None, &[oldest, between]).unwrap(), between);
        assert_eq!(choose(&kernel, Some(oldest), &[oldest, between]).unwrap(), oldest);
        let error = choose(&kernel, Some(newest), &[oldest, between]).unwrap_err();
        assert!(crate::failure::is_bad_request(&error));
        assert_eq!(error.to_string(), "--kernel 7.4: the mirror has no linux-source-7.4; it has 7.2, 7.3");
        assert!(!crate::failure::is_bad_request(&choose(&kernel, Some(oldest), &[]).unwrap_err()));
    }

    #[test]
    fn the_newest_is_also_the_one_of_its_series() {
        let manifest = Manifest::load().unwrap();
        let package = format!("{} 1-1", manifest.kernel.package(manifest.kernel.newest));
        let source = Source { tree: PathBuf::new(), package };
        assert!(source.is_of(&manifest, manifest.kernel.newest));
        assert!(!source.is_of(&manifest, "1.0".parse().unwrap()));
    }
}
