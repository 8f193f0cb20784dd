// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Framing: from a stream of bytes and descriptors to messages, and back. What a message means is not known
//! here.
//!
//! One read takes all that has come, so a message usually costs one system call, and several that a client
//! sent ahead cost one together. The kernel ends a read with the bytes that descriptors came with; therefore
//! these belong to the message that holds the *last* byte of the read. That is right for every client that
//! sends each message by a call of its own (or by several). One that packs two messages and the descriptors
//! of the first into one call will find both refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::socket::{Attention, Wake};
use super::wire::{Header, MAX_FDS, MAX_MESSAGE};

/// Descriptors that are held at most: more than one message may have, and one read brings no more than that.
const MAX_ARRIVED: usize = 2 * MAX_FDS;

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Where the next message begins can't be known.
    #[error("a message claims to have {0} bytes")]
    Unframed(u32),
    /// The client stopped in the middle of a message.
    #[error("only {got} bytes of a message came, and then nothing for too long")]
    Partial {
        /// Bytes of it that did come.
        got: usize,
    },
    /// The client speaks another version, and has been told so.
    #[error("the client speaks another major version")]
    NoCommonVersion,
    /// The client does not read.
    #[error("an answer was not taken for too long")]
    NotTaken,
    /// The socket broke.
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
}

impl ConnectionError {
    /// Whether the client has simply gone.
    fn is_hang_up(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(self, Self::Socket(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
    }
}

/// What happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A message is complete: `take` has it.
    Message,
    /// The client hung up.
    HungUp,
    /// Told to stop.
    Stopped,
    /// Another client wants in.
    Newcomer,
}

/// A message.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: Header,
    pub(super) payload: &'a [u8],
    /// Descriptors that came with it. What is left here when the next message is taken is closed.
    pub(super) fds: &'a mut Vec<OwnedFd>,
    /// More came than can be received, or held.
    pub(super) fds_lost: bool,
}

/// A descriptor, or the news that some were lost, and where in the stream.
#[derive(Debug)]
struct Arrived {
    /// The stream's position behind the last byte of the read that brought it.
    end: u64,
    fd: Option<OwnedFd>,
}

/// The receiving half of a connection. Its memory does not depend on what is received.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Room for one message of any size that can be framed.
    buffer: Box<[u8]>,
    /// What is in the buffer and has not been taken.
    start: usize,
    end: usize,
    /// The stream's position of `start`.
    position: u64,
    arrived: Vec<Arrived>,
    taken: Vec<OwnedFd>,
    /// When the last byte came.
    last: Instant,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Receiver {
            buffer: vec![0; MAX_MESSAGE].into_boxed_slice(),
            start: 0,
            end: 0,
            position: 0,
            arrived: Vec::with_capacity(MAX_ARRIVED),
            taken: Vec::with_capacity(MAX_ARRIVED),
            last: Instant::now(),
        }
    }

    /// Waits until a message is complete, or for whatever else comes first.
    pub(super) fn fill(
        &mut self,
        socket: &UnixStream,
        attention: Attention<'_>,
    ) -> Result<Event, ConnectionError> {
        while self.complete()?.is_none() {
            let partial = self.end > self.start;
            // What is left of it, whatever else this has returned for since the last byte.
            let patience = partial.then(|| attention.patience.saturating_sub(self.last.elapsed()));
            let wake = attention.wait(socket.as_fd(), PollFlags::IN, patience)?;
            let over = wake == Wake::TimedOut || patience == Some(Duration::ZERO);
            match wake {
                Wake::Stopped => return Ok(Event::Stopped),
                Wake::Newcomer if !over => return Ok(Event::Newcomer),
                Wake::Newcomer | Wake::Ready | Wake::TimedOut => {}
            }
            // Also when the time is over: this process may have been stopped while the bytes came.
            match self.read(socket) {
                Ok(0) => return Ok(Event::HungUp),
                Ok(_) => self.last = Instant::now(),
                Err(Errno::AGAIN | Errno::INTR) if !over => {}
                Err(Errno::AGAIN | Errno::INTR) => {
                    return Err(ConnectionError::Partial { got: self.end - self.start });
                }
                Err(Errno::CONNRESET) => return Ok(Event::HungUp),
                Err(error) => return Err(ConnectionError::Socket(error.into())),
            }
        }
        Ok(Event::Message)
    }

    /// The header of the next message, if all of that is there.
    fn complete(&self) -> Result<Option<Header>, ConnectionError> {
        let received = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Ok((header, payload)) = Header::read_from_prefix(received) else { return Ok(None) };
        let size = header.size as usize;
        if !(size_of::<Header>()..=MAX_MESSAGE).contains(&size) {
            return Err(ConnectionError::Unframed(header.size));
        }
        Ok((payload.len() >= size - size_of::<Header>()).then_some(header))
    }

    /// Takes the message that `fill` has found.
    pub(super) fn take(&mut self) -> Option<Frame<'_>> {
        let header = self.complete().ok()??;
        let size = header.size as usize;
        let payload = self.start + size_of::<Header>()..self.start + size;
        self.start += size;
        self.position += size as u64;
        self.taken.clear();
        let mine = self.arrived.iter().take_while(|arrived| arrived.end <= self.position).count();
        let mut fds_lost = mine > MAX_FDS;
        for arrived in self.arrived.drain(..mine) {
            fds_lost |= arrived.fd.is_none();
            self.taken.extend(arrived.fd);
        }
        let payload = self.buffer.get(payload).unwrap_or_default();
        Some(Frame { header, payload, fds: &mut self.taken, fds_lost })
    }

    /// Reads what has come, once.
    fn read(&mut self, socket: &UnixStream) -> Result<usize, Errno> {
        if self.start > 0 {
            // Less than a message is left; mostly nothing.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, flags)?;
        self.end += received.bytes;
        let end = self.position + self.end as u64;
        // What is not kept is closed.
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fds.for_each(|fd| self.keep(Arrived { end, fd: Some(fd) }));
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            self.keep(Arrived { end, fd: None });
        }
        Ok(received.bytes)
    }

    fn keep(&mut self, arrived: Arrived) {
        // If it is full, one message has more than it may have already.
        if self.arrived.len() < MAX_ARRIVED {
            self.arrived.push(arrived);
        }
    }
}

