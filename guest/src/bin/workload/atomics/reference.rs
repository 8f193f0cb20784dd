// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The reference: areas, a second copy of their bytes, and whole commands carried out on the copy by the
//! rules of spec 5 and 9.5. It takes entries that are well-formed; [`super::refused`] has the others.

use super::model;
use crate::area::{Area, Backing};
use anyhow::{Context, Result, ensure};
use svmx::Condition;
use svmx::abi::pci::VA_END;
use svmx::abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx::abi::status::Status;

/// What a completion should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) status: Status,
    pub(super) applied: u32,
    pub(super) result: u128,
    /// `None` where the address that ended it is not one: it left the range.
    pub(super) address: Option<u64>,
}

/// Why a command ends early.
struct Stop {
    status: Status,
    address: Option<u64>,
    /// The element was applied, and this was its old value, which could not be stored.
    unstored: Option<u128>,
}

/// The kind of an access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Atomic,
}

/// Areas and what should be in them.
pub(super) struct Memory(Vec<(Area, Vec<u8>)>);

impl Memory {
    /// The areas as they are.
    pub(super) fn of(areas: impl IntoIterator<Item = Area>) -> Self {
        let copied = |area: Area| {
            let bytes = area.bytes();
            (area, bytes)
        };
        Memory(areas.into_iter().map(copied).collect())
    }

    /// Areas that nobody has touched.
    pub(super) fn untouched(areas: impl IntoIterator<Item = Area>) -> Self {
        let zeroed = |area: Area| {
            let bytes = vec![0; area.live() as usize];
            (area, bytes)
        };
        Memory(areas.into_iter().map(zeroed).collect())
    }

    /// Area `n`.
    pub(super) fn area(&self, n: usize) -> &Area {
        &self.0[n].0
    }

    /// The address of byte `offset` of area `n`.
    pub(super) fn address(&self, n: usize, offset: u64) -> u64 {
        self.area(n).address(offset)
    }

    /// Stores an element of area `n`, in the copy as well.
    pub(super) fn store(&mut self, n: usize, offset: u64, width: WidthLog2, value: u128) {
        let (area, bytes) = &mut self.0[n];
        area.store_wide(offset, width, value);
        put(bytes, offset as usize, width, value);
    }

    /// An element of area `n`, as it should be.
    pub(super) fn copy_of(&self, n: usize, offset: u64, width: WidthLog2) -> u128 {
        get(&self.0[n].1, offset as usize, width)
    }

    /// Notes that an element of area `n` is something else now.
    pub(super) fn note(&mut self, n: usize, offset: u64, width: WidthLog2, value: u128) {
        put(&mut self.0[n].1, offset as usize, width, value);
    }

    /// Makes every page of area `n` a new one that nobody has touched.
    pub(super) fn discard(&mut self, n: usize) -> Result<()> {
        let (area, bytes) = &mut self.0[n];
        bytes.fill(0);
        area.discard()
    }

    /// Changes what the process may do with area `n`.
    pub(super) fn protect(&mut self, n: usize, read: bool, write: bool) -> Result<()> {
        self.0[n].0.protect(read, write)
    }

    /// Fails if what is in the areas is not what should be there.
    pub(super) fn compare(&self) -> Result<()> {
        for (n, (area, bytes)) in self.0.iter().enumerate().filter(|(_, (area, _))| area.rights().0) {
            let found = area.bytes();
            let wrong = found.iter().zip(bytes).position(|(found, expected)| found != expected);
            if let Some(at) = wrong {
                let word = |bytes: &[u8]| bytes[at & !7..][..8].to_vec();
                ensure!(
                    false,
                    "byte {at:#x} of area {n}, at {:#x}: expected {:x?} around it, found {:x?}",
                    area.address(at as u64),
                    word(bytes),
                    word(&found)
                );
            }
        }
        Ok(())
    }

    /// Carries a command out on the copy.
    pub(super) fn execute(&mut self, entry: &Sqe) -> Result<Expected> {
        let mut applied = 0;
        let mut result = 0;
        let ended = match entry.opcode {
            Opcode::NOP | Opcode::FENCE => Ok(()),
            Opcode::COPY => self.copy(entry, &mut applied),
            Opcode::FILL => self.fill(entry, &mut applied),
            Opcode::WAIT => return self.wait(entry),
            _ if entry.flags.contains(SqeFlags::BULK) => self.bulk(entry, &mut applied),
            _ => self.element(entry, entry.addr, 0).map(|old| {
                applied = 1;
                result = model::result(entry.opcode, old);
            }),
        };
        Ok(match ended {
            Ok(()) => Expected { status: Status::SUCCESS, applied, result, address: Some(0) },
            Err(Stop { status, address, unstored }) => {
                // Of an old value that could not be stored the lower half is told (spec 5.5).
                let result = unstored.map_or(0, |old| old & u128::from(u64::MAX));
                Expected { status, applied: applied + u32::from(unstored.is_some()), result, address }
            }
        })
    }

    fn bulk(&mut self, entry: &Sqe, applied: &mut u32) -> Result<(), Stop> {
        for i in 0..u64::from(entry.count) {
            let addr = self.bulk_address(entry, i)?;
            let old = self.element(entry, addr, i)?;
            if entry.flags.contains(SqeFlags::STORE_OLD) {
                let to = entry.arg0 + (i << entry.width.0);
                let stored = self.write(to, entry.width, old);
                stored.map_err(|stop| Stop { unstored: Some(old), ..stop })?;
            }
            *applied += 1;
        }
        Ok(())
    }

