// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the process confines itself after its start, so that whoever takes it over by way of a bug gets
//! nothing but what the VMM has given to it anyway.
//!
//! Two walls. [`forbid_files`] (landlock, before threads begin, as they inherit it) leaves no file, no
//! network and no signal to others; [`forbid_syscalls`] (seccomp, when all is open and all threads run)
//! leaves the system calls that the device makes: see [`filter`]. Both are for ever, also for root, and no
//! program that is started can have privileges again. What is open already stays open.
//!
//! A forbidden call ends the process with SIGSYS and a line that says which call it was (with two exceptions, see
//! there). An error for the caller would be milder, but callers try this and that and hide what failed: a bug of ours,
//! or an attack, would be seen by nobody.

mod filter;
mod report;

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// Why the process can't confine itself.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The folder of the socket can't be opened.
    #[error(transparent)]
    Folder(#[from] PathFdError),
    /// Landlock is there, but not to be had.
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// No core dump must hold the guest's memory.
    #[error("forbidding core dumps: {0}")]
    Dumpable(#[source] Errno),
    /// The handler of SIGSYS.
    #[error("handling SIGSYS: {0}")]
    Handler(#[source] Errno),
    /// The filter can't be made for this machine.
    #[error("making the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel, or a container, does not take the filters.
    #[error("seccomp: {0}")]
    Seccomp(#[from] io::Error),
}

/// Whether the first wall stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// It does.
    Restricts,
    /// The kernel has none.
    Missing,
}

/// From now on this thread, and every one that it starts, can't open, make or change any file, nor use the
/// network or signal other processes. Only files in the socket's folder can be removed: landlock knows folders.
///
/// A kernel without landlock (before 5.13, or switched off) is no error: the second wall, which has to be told,
/// leaves no system call that takes a path.
pub fn forbid_files(socket: &Path) -> Result<Landlock, SandboxError> {
    let folder = match socket.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // The newest that the crate knows; it leaves out what the kernel doesn't.
    let abi = ABI::V10;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile))?
        .restrict_self()?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            tracing::debug!("landlock {effective_abi:?}");
            Ok(Landlock::Restricts)
        }
        missing => {
            tracing::info!(
                "no landlock here ({missing:?}): seccomp alone keeps files away; the socket will stay"
            );
            Ok(Landlock::Missing)
        }
    }
}

/// From now on no thread of this process makes a system call that the device does not need. All files
/// are open, all threads started: there is no way to do either any more.
pub fn forbid_syscalls(landlock: Landlock) -> Result<(), SandboxError> {
    // Guest memory is of no use to whoever looks for dumps, and not theirs.
    set_dumpable(false).map_err(SandboxError::Dumpable)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(SandboxError::Dumpable)?;
    // The standard library's hook would read files for a backtrace, and end before it has said all.
    std::panic::set_hook(Box::new(|info| tracing::error!("{info}")));
    report::install().map_err(SandboxError::Handler)?;
    for filter in filter::compile(landlock)? {
        seccompiler::apply_filter_all_threads(&filter).map_err(|error| match error {
            seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
            other => io::Error::other(other),
        })?;
    }
    Ok(())
}
