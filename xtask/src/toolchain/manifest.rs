// SPDX-License-Identifier: Apache-2.0 OR MIT

//! images/toolchain.toml: which Debian, which packages, which kernels.

use crate::checkout;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// The manifest. Its values, not its text, key the cache.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) debian: Debian,
    pub(crate) packages: Packages,
    pub(crate) kernel: KernelSource,
}

/// Where packages come from, the mirror apart.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Debian {
    pub(crate) release: String,
    pub(crate) suites: Vec<String>,
    pub(crate) components: Vec<String>,
    pub(crate) prefer: String,
    pub(crate) exclude_paths: Vec<String>,
}

/// What is installed in the root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Packages {
    pub(crate) base: Vec<String>,
    pub(crate) kasan: Vec<String>,
}

/// Which packaged kernel sources are supported.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelSource {
    pub(crate) prefix: String,
    pub(crate) oldest: Version,
    pub(crate) newest: Version,
}

/// A series of kernels: the major and minor version.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Version(u32, u32);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts =
            text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) =
            parts.with_context(|| format!("{text:?} is not a series of kernels, such as 7.3"))?;
        Ok(Version(major, minor))
    }
}

impl TryFrom<String> for Version {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Manifest {
    pub(crate) fn load() -> Result<Self> {
        let path = checkout::root().join("images/toolchain.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not well-formed", path.display()))
    }
}

impl KernelSource {
    /// The supported series among the packages `names`, the newest last.
    pub(crate) fn series_of<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Version> {
        let series = names.filter_map(|name| name.strip_prefix(&self.prefix)?.parse().ok());
        series.filter(|series| self.supports(*series)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a series is among those that the driver is written for.
    pub(crate) fn supports(&self, series: Version) -> bool {
        (self.oldest..=self.newest).contains(&series)
    }

    /// What the package of a series is called.
    pub(crate) fn package(&self, series: Version) -> String {
        format!("{}{series}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_well_formed() {
        let manifest = Manifest::load().unwrap();
        assert!(manifest.debian.suites.contains(&manifest.debian.prefer));
        assert!(manifest.kernel.oldest <= manifest.kernel.newest);
    }

    #[test]
    fn supported_series_are_in_order() {
        let kernel = KernelSource {
            prefix: "linux-source-".into(),
            oldest: "7.2".parse().unwrap(),
            newest: "7.10".parse().unwrap(),
        };
        let names = ["linux-source-6.12", "linux-source-7.9", "linux-source-7.10", "linux-source-7.11"];
        let series: Vec<String> = kernel.series_of(names.into_iter()).into_iter().map(String::from).collect();
        assert_eq!(series, ["7.9", "7.10"]);
        assert!(
            kernel.series_of(["linux-source", "linux-source-6.12", "linux-source-x"].into_iter()).is_empty()
        );
        assert_eq!(kernel.package("7.9".parse().unwrap()), "linux-source-7.9");
    }

    #[test]
    fn a_series_has_two_numbers() {
        assert!("7.2".parse::<Version>().unwrap() < "7.10".parse().unwrap());
        for bad in ["", "7", "7.2.12", "v7.2", "7.x", "7.-1"] {
            let error = bad.parse::<Version>().unwrap_err().to_string();
            assert!(error.contains("such as 7.3"), "{error}");
        }
    }
}
