// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the payload of a command to a request that says only what a request may say. What depends on the
//! device or on earlier messages is checked in [`super::server`].

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as abi;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::backend::Refusal;
use super::wire::{self, Command, MAX_VERSION_DATA, PAGE, RegionAccess};

/// A command that is well-formed.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// The version and the JSON that follow.
    Version(wire::Version, &'a [u8]),
    /// A range of memory is there from now on.
    DmaMap(MapRange),
    /// A range, or all of them, is not any more; to be echoed.
    DmaUnmap(Unmap, wire::DmaUnmap),
    /// What the device is.
    DeviceInfo,
    /// What a region is.
    RegionInfo {
        /// Which one.
        index: u32,
        /// How many bytes the answer may have, at least those of the fixed part.
        space: u32,
    },
    /// Which descriptors stand for parts of a region.
    RegionIoFds {
        /// Which one.
        index: u32,
    },
    /// What a kind of interrupts is.
    IrqInfo {
        /// Which one.
        index: u32,
    },
    /// What shall happen to interrupts.
    SetIrqs(SetIrqs<'a>),
    /// Read a region.
    RegionRead(RegionAccess),
    /// Write a region; the data have the length that the access names.
    RegionWrite(RegionAccess, &'a [u8]),
    /// Reset the device.
    Reset,
}

/// A range that is to be mapped: whole pages, not empty, ends don't wrap.
#[derive(Clone, Copy, Debug)]
pub struct MapRange {
    /// Where the device sees it.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where in the file.
    pub offset: u64,
    /// Whether the device may read.
    pub readable: bool,
    /// Whether the device may write.
    pub writable: bool,
}

/// What is to be unmapped.
#[derive(Clone, Copy, Debug)]
pub enum Unmap {
    /// Whole pages, not empty, the end does not wrap.
    Range {
        /// Where the device sees it.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// Every map.
    All,
}

/// Vectors, and what shall happen to them.
#[derive(Clone, Copy, Debug)]
pub struct SetIrqs<'a> {
    /// Which kind of interrupts.
    pub index: u32,
    /// The first vector.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// What happens.
    pub action: IrqAction<'a>,
}

/// What shall happen to vectors.
#[derive(Clone, Copy, Debug)]
pub enum IrqAction<'a> {
    /// Every vector of the kind loses its event; start and count are 0.
    Disable,
    /// Each vector gets an event from the message, or all lose theirs if it has none.
    Events,
    /// Each vector is raised.
    Trigger,
    /// Each vector is raised whose byte is not 0; as many bytes as vectors.
    TriggerIf(&'a [u8]),
}

impl<'a> Request<'a> {
    /// Parses the payload of a command.
    pub fn parse(command: u16, payload: &'a [u8]) -> Result<Self, Refusal> {
        let command = Command::from_number(command)
            .ok_or_else(|| Refusal::new(Errno::NOSYS, "there is no such command"))?;
        match command {
            Command::Version => version(payload),
            Command::DmaMap => dma_map(whole(payload)?),
            Command::DmaUnmap => dma_unmap(whole(payload)?),
            Command::DeviceGetInfo => {
                let info: wire::DeviceInfo = whole(payload)?;
                space_for::<wire::DeviceInfo>(info.argsz)?;
                Ok(Request::DeviceInfo)
            }
            Command::DeviceGetRegionInfo => {
                let info: wire::RegionInfo = whole(payload)?;
                space_for::<wire::RegionInfo>(info.argsz)?;
                Ok(Request::RegionInfo { index: info.index, space: info.argsz })
            }
            Command::DeviceGetRegionIoFds => {
                let info: wire::IndexInfo = whole(payload)?;
                space_for::<wire::IndexInfo>(info.argsz)?;
                ensure(info.flags == 0 && info.count == 0, "flags and count must be 0")?;
                Ok(Request::RegionIoFds { index: info.index })
            }
            Command::DeviceGetIrqInfo => {
                let info: wire::IndexInfo = whole(payload)?;
                space_for::<wire::IndexInfo>(info.argsz)?;
                Ok(Request::IrqInfo { index: info.index })
            }
            Command::DeviceSetIrqs => set_irqs(payload).map(Request::SetIrqs),
            Command::RegionRead => whole(payload).map(Request::RegionRead),
            Command::RegionWrite => region_write(payload),
            Command::DeviceReset => {
                ensure(payload.is_empty(), WRONG_SIZE)?;
                Ok(Request::Reset)
            }
            Command::DmaRead | Command::DmaWrite => {
                Err(Refusal::new(Errno::NOTSUP, "this command goes from server to client"))
            }
            Command::DirtyPages
            | Command::RegionWriteMulti
            | Command::DeviceFeature
            | Command::MigDataRead
            | Command::MigDataWrite => Err(Refusal::new(Errno::NOTSUP, "not offered")),
        }
    }
}

const WRONG_SIZE: &str = "the message has the wrong size";

fn ensure(condition: bool, otherwise: &'static str) -> Result<(), Refusal> {
    if condition { Ok(()) } else { Err(Refusal::invalid(otherwise)) }
}

/// A payload that is one structure and nothing else.
fn whole<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<T, Refusal> {
    T::read_from_bytes(payload).map_err(|_| Refusal::invalid(WRONG_SIZE))
}

/// A payload that begins with a structure.
fn prefix<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<(T, &[u8]), Refusal> {
    T::read_from_prefix(payload).map_err(|_| Refusal::invalid(WRONG_SIZE))
}

/// Whether the sender has room for a reply's fixed part, without which there is no reply.
fn space_for<Reply>(argsz: u32) -> Result<(), Refusal> {
    ensure(argsz as usize >= size_of::<Reply>(), "argsz is too small for any reply")
}

fn version(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let (version, data) = prefix(payload)?;
    if data.len() > MAX_VERSION_DATA {
        return Err(Refusal::new(Errno::TOOBIG, "too much version data"));
    }
    Ok(Request::Version(version, data))
}

/// Whole pages, not empty, the end does not wrap.
fn check_range(address: u64, size: u64) -> Result<(), Refusal> {
    ensure(size != 0, "the range is empty")?;
    ensure(address.is_multiple_of(PAGE) && size.is_multiple_of(PAGE), "the range is not whole pages")?;
    ensure(address.checked_add(size).is_some(), "the range wraps")
}

fn dma_map(map: wire::DmaMap) -> Result<Request<'static>, Refusal> {
    ensure(map.argsz as usize >= size_of::<wire::DmaMap>(), "argsz is too small")?;
    let known = abi::VFIO_DMA_MAP_FLAG_READ | abi::VFIO_DMA_MAP_FLAG_WRITE;
    ensure(map.flags & !known == 0, "unknown flags")?;
    ensure(map.flags != 0, "neither readable nor writable")?;
    check_range(map.address, map.size)?;
    check_range(map.offset, map.size)?;
    Ok(Request::DmaMap(MapRange {
        address: map.address,
        size: map.size,
        offset: map.offset,
        readable: map.flags & abi::VFIO_DMA_MAP_FLAG_READ != 0,
        writable: map.flags & abi::VFIO_DMA_MAP_FLAG_WRITE != 0,
    }))
}

fn dma_unmap(unmap: wire::DmaUnmap) -> Result<Request<'static>, Refusal> {
    ensure(unmap.argsz as usize >= size_of::<wire::DmaUnmap>(), "argsz is too small for any reply")?;
    let wire::DmaUnmap { address, size, .. } = unmap;
    let what = match unmap.flags {
        0 => {
            check_range(address, size)?;
            Unmap::Range { address, size }
        }
        abi::VFIO_DMA_UNMAP_FLAG_ALL => {
            ensure(address == 0 && size == 0, "all is to be unmapped, and a range")?;
            Unmap::All
        }
        abi::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP => {
            return Err(Refusal::new(Errno::NOTSUP, "dirty pages are not tracked"));
        }
        _ => return Err(Refusal::invalid("unknown flags")),
    };
    Ok(Request::DmaUnmap(what, unmap))
}

