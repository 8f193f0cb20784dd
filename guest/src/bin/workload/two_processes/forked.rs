// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a forked child can do with the device's file that it inherited: nothing.
#![expect(unsafe_code, reason = "forks, and calls the kernel with what the library would not send")]

use crate::maps;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use svmx::abi::uapi;
use svmx::{Device, QueueSize};

/// First exit code of each kind of failure in the child.
const IOCTL_CODE: i32 = 10;
const MAPPING_CODE: i32 = 50;
const MMAP_CODE: i32 = 100;

/// Forks, and returns how many attempts were refused.
pub(super) fn denied() -> Result<usize> {
    let device = Device::open_nth(0)?;
    let queue = device.create_queue(QueueSize::default())?;
    let mappings: Vec<u64> = maps::regions()?
        .into_iter()
        .filter(|region| region.name.starts_with("/dev/svmx"))
        .map(|r| r.range.start)
        .collect();
    ensure!(mappings.len() >= 3, "expected three mappings of a queue, found {}", mappings.len());
    let offsets = offsets()?;
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the child only makes system calls and ends; it touches no lock and no allocator.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = attempt(fd, &mappings, &offsets);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => {}
            WaitStatus::Exited(_, code @ MMAP_CODE..) => {
                bail!("a forked child could map {:?}", offsets[(code - MMAP_CODE) as usize])
            }
            WaitStatus::Exited(_, code @ MAPPING_CODE..) => {
                bail!("a forked child has the mapping at {:#x}", mappings[(code - MAPPING_CODE) as usize])
            }
            WaitStatus::Exited(_, code @ IOCTL_CODE..) => {
                bail!(
                    "expected EPERM in a forked child for ioctl {:#x}",
                    uapi::IOCTLS[(code - IOCTL_CODE) as usize]
                )
            }
            other => bail!("the forked child ended with {other:?}"),
        },
    }
    // The parent's context is what it was.
    device.info()?;
    queue.destroy()?;
    Ok(uapi::IOCTLS.len() + mappings.len() + offsets.len())
}

/// Offset and length of a queue's mappings, and whether it may be written. Those of a queue of its own,
/// so that the library's are left alone; it is destroyed with the file.
fn offsets() -> Result<Vec<(u64, u64, bool)>> {
    let device = Device::open_nth(0)?;
    let size = size_of::<uapi::QueueCreate>() as u32;
    let mut create = uapi::QueueCreate { size, sq_log2: 2, cq_log2: 2, ..Default::default() };
    // SAFETY: the number is that of the structure, which lives through the call.
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), uapi::IOC_QUEUE_CREATE.into(), &raw mut create) };
    Errno::result(result).context("IOC_QUEUE_CREATE")?;
    read_only(&device, create.cq_offset, create.cq_bytes)?;
    Ok(vec![
        (create.sq_offset, create.sq_bytes, true),
        (create.cq_offset, create.cq_bytes, false),
        (create.doorbell_offset, 4096, true),
    ])
}

/// A completion queue can't be mapped writable, nor become so (spec 9.3).
fn read_only(device: &Device, offset: u64, len: u64) -> Result<()> {
    let len = NonZeroUsize::new(len as usize).context("a completion queue of no bytes")?;
    // SAFETY: new mappings at addresses of the kernel's choice overlap nothing.
    let map = |prot| unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, device, offset as i64) };
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    for prot in [both, ProtFlags::PROT_WRITE] {
        let found = map(prot);
        ensure!(
            found == Err(Errno::EACCES),
            "expected EACCES for a writable completion queue, found {found:?}"
        );
    }
    let readable = map(ProtFlags::PROT_READ)?;
    // SAFETY: the range is the mapping that was just made and that nothing refers to.
    let (made, unmapped) = unsafe { (mprotect(readable, len.get(), both), munmap(readable, len.get())) };
    ensure!(made == Err(Errno::EACCES), "expected EACCES for making it writable, found {made:?}");
    Ok(unmapped?)
}

/// In the child: the exit code of the first attempt that was not refused.
fn attempt(fd: RawFd, mappings: &[u64], offsets: &[(u64, u64, bool)]) -> i32 {
    let mut buffer = [0u64; 512];
    for (i, &number) in uapi::IOCTLS.iter().enumerate() {
        // The right size, so that EPERM is not EINVAL.
        buffer[0] = u64::from((number >> 16) & 0x3fff);
        // SAFETY: the buffer is larger than every structure.
        let result = unsafe { libc::ioctl(fd, number.into(), buffer.as_mut_ptr()) };
        if result != -1 || Errno::last() != Errno::EPERM {
            return IOCTL_CODE + i as i32;
        }
    }
    for (i, &address) in mappings.iter().enumerate() {
        // SAFETY: msync of anything at all changes nothing; ENOMEM says that it is not mapped.
        let result = unsafe { libc::msync(address as *mut libc::c_void, 4096, libc::MS_ASYNC) };
        if result != -1 || Errno::last() != Errno::ENOMEM {
            return MAPPING_CODE + i as i32;
        }
    }
    for (i, &(offset, len, write)) in offsets.iter().enumerate() {
        let prot = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), len as usize, prot, libc::MAP_SHARED, fd, offset as i64)
        };
        if address != libc::MAP_FAILED {
            return MMAP_CODE + i as i32;
        }
    }
    0
}
