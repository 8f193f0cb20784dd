// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Log lines that a guest or a VMM can cause, limited so that they can't fill the operator's disk.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines in each second.
const LIMIT: u64 = 8;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The second that is counted, and the lines in it.
static SECOND: AtomicU64 = AtomicU64::new(0);
static LINES: AtomicU64 = AtomicU64::new(0);

/// Whether one more line may be written, and how many were not since the last one.
pub(crate) fn allowed() -> Option<u64> {
    let second = START.elapsed().as_secs() + 1;
    let mut dropped = 0;
    if SECOND.swap(second, Ordering::Relaxed) != second {
        dropped = LINES.swap(0, Ordering::Relaxed).saturating_sub(LIMIT);
    }
    (LINES.fetch_add(1, Ordering::Relaxed) < LIMIT).then_some(dropped)
}

/// Warns about something that a guest or a VMM did; or, with a level first, tells it.
macro_rules! complain {
    (Level::$level:ident, $($message:tt)*) => {
        if let Some(dropped) = $crate::complain::allowed() {
            if dropped > 0 {
                tracing::warn!("{dropped} more lines like these were dropped");
            }
            tracing::event!(tracing::Level::$level, $($message)*);
        }
    };
    ($($message:tt)*) => {
        $crate::complain::complain!(Level::WARN, $($message)*)
    };
}
pub(crate) use complain;
