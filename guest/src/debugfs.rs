// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's files in debugfs: lines of a name and a value (docs/debugging.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The driver's folder.
pub const FOLDER: &str = "/sys/kernel/debug/svmx";

/// The folder of the `n`-th device.
pub fn of_device(n: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("svmx{n}"))
}

/// The folder of one of its contexts.
pub fn of_context(n: u32, asid: u64) -> PathBuf {
    of_device(n).join(asid.to_string())
}

/// The values of a file by their names. Lines that are for people alone are left out.
///
/// # Errors
/// The file can't be read: for example, what it is about has ended.
pub fn read(path: impl AsRef<Path>) -> io::Result<BTreeMap<String, String>> {
    Ok(parse(&fs::read_to_string(path)?))
}

/// The numbers of a file by their names.
///
/// # Errors
/// As [`read`].
pub fn numbers(path: impl AsRef<Path>) -> io::Result<BTreeMap<String, u64>> {
    let numbers = read(path)?.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?)));
    Ok(numbers.collect())
}

/// The sum over all contexts that have ended.
///
/// # Errors
/// As [`read`]: there is none without the driver, or without debugfs.
pub fn ended() -> io::Result<BTreeMap<String, u64>> {
    numbers(Path::new(FOLDER).join("ended"))
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| line.split_once(' '));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_for_people() {
        let found = parse("grant_ns_count 2\n  >=        4096 ns         2 ####\ncomm a b\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found["grant_ns_count"].as_str(), found["comm"].as_str()), ("2", "a b"));
    }
}
