// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Kernel configuration fragments: what images/kernel/ asks for, and whether a `.config` has it.

use std::collections::{BTreeMap, HashSet};

/// Options asked for, by name, each with the whole line that asks for it. A later line wins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fragment(BTreeMap<String, String>);

impl Fragment {
    /// Adds the lines of a fragment file on top.
    pub(crate) fn add(&mut self, text: &str) {
        for line in text.lines().map(str::trim_end) {
            if let Some(name) = option(line) {
                self.0.insert(name.to_owned(), line.to_owned());
            }
        }
    }

    /// Every wanted line, in a fixed order.
    pub(crate) fn text(&self) -> String {
        self.0.values().map(|line| format!("{line}\n")).collect()
    }

    /// The wanted lines that `config` doesn't have. Leaving an option out is a way of not setting it.
    pub(crate) fn lost(&self, config: &str) -> Vec<&str> {
        let lines: HashSet<&str> = config.lines().collect();
        let set: HashSet<&str> =
            config.lines().filter(|line| !line.starts_with('#')).filter_map(option).collect();
        self.0
            .iter()
            .filter(|(name, line)| {
                let unset = line.starts_with('#') && !set.contains(name.as_str());
                !unset && !lines.contains(line.as_str())
            })
            .map(|(_, line)| line.as_str())
            .collect()
    }
}

/// The option that a line sets or unsets.
fn option(line: &str) -> Option<&str> {
    let name = match line.strip_prefix("# ") {
        Some(rest) => rest.strip_suffix(" is not set")?,
        None => line.split_once('=')?.0,
    };
    (name.starts_with("CONFIG_") && !name.contains(' ')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> Fragment {
        let mut fragment = Fragment::default();
        fragment.add(text);
        fragment
    }

    #[test]
    fn what_is_there_is_not_lost() {
        let wanted = fragment(
            "# SPDX: CONFIG_X=y in a comment\n# Why.\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\n",
        );
        assert!(wanted.lost("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\n").is_empty());
        assert!(wanted.lost("CONFIG_A=y\nCONFIG_C=\"x=y\"\n").is_empty(), "an absent option is not set");
    }

    #[test]
    fn what_changed_is_lost() {
        let wanted = fragment("CONFIG_A=y\nCONFIG_M=m\n# CONFIG_B is not set\nCONFIG_N=16\n");
        let lost = wanted.lost("# CONFIG_A is not set\nCONFIG_M=y\nCONFIG_B=y\nCONFIG_N=160\n");
        assert_eq!(lost, ["CONFIG_A=y", "# CONFIG_B is not set", "CONFIG_M=m", "CONFIG_N=16"]);
    }

    #[test]
    fn a_later_fragment_wins() {
        let mut wanted = fragment("CONFIG_A=y\n");
        wanted.add("# CONFIG_A is not set\n");
        assert_eq!(wanted.text(), "# CONFIG_A is not set\n");
        assert!(wanted.lost("").is_empty());
    }
}
