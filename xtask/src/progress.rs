// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Says on stderr what is going on: a spinner on a terminal, plain lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::cell::{Cell, OnceCell};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Where steps are announced.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    verbose: bool,
    began: Instant,
    /// The terminal's spinners; `None` without a terminal.
    spinners: Option<MultiProgress>,
}

/// One step under way. Dropped without [`Step::done`], it leaves no trace on a terminal.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    spinners: Option<MultiProgress>,
    bar: OnceCell<ProgressBar>,
    announced: Cell<bool>,
    started: Instant,
    said: Cell<Instant>,
}

/// How often a step without a terminal says that it is still alive.
const PLAIN_INTERVAL: Duration = Duration::from_secs(60);

impl Progress {
    pub(crate) fn new(verbose: bool) -> Self {
        Progress {
            verbose,
            began: Instant::now(),
            spinners: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// How long the command has been running.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something worth a line of its own.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        say(self.spinners.as_ref(), line.as_ref());
    }

    /// A result, for stdout, while a step may be under way.
    pub(crate) fn result(&self, line: impl AsRef<str>) {
        match &self.spinners {
            Some(spinners) => spinners.suspend(|| println!("{}", line.as_ref())),
            None => println!("{}", line.as_ref()),
        }
    }

    /// Something for `-v` only.
    pub(crate) fn detail(&self, line: impl AsRef<str>) {
        if self.verbose {
            self.say(line);
        }
    }

    /// Begins a step that takes a while.
    pub(crate) fn step(&self, what: impl Into<String>) -> Step {
        let step = self.quiet_step(what);
        step.announce();
        step
    }

    /// Begins a step that may turn out to have nothing to do: nothing is said before its first note.
    pub(crate) fn quiet_step(&self, what: impl Into<String>) -> Step {
        let now = Instant::now();
        Step {
            what: what.into(),
            spinners: self.spinners.clone(),
            bar: OnceCell::new(),
            announced: Cell::new(false),
            started: now,
            said: Cell::new(now),
        }
    }
}

fn say(spinners: Option<&MultiProgress>, line: &str) {
    match spinners {
        Some(spinners) => spinners.suspend(|| eprintln!("{line}")),
        None => eprintln!("{line}"),
    }
}

impl Step {
    fn announce(&self) {
        if self.announced.replace(true) {
            return;
        }
        match &self.spinners {
            Some(spinners) => {
                let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
                    .expect("the template is a constant");
                let bar = ProgressBar::new_spinner().with_style(style).with_prefix(self.what.clone());
                let bar = self.bar.get_or_init(|| spinners.add(bar));
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => eprintln!("{} …", self.what),
        }
    }

    /// How far the step is.
    pub(crate) fn note(&self, message: impl AsRef<str>) {
        self.announce();
        match self.bar.get() {
            Some(bar) => bar.set_message(message.as_ref().to_owned()),
            None if self.said.get().elapsed() >= PLAIN_INTERVAL => {
                self.said.set(Instant::now());
                eprintln!("{} … {} s, {}", self.what, self.started.elapsed().as_secs(), message.as_ref());
            }
            None => {}
        }
    }

    /// The step ended well.
    pub(crate) fn done(self) {
        self.clear();
        if self.announced.get() {
            let line = format!("{}: done in {:.1} s", self.what, self.started.elapsed().as_secs_f64());
            say(self.spinners.as_ref(), &line);
        }
    }

    fn clear(&self) {
        if let (Some(bar), Some(spinners)) = (self.bar.get(), &self.spinners) {
            bar.finish_and_clear();
            spinners.remove(bar);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}
