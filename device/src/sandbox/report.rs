// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a forbidden system call comes to: a line in the log, and the end of the process by SIGSYS. The handler
//! can't be replaced, because the filter does not allow that, and a thread that blocks SIGSYS dies of it all the same.

#![expect(unsafe_code, reason = "a signal handler, which reads what the kernel says about the signal")]

use std::io::Write;

use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The beginning of `siginfo_t` for SIGSYS; libc has no accessor for it.
#[repr(C)]
struct Refused {
    signal: c_int,
    error: c_int,
    code: c_int,
    address: *const c_void,
    syscall: c_int,
    architecture: u32,
}

const _: () = assert!(size_of::<Refused>() <= size_of::<siginfo_t>());
const _: () = assert!(align_of::<Refused>() <= align_of::<siginfo_t>());

/// Lets SIGSYS be reported, once.
pub(super) fn install() -> nix::Result<()> {
    let handler = SigHandler::SigAction(report);
    let action = SigAction::new(handler, SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: `report` does only what a signal handler may do, whatever it interrupts: it formats a number into a
    // buffer on its stack and makes system calls.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

extern "C" fn report(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo_t, whose beginning is as above when the
    // signal is SIGSYS. If a process sent the signal, the number is just not one of a system call.
    let number = unsafe { (*info.cast::<Refused>()).syscall };
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    // The shape of the log's other lines; the time is not at hand.
    let _ = writeln!(
        rest,
        "- ERROR svmx_device::sandbox: system call {number} is not allowed: a bug, or an attack; \
         --no-sandbox to look for it"
    );
    let length = line.iter().position(|&byte| byte == 0).unwrap_or(line.len());
    let _ = nix::unistd::write(std::io::stderr(), &line[..length]);
    // SIGSYS has its default action again and is blocked here: a further call that is not allowed ends the process
    // with it, so that who waits for the process sees why it ended.
    // SAFETY: it has no arguments and no effect.
    unsafe { libc::getppid() };
    // SAFETY: it does not return, and nothing is cleaned up. It is never reached under the filter.
    unsafe { libc::_exit(128 + libc::SIGSYS) }
}
