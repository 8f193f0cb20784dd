// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The system calls that a running device makes, and with which arguments. Everything else is trapped, but
//! for a few that fail with EPERM. Libraries open files of their own accord and cope if they can't: glibc's
//! allocator asks `/proc/sys/vm/overcommit_memory` before it shrinks a heap; a backtrace wants the program's symbols. And who
//! starts a thread has all signals blocked meanwhile, so a trap would be deadly and say nothing.
//!
//! The list is what glibc and the standard library make of what the device does, so a new one may have
//! to come in with them. The line that a trapped call leaves has its number (`ausyscall NUMBER` names it). Before a call
//! is added: can it be made at the start instead? What else could be done with it?

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use nix::libc::{self, c_int, c_long};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::Landlock;

/// Allowed with any arguments.
const ANY: &[c_long] = &[
    // Talking to the VMM: it may come and go, and there are no other sockets than its.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    // Files that are open: doorbells, the trace, the log. `writev` is for the allocator's last words.
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_close,
    // Interrupts, which must not wait for the VMM.
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    // Memory: the guest's, and the allocator's.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads that wait, sleep, yield, and look at the clock where that is a system call.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // Threads that were started, but have not begun: stack, name, signals.
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    // Signals and the end.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Removes the socket, and whatever else landlock lets it.
#[cfg(target_arch = "x86_64")]
const REMOVE: c_long = libc::SYS_unlink;
#[cfg(not(target_arch = "x86_64"))]
const REMOVE: c_long = libc::SYS_unlinkat;

/// Not trapped by one filter, and refused by the other: see above.
const REFUSED: [c_long; 3] = [libc::SYS_openat, libc::SYS_clone, libc::SYS_clone3];

/// Commands of fcntl: the standard library's look at a descriptor that it closes, events that must not block where
/// there is no asynchronous I/O, and a copy of a descriptor.
const FCNTL: [c_int; 3] = [libc::F_GETFD, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// The standard library takes its handler away when a fault is none that it can explain.
const FATAL_SIGNALS: [c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT];

/// The filters as the kernel takes them. It obeys the stricter of the two, and to trap is stricter than to refuse.
pub(super) fn compile(landlock: Landlock) -> Result<[BpfProgram; 2], BackendError> {
    // Without it any file could be removed. Then the socket stays, and whoever comes next replaces it.
    let removal = (landlock == Landlock::Missing).then_some(REMOVE);
    let refused = REFUSED.into_iter().chain(removal).map(|call| (call, vec![])).collect();
    let refuse = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let trap = (SeccompAction::Trap, SeccompAction::Allow);
    let filter =
        |rules, (other, listed)| SeccompFilter::new(rules, other, listed, ARCH.try_into()?)?.try_into();
    Ok([filter(refused, refuse)?, filter(rules()?, trap)?])
}

/// By system call the arguments that are allowed: any one of the rules, or all if there is none.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in [ANY, &[REMOVE], &REFUSED].concat() {
        rules.insert(call, vec![]);
    }
    let mut allow = |call: c_long, conditions: &[Condition]| {
        let conditions = conditions.iter().map(Condition::compile).collect::<Result<_, _>>()?;
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok::<_, BackendError>(())
    };
    // No memory can be written and executed, nor one after the other.
    let exec = libc::PROT_EXEC as u64;
    allow(libc::SYS_mmap, &[Condition(2, Dword, MaskedEq(exec), 0)])?;
    allow(libc::SYS_mprotect, &[Condition(2, Dword, MaskedEq(exec), 0)])?;
    for command in FCNTL {
        allow(libc::SYS_fcntl, &[Condition(1, Dword, Eq, command as u64)])?;
    }
    allow(libc::SYS_prctl, &[Condition(0, Dword, Eq, libc::PR_SET_NAME as u64)])?;
    // A panic ends the process by `abort`.
    let this = u64::from(std::process::id());
    let abort = libc::SIGABRT as u64;
    allow(libc::SYS_tgkill, &[Condition(0, Dword, Eq, this), Condition(2, Dword, Eq, abort)])?;
    for signal in FATAL_SIGNALS {
        allow(libc::SYS_rt_sigaction, &[Condition(0, Dword, Eq, signal as u64)])?;
    }
    Ok(rules)
}

/// Of an argument: its index, its width, and how it compares with the last.
struct Condition(u8, SeccompCmpArgLen, SeccompCmpOp, u64);

impl Condition {
    fn compile(&self) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(self.0, self.1.clone(), self.2.clone(), self.3)
    }
}
