// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The atomics, locks and pauses of those files whose interleavings are model-checked.
//!
//! They take them from `crate::sync` and nowhere else, so that `model-check/` can compile the same files
//! with a `sync` of its own. No other file needs this one.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
pub(crate) use std::thread::yield_now;
