// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client that sends what it is given and takes whatever comes back: for fuzzers and property tests, which
//! then ask whether the server lived, and what it said.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::backend::{Backend, Description};
use super::server::{End, serve};
use super::socket::{Attention, Stop};
use super::stream::ConnectionError;

/// What a client sends by one call: bytes, at least one, and the descriptors that go with the first of them.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Bytes of one message, several, or a part of one.
    pub bytes: &'a [u8],
    /// Descriptors; the kernel takes up to 253.
    pub fds: &'a [BorrowedFd<'a>],
}

/// Serves a client that sends these chunks and hangs up. How that ended, and all that the client was sent.
pub fn feed(
    description: &Description,
    backend: &mut dyn Backend,
    chunks: &[Chunk<'_>],
) -> io::Result<(Result<End, ConnectionError>, Vec<u8>)> {
    let (server, client) = UnixStream::pair()?;
    client.set_nonblocking(true)?;
    let stop = Stop::new()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || converse(&client, chunks));
        let end = serve(&server, description, backend, Attention::new(&stop));
        // The client waits for this.
        drop(server);
        let answers = sender.join().map_err(|_| io::Error::other("the client panicked"))??;
        Ok((end, answers))
    })
}

/// Sends everything while it takes answers, which a server that has no room for them waits for.
fn converse(client: &UnixStream, chunks: &[Chunk<'_>]) -> io::Result<Vec<u8>> {
    let mut answers = Vec::new();
    for chunk in chunks {
        let mut rest = *chunk;
        while !rest.bytes.is_empty() {
            match send(client, rest) {
                Ok(sent) => rest = Chunk { bytes: rest.bytes.get(sent..).unwrap_or_default(), fds: &[] },
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(client, PollFlags::IN | PollFlags::OUT)];
                    poll(&mut fds, None)?;
                }
                // The server has hung up.
                Err(_) => break,
            }
            take(client, &mut answers)?;
        }
    }
    let _ = client.shutdown(Shutdown::Write);
    client.set_nonblocking(false)?;
    take(client, &mut answers)?;
    Ok(answers)
}

fn send(client: &UnixStream, chunk: Chunk<'_>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !chunk.fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(chunk.fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(client, &[IoSlice::new(chunk.bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// Takes what there is, up to the end if it blocks.
fn take(mut client: &UnixStream, answers: &mut Vec<u8>) -> io::Result<()> {
    match client.read_to_end(answers) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
