// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Every byte that two parts of svmx share: registers, queue entries, page-table entries, ioctls.
//!
//! One source, compiled by cargo for the device and the guest programs and by Kbuild for the
//! driver. It has no behaviour beyond packing and unpacking fields: all shifts and masks of the
//! project live here. docs/spec.md is normative and its tables are tested against these
//! constants. All multi-byte values are little-endian; only little-endian targets are supported.

#![cfg_attr(not(MODULE), no_std)]
#![forbid(unsafe_code)]

pub mod control;
pub mod doorbell;
pub mod fault;
pub mod hist;
pub mod pci;
pub mod pte;
pub mod queue;
pub mod regs;
pub mod ring;
pub mod status;
pub mod uapi;

const _: () = assert!(cfg!(target_endian = "little"), "svmx supports little-endian targets only");
