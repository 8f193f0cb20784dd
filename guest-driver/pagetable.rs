// SPDX-License-Identifier: GPL-2.0

//! The upper levels of a context's page table (spec 6). Leaf tables, and the entries that lead to them, belong to spans: see
//! `leaves.rs`.

use super::abi::{
    pci,
    pte::{self, Pte},
};
use super::hw::{DmaBuf, PciDevice};
use super::live::{Kind, Live};
use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{Relaxed, Release},
        Arc,
    },
};

/// A table of any level: a zeroed page that the device walks.
pub(crate) struct Table {
    page: DmaBuf,
    _live: Live,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(device: &PciDevice) -> Result<Self> {
        Ok(Table {
            page: DmaBuf::for_process(device, pci::PAGE_SIZE as usize)?,
            _live: Live::new(Kind::Table),
        })
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

/// A table and the number of its entries that are valid; at level 1, of spans that write theirs themselves.
struct Inner {
    table: Arc<Table>,
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
pub(crate) type Retired = [Option<Arc<Table>>; MIDDLE];

impl PageTable {
    /// An empty one.
    pub(crate) fn new(device: &PciDevice) -> Result<Self> {
        let root = Inner { table: Arc::new(Table::new(device)?, GFP_KERNEL_ACCOUNT)?, used: 0 };
        Ok(PageTable { device: device.clone(), root, tables: RBTree::new() })
    }

    /// The root's guest-physical address.
    pub(crate) fn root(&self) -> u64 {
        self.root.table.dma()
    }

    /// The table of level 1 for `va`. What is missing above it is made; if that fails, what was made stays for the next
    /// attempt.
    pub(crate) fn prepare(&mut self, va: u64) -> Result<Arc<Table>> {
        for level in (1..ROOT).rev() {
            if self.tables.get(&key(level, va)).is_none() {
                let table = Arc::new(Table::new(&self.device)?, GFP_KERNEL_ACCOUNT)?;
                let dma = table.dma();
                self.tables.try_create_and_insert(
                    key(level, va),
                    Inner { table, used: 0 },
                    GFP_KERNEL_ACCOUNT,
                )?;
                self.set(level + 1, va, Pte::table(dma));
            }
        }
        self.tables.get(&key(1, va)).map(|inner| inner.table.clone()).ok_or(ENOMEM)
    }

    /// A span at `va` is going to write its entry.
    pub(crate) fn attach(&mut self, va: u64) {
        if let Some(inner) = self.tables.get_mut(&key(1, va)) {
            inner.used += 1;
        }
    }

    /// The span at `va` has cleared its entry: takes out the tables that are empty now. The
    /// device may use what is returned, and the leaf table, until a TLB_INVALIDATE of the range and a
    /// SYNC are done.
    pub(crate) fn detach(&mut self, va: u64) -> Retired {
        let mut retired = [const { None }; MIDDLE];
        for (level, slot) in (1..).zip(&mut retired) {
            match level {
                1 => self.tables.get_mut(&key(1, va)).into_iter().for_each(|inner| inner.used -= 1),
                _ => self.set(level, va, Pte::NONE),
            }
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
