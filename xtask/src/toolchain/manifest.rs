// SPDX-License-Identifier: Apache-2.0 OR MIT

//! images/toolchain.toml: which Debian, which packages, which kernels.

use crate::checkout;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
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

/// A kernel's major and minor version.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Version(u32, u32);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (major, minor) = text.split_once('.').with_context(|| format!("{text} is not X.Y"))?;
        Ok(Version(major.parse()?, minor.parse()?))
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
    /// The newest supported package among `names`.
    pub(crate) fn newest_of<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<String> {
        names
            .filter_map(|name| Some((name.strip_prefix(&self.prefix)?.parse::<Version>().ok()?, name)))
            .filter(|(version, _)| (self.oldest..=self.newest).contains(version))
            .max()
            .map(|(_, name)| name.to_owned())
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
    fn the_newest_supported_source_wins() {
        let kernel = KernelSource {
            prefix: "linux-source-".into(),
            oldest: "7.2".parse().unwrap(),
            newest: "7.10".parse().unwrap(),
        };
        let names = ["linux-source-6.12", "linux-source-7.9", "linux-source-7.10", "linux-source-7.11"];
        assert_eq!(kernel.newest_of(names.into_iter()).as_deref(), Some("linux-source-7.10"));
        assert_eq!(
            kernel.newest_of(["linux-source", "linux-source-6.12", "linux-source-x"].into_iter()),
            None
        );
    }
}
