// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which package mirror this machine uses: read from its apt configuration.

use std::fs;
use std::path::{Path, PathBuf};

/// Names a mirror explicitly, for machines whose apt configuration doesn't.
pub(crate) const VARIABLE: &str = "SVMX_DEBIAN_MIRROR";

/// One source of binary packages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
}

/// The mirror to use; `None` leaves the choice to mmdebstrap, which knows Debian's own.
pub(crate) fn discover() -> Option<String> {
    if let Some(mirror) = std::env::var(VARIABLE).ok().filter(|mirror| !mirror.is_empty()) {
        return Some(mirror);
    }
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    // Any other distribution's mirror has other packages.
    if !os_release.lines().any(|line| line == "ID=debian" || line == "ID=\"debian\"") {
        return None;
    }
    choose(&sources(Path::new("/etc/apt")))
}

/// A full archive of Debian itself: not security updates, not somebody's own repository.
fn choose(sources: &[Source]) -> Option<String> {
    const FOREIGN: [&str; 2] = ["-security", "/updates"];
    sources
        .iter()
        .filter(|source| source.components.iter().any(|component| component == "main"))
        .filter(|source| !source.suites.iter().any(|suite| FOREIGN.iter().any(|end| suite.ends_with(end))))
        .filter(|source| source.uri.trim_end_matches('/').ends_with("/debian"))
        .map(|source| source.uri.clone())
        .next()
}

/// Every source that apt would use, in its order.
fn sources(apt: &Path) -> Vec<Source> {
    let mut files: Vec<PathBuf> = fs::read_dir(apt.join("sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files.insert(0, apt.join("sources.list"));
    files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => text.lines().filter_map(one_line).collect(),
                Some("sources") => deb822(&text),
                _ => Vec::new(),
            }
        })
        .collect()
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    if let Some(options) = rest.strip_prefix('[') {
        rest = options.split_once(']')?.1.trim_start();
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: words.next()?, suites: vec![words.next()?], components: words.collect() })
}

/// Stanzas of `Field: value`, where a line that begins with a blank goes on with the one before.
fn deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
        if line.trim().is_empty() {
            found.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> {
        let value = fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value);
        value.split_whitespace().map(str::to_owned).collect()
    };
    let off = words("enabled").first().is_some_and(|value| value == "no");
    if off || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let source = |uri| Source { uri, suites: words("suites"), components: words("components") };
    words("uris").into_iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_form() {
        let source =
            one_line("deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main contrib # x");
        assert_eq!(
            source,
            Some(Source {
                uri: "http://m.example/debian".into(),
                suites: vec!["bookworm".into()],
                components: vec!["main".into(), "contrib".into()],
            })
        );
        assert_eq!(one_line("# deb http://m.example/debian bookworm main"), None);
        assert_eq!(one_line("deb-src http://m.example/debian bookworm main"), None);
        assert_eq!(one_line(""), None);
    }

    #[test]
    fn deb822_form() {
        let text = "# comment\nTypes: deb\n# inside\nURIs: http://m.example/debian\nSuites: bookworm\n bookworm-updates\n\
                    Components: main\n\nTypes: deb-src\nURIs: http://s.example/debian\nSuites: x\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://o.example/debian\nSuites: x\nComponents: main\n";
        let sources = deb822(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(choose(&sources).as_deref(), Some("http://m.example/debian"));
    }

    #[test]
    fn security_and_private_repositories_are_not_mirrors() {
        let lines = [
            "deb https://pkgs.example/node_20.x nodistro main",
            "deb http://m.example/debian-security bookworm-security main",
            "deb http://m.example/debian bookworm-security main",
            "deb http://real.example/debian/ bookworm main",
        ];
        let sources: Vec<Source> = lines.into_iter().filter_map(one_line).collect();
        assert_eq!(choose(&sources).as_deref(), Some("http://real.example/debian/"));
        assert_eq!(choose(&sources[..3]), None);
    }
}
