// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Negotiation and dispatch: one client's messages, answered one by one. Requests are well-formed when they
//! come here ([`super::request`]); here they meet the device and what the client did before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as abi;

use super::backend::{Backend, Complaint, Description, DmaMap, Refusal, Region};
use super::ranges::Ranges;
use super::request::{IrqAction, MapRange, Request, SetIrqs, Unmap};
use super::socket::{Attention, Listener};
use super::stream::{self, ConnectionError, Event, Frame, Receiver, Reply};
use super::version::{self, Session};
use super::wire::{self, Flags, Header, RegionAccess};

/// How a connection ended that did not break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client hung up, perhaps in the middle of a message.
    HungUp,
    /// Told to stop.
    Stopped,
}

/// Serves a client until it goes. When this returns, however it ended, the backend has been told.
pub fn serve<'a>(
    socket: &UnixStream,
    description: &'a Description,
    backend: &'a mut dyn Backend,
    attention: Attention<'a>,
) -> Result<End, ConnectionError> {
    let mut client = Client { description, backend, session: None, ranges: Ranges::default() };
    let end = client.serve(socket, attention);
    client.backend.disconnected();
    end
}

/// What goes with a reply.
type Fd<'a> = Option<BorrowedFd<'a>>;

struct Client<'a> {
    description: &'a Description,
    backend: &'a mut dyn Backend,
    /// `None` until VERSION.
    session: Option<Session>,
    ranges: Ranges,
}

impl<'a> Client<'a> {
    fn serve(&mut self, socket: &UnixStream, mut attention: Attention<'a>) -> Result<End, ConnectionError> {
        let mut receiver = Receiver::new();
        let mut reply = Reply::new();
        // A client may have sent so much ahead that there is nothing to wait for.
        while !attention.stop.told() {
            let event = match receiver.fill(socket, attention)? {
                Event::Message => match receiver.take() {
                    Some(frame) => self.answer(socket, attention, frame, &mut reply)?,
                    None => Event::Message,
                },
                other => other,
            };
            match event {
                Event::Message => {}
                Event::HungUp => return Ok(End::HungUp),
                Event::Stopped => break,
                Event::Newcomer => attention.listener = self.turn_away(attention),
            }
        }
        Ok(End::Stopped)
    }

