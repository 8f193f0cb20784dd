// SPDX-License-Identifier: GPL-2.0

//! Mappings of queues into the process (spec 9.3): made page by page in faults, taken away by a zap.
//!
//! Pages are inserted with the context's list of queues locked, and a queue leaves the list before its
//! mappings are zapped: a page is never there after the queue is gone. Nothing of a mapping survives
//! fork, mremap beyond its size, or the queue.

use super::context::Context;
use super::queue::{Queue, Region};
use super::sys;
use kernel::{
    bindings,
    mm::virt::{flags, VmaNew},
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, ArcBorrow},
    types::ForeignOwnable,
};

/// Offsets of a file: each region of each queue has a window of this many bytes, more than any ring.
const WINDOW: u64 = 1024 * 1024;
/// In the order of the windows of a queue.
const REGIONS: [Region; 3] = [Region::Submissions, Region::Completions, Region::Doorbell];

/// The offset at which a region is mapped.
pub(crate) fn offset(queue: &Queue, region: Region) -> u64 {
    let index = match region {
        Region::Submissions => 0,
        Region::Completions => 1,
        Region::Doorbell => 2,
    };
    (u64::from(queue.id()) * REGIONS.len() as u64 + index) * WINDOW
}

/// Queue identifier, region, and page of it at a file's page `pgoff`.
fn locate(pgoff: usize) -> Option<(u32, Region, usize)> {
    let offset = (pgoff as u64).checked_mul(PAGE_SIZE as u64)?;
    let window = offset / WINDOW;
    let region = *REGIONS.get((window % REGIONS.len() as u64) as usize)?;
    let queue = u32::try_from(window / REGIONS.len() as u64).ok()?;
    Some((queue, region, (offset % WINDOW) as usize / PAGE_SIZE))
}

/// Prepares a mapping. Nothing is mapped yet.
pub(crate) fn prepare(context: &Context, vma: &VmaNew) -> Result {
    if !context.is_mine() {
        return Err(EPERM);
    }
    // SAFETY: The mapping is being made.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff };
    let (id, region, page) = locate(pgoff).ok_or(EINVAL)?;
    let queue = context.queue(id)?;
    let shared = flags::SHARED;
    if page != 0 || (vma.end() - vma.start()) as u64 != queue.bytes(region) || vma.flags() & shared == 0 {
        return Err(EINVAL);
    }
    if region == Region::Completions {
        vma.try_clear_maywrite().map_err(|_| EACCES)?;
    }
    // SAFETY: The mapping is being made, is shared, and its operations are static.
    unsafe { sys::svmx_vma_init_pfnmap(vma.as_ptr(), &VM_OPS) };
    Ok(())
}

/// Takes the mappings of a queue away from whoever has them: accesses raise SIGBUS from now on.
///
/// # Safety
///
/// `mapping` is that of a live inode.
pub(crate) unsafe fn zap(mapping: *mut bindings::address_space, queue: &Queue) {
    for region in REGIONS {
        let (start, len) = (offset(queue, region), queue.bytes(region));
        // SAFETY: By the requirement of this function.
        unsafe { bindings::unmap_mapping_range(mapping, start as i64, len as i64, 1) };
    }
}

const VM_OPS: bindings::vm_operations_struct =
    bindings::vm_operations_struct { fault: Some(fault), ..pin_init::zeroed() };

/// # Safety
///
/// Called by the kernel for a mapping of a context's file.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The mapping and its file live during the fault; the file is one of ours, whose private
    // data is its context until its release, and the mapping holds a reference to the file.
    let (vma, pgoff, address, context) = unsafe {
        let info = &(*vmf).__bindgen_anon_1;
        let private = (*(*info.vma).vm_file).private_data;
        let context: ArcBorrow<'_, Context> = <Arc<Context> as ForeignOwnable>::borrow(private);
        (info.vma, info.pgoff, info.address, context)
    };
    let sigbus = bindings::vm_fault_reason_VM_FAULT_SIGBUS as bindings::vm_fault_t;
    let Some((id, region, page)) = locate(pgoff) else { return sigbus };
    let queues = context.queues.lock();
    let Some(queue) = queues.iter().find(|queue| queue.id() == id) else { return sigbus };
    if page as u64 * PAGE_SIZE as u64 >= queue.bytes(region) {
        return sigbus;
    }
    let Some(pfn) = queue.pfn(region, page) else { return sigbus };
    // SAFETY: The mapping is a shared PFNMAP, the address lies in it, and the page exists until the
    // queue is zapped, which can't happen before the list is unlocked.
    unsafe { bindings::vmf_insert_pfn(vma, address, pfn) }
}
