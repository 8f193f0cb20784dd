// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the host wants, from the kernel's command line: `svmx_init.KEY=VALUE`.

use anyhow::{Context, Result, bail};
use std::str::FromStr;
use std::time::Duration;

/// The options and their defaults.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// `scenario`: a workload's name, or `shell`.
    pub(crate) scenario: String,
    /// `seed` of what is random.
    pub(crate) seed: u64,
    /// `cpus` that the workload may use.
    pub(crate) cpus: u32,
    /// `devices` that are attached.
    pub(crate) devices: u32,
    /// `module`: its parameters, separated by commas.
    pub(crate) module: String,
    /// `only`: parts of the scenario to which it keeps, by name.
    pub(crate) only: String,
    /// `limit`: seconds that the workload may take.
    pub(crate) limit: Duration,
    /// `duration`: seconds that a scenario without an end of its own should take.
    pub(crate) duration: Option<u32>,
}

impl Options {
    pub(crate) fn read() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?)
    }

    fn parse(line: &str) -> Result<Self> {
        let mut options = Options {
            scenario: "shell".into(),
            seed: 1,
            cpus: 2,
            devices: 1,
            module: String::new(),
            only: String::new(),
            limit: Duration::from_secs(240),
            duration: None,
        };
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix("svmx_init.")) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "scenario" => options.scenario = value.into(),
                "seed" => options.seed = number(key, value)?,
                "cpus" => options.cpus = number(key, value)?,
                "devices" => options.devices = number(key, value)?,
                "module" => options.module = value.into(),
                "only" => options.only = value.into(),
                "limit" => options.limit = Duration::from_secs(number(key, value)?),
                "duration" => options.duration = Some(number(key, value)?),
                _ => bail!("unknown option svmx_init.{word}"),
            }
        }
        Ok(options)
    }
}

fn number<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(key: &str, value: &str) -> Result<T> {
    value.parse().with_context(|| format!("svmx_init.{key}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_among_the_kernels() {
        let line =
            "console=ttyS0 svmx_init.scenario=counter svmx_init.module=a=1,b=2 svmx_init.seed=7 quiet\n";
        let options = Options::parse(line).unwrap();
        assert_eq!(
            (options.scenario.as_str(), options.module.as_str(), options.seed),
            ("counter", "a=1,b=2", 7)
        );
        assert_eq!((options.cpus, options.devices), (2, 1));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Options::parse("svmx_init.seeds=1").unwrap_err().to_string().contains("seeds"));
        assert!(Options::parse("svmx_init.seed=x").unwrap_err().to_string().contains("seed=x"));
    }
}
