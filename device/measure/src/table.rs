// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The figures that there are.

/// Name, and what it shows.
pub const FIGURES: [(&str, &str); 13] = [
    ("random", "bulk FETCH_ADD, atomic page, random over 1 GiB, one engine, against native loops"),
    ("cache", "the same in 16 KiB, against a native `lock xadd` loop"),
    ("coherent", "bulk FETCH_ADD, coherent page, random over 1 GiB and in 16 KiB, against `lock xadd`"),
    ("engines", "two engines on disjoint pages, against one"),
    ("copy", "COPY and FILL of 8 MiB, against memcpy and memset"),
    ("ring", "single commands through a user ring, against trapped MMIO writes"),
    ("doorbell", "doorbell to completion of a polling device, against a word between two threads"),
    ("fault", "fault to replay to completion, without a guest, against a word between two threads"),
    ("transport", "trapped accesses over the socket, against the vfio_user crate's server"),
    ("check", "what --check-exclusive costs: bulk and single commands with it and without"),
    ("trace", "what --trace costs: bulk and single commands with it and without"),
    ("idle-cpu", "CPU time of a device that was used and whose VMM does nothing"),
    ("idle-memory", "memory of its own of such a device"),
];

/// The names that have `filter` in them; all of them without one.
pub fn matching(filter: Option<&str>) -> Vec<&'static str> {
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    FIGURES.iter().map(|(name, _)| *name).filter(|name| wanted(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_part_of_a_name() {
        assert_eq!(matching(Some("idle")), ["idle-cpu", "idle-memory"]);
        assert_eq!(matching(None).len(), FIGURES.len());
        assert!(matching(Some("no such")).is_empty());
    }

    #[test]
    fn names_differ() {
        let names: std::collections::HashSet<_> = matching(None).into_iter().collect();
        assert_eq!(names.len(), FIGURES.len());
    }
}
