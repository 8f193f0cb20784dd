// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Log lines that a guest or a VMM can cause, limited so that they can't fill the operator's disk.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines in each second.
const LIMIT: u64 = 8;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Lines of a kind: none can push out those of the other.
pub(crate) struct Kind {
    /// The second that is counted, and the lines in it.
    second: AtomicU64,
    lines: AtomicU64,
}

/// What a guest does, or its VMM in its place.
pub(crate) static GUEST: Kind = Kind::new();
/// VMMs that come and go.
pub(crate) static CONNECTIONS: Kind = Kind::new();

impl Kind {
    const fn new() -> Self {
        Kind { second: AtomicU64::new(0), lines: AtomicU64::new(0) }
    }

    /// Whether one more line may be written, and how many were not since the last one.
    pub(crate) fn allows(&self) -> Option<u64> {
        let second = START.elapsed().as_secs() + 1;
        let mut dropped = 0;
        if self.second.swap(second, Ordering::Relaxed) != second {
            dropped = self.lines.swap(0, Ordering::Relaxed).saturating_sub(LIMIT);
        }
        (self.lines.fetch_add(1, Ordering::Relaxed) < LIMIT).then_some(dropped)
    }
}

/// Warns about something that a guest or a VMM did; or, with a kind and a level first, tells it.
macro_rules! complain {
    ($kind:ident, Level::$level:ident, $($message:tt)*) => {
        if let Some(dropped) = $crate::complain::$kind.allows() {
            if dropped > 0 {
                tracing::warn!("{dropped} more lines like these were dropped");
            }
            tracing::event!(tracing::Level::$level, $($message)*);
        }
    };
    ($($message:tt)*) => {
        $crate::complain::complain!(GUEST, Level::WARN, $($message)*)
    };
}
pub(crate) use complain;
