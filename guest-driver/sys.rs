// SPDX-License-Identifier: GPL-2.0

//! Raw bindings of this module: `svmx_helpers.c`, `svmx_trace.c`, and kernel functions that `kernel::bindings` lacks.
//!
//! Nothing but what bindgen generated. Only `hw/`, `mm/`, `mmap.rs`, `opener.rs` and `trace.rs` call it.

#![allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]

include!(env!("SVMX_BINDINGS"));
