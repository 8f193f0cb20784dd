// SPDX-License-Identifier: GPL-2.0

//! The upper levels of a context's page table (spec 6). Leaf tables belong to spans: see `span.rs`.

use super::abi::{
    pci,
    pte::{self, Pte},
};
use super::hw::{DmaBuf, PciDevice};
use super::live::{Kind, Live};
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::atomic::{Relaxed, Release},
};

/// A table of any level: a zeroed page that the device walks.
pub(crate) struct Table {
    page: DmaBuf,
    _live: Live,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(device: &PciDevice) -> Result<Self> {
        Ok(Table { page: DmaBuf::new(device, pci::PAGE_SIZE as usize)?, _live: Live::new(Kind::Table) })
    }

    /// Its guest-physical address.
    pub(crate) fn dma(&self) -> u64 {
        self.page.dma()
    }

    /// Entry `index`, which is below `pte::ENTRIES`. Only the driver writes entries.
    pub(crate) fn get(&self, index: usize) -> Pte {
        Pte(self.page.word(index * size_of::<Pte>()).load(Relaxed))
    }

    /// Stores entry `index` as a whole. Release ordering: whoever follows it, the device's walker, sees
    /// what was written before, such as the zeroes of a new table.
    pub(crate) fn set(&self, index: usize, entry: Pte) {
        self.page.word(index * size_of::<Pte>()).store(entry.0, Release);
    }
}

/// Level of the root.
const ROOT: u32 = pte::LEVELS - 1;
/// Levels between the root and the leaf tables.
const MIDDLE: usize = pte::LEVELS as usize - 2;

/// A table and the number of its entries that are valid.
struct Inner {
    table: Table,
    used: u32,
}

/// The root and the tables below it, down to level 1.
pub(crate) struct PageTable {
    device: PciDevice,
    root: Inner,
    /// By level and first address.
    tables: RBTree<(u32, u64), Inner>,
}

/// Tables that nothing leads to any more. Free them once the device can't be walking them.
pub(crate) type Retired = [Option<Table>; MIDDLE];

impl PageTable {
    /// An empty one.
    pub(crate) fn new(device: &PciDevice) -> Result<Self> {
        let root = Inner { table: Table::new(device)?, used: 0 };
        Ok(PageTable { device: device.clone(), root, tables: RBTree::new() })
    }

    /// The root's guest-physical address.
    pub(crate) fn root(&self) -> u64 {
        self.root.table.dma()
    }

    /// Makes the walk of `va` lead to the table of level 0 at `leaf`. What is missing between is
    /// made; if that fails, nothing leads to `leaf`, and what was made stays for the next attempt.
    pub(crate) fn attach(&mut self, va: u64, leaf: u64) -> Result {
        for level in (1..ROOT).rev() {
            if self.tables.get(&key(level, va)).is_none() {
                let inner = Inner { table: Table::new(&self.device)?, used: 0 };
                let dma = inner.table.dma();
                self.tables.try_create_and_insert(key(level, va), inner, GFP_KERNEL)?;
                self.set(level + 1, va, Pte::table(dma));
            }
        }
        self.set(1, va, Pte::table(leaf));
        Ok(())
    }

    /// Ends the walk of `va` above its leaf table, and takes out the tables that are empty now. The
    /// device may use what is returned, and the leaf table, until a TLB_INVALIDATE of the range and a
    /// SYNC are done.
    pub(crate) fn detach(&mut self, va: u64) -> Retired {
        let mut retired = [const { None }; MIDDLE];
        for (level, slot) in (1..).zip(&mut retired) {
            self.set(level, va, Pte::NONE);
            if self.tables.get(&key(level, va)).is_none_or(|inner| inner.used != 0) {
                return retired;
            }
            *slot = self.tables.remove(&key(level, va)).map(|inner| inner.table);
        }
        self.set(ROOT, va, Pte::NONE);
        retired
    }

    /// Stores the entry for `va` in its table of `level`, if there is one.
    fn set(&mut self, level: u32, va: u64, entry: Pte) {
        let inner = match level {
            ROOT => Some(&mut self.root),
            _ => self.tables.get_mut(&key(level, va)),
        };
        let Some(inner) = inner else { return };
        let index = pte::index(va, level);
        let old = inner.table.get(index);
        inner.used = inner.used + u32::from(entry.valid()) - u32::from(old.valid());
        inner.table.set(index, entry);
    }
}

/// A table of `level` begins at a multiple of what one entry of the level above translates.
fn key(level: u32, va: u64) -> (u32, u64) {
    let span = pte::span(level + 1);
    (level, va - va % span)
}