/// Sends a message and the descriptor that goes with it, in one piece if the client reads.
pub(super) fn send(
    socket: &UnixStream,
    attention: Attention<'_>,
    message: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<Event, ConnectionError> {
    match send_all(socket, attention, message, fd) {
        Err(error) if error.is_hang_up() => Ok(Event::HungUp),
        other => other,
    }
}

fn send_all(
    socket: &UnixStream,
    attention: Attention<'_>,
    message: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<Event, ConnectionError> {
    let fds = fd.map(|fd| [fd]);
    let mut fds = fds.as_ref();
    let mut rest = message;
    // Newcomers can wait until an answer is out.
    let attention = Attention { listener: None, ..attention };
    let mut last = Instant::now();
    while !rest.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                // They have gone with the first byte.
                fds = None;
                last = Instant::now();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let patience = attention.patience.saturating_sub(last.elapsed());
                match attention.wait(socket.as_fd(), PollFlags::OUT, Some(patience))? {
                    Wake::Stopped => return Ok(Event::Stopped),
                    Wake::TimedOut => return Err(ConnectionError::NotTaken),
                    Wake::Ready | Wake::Newcomer => {}
                }
            }
            Err(error) => return Err(ConnectionError::Socket(error.into())),
        }
    }
    Ok(Event::Message)
}

/// A message to be sent. Its memory is had at the beginning, for any size that a message can have, so that no
/// later message can meet with a host that has none left.
#[derive(Debug)]
pub(super) struct Reply {
    bytes: Vec<u8>,
}

impl Reply {
    pub(super) fn new() -> Self {
        Reply { bytes: Vec::with_capacity(MAX_MESSAGE) }
    }

    /// Begins a message: nothing but room for its header.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.extend_from_slice(Header::default().as_bytes());
    }

    /// Where the payload goes.
    pub(super) fn payload(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Adds zeroes, to be overwritten.
    pub(super) fn reserve(&mut self, count: usize) -> &mut [u8] {
        let before = self.bytes.len();
        self.bytes.resize(before + count, 0);
        self.bytes.get_mut(before..).unwrap_or_default()
    }

    /// Adds a structure.
    pub(super) fn push(&mut self, part: &(impl IntoBytes + zerocopy::Immutable)) {
        self.bytes.extend_from_slice(part.as_bytes());
    }

    /// The message, with its header.
    pub(super) fn finish(&mut self, header: Header) -> &[u8] {
        let header = Header { size: self.bytes.len() as u32, ..header };
        let _ = header.write_to_prefix(&mut self.bytes);
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::socket::{Listener, Stop};
    use super::*;

    #[test]
    fn newcomers_do_not_lengthen_the_wait() {
        const HANG: Duration = Duration::from_secs(60);
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("socket")).unwrap();
        let (socket, mut client) = UnixStream::pair().unwrap();
        let stop = Stop::new().unwrap();
        // Nobody turns this one away, so it is news at every look.
        let _newcomer = UnixStream::connect(listener.path()).unwrap();
        client.write_all(&[0; 7]).unwrap();
        let mut receiver = Receiver::new();
        for patience in [Duration::ZERO, Duration::from_millis(20)] {
            let attention = Attention { listener: Some(&listener), patience, ..Attention::new(&stop) };
            let start = Instant::now();
            let end = loop {
                match receiver.fill(&socket, attention) {
                    Ok(Event::Newcomer) => assert!(start.elapsed() < HANG),
                    other => break other,
                }
            };
            assert!(matches!(end, Err(ConnectionError::Partial { got: 7 })), "{end:?}");
        }
    }

    #[test]
    fn descriptors_that_come_with_half_a_message_are_bounded() {
        let (socket, client) = UnixStream::pair().unwrap();
        let stop = Stop::new().unwrap();
        let attention = Attention { patience: Duration::ZERO, ..Attention::new(&stop) };
        let mut receiver = Receiver::new();
        let header = Header { size: 100, ..Header::default() };
        let fds = [client.as_fd(); MAX_FDS];
        for byte in header.as_bytes() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&client, &[IoSlice::new(&[*byte])], &mut control, SendFlags::empty()).unwrap();
            let filled = receiver.fill(&socket, attention);
            assert!(matches!(filled, Err(ConnectionError::Partial { .. })), "{filled:?}");
            assert!(receiver.arrived.len() <= MAX_ARRIVED);
        }
        assert_eq!(receiver.arrived.len(), MAX_ARRIVED);
    }
}
