// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a system does to the memory of its processes from outside of them, as functions: pinning it, letting user space
//! serve faults.
//!
//! Nothing here knows the device, and nothing judges.

pub(crate) mod pins;
pub(crate) mod uffd;