    /// Where element `i` is.
    fn bulk_address(&self, entry: &Sqe, i: u64) -> Result<u64, Stop> {
        let distance = if entry.flags.contains(SqeFlags::INDEXED) {
            let wide = entry.flags.contains(SqeFlags::INDEX64);
            let width = if wide { WidthLog2::W64 } else { WidthLog2::W32 };
            let index = self.read(entry.index_addr + (i << width.0), width)?;
            index.cast_signed() << entry.width.0
        } else {
            i128::from(i) * i128::from(entry.stride)
        };
        let address = i128::from(entry.addr) + distance;
        let inside = (0..i128::from(VA_END)).contains(&address);
        if inside { Ok(address as u64) } else { Err(stop(Status::ADDRESS_RANGE, None)) }
    }

    /// Does what the command does to one element, and returns the old value.
    fn element(&mut self, entry: &Sqe, addr: u64, i: u64) -> Result<u128, Stop> {
        let (operand, compare) = self.operands(entry, i)?;
        let access = match entry.opcode {
            Opcode::READ => Access::Read,
            Opcode::WRITE => Access::Write,
            _ => Access::Atomic,
        };
        let (n, at) = self.find(addr, entry.width, access)?;
        let bytes = &mut self.0[n].1;
        let old = get(bytes, at, entry.width);
        put(bytes, at, entry.width, model::apply(entry.opcode, entry.width, old, operand, compare));
        Ok(old)
    }

    /// Operand and compared value of element `i` (spec 5.4).
    fn operands(&self, entry: &Sqe, i: u64) -> Result<(u128, u128), Stop> {
        let Sqe { opcode, width, flags, .. } = *entry;
        let wide = width == WidthLog2::W128;
        let own = flags.contains(SqeFlags::OPERANDS);
        let in_memory = own || (wide && flags.contains(SqeFlags::BULK));
        if !in_memory {
            let upper = |half: u64| if wide { u128::from(half) << 64 } else { 0 };
            let operand = u128::from(entry.operand) | upper(entry.arg0);
            return Ok((operand, u128::from(entry.compare) | upper(entry.arg1)));
        }
        let i = if own { i } else { 0 };
        if opcode != Opcode::CAS {
            return Ok((self.read(entry.operand + (i << width.0), width)?, 0));
        }
        let pair = entry.operand + (i << (width.0 + 1));
        let compare = self.read(pair, width)?;
        Ok((self.read(pair + (1 << width.0), width)?, compare))
    }

    /// memmove, element by element (spec 5.6).
    fn copy(&mut self, entry: &Sqe, applied: &mut u32) -> Result<(), Stop> {
        let (from, to, count) = (entry.arg0, entry.addr, u64::from(entry.count));
        let backward = to > from && to < from + (count << entry.width.0);
        for step in 0..count {
            let i = if backward { count - 1 - step } else { step } << entry.width.0;
            let value = self.read(from + i, entry.width)?;
            self.write(to + i, entry.width, value)?;
            *applied += 1;
        }
        Ok(())
    }

    fn fill(&mut self, entry: &Sqe, applied: &mut u32) -> Result<(), Stop> {
        for i in 0..u64::from(entry.count) {
            self.write(entry.addr + (i << entry.width.0), entry.width, entry.operand.into())?;
            *applied += 1;
        }
        Ok(())
    }

    /// A WAIT for a word that nobody changes meanwhile.
    fn wait(&self, entry: &Sqe) -> Result<Expected> {
        let condition = Condition::from_number(entry.arg1).context("an unknown condition")?;
        Ok(match self.read(entry.addr, entry.width) {
            Ok(seen) => {
                let held = model::holds(condition, entry.width, seen, entry.compare.into());
                let status = if held { Status::SUCCESS } else { Status::TIMEOUT };
                Expected { status, applied: held.into(), result: seen, address: Some(0) }
            }
            Err(Stop { status, address, .. }) => Expected { status, applied: 0, result: 0, address },
        })
    }

    fn read(&self, addr: u64, width: WidthLog2) -> Result<u128, Stop> {
        let (n, at) = self.find(addr, width, Access::Read)?;
        Ok(get(&self.0[n].1, at, width))
    }

    fn write(&mut self, addr: u64, width: WidthLog2, value: u128) -> Result<(), Stop> {
        let (n, at) = self.find(addr, width, Access::Write)?;
        put(&mut self.0[n].1, at, width, value);
        Ok(())
    }

    /// The area of an element and its place there, if the process may access it so (spec 9.5).
    fn find(&self, addr: u64, width: WidthLog2, access: Access) -> Result<(usize, usize), Stop> {
        let end = |area: &Area| area.address(area.live());
        let inside = |area: &Area| area.address(0) <= addr && addr.saturating_add(1 << width.0) <= end(area);
        let status = if addr < VA_END { Status::FAULT } else { Status::ADDRESS_RANGE };
        let (n, (area, _)) =
            self.0.iter().enumerate().find(|(_, (area, _))| inside(area)).ok_or(stop(status, Some(addr)))?;
        let (readable, writable) = area.rights();
        if !readable || (access != Access::Read && !writable) {
            return Err(stop(Status::PERMISSION, Some(addr)));
        }
        if access == Access::Atomic && area.backing() != Backing::Private {
            return Err(stop(Status::NOT_EXCLUSIVE, Some(addr)));
        }
        Ok((n, (addr - area.address(0)) as usize))
    }
}

fn stop(status: Status, address: Option<u64>) -> Stop {
    Stop { status, address, unstored: None }
}

fn get(bytes: &[u8], at: usize, width: WidthLog2) -> u128 {
    let mut value = [0; 16];
    let len = 1 << width.0;
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u128::from_le_bytes(value)
}

fn put(bytes: &mut [u8], at: usize, width: WidthLog2, value: u128) {
    let len = 1 << width.0;
    bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}
