// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The page-table walker (spec 6). It caches nothing: that is [`crate::tlb`].

use std::sync::atomic::Ordering;

use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{VA_END, page_base};
use svmx_abi::pte::{self, Access, Pte};

use crate::memory::GuestMemory;

/// Where a valid leaf leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the 4 KiB page that holds the translated address.
    pub frame: u64,
    /// What the leaf allows.
    pub access: Access,
    /// Whether the leaf is one of 2 MiB.
    pub huge: bool,
}

/// Why a walk found no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// An entry is invalid.
    #[error("not mapped")]
    NotMapped,
    /// A table is outside guest memory.
    #[error("table outside guest memory")]
    BadMemory,
    /// A valid entry is malformed (spec 6.2).
    #[error("malformed entry")]
    Malformed,
}

/// Whether a leaf suffices for an access (spec 6.3).
pub fn allows(access: Access, kind: AccessKind) -> bool {
    match kind {
        AccessKind::READ => access.read,
        AccessKind::WRITE => access.write,
        _ => access.atomic || access.coherent,
    }
}

/// Translates `va` by the tables at `root`: at most four entries are read, each once, wherever
/// they lead.
pub fn walk(memory: &GuestMemory, root: u64, va: u64) -> Result<Translation, WalkError> {
    if va >= VA_END {
        return Err(WalkError::NotMapped);
    }
    let mut table = root;
    for level in (0..pte::LEVELS).rev() {
        let address = table + 8 * pte::index(va, level) as u64;
        let word = memory.word64(address, false).ok_or(WalkError::BadMemory)?;
        // Partner of the driver's release store: what an entry leads to is read after the entry.
        let entry = Pte(word.load(Ordering::Acquire));
        if !entry.valid() {
            return Err(WalkError::NotMapped);
        }
        if !entry.well_formed(level) {
            return Err(WalkError::Malformed);
        }
        if level == 0 || entry.huge() {
            let inside = page_base(va & (pte::span(level) - 1));
            let frame = entry.address() + inside;
            return Ok(Translation { frame, access: entry.access(), huge: entry.huge() });
        }
        table = entry.address();
    }
    Err(WalkError::NotMapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::DmaMap;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    const ROOT: u64 = 0x1000;

    /// Four pages of tables at 0x1000 to 0x4fff, and nothing else.
    fn tables() -> GuestMemory {
        let file = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(0x4000).unwrap();
        let map = DmaMap { address: 0x1000, size: 0x4000, file, offset: 0, writable: true };
        GuestMemory::default().with_map(map).unwrap()
    }

    fn set(memory: &GuestMemory, table: u64, index: u64, entry: Pte) {
        memory.word64(table + 8 * index, true).unwrap().store(entry.0, Ordering::Release);
    }

    fn chain(memory: &GuestMemory) {
        set(memory, 0x1000, 0, Pte::table(0x2000));
        set(memory, 0x2000, 0, Pte::table(0x3000));
        set(memory, 0x3000, 0, Pte::table(0x4000));
    }

    #[test]
    fn leaves_of_both_sizes() {
        let memory = tables();
        chain(&memory);
        set(&memory, 0x4000, 5, Pte::leaf(0x9000, Access::READ));
        set(&memory, 0x3000, 1, Pte::huge_leaf(0x40_0000, Access::COHERENT));
        let small = walk(&memory, ROOT, 0x5678).unwrap();
        assert_eq!(small, Translation { frame: 0x9000, access: Access::READ, huge: false });
        let huge = walk(&memory, ROOT, 0x20_3008).unwrap();
        assert_eq!(huge, Translation { frame: 0x40_3000, access: Access::COHERENT, huge: true });
        assert_eq!(walk(&memory, ROOT, 0x6000), Err(WalkError::NotMapped));
    }

    #[test]
    fn rubbish_is_refused() {
        let memory = tables();
        chain(&memory);
        set(&memory, 0x4000, 0, Pte(u64::MAX));
        assert_eq!(walk(&memory, ROOT, 0), Err(WalkError::Malformed));
        set(&memory, 0x1000, 1, Pte::table(0xf_ffff_ffff_f000));
        assert_eq!(walk(&memory, ROOT, 1 << 39), Err(WalkError::BadMemory));
        assert_eq!(walk(&memory, 0xf_ffff_ffff_f000, 0), Err(WalkError::BadMemory));
        assert_eq!(walk(&memory, ROOT, VA_END), Err(WalkError::NotMapped));
        // A valid entry with a permission cannot lead to a table.
        set(&memory, 0x1000, 2, Pte(Pte::table(0x2000).0 | Pte::leaf(0, Access::READ).0));
        assert_eq!(walk(&memory, ROOT, 2 << 39), Err(WalkError::Malformed));
    }

    #[test]
    fn a_table_that_leads_to_itself_ends_after_four_levels() {
        let memory = tables();
        set(&memory, ROOT, 0, Pte::table(ROOT));
        let at_the_end = walk(&memory, ROOT, 0).unwrap();
        assert_eq!(at_the_end.frame, ROOT);
        assert!(!allows(at_the_end.access, AccessKind::READ));
    }

    #[test]
    fn atomics_need_atomic_or_coherent() {
        assert!(!allows(Access::READ_WRITE, AccessKind::ATOMIC));
        assert!(allows(Access::EXCLUSIVE, AccessKind::ATOMIC));
        assert!(allows(Access::COHERENT, AccessKind::ATOMIC));
        assert!(!allows(Access::READ, AccessKind::WRITE));
    }
}
