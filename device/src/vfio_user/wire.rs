// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes of the protocol: header, commands, structures, limits. What a structure may say is not checked
//! here but in [`super::request`]. Everything is in the byte order of the host, as the protocol has it.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version that is spoken.
pub const MAJOR: u16 = 0;
/// The minor version that is spoken.
pub const MINOR: u16 = 0;

/// Descriptors that one message may carry. QEMU takes a larger offer for a mistake.
pub const MAX_FDS: usize = 16;
/// Bytes that one region access may transfer; the protocol's default.
pub const MAX_DATA: usize = 1 << 20;
/// Bytes of JSON in a VERSION message. QEMU sends about 200.
pub const MAX_VERSION_DATA: usize = 4096;
/// Bytes of the largest message, which is a region write. One that claims more can't be framed.
pub const MAX_MESSAGE: usize = size_of::<Header>() + size_of::<RegionAccess>() + MAX_DATA;
/// The unit of DMA maps.
pub const PAGE: u64 = 4096;

/// What every message begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The sender's; echoed in the reply.
    pub id: u16,
    /// See [`Command`]; echoed in the reply.
    pub command: u16,
    /// Bytes of the message, header included.
    pub size: u32,
    /// What kind of message it is.
    pub flags: Flags,
    /// In a reply with the error flag: an errno.
    pub error: u32,
}

/// `Header::flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Flags(pub u32);

impl Flags {
    /// A reply.
    pub const REPLY: Flags = Flags(1);
    /// A reply to a command that failed.
    pub const ERROR_REPLY: Flags = Flags(1 | 1 << 5);
    /// A command that wants no reply.
    pub const NO_REPLY: Flags = Flags(1 << 4);

    /// Whether this is a reply.
    pub fn is_reply(self) -> bool {
        self.0 & 0xf == 1
    }
    /// Whether this is a command, and nothing is set that a command does not have.
    pub fn is_command(self) -> bool {
        self.0 & !Self::NO_REPLY.0 == 0
    }
    /// Whether the sender wants no reply.
    pub fn no_reply(self) -> bool {
        self.0 & Self::NO_REPLY.0 != 0
    }
}

/// The protocol's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetRegionIoFds = 6,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
    DirtyPages = 14,
    RegionWriteMulti = 15,
    DeviceFeature = 16,
    MigDataRead = 17,
    MigDataWrite = 18,
}

impl Command {
    const ALL: [Command; 18] = [
        Command::Version,
        Command::DmaMap,
        Command::DmaUnmap,
        Command::DeviceGetInfo,
        Command::DeviceGetRegionInfo,
        Command::DeviceGetRegionIoFds,
        Command::DeviceGetIrqInfo,
        Command::DeviceSetIrqs,
        Command::RegionRead,
        Command::RegionWrite,
        Command::DmaRead,
        Command::DmaWrite,
        Command::DeviceReset,
        Command::DirtyPages,
        Command::RegionWriteMulti,
        Command::DeviceFeature,
        Command::MigDataRead,
        Command::MigDataWrite,
    ];

    /// The command with a number.
    pub fn from_number(number: u16) -> Option<Self> {
        let place = usize::from(number).checked_sub(1)?;
        Self::ALL.get(place).copied()
    }
}

/// VERSION, before its JSON; request and reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

/// DMA_MAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct DmaMap {
    pub argsz: u32,
    pub flags: u32,
    pub offset: u64,
    pub address: u64,
    pub size: u64,
}

/// DMA_UNMAP; request and reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct DmaUnmap {
    pub argsz: u32,
    pub flags: u32,
    pub address: u64,
    pub size: u64,
}

/// DEVICE_GET_INFO; request and reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct DeviceInfo {
    pub argsz: u32,
    pub flags: u32,
    pub num_regions: u32,
    pub num_irqs: u32,
}

/// DEVICE_GET_REGION_INFO; request and reply, which may go on with capabilities.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct RegionInfo {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub cap_offset: u32,
    pub size: u64,
    pub offset: u64,
}

/// The capability of a region that can be mapped in parts, before its areas.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct SparseMmap {
    pub id: u16,
    pub version: u16,
    pub next: u32,
    pub nr_areas: u32,
    pub reserved: u32,
}

/// A part of a region that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Area {
    /// Where it begins, in the region and in the file alike.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// DEVICE_GET_REGION_IO_FDS; request and reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct RegionIoFds {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub count: u32,
}

/// DEVICE_GET_IRQ_INFO; request and reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct IrqInfo {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub count: u32,
}

/// DEVICE_SET_IRQS, before its booleans if there are any.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "they are the specification's names")]
#[repr(C)]
pub struct IrqSet {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub start: u32,
    pub count: u32,
}

/// REGION_READ and REGION_WRITE; request and reply, before the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<Version>() == 4);
const _: () = assert!(size_of::<DmaMap>() == 32);
const _: () = assert!(size_of::<DmaUnmap>() == 24);
const _: () = assert!(size_of::<DeviceInfo>() == 16);
const _: () = assert!(size_of::<RegionInfo>() == 32);
const _: () = assert!(size_of::<SparseMmap>() == 16);
const _: () = assert!(size_of::<Area>() == 16);
const _: () = assert!(size_of::<RegionIoFds>() == 16);
const _: () = assert!(size_of::<IrqInfo>() == 16);
const _: () = assert!(size_of::<IrqSet>() == 20);
const _: () = assert!(size_of::<RegionAccess>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_specification() {
        for number in 0..=u16::MAX {
            let command = Command::from_number(number);
            assert_eq!(command.map(|command| command as u16), (1..=18).contains(&number).then_some(number));
        }
    }

    #[test]
    fn what_a_header_is() {
        assert!(Flags(0).is_command() && Flags::NO_REPLY.is_command());
        for flags in [Flags::REPLY, Flags::ERROR_REPLY, Flags(2), Flags(1 << 5), Flags(1 << 31)] {
            assert!(!flags.is_command(), "{flags:?}");
        }
        assert!(Flags::REPLY.is_reply() && Flags::ERROR_REPLY.is_reply() && !Flags(3).is_reply());
    }
}