fn set_irqs(payload: &[u8]) -> Result<SetIrqs<'_>, Refusal> {
    let (set, data): (wire::IrqSet, _) = prefix(payload)?;
    ensure(set.argsz as usize == payload.len(), "argsz is not the payload's size")?;
    let (data_kind, action_kind) =
        (set.flags & abi::VFIO_IRQ_SET_DATA_TYPE_MASK, set.flags & abi::VFIO_IRQ_SET_ACTION_TYPE_MASK);
    ensure(set.flags == data_kind | action_kind, "unknown flags")?;
    match action_kind {
        abi::VFIO_IRQ_SET_ACTION_TRIGGER => {}
        abi::VFIO_IRQ_SET_ACTION_MASK | abi::VFIO_IRQ_SET_ACTION_UNMASK => {
            return Err(Refusal::invalid("no interrupt of this device can be masked"));
        }
        _ => return Err(Refusal::invalid("not one action")),
    }
    ensure(set.start.checked_add(set.count).is_some(), "the vectors wrap")?;
    let booleans = data_kind == abi::VFIO_IRQ_SET_DATA_BOOL;
    ensure(data.len() as u64 == if booleans { set.count.into() } else { 0 }, WRONG_SIZE)?;
    let action = match (data_kind, set.count) {
        (abi::VFIO_IRQ_SET_DATA_NONE, 0) => {
            ensure(set.start == 0, "count is 0 and start is not")?;
            IrqAction::Disable
        }
        (abi::VFIO_IRQ_SET_DATA_BOOL | abi::VFIO_IRQ_SET_DATA_EVENTFD, 0) => {
            return Err(Refusal::invalid("no vectors"));
        }
        (abi::VFIO_IRQ_SET_DATA_NONE, _) => IrqAction::Trigger,
        (abi::VFIO_IRQ_SET_DATA_BOOL, _) => IrqAction::TriggerIf(data),
        (abi::VFIO_IRQ_SET_DATA_EVENTFD, _) => IrqAction::Events,
        _ => return Err(Refusal::invalid("not one kind of data")),
    };
    Ok(SetIrqs { index: set.index, start: set.start, count: set.count, action })
}

fn region_write(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let (access, data): (RegionAccess, _) = prefix(payload)?;
    ensure(data.len() as u64 == u64::from(access.count), "count is not the size of the data")?;
    Ok(Request::RegionWrite(access, data))
}
