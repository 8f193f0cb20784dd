// SPDX-License-Identifier: GPL-2.0

//! Charging what a kernel thread allocates to the process that it is for.
//!
//! C header: `include/linux/sched/mm.h`, `set_active_memcg()`.

use super::super::sys;
use kernel::{mm::MmWithUser, types::NotThreadSafe};

/// While it lives, accounted allocations of this thread are charged to the memory cgroup of a process. Those of one
/// thread are dropped in the reverse of the order in which they were made.
pub(crate) struct Charge {
    raw: sys::svmx_charge,
    _not_send: NotThreadSafe,
}

impl Charge {
    /// Charges the cgroup of `mm`, or nobody in a kernel without memory cgroups.
    pub(crate) fn to(mm: &MmWithUser) -> Self {
        // SAFETY: `mm` has a user.
        Charge { raw: unsafe { sys::svmx_charge_begin(mm.as_raw()) }, _not_send: NotThreadSafe }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY: It was begun on this thread, and ends once.
        unsafe { sys::svmx_charge_end(self.raw) };
    }
}
