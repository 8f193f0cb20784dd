// SPDX-License-Identifier: GPL-2.0

//! What the device's page table has of a span: a leaf table, or one leaf of 2 MiB in its place (spec 6.1).
//!
//! Entries and their number, nothing else: what it takes to change one is in `span.rs`, under whose lock all of
//! this is. Upper levels are in `pagetable.rs`.

use super::abi::pte::{self, Access, Pte};
use super::pagetable::Table;
use kernel::sync::Arc;

/// A span's entries.
pub(crate) struct Leaves {
    base: u64,
    /// The table of level 1. Its entry for this span is written here and nowhere else.
    parent: Arc<Table>,
    table: Table,
    /// Valid entries of the leaf table. None while there is a huge leaf.
    mapped: u32,
    /// The huge leaf, or nothing.
    huge: Pte,
}

impl Leaves {
    /// None, in the span at `base`, which `parent` is to lead to.
    pub(crate) fn new(base: u64, parent: Arc<Table>, table: Table) -> Self {
        Leaves { base, parent, table, mapped: 0, huge: Pte::NONE }
    }

    /// Makes the walk lead to the leaf table.
    pub(crate) fn attach(&mut self) {
        self.set_parent(Pte::table(self.table.dma()));
    }

    /// Ends the walk above the leaf table. Nothing is mapped.
    pub(crate) fn detach(&mut self) {
        self.set_parent(Pte::NONE);
    }

    /// Whether nothing is mapped.
    pub(crate) fn is_empty(&self) -> bool {
        self.mapped == 0 && !self.huge.valid()
    }

    /// The translation of `va`, as an entry of level 0.
    pub(crate) fn get(&self, va: u64) -> Pte {
        match self.huge.valid() {
            true => Pte::leaf(self.huge.address() + va % pte::span(1), self.huge.access()),
            false => self.table.get(pte::index(va, 0)),
        }
    }

    /// Stores the entry of one page, and returns the one before. There is no huge leaf.
    pub(crate) fn set(&mut self, va: u64, entry: Pte) -> Pte {
        let index = pte::index(va, 0);
        let old = self.table.get(index);
        self.table.set(index, entry);
        self.mapped = self.mapped + u32::from(entry.valid()) - u32::from(old.valid());
        old
    }

    /// Puts a huge leaf in the place of the leaf table, which is empty.
    pub(crate) fn set_huge(&mut self, address: u64, access: Access) {
        self.huge = Pte::huge_leaf(address, access);
        self.set_parent(self.huge);
    }

    /// Puts the leaf table back, and returns the huge leaf, if there was one.
    pub(crate) fn take_huge(&mut self) -> Option<Pte> {
        let huge = core::mem::replace(&mut self.huge, Pte::NONE);
        huge.valid().then(|| {
            self.attach();
            huge
        })
    }

    fn set_parent(&self, entry: Pte) {
        self.parent.set(pte::index(self.base, pte::HUGE_LEVEL), entry);
    }
}
