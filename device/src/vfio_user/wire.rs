// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes of the protocol: header, commands, structures, limits. What a structure may say is not checked
//! here but in [`super::request`]. Everything is in the byte order of the host, as the protocol has it.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

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

const _: () = assert!(size_of::<Header>() == 16);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, Immutable, KnownLayout)]
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
    /// The command with a number.
    pub fn from_number(number: u16) -> Option<Self> {
        Command::try_read_from_bytes(number.as_bytes()).ok()
    }
}

/// A structure of which the names are the specification's, and its bytes.
macro_rules! structure {
    ($(#[$about:meta])* $name:ident, $bytes:literal bytes { $($field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[expect(missing_docs, reason = "they are the specification's names")]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

structure! {
    /// VERSION, before its JSON; request and reply.
    Version, 4 bytes {
        major: u16,
        minor: u16,
    }
}

structure! {
    /// DMA_MAP.
    DmaMap, 32 bytes {
        argsz: u32,
        flags: u32,
        offset: u64,
        address: u64,
        size: u64,
    }
}

structure! {
    /// DMA_UNMAP; request and reply.
    DmaUnmap, 24 bytes {
        argsz: u32,
        flags: u32,
        address: u64,
        size: u64,
    }
}

structure! {
    /// DEVICE_GET_INFO; request and reply.
    DeviceInfo, 16 bytes {
        argsz: u32,
        flags: u32,
        num_regions: u32,
        num_irqs: u32,
    }
}

structure! {
    /// DEVICE_GET_REGION_INFO; request and reply, which may go on with capabilities.
    RegionInfo, 32 bytes {
        argsz: u32,
        flags: u32,
        index: u32,
        cap_offset: u32,
        size: u64,
        offset: u64,
    }
}

structure! {
    /// The capability of a region that can be mapped in parts, before its areas.
    SparseMmap, 16 bytes {
        id: u16,
        version: u16,
        next: u32,
        nr_areas: u32,
        reserved: u32,
    }
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

const _: () = assert!(size_of::<Area>() == 16);

structure! {
    /// DEVICE_GET_REGION_IO_FDS and DEVICE_GET_IRQ_INFO, each about one index; request and reply.
    IndexInfo, 16 bytes {
        argsz: u32,
        flags: u32,
        index: u32,
        count: u32,
    }
}

structure! {
    /// DEVICE_SET_IRQS, before its booleans if there are any.
    IrqSet, 20 bytes {
        argsz: u32,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
    }
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
