// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Nodes, and pages that move from one to another.
#![expect(unsafe_code, reason = "makes system calls that libc has no functions for")]

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use std::ptr::null;

const PAGE: u64 = 4096;
/// Of linux/mempolicy.h: pages are moved that nobody else maps.
const MPOL_MF_MOVE: i32 = 1 << 1;
/// Words of a mask of nodes, and its bits as the kernel counts them.
const MASK_BITS: libc::c_ulong = 65;

/// Nodes that have memory.
pub(crate) fn nodes() -> Result<Vec<u32>> {
    let text = super::read("/sys/devices/system/node/has_memory")?;
    let mut nodes = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        nodes.extend(first.parse::<u32>()?..=last.parse::<u32>()?);
    }
    Ok(nodes)
}

/// Moves `pages` pages from `address` on to `node`. One item for each page: the node it is on now, or the
/// negative errno with which the kernel says why it is not there, or `i32::MIN` if it says nothing: it does not go on
/// behind pages that could not be moved at the moment (do_pages_move()).
pub(crate) fn move_pages(address: u64, pages: u64, node: u32) -> Result<Vec<i32>> {
    let to = vec![node.cast_signed(); pages as usize];
    pages_call(address, pages, to.as_ptr())
}

/// The node of each page, or a negative errno.
pub(crate) fn nodes_of(address: u64, pages: u64) -> Result<Vec<i32>> {
    pages_call(address, pages, null())
}

/// `to` is null, or has an item for each page.
fn pages_call(address: u64, pages: u64, to: *const i32) -> Result<Vec<i32>> {
    let addresses: Vec<u64> = (0..pages).map(|page| address + page * PAGE).collect();
    let mut status = vec![i32::MIN; pages as usize];
    // SAFETY: the three arrays have `pages` items each. The pages' content and addresses stay.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages,
            addresses.as_ptr(),
            to,
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    // A positive number counts pages that were not moved, of which some have no item then.
    let left = Errno::result(result).context("move_pages")?;
    ensure!(left > 0 || !status.contains(&i32::MIN), "move_pages left items out: {status:?}");
    Ok(status)
}

/// Moves what this process has on node `from` to node `to`. Returns the number of pages that stayed.
pub(crate) fn migrate_pages(from: u32, to: u32) -> Result<u64> {
    let (from, to) = (mask(from), mask(to));
    // SAFETY: the masks have at least the bits that are said. Content and addresses stay.
    let result =
        unsafe { libc::syscall(libc::SYS_migrate_pages, 0, MASK_BITS, &raw const from, &raw const to) };
    Ok(Errno::result(result).context("migrate_pages")? as u64)
}

/// Binds a range to `node`, and moves what is there already, as far as it can be.
pub(crate) fn bind(address: u64, len: u64, node: u32) -> Result<()> {
    let mask = mask(node);
    // SAFETY: as in `migrate_pages`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            len,
            libc::MPOL_BIND,
            &raw const mask,
            MASK_BITS,
            MPOL_MF_MOVE,
        )
    };
    Errno::result(result).map(drop).context("mbind")
}

/// Lets this process, and those that it starts, have memory of `node` while there is any.
pub(crate) fn prefer(node: u32) -> Result<()> {
    let mask = mask(node);
    // SAFETY: as in `migrate_pages`.
    let result =
        unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_PREFERRED, &raw const mask, MASK_BITS) };
    Errno::result(result).map(drop).context("set_mempolicy")
}

/// Takes the binding away.
pub(crate) fn unbind(address: u64, len: u64) -> Result<()> {
    // SAFETY: no mask is read with this policy.
    let result =
        unsafe { libc::syscall(libc::SYS_mbind, address, len, libc::MPOL_DEFAULT, null::<u64>(), 0, 0) };
    Errno::result(result).map(drop).context("mbind")
}

fn mask(node: u32) -> u64 {
    1 << node
}
