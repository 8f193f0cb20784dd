// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls: the first allocation fails, then the second, and so on, until there is none left to fail. An error is
//! ENOMEM, and the same call works at once afterwards.

use super::inject::Injector;
use crate::area::PAGE;
use crate::scenario::step;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Duration;
use svmx::{Command, Device, Error, Policy, Queue, QueueSize, SharedSlice};

/// More allocations than any call makes: a bound, so that a call that fails for ever is found out.
const MOST: u32 = 200;
/// What the driver has something of its own for.
const SPAN: usize = 2 << 20;
/// More than the calls that want one.
const SPANS: usize = 128;

/// Failures that were injected.
pub(crate) fn run(injector: &Injector) -> Result<u32> {
    let mut failures = each(injector, "open and close", || Device::open_nth(0).map(drop))?;
    let device = Device::open_nth(0)?;
    failures += each(injector, "INFO", || device.info())?;
    failures += each(injector, "STATS", || device.stats())?;
    let create = || device.create_queue(QueueSize::default());
    failures += each(injector, "QUEUE_CREATE, its mappings and QUEUE_DESTROY", || create()?.destroy())?;
    // Where nothing is destroyed while allocations fail.
    failures += each(injector, "QUEUE_CREATE", create)?;
    let mut queue = create()?;
    failures += each(injector, "KICK", || queue.execute(&Command::nop()))?;
    failures += each(injector, "WAIT", || expired(&device, &queue))?;
    failures += each(injector, "poll", || nothing_to_read(&device))?;
    failures += ranges(injector, &device)?;
    ensure!(failures > 0, "no allocation failed: the injection does not reach the driver");
    Ok(failures)
}

/// Each call is about a span of its own, for which the driver has nothing yet.
fn ranges(injector: &Injector, device: &Device) -> Result<u32> {
    let memory = SharedSlice::<u64>::zeroed(SPANS * SPAN / size_of::<u64>())?;
    let mut pages = memory.pages().step_by(SPAN).map(|page| page..page + PAGE);
    let mut next = || pages.next().ok_or(Error::BadAnswer("more calls than there are spans"));
    let mut failures = each(injector, "ACQUIRE_EXCLUSIVE", || device.acquire(next()?))?;
    failures += each(injector, "RELEASE", || {
        let page = next()?;
        device.acquire(page.clone())?;
        device.release(page).map(drop)
    })?;
    failures += each(injector, "POLICY", || device.set_policy(next()?, Policy::AUTO))?;
    Ok(failures)
}

/// Waits for a completion that does not come.
fn expired(device: &Device, queue: &Queue) -> Result<(), Error> {
    match device.wait(queue.id(), queue.next_completion(), Some(Duration::from_millis(1))) {
        Err(Error::TimedOut) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(Error::BadAnswer("a completion of no command")),
    }
}

fn nothing_to_read(device: &Device) -> Result<(), Error> {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Error::BadAnswer("a completion of no command")),
        Err(errno) => Err(Error::Ioctl { name: "poll", errno }),
    }
}

/// Does `call` until no allocation of it is left to fail; how many did.
fn each<T>(injector: &Injector, name: &str, mut call: impl FnMut() -> Result<T, Error>) -> Result<u32> {
    for nth in 1..=MOST {
        step(format!("{name}: allocation {nth} fails"));
        let (result, failed) = injector.nth(nth, &mut call)?;
        let errno = result.as_ref().err().map(Error::errno);
        match (failed, errno) {
            // Some are asked for in the hope that there is memory, and can be done without.
            (true, None | Some(Some(Errno::ENOMEM))) => {}
            (false, None) => return Ok(nth - 1),
            (_, Some(errno)) => bail!("{name}, allocation {nth}, which failed: {failed}: found {errno:?}"),
        }
        drop(result);
        call().with_context(|| {
            format!("{name}: when there was memory again, after allocation {nth} had failed")
        })?;
    }
    bail!("{name}: more than {MOST} allocations, or one that fails for ever")
}
