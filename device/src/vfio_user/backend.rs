// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device must offer to be served: a description that does not change, and answers to what a client
//! asks of it. Ranges, counts, flags and descriptors have been checked when a method is called.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::wire::{Area, Command};

/// A device, for as long as it is served.
#[derive(Debug)]
pub struct Description {
    /// Its regions, by index. For a PCI device the first nine are the bus's.
    pub regions: Vec<Region>,
    /// Vectors of each kind of interrupt, by index. All are signalled by eventfd, one by one; none can be
    /// masked.
    pub interrupts: Vec<u32>,
    /// DMA maps that may exist at a time.
    pub max_dma_maps: u32,
}

/// A region.
#[derive(Debug, Default)]
pub struct Region {
    /// Bytes; one of 0 bytes is not there, any other can be read and written.
    pub size: u64,
    /// How a client can map it.
    pub mapping: Option<Mapping>,
}

/// The memory behind a region.
#[derive(Debug)]
pub struct Mapping {
    /// What a client is given.
    pub file: File,
    /// Parts of the region that may be mapped: whole pages inside region and file.
    pub areas: Vec<Area>,
}

/// A range of the client's memory.
#[derive(Debug)]
pub struct DmaMap {
    /// Where the device sees it. Page-aligned, and overlaps no other.
    pub address: u64,
    /// Bytes: whole pages, at least one; the end does not wrap.
    pub size: u64,
    /// The memory, if the device may have it; a client's own device memory comes without. That the file is
    /// as long as the range needs is for the backend to check.
    pub file: Option<File>,
    /// Where in the file. Page-aligned; the range's end in the file does not wrap.
    pub offset: u64,
    /// Whether the device may read.
    pub readable: bool,
    /// Whether the device may write; the file may allow it all the same.
    pub writable: bool,
}

/// Why a message is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} ({errno})")]
pub struct Refusal {
    /// What the client is told.
    pub errno: Errno,
    /// What the operator is told.
    pub why: Cow<'static, str>,
}

impl Refusal {
    /// A refusal.
    pub fn new(errno: Errno, why: impl Into<Cow<'static, str>>) -> Self {
        Refusal { errno, why: why.into() }
    }

    /// The most common one.
    pub(super) const fn invalid(why: &'static str) -> Self {
        Refusal { errno: Errno::INVAL, why: Cow::Borrowed(why) }
    }
}

/// Something that an operator should hear of. A client can cause any number of them.
#[derive(Debug)]
pub enum Complaint {
    /// A message was answered with an error, or would have been if the client had wanted an answer.
    Refused {
        /// The message's command.
        command: u16,
        /// Why.
        refusal: Refusal,
    },
    /// A reply came, though nothing was asked. It is not answered: two servers that are connected to each
    /// other would never stop.
    StrayReply,
    /// Another client connected while one is served, and was hung up on.
    TurnedAway,
    /// Another client connected while one is served, and can't be hung up on. It waits for its turn, as does
    /// whoever comes after it.
    LeftWaiting(io::Error),
}

impl fmt::Display for Complaint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Refused { command, refusal } => match Command::from_number(*command) {
                Some(name) => write!(to, "{name:?} refused: {refusal}"),
                None => write!(to, "command {command} refused: {refusal}"),
            },
            Complaint::StrayReply => write!(to, "a reply to nothing was dropped"),
            Complaint::TurnedAway => write!(to, "another client was turned away: one at a time"),
            Complaint::LeftWaiting(error) => {
                write!(to, "another client waits, and can't be turned away: {error}")
            }
        }
    }
}

/// A device. One thread calls it, in the order of the client's messages.
pub trait Backend {
    /// Reads a region. The range is inside it and not empty.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Refusal>;

    /// Writes a region. The range is inside it and not empty.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Refusal>;

    /// Gives the device memory.
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Refusal>;

    /// Takes away a range, exactly as it was given. When this returns the device does not use it.
    fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), Refusal>;

    /// Gives a vector the eventfd that signals it, or takes it away. The vector is in the description.
    fn set_interrupt(&mut self, index: u32, vector: u32, event: Option<OwnedFd>) -> Result<(), Refusal>;

    /// Raises a vector, because the client asks for it. The vector is in the description.
    fn trigger(&mut self, index: u32, vector: u32) -> Result<(), Refusal>;

    /// Resets the device; maps and eventfds stay.
    fn reset(&mut self) -> Result<(), Refusal>;

    /// The client is gone: back to the state in which nobody has ever connected, without maps and eventfds.
    fn disconnected(&mut self);

    /// Something for a log, which should limit its rate.
    fn complain(&mut self, complaint: Complaint);
}
