// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments that are wrong, each in one thing, and more policies than a context may have.
#![expect(unsafe_code, reason = "calls the kernel with what the library would not send")]

use super::expect;
use crate::area::{Area, Backing, PAGE};
use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};
use svmx::abi::pci::VA_END;
use svmx::abi::uapi::{self, MAX_ACQUIRE_PAGES, MAX_POLICIES};
use svmx::{Device, Policy};

/// The three structures are alike but for their last field.
type Words = [u64; 4];

/// Returns how many were refused.
pub(super) fn arguments(device: &Device) -> Result<u64> {
    let area = Area::new(Backing::Private, 4 * PAGE)?;
    let (addr, len) = (area.address(0), 2 * PAGE);
    let good: Words = [32, addr, len, 0];
    let head = |size: u64, flags: u64| size | flags << 32;
    let wrong = [
        [head(31, 0), addr, len, 0],
        [head(0, 0), addr, len, 0],
        [head(40, 0), addr, len, 0],
        [head(32, 1), addr, len, 0],
        [head(32, 1 << 31), addr, len, 0],
        [32, addr + 1, len, 0],
        [32, addr + 8, len, 0],
        [32, addr, len + 1, 0],
        [32, addr, len - 8, 0],
        [32, addr, 0, 0],
        [32, u64::MAX - PAGE + 1, 2 * PAGE, 0],
        [32, addr, u64::MAX - PAGE + 1, 0],
        [32, VA_END, PAGE, 0],
        [32, VA_END - PAGE, 2 * PAGE, 0],
        [32, 1 << 63, PAGE, 0],
    ];
    let ioctls = [uapi::IOC_ACQUIRE_EXCLUSIVE, uapi::IOC_RELEASE, uapi::IOC_POLICY];
    let mut refused = 0;
    for number in ioctls {
        for words in wrong {
            fails(device, number, words, Errno::EINVAL)?;
            refused += 1;
        }
        ensure!(call(device, number, &mut good.clone()) == Ok(()), "{number:#x} fails with what is right");
    }
    fails(device, uapi::IOC_ACQUIRE_EXCLUSIVE, [32, 0, (MAX_ACQUIRE_PAGES + 1) * PAGE, 0], Errno::EINVAL)?;
    for policy in [3, 1 << 31, 1 << 32] {
        fails(device, uapi::IOC_POLICY, [32, addr, len, policy], Errno::EINVAL)?;
    }
    // All that there is: nothing of it is the device's, and the policy is the default.
    for number in [uapi::IOC_RELEASE, uapi::IOC_POLICY] {
        ensure!(call(device, number, &mut [32, 0, VA_END, 0]) == Ok(()), "{number:#x} of everything");
    }
    // No memory at address zero; `done` is written, whatever was there.
    let mut words = [32, 0, PAGE, 77];
    let found = call(device, uapi::IOC_ACQUIRE_EXCLUSIVE, &mut words);
    ensure!(
        found == Err(Errno::EFAULT) && words[3] == 0,
        "expected EFAULT after 0 pages, found {found:?}: {words:?}"
    );
    Ok(refused + 4)
}

fn fails(device: &Device, number: u32, words: Words, errno: Errno) -> Result<()> {
    let found = call(device, number, &mut words.clone());
    ensure!(found == Err(errno), "{number:#x} of {words:x?}: expected {errno}, found {found:?}");
    Ok(())
}

fn call(device: &Device, number: u32, words: &mut Words) -> Result<(), Errno> {
    // SAFETY: the structures of these ioctls have 32 bytes, and their addresses are only looked up.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), number.into(), words.as_mut_ptr()) };
    Errno::result(result).map(drop)
}

/// As many as there may be, in every other page; one more changes nothing; with neighbours joined there is room.
pub(super) fn many_policies(device: &Device) -> Result<()> {
    let pages = 2 * MAX_POLICIES as u64 + 2;
    let area = Area::new(Backing::SharedAnonymous, pages * PAGE)?;
    let page = |n: u64| area.address(n * PAGE)..area.address((n + 1) * PAGE);
    for n in 0..MAX_POLICIES as u64 {
        device.set_policy(page(2 * n), Policy::COHERENT)?;
    }
    let last = pages - 2;
    let found = device.set_policy(page(last), Policy::COHERENT).err().and_then(|error| error.errno());
    ensure!(found == Some(Errno::ENOSPC), "expected ENOSPC, found {found:?}");
    let errno = device.acquire(page(last)).err().and_then(|error| error.errno());
    ensure!(errno == Some(Errno::EOPNOTSUPP), "a policy that was refused is in force: {errno:?}");
    device.acquire(page(last - 2))?;
    // The page between two joins them.
    device.set_policy(page(1), Policy::COHERENT)?;
    device.set_policy(page(last), Policy::COHERENT)?;
    device.acquire(page(last))?;
    expect("released pages", device.release(area.range())?, 2)?;
    Ok(device.set_policy(area.range(), Policy::EXCLUSIVE)?)
}
