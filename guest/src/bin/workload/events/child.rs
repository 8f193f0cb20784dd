// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A forked child of a cell, and the line to it: what it has of the cell's memory, and what it does to it.
#![expect(unsafe_code, reason = "forks")]

use super::cell::Cell;
use super::scene::Page;
use crate::scenario::patience;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// How often a fork is tried that meets pages that are locked.
const ATTEMPTS: u32 = 10_000;

/// A child. Its own messages are numbers, one for each page.
pub(crate) struct Child {
    pid: Pid,
    line: Line,
}

/// One end of the line between a child and its parent.
pub(crate) struct Line(UnixStream);

impl Child {
    /// Forks. The child does `work` and ends; what goes wrong is said by [`Self::end`].
    pub(crate) fn fork(
        cell: &mut Cell,
        work: impl FnOnce(&[Page], &mut Line) -> Result<()>,
    ) -> Result<Child> {
        let (ours, theirs) = UnixStream::pair()?;
        let limit = Some(patience());
        ours.set_read_timeout(limit)?;
        theirs.set_read_timeout(limit)?;
        match fork_at_last(cell)? {
            ForkResult::Parent { child } => Ok(Child { pid: child, line: Line(ours) }),
            ForkResult::Child => {
                drop(ours);
                let mut line = Line(theirs);
                let result = work(&cell.scene.pages, &mut line);
                let code = i32::from(result.is_err());
                if let Err(error) = result {
                    // Nobody is left to whom it could be said that it can't be said.
                    let _ = line.0.write_all(format!("{error:#}").as_bytes());
                }
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Lets the child go on.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.line.say(&[0])
    }

    /// What the child says of each page.
    pub(crate) fn numbers(&mut self, pages: usize) -> Result<Vec<u64>> {
        self.line.hear(pages)
    }

    /// Waits for its end, which must be good.
    pub(crate) fn end(mut self) -> Result<()> {
        let mut said = Vec::new();
        self.line.0.read_to_end(&mut said).context("the child does not end")?;
        let status = waitpid(self.pid, None)?;
        ensure!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "the child: {} ({status:?})",
            String::from_utf8_lossy(&said)
        );
        Ok(())
    }
}

impl Line {
    pub(crate) fn say(&mut self, numbers: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Ok(self.0.write_all(&bytes)?)
    }

    fn hear(&mut self, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * count];
        self.0.read_exact(&mut bytes).context("the other process says nothing")?;
        Ok(bytes
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
            .collect())
    }

    /// Waits until the other side has closed its end: its process has given up its memory before that.
    pub(crate) fn wait_for_the_end(&mut self) -> Result<()> {
        let read = self.0.read(&mut [0]).context("the other process does not end")?;
        ensure!(read == 0, "the other process goes on");
        Ok(())
    }

    /// Waits until the other side lets it go on.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.hear(1).map(drop)
    }
}

/// Forks. While the driver holds the lock of an exclusive page, copy_nonpresent_pte() can't restore it, and
/// copy_page_range() gives up the whole fork with ENOMEM: the kernel does not promise more. It can't happen while the
/// device is idle.
fn fork_at_last(cell: &mut Cell) -> Result<ForkResult> {
    for _ in 0..ATTEMPTS {
        // SAFETY: the C library keeps its locks usable in the child of a process with threads, and no other lock is
        // taken there that a thread of the parent could hold: it has a heap, a context and a line of its own.
        match unsafe { fork() } {
            Err(Errno::ENOMEM) if cell.name.state.is_hammered() => cell.count("fork_enomem"),
            other => return other.context("fork"),
        }
    }
    bail!("fork failed {ATTEMPTS} times")
}
