// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The errors that decide the exit code: a bad request is 2, an interruption 128 + signal, the rest 1.

use std::fmt;

/// The user asked for something that can't be done as asked; one line says why.
#[derive(Debug)]
pub(crate) struct BadRequest(pub(crate) String);

/// A signal asked us to stop.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) i32);

/// The command ran to its end and its result, already printed, is bad.
#[derive(Debug)]
pub(crate) struct Reported;

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for BadRequest {}
impl std::error::Error for Interrupted {}
impl std::error::Error for Reported {}

/// Whether a bad request is what went wrong.
pub(crate) fn is_bad_request(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<BadRequest>())
}

/// A [`BadRequest`] as an `anyhow::Error`.
pub(crate) fn bad_request(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(BadRequest(message.into()))
}

/// Prints what clap has to say: help as it is, a mistake in one line; returns the exit code.
pub(crate) fn usage(error: &clap::Error) -> u8 {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        // Nobody may be listening; there is nobody to tell, then.
        let _ = error.print();
    } else {
        eprintln!("{}", one_line(&error.to_string()));
    }
    u8::try_from(error.exit_code()).unwrap_or(2)
}

/// What comes before clap's usage and hints.
fn one_line(text: &str) -> String {
    let told = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> =
        told.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("tip:")).collect();
    words.join(" ")
}

/// Says what went wrong, unless that was done already, and returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    if error.is::<Reported>() {
        return 1;
    }
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        eprintln!("xtask: interrupted, everything is stopped");
        return 128 + u8::try_from(*signal).unwrap_or(0);
    }
    eprintln!("error: {error:#}");
    if is_bad_request(error) { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line() {
        let text = "error: invalid value 'x' for '--a <A>'\n  [possible values: b, c]\n\nFor more information, try '--help'.\n";
        assert_eq!(one_line(text), "error: invalid value 'x' for '--a <A>' [possible values: b, c]");
        let text =
            "error: unexpected argument '--x' found\n\nUsage: cargo xtask run\n\nFor more information\n";
        assert_eq!(one_line(text), "error: unexpected argument '--x' found");
    }
}
