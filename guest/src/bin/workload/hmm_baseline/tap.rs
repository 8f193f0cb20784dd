// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What kselftest prints: the Test Anything Protocol, with a plan first and a line for each test.

use anyhow::{Context, Result, bail, ensure};

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Fail,
    /// And why.
    Skip(String),
}

/// A test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
}

/// A whole run, with as many results as were planned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) results: Vec<Test>,
}

impl Report {
    /// Reads a run's output. What is not of the protocol is passed over.
    ///
    /// # Errors
    /// There is no plan, results are missing or out of order, or one makes no sense.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let plan = text.lines().find_map(|line| line.strip_prefix("1..")).context("there is no plan")?;
        let planned: usize = plan.trim().parse().with_context(|| format!("the plan is 1..{plan}"))?;
        let mut results = Vec::new();
        for line in text.lines() {
            let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
                (Some(rest), _) => (true, rest),
                (_, Some(rest)) => (false, rest),
                _ => continue,
            };
            let number = results.len() + 1;
            let (found, rest) = rest.split_once(' ').with_context(|| format!("{line:?} has no name"))?;
            ensure!(found.parse() == Ok(number), "{line:?} came where result {number} was expected");
            results.push(test(passed, rest)?);
        }
        ensure!(results.len() == planned, "{planned} tests were planned, {} results came", results.len());
        Ok(Report { results })
    }
}

/// A name, perhaps followed by a directive.
fn test(passed: bool, text: &str) -> Result<Test> {
    let (name, directive) = text.split_once('#').map_or((text, ""), |(name, rest)| (name, rest.trim()));
    let verdict = match (passed, directive.split_once(' ')) {
        (true, Some(("SKIP", why))) => Verdict::Skip(why.trim().into()),
        (true, None) if directive.is_empty() => Verdict::Pass,
        (false, None) if directive.is_empty() => Verdict::Fail,
        _ => bail!("{text:?}: a directive that is not known"),
    };
    Ok(Test { name: name.trim().into(), verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read() {
        let text = "TAP version 13\n1..3\n# Starting 3 tests\n#  RUN   a.b.c ...\nok 1 a.b.c\n\
                    # x.c:1:d:Expected 0 == ret\nnot ok 2 a.b.d\nok 3 e # SKIP no device\n# Totals: pass:1\n";
        let verdicts: Vec<_> =
            Report::parse(text).unwrap().results.into_iter().map(|test| test.verdict).collect();
        assert_eq!(verdicts, [Verdict::Pass, Verdict::Fail, Verdict::Skip("no device".into())]);
    }

    #[test]
    fn what_is_incomplete_is_refused() {
        for text in [
            "",
            "ok 1 a\n",
            "1..2\nok 1 a\n",
            "1..1\nok 2 a\n",
            "1..x\n",
            "1..1\nok 1 a # TODO b\n",
            "1..1\nok 1\n",
        ] {
            assert!(Report::parse(text).is_err(), "{text:?}");
        }
    }
}
