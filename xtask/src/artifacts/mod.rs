// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is built from this checkout: the device, the guest's programs, the driver, the initramfs. And the kernel's
//! own test of HMM, from its source.

pub(crate) mod c_programs;
pub(crate) mod driver;
pub(crate) mod initramfs;
pub(crate) mod programs;
pub(crate) mod selftests;