    /// Hangs up on another client. The listener, if it is to be looked at further.
    fn turn_away(&mut self, attention: Attention<'a>) -> Option<&'a Listener> {
        let listener = attention.listener?;
        match listener.turn_away() {
            Ok(true) => self.backend.complain(Complaint::TurnedAway),
            // It has gone by itself.
            Ok(false) => {}
            Err(error) => {
                // There may be no descriptor to spare for it. It stays where it is, until this client has gone.
                self.backend.complain(Complaint::LeftWaiting(error));
                return None;
            }
        }
        Some(listener)
    }

    /// Executes one message and answers it, if its sender wants that.
    fn answer(
        &mut self,
        socket: &UnixStream,
        attention: Attention<'_>,
        frame: Frame<'_>,
        reply: &mut Reply,
    ) -> Result<Event, ConnectionError> {
        let Header { id, command, flags, .. } = frame.header;
        if flags.is_reply() {
            self.backend.complain(Complaint::StrayReply);
            return Ok(Event::Message);
        }
        reply.begin();
        let done = self.execute(frame, reply);
        let stranger = command == wire::Command::Version as u16
            && done.as_ref().is_err_and(|refusal| refusal.errno == version::NOT_SPOKEN);
        let (header, fd) = match done {
            Ok(fd) => (Header { id, command, flags: Flags::REPLY, ..Header::default() }, fd),
            Err(refusal) => {
                reply.begin();
                let error = refusal.errno.raw_os_error() as u32;
                self.backend.complain(Complaint::Refused { command, refusal });
                (Header { id, command, flags: Flags::ERROR_REPLY, error, ..Header::default() }, None)
            }
        };
        let event = match flags.no_reply() {
            true => Event::Message,
            false => stream::send(socket, attention, reply.finish(header), fd)?,
        };
        match event {
            Event::Message if stranger => Err(ConnectionError::NoCommonVersion),
            event => Ok(event),
        }
    }

    fn execute(&mut self, frame: Frame<'_>, reply: &mut Reply) -> Result<Fd<'a>, Refusal> {
        let Frame { header, payload, fds, fds_lost } = frame;
        if !header.flags.is_command() {
            return Err(Refusal::invalid("not a command"));
        }
        let request = Request::parse(header.command, payload)?;
        if fds_lost {
            return Err(Refusal::new(Errno::TOOBIG, "more descriptors than can be received"));
        }
        let takes_fds = matches!(request, Request::DmaMap(_) | Request::SetIrqs(_));
        if !takes_fds && !fds.is_empty() {
            return Err(Refusal::invalid("descriptors with a command that takes none"));
        }
        let Some(session) = self.session else { return self.begin(request, reply) };
        match request {
            Request::Version(..) => return Err(Refusal::invalid("the version has been negotiated")),
            Request::DmaMap(range) => self.dma_map(range, fds, session.max_dma_maps)?,
            Request::DmaUnmap(what, echo) => {
                self.dma_unmap(what)?;
                reply.push(&echo);
            }
            Request::DeviceInfo => reply.push(&self.device_info()),
            Request::RegionInfo { index, space } => return self.region_info(index, space, session, reply),
            Request::RegionIoFds { index } => {
                self.region(index)?;
                // None: there is nothing that a client could be notified through instead of by messages.
                let argsz = size_of::<wire::IndexInfo>() as u32;
                reply.push(&wire::IndexInfo { argsz, flags: 0, index, count: 0 });
            }
            Request::IrqInfo { index } => reply.push(&self.irq_info(index)?),
            Request::SetIrqs(set) => self.set_irqs(set, fds)?,
            Request::RegionRead(access) => {
                self.check_access(access, session)?;
                reply.push(&access);
                let data = reply.reserve(access.count as usize);
                if !data.is_empty() {
                    self.backend.region_read(access.region, access.offset, data)?;
                }
            }
            Request::RegionWrite(access, data) => {
                self.check_access(access, session)?;
                if !data.is_empty() {
                    self.backend.region_write(access.region, access.offset, data)?;
                }
                reply.push(&access);
            }
            Request::Reset => self.backend.reset()?,
        }
        Ok(None)
    }

    /// The first message, which can only be VERSION.
    fn begin(&mut self, request: Request<'_>, reply: &mut Reply) -> Result<Fd<'a>, Refusal> {
        let Request::Version(version, data) = request else {
            return Err(Refusal::invalid("a command before the version was negotiated"));
        };
        let mut json = Vec::new();
        let (version, session) = version::negotiate(version, data, self.description.max_dma_maps, &mut json)?;
        reply.push(&version);
        reply.payload().extend(json);
        reply.payload().push(0);
        self.session = Some(session);
        Ok(None)
    }

    fn dma_map(&mut self, range: MapRange, fds: &mut Vec<OwnedFd>, max: u64) -> Result<(), Refusal> {
        let MapRange { address, size, offset, readable, writable } = range;
        if fds.len() > 1 {
            return Err(Refusal::invalid("more than one descriptor"));
        }
        let file = fds.pop().map(Into::into);
        if file.is_none() && offset != 0 {
            return Err(Refusal::invalid("an offset without a descriptor"));
        }
        self.ranges.check_new(address, size, max)?;
        self.backend.dma_map(DmaMap { address, size, file, offset, readable, writable })?;
        self.ranges.add(address, size);
        Ok(())
    }

    fn dma_unmap(&mut self, what: Unmap) -> Result<(), Refusal> {
        let ranges = match what {
            Unmap::Range { address, size } => self.ranges.in_range(address, size)?,
            Unmap::All => self.ranges.all(),
        };
        for (address, size) in ranges {
            self.backend.dma_unmap(address, size)?;
            self.ranges.remove(address);
        }
        Ok(())
    }

    fn device_info(&self) -> wire::DeviceInfo {
        wire::DeviceInfo {
            argsz: size_of::<wire::DeviceInfo>() as u32,
            flags: abi::VFIO_DEVICE_FLAGS_PCI | abi::VFIO_DEVICE_FLAGS_RESET,
            num_regions: self.description.regions.len() as u32,
            num_irqs: self.description.interrupts.len() as u32,
        }
    }

    fn region(&self, index: u32) -> Result<&'a Region, Refusal> {
        self.description.regions.get(index as usize).ok_or(Refusal::invalid("there is no such region"))
    }

    /// What a region is, and if it can be mapped, by which descriptor and where. A client without room for
    /// all of that gets the fixed part, whose `argsz` says how much there is, and nothing that it would need the rest
    /// for: not even that there are capabilities, as QEMU refuses a region that has them, but at offset 0.
    fn region_info(
        &self,
        index: u32,
        space: u32,
        session: Session,
        reply: &mut Reply,
    ) -> Result<Fd<'a>, Refusal> {
        const ACCESS: u32 = abi::VFIO_REGION_INFO_FLAG_READ | abi::VFIO_REGION_INFO_FLAG_WRITE;
        let region = self.region(index)?;
        let fixed = size_of::<wire::RegionInfo>();
        let flags = if region.size == 0 { 0 } else { ACCESS };
        let mut info = wire::RegionInfo {
            argsz: fixed as u32,
            flags,
            index,
            cap_offset: 0,
            size: region.size,
            offset: 0,
        };
        // A client that takes no descriptors can't map.
        let mapping = region.mapping.as_ref().filter(|_| session.client_fds > 0);
        let Some(mapping) = mapping else {
            reply.push(&info);
            return Ok(None);
        };
        let capability = size_of::<wire::SparseMmap>() + size_of_val(mapping.areas.as_slice());
        info.argsz = (fixed + capability) as u32;
        if space < info.argsz {
            reply.push(&info);
            return Ok(None);
        }
        info.flags |= abi::VFIO_REGION_INFO_FLAG_CAPS | abi::VFIO_REGION_INFO_FLAG_MMAP;
        info.cap_offset = fixed as u32;
        reply.push(&info);
        reply.push(&wire::SparseMmap {
            id: abi::VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16,
            version: 1,
            next: 0,
            nr_areas: mapping.areas.len() as u32,
            reserved: 0,
        });
        mapping.areas.iter().for_each(|area| reply.push(area));
        Ok(Some(mapping.file.as_fd()))
    }

    fn vectors(&self, index: u32) -> Result<u32, Refusal> {
        let vectors = self.description.interrupts.get(index as usize);
        vectors.copied().ok_or(Refusal::invalid("there is no such kind of interrupt"))
    }

    fn irq_info(&self, index: u32) -> Result<wire::IndexInfo, Refusal> {
        let count = self.vectors(index)?;
        let flags = if count == 0 { 0 } else { abi::VFIO_IRQ_INFO_EVENTFD };
        Ok(wire::IndexInfo { argsz: size_of::<wire::IndexInfo>() as u32, flags, index, count })
    }

    fn set_irqs(&mut self, set: SetIrqs<'_>, fds: &mut Vec<OwnedFd>) -> Result<(), Refusal> {
        let SetIrqs { index, start, count, action } = set;
        let vectors = self.vectors(index)?;
        if start + count > vectors {
            return Err(Refusal::invalid("there are no such vectors"));
        }
        let given = fds.len();
        let right = match action {
            IrqAction::Events => given == 0 || given == count as usize,
            _ => given == 0,
        };
        if !right {
            return Err(Refusal::invalid("not one descriptor for each vector"));
        }
        let named = start..start + count;
        match action {
            IrqAction::Disable => {
                (0..vectors).try_for_each(|vector| self.backend.set_interrupt(index, vector, None))
            }
            IrqAction::Events => {
                let mut fds = fds.drain(..);
                named
                    .zip(std::iter::from_fn(|| Some(fds.next())))
                    .try_for_each(|(vector, fd)| self.backend.set_interrupt(index, vector, fd))
            }
            IrqAction::Trigger => {
                named.into_iter().try_for_each(|vector| self.backend.trigger(index, vector))
            }
            IrqAction::TriggerIf(wanted) => named
                .zip(wanted)
                .filter(|(_, wanted)| **wanted != 0)
                .try_for_each(|(vector, _)| self.backend.trigger(index, vector)),
        }
    }

    /// Whether an access lies in a region and is no larger than agreed.
    fn check_access(&self, access: RegionAccess, session: Session) -> Result<(), Refusal> {
        let region = self.region(access.region)?;
        if u64::from(access.count) > session.max_data {
            return Err(Refusal::invalid("more data than agreed"));
        }
        let end = access.offset.checked_add(access.count.into());
        if end.is_none_or(|end| end > region.size) {
            return Err(Refusal::invalid("outside the region"));
        }
        Ok(())
    }
}
