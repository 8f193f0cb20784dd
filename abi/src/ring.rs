// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Rings: free-running 32-bit indices over a power of two of entries, with a phase bit (spec 4.2).

/// The number of entries of a ring of binary logarithm `log2`.
pub const fn entries(log2: u8) -> u32 {
    1 << log2
}

/// The slot of free-running `index`.
pub const fn slot(index: u32, log2: u8) -> u32 {
    index & (entries(log2) - 1)
}

/// The phase bit that the entry at free-running `index` carries once it is written: set in the
/// first lap over zeroed memory, clear in the second, and so on.
///
/// For the phase of index 2^32 to differ from that of the lap before, a ring has an even number of
/// laps in 2^32 indices, which any size from one to 2^31 entries has.
pub const fn phase(index: u32, log2: u8) -> bool {
    (index >> log2) & 1 == 0
}

/// How many entries lie between free-running `head` and `tail`, or `None` if that is more than the
/// ring holds, which only a broken or hostile producer can cause.
pub const fn pending(head: u32, tail: u32, log2: u8) -> Option<u32> {
    let distance = tail.wrapping_sub(head);
    if distance <= entries(log2) {
        Some(distance)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_alternates_and_survives_wrap() {
        assert!(phase(0, 2) && phase(3, 2));
        assert!(!phase(4, 2) && !phase(7, 2));
        assert_ne!(phase(u32::MAX, 2), phase(0, 2));
    }

    #[test]
    fn pending_across_wrap_and_out_of_range() {
        assert_eq!(pending(u32::MAX, 1, 2), Some(2));
        assert_eq!(pending(0, 4, 2), Some(4));
        assert_eq!(pending(0, 5, 2), None);
        assert_eq!(pending(1, 0, 2), None);
    }
}
