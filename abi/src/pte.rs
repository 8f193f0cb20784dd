// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Page-table entries of the device's MMU (spec 6): four levels of 512 entries, 48-bit VA.

use super::pci;

/// Levels of the page table; the root is level 3, a table of 4 KiB leaves is level 0.
pub const LEVELS: u32 = 4;
/// Binary logarithm of the entries of a table.
pub const INDEX_BITS: u32 = 9;
/// Entries of a table.
pub const ENTRIES: usize = 1 << INDEX_BITS;
/// The level whose entries may be 2 MiB leaves.
pub const HUGE_LEVEL: u32 = 1;

/// Which entry of a table of `level` translates `va`.
pub const fn index(va: u64, level: u32) -> usize {
    ((va >> (pci::PAGE_SHIFT + INDEX_BITS * level)) & (ENTRIES as u64 - 1)) as usize
}

/// Bytes that one entry of a table of `level` translates.
pub const fn span(level: u32) -> u64 {
    1 << (pci::PAGE_SHIFT + INDEX_BITS * level)
}

/// A page-table entry. All-zero translates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Pte(pub u64);

impl Pte {
    /// The entry that translates nothing.
    pub const NONE: Pte = Pte(0);
    const VALID: u64 = 1 << 0;
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 2;
    const ATOMIC: u64 = 1 << 3;
    const COHERENT: u64 = 1 << 4;
    const HUGE: u64 = 1 << 7;
    const ADDRESS: u64 = ((1 << 52) - 1) & !(pci::PAGE_SIZE - 1);
    const PERMISSIONS: u64 = Self::READ | Self::WRITE | Self::ATOMIC | Self::COHERENT;
    const KNOWN: u64 = Self::VALID | Self::PERMISSIONS | Self::HUGE | Self::ADDRESS;

    /// An entry that leads to the next table, at guest-physical `address` (page-aligned).
    pub const fn table(address: u64) -> Pte {
        Pte(Self::VALID | (address & Self::ADDRESS))
    }
    /// A 4 KiB leaf at guest-physical `address` (page-aligned).
    pub const fn leaf(address: u64, access: Access) -> Pte {
        Pte(Self::VALID | (address & Self::ADDRESS) | access.pte_bits())
    }
    /// A 2 MiB leaf at guest-physical `address` (2 MiB-aligned).
    pub const fn huge_leaf(address: u64, access: Access) -> Pte {
        Pte(Self::leaf(address, access).0 | Self::HUGE)
    }
    /// Whether the entry translates anything.
    pub const fn valid(self) -> bool {
        self.0 & Self::VALID != 0
    }
    /// Whether this is a leaf above level 0.
    pub const fn huge(self) -> bool {
        self.0 & Self::HUGE != 0
    }
    /// The guest-physical address, page-aligned.
    pub const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }
    /// What a leaf allows.
    pub const fn access(self) -> Access {
        Access {
            read: self.0 & Self::READ != 0,
            write: self.0 & Self::WRITE != 0,
            atomic: self.0 & Self::ATOMIC != 0,
            coherent: self.0 & Self::COHERENT != 0,
        }
    }
    /// Whether a valid entry at `level` obeys spec 6.2: no reserved bit, permissions only in
    /// leaves, HUGE only at [`HUGE_LEVEL`] and with an aligned address.
    pub const fn well_formed(self, level: u32) -> bool {
        let leaf = level == 0 || self.huge();
        let huge_ok = !self.huge() || (level == HUGE_LEVEL && self.address() & (span(HUGE_LEVEL) - 1) == 0);
        self.0 & !Self::KNOWN == 0 && huge_ok && (leaf || self.0 & Self::PERMISSIONS == 0)
    }
}

/// What a leaf allows the device (spec 6.3). Any combination can be written; *atomic* and *coherent*
/// together mean coherent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Access {
    /// READ commands, index and operand arrays.
    pub read: bool,
    /// WRITE commands, stored results.
    pub write: bool,
    /// Read-modify-write by the device itself: the CPU can't reach the page.
    pub atomic: bool,
    /// Read-modify-write by single host atomic instructions: the CPU may be at it as well.
    pub coherent: bool,
}

impl Access {
    /// Shared for reading.
    pub const READ: Access = Access { read: true, write: false, atomic: false, coherent: false };
    /// Shared for reading and writing.
    pub const READ_WRITE: Access = Access { write: true, ..Self::READ };
    /// Exclusive: read, write and the device's own read-modify-write.
    pub const EXCLUSIVE: Access = Access { atomic: true, ..Self::READ_WRITE };
    /// Shared, with host atomics.
    pub const COHERENT: Access = Access { coherent: true, ..Self::READ_WRITE };

    const fn pte_bits(self) -> u64 {
        (if self.read { Pte::READ } else { 0 })
            | (if self.write { Pte::WRITE } else { 0 })
            | (if self.atomic { Pte::ATOMIC } else { 0 })
            | (if self.coherent { Pte::COHERENT } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_are_refused() {
        assert!(Pte::leaf(0x1000, Access::EXCLUSIVE).well_formed(0));
        assert!(!Pte(Pte::leaf(0x1000, Access::READ).0 | 1 << 63).well_formed(0));
        assert!(!Pte(Pte::table(0x1000).0 | Pte::READ).well_formed(1));
        assert!(Pte::huge_leaf(0x20_0000, Access::READ).well_formed(1));
        assert!(!Pte::huge_leaf(0x20_1000, Access::READ).well_formed(1));
        assert!(!Pte::huge_leaf(0x20_0000, Access::READ).well_formed(0));
        assert!(!Pte::huge_leaf(0x20_0000, Access::READ).well_formed(2));
    }

    #[test]
    fn indices_split_the_address() {
        let va = (3 << 39) | (5 << 30) | (7 << 21) | (9 << 12) | 0xabc;
        assert_eq!([3, 2, 1, 0].map(|level| index(va, level)), [3, 5, 7, 9]);
        assert_eq!([0, 1, 2, 3].map(span), [1 << 12, 1 << 21, 1 << 30, 1 << 39]);
    }
}
