// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vfio-user client that an input drives: messages near to valid ones, or any bytes, with descriptors, in
//! pieces. What comes back must be replies, each to one message.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mock_driver::{Mock, memfd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use svmx_abi::pci::PAGE_SIZE;
use svmx_device::vfio::{Adapter, describe};
use svmx_device::vfio_user::feed::{Chunk, feed};
use svmx_device::vfio_user::wire::{
    Command, DmaMap, DmaUnmap, Flags, Header, IndexInfo, IrqSet, MAJOR, RegionAccess, RegionInfo,
};
use svmx_device::vfio_user::{ConnectionError, End};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

/// Messages of one input.
const MAX_MESSAGES: usize = 24;
/// Pages of the memory whose descriptor goes with messages.
const PAGES: u64 = 16;
const HEADER: usize = size_of::<Header>();

/// What goes by one call: bytes, and how many descriptors.
struct Piece {
    bytes: Vec<u8>,
    descriptors: usize,
}

/// Serves one client; then there are no maps.
pub(crate) fn converse(mock: &Mock, input: &mut Input<'_>, begins_with_version: bool) {
    let mut pieces = Vec::new();
    if begins_with_version {
        let version =
            message(Command::Version as u16, 0, &[&MAJOR.to_le_bytes()[..], &[0; 2], b"{}\0"].concat());
        pieces.push(Piece { bytes: version, descriptors: 0 });
    }
    while !input.is_over() && pieces.len() < MAX_MESSAGES {
        add(&mut pieces, input);
    }
    let memory = memfd(PAGES * PAGE_SIZE);
    let event = EventFd::from_flags(EfdFlags::empty()).map(OwnedFd::from).expect("a descriptor is left");
    // Alternately, so that some message finds the one that it needs first.
    let descriptors: Vec<BorrowedFd<'_>> =
        (0..32).map(|at| if at % 3 == 0 { memory.as_fd() } else { event.as_fd() }).collect();
    let chunks: Vec<_> = pieces.iter().map(|piece| chunk(piece, &descriptors)).collect();
    let mut device = mock.device.lock();
    let description = describe(&device).expect("a descriptor is left");
    let (end, answers) =
        feed(&description, &mut Adapter(&mut device), &chunks).expect("a socket is no trouble");
    match end {
        Ok(End::HungUp) | Err(ConnectionError::Unframed(_) | ConnectionError::NoCommonVersion) => {}
        other => panic!("the connection ended by {other:?}"),
    }
    check(&answers, &pieces);
}

fn chunk<'a>(piece: &'a Piece, descriptors: &'a [BorrowedFd<'a>]) -> Chunk<'a> {
    // Events first if more than one is sent.
    let first = usize::from(piece.descriptors > 1);
    let fds = descriptors.get(first..first + piece.descriptors).unwrap_or_default();
    Chunk { bytes: &piece.bytes, fds }
}

/// Adds what the input says next: a message, whole or in two pieces, or bytes.
fn add(pieces: &mut Vec<Piece>, input: &mut Input<'_>) {
    let kind = input.byte();
    let descriptors = match kind >> 6 {
        0 | 1 => 0,
        2 => 1,
        _ => usize::from(input.byte() % 20),
    };
    if kind % 8 == 7 {
        let bytes = bytes(input);
        pieces.extend((!bytes.is_empty()).then_some(Piece { bytes, descriptors }));
        return;
    }
    let command = u16::from(input.byte() % 24);
    let flags = if kind & 0x20 == 0 { 0 } else { u32::from(input.byte()) };
    let mut bytes = message(command, flags, &payload(command, input));
    if kind & 0x10 != 0 {
        // A size that is not the message's.
        let size = (bytes.len() as u32).wrapping_add(i32::from(input.byte() as i8) as u32);
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
    }
    if kind & 8 == 0 {
        pieces.push(Piece { bytes, descriptors });
        return;
    }
    let rest = bytes.split_off(usize::from(input.byte()) % bytes.len());
    pieces.extend((!bytes.is_empty()).then_some(Piece { bytes, descriptors: 0 }));
    pieces.push(Piece { bytes: rest, descriptors });
}

fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = (HEADER + payload.len()) as u32;
    let header = Header { id: 7, command, size, flags: Flags(flags), error: 0 };
    [header.as_bytes(), payload].concat()
}

/// A payload of a command's form.
fn payload(command: u16, input: &mut Input<'_>) -> Vec<u8> {
    let argsz = |input: &mut Input<'_>, right: usize| match input.byte() {
        0 => right as u32,
        other => u32::from(other),
    };
    match Command::from_number(command) {
        Some(Command::Version) => {
            let version = [input.byte(), 0, input.byte(), 0];
            [&version[..], &bytes(input)].concat()
        }
        Some(Command::DmaMap) => {
            let argsz = argsz(input, size_of::<DmaMap>());
            let flags = u32::from(input.byte());
            let (offset, address, size) = (pages(input), pages(input), pages(input));
            DmaMap { argsz, flags, offset, address, size }.as_bytes().to_vec()
        }
        Some(Command::DmaUnmap) => {
            let argsz = argsz(input, size_of::<DmaUnmap>());
            let flags = u32::from(input.byte() % 4);
            DmaUnmap { argsz, flags, address: pages(input), size: pages(input) }.as_bytes().to_vec()
        }
        Some(Command::DeviceGetRegionInfo) => {
            let (argsz, index) = (argsz(input, 256), input.byte().into());
            RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 }.as_bytes().to_vec()
        }
        // They have the same fields.
        Some(Command::DeviceGetInfo | Command::DeviceGetRegionIoFds | Command::DeviceGetIrqInfo) => {
            let (argsz, index) = (argsz(input, size_of::<IndexInfo>()), input.byte().into());
            IndexInfo { argsz, flags: 0, index, count: 0 }.as_bytes().to_vec()
        }
        Some(Command::DeviceSetIrqs) => {
            let kinds = input.byte();
            let (index, start, count) = (input.byte() % 6, input.byte(), input.byte());
            let data = bytes(input);
            let argsz = (size_of::<IrqSet>() + data.len()) as u32;
            let (index, start, count) = (index.into(), start.into(), count.into());
            let set = IrqSet { argsz, flags: kinds.into(), index, start, count };
            [set.as_bytes(), &data].concat()
        }
        Some(Command::RegionRead) => access(input, None).as_bytes().to_vec(),
        Some(Command::RegionWrite) => {
            let data = bytes(input);
            [access(input, Some(data.len() as u32)).as_bytes(), &data].concat()
        }
        Some(Command::DeviceReset) => Vec::new(),
        _ => bytes(input),
    }
}

/// An access to any region; of how many bytes, if that is not known.
fn access(input: &mut Input<'_>, count: Option<u32>) -> RegionAccess {
    let (region, offset) = (u32::from(input.byte() % 12), input.number(0));
    let count = count.unwrap_or_else(|| match input.byte() {
        255 => input.number(0) as u32,
        few => few.into(),
    });
    RegionAccess { offset, region, count }
}

/// A number of pages, or any number.
fn pages(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        255 => input.number(0),
        pages => PAGE_SIZE * u64::from(pages),
    }
}

fn bytes(input: &mut Input<'_>) -> Vec<u8> {
    (0..input.byte()).map(|_| input.byte()).collect()
}

/// What was sent back is replies, and not more of them than messages can have been sent.
fn check(mut answers: &[u8], pieces: &[Piece]) {
    let sent: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    let mut replies = 0;
    while !answers.is_empty() {
        let (header, _) = Header::read_from_prefix(answers).expect("a reply has a header");
        let size = header.size as usize;
        assert!((HEADER..=answers.len()).contains(&size), "a reply of {size} bytes");
        assert!(header.flags == Flags::REPLY || header.flags == Flags::ERROR_REPLY, "{header:?}");
        assert_eq!(header.flags == Flags::ERROR_REPLY, (1..4096).contains(&header.error), "{header:?}");
        answers = &answers[size..];
        replies += 1;
    }
    assert!(replies * HEADER <= sent, "{replies} replies to {sent} bytes");
}
