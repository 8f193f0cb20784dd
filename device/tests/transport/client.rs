// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client that can say anything: it sends the bytes and descriptors it is given, and knows no more of the
//! protocol than a header. Layouts are written out here a second time, not taken from the server.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use mock_driver::{HANG, wait_until};
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{Pid, gettid};
use svmx_device::vfio_user::{
    Attention, Backend, ConnectionError, Description, End, Errno, PATIENCE, Stop, serve,
};

use crate::device::{TestDevice, description};

pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_REGION_IO_FDS: u16 = 6;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const RESET: u16 = 13;

/// What a client without wishes proposes.
pub(crate) const HELLO: &[u8] = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8}}\0";

/// A payload from integers of 32 bits.
pub(crate) fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// REGION_READ's payload, and what REGION_WRITE's begins with.
pub(crate) fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [&offset.to_ne_bytes()[..], &region.to_ne_bytes(), &count.to_ne_bytes()].concat()
}

pub(crate) fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    [access(region, offset, data.len() as u32), data.into()].concat()
}

/// A message whose header says the truth about its size.
pub(crate) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    header(id, command, 16 + payload.len() as u32, flags, payload)
}

/// A message whose header says what it is told.
pub(crate) fn header(id: u16, command: u16, size: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    [&id.to_ne_bytes()[..], &command.to_ne_bytes(), &words([size, flags, 0]), payload].concat()
}

/// What the server says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) result: Result<Vec<u8>, Errno>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A client, and the server on the other end in a thread of its own.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    pub(crate) device: TestDevice,
    pub(crate) stop: Stop,
    server: JoinHandle<Result<End, ConnectionError>>,
    thread: Pid,
    next: u16,
}

impl Client {
    /// Connected, and nothing said.
    pub(crate) fn silent(patience: Duration) -> Self {
        let device = TestDevice::default();
        Client::serving(patience, device.clone(), description(), device)
    }

    /// The same with another device, which notes there that its client has gone.
    pub(crate) fn serving(
        patience: Duration,
        device: TestDevice,
        description: Description,
        mut backend: impl Backend + Send + 'static,
    ) -> Self {
        let (socket, served) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        let stop = Stop::new().unwrap();
        let stops = stop.clone();
        let (sender, thread) = channel();
        let server = std::thread::spawn(move || {
            sender.send(gettid()).unwrap();
            let attention = Attention { patience, ..Attention::new(&stops) };
            serve(&served, &description, &mut backend, attention)
        });
        Client { socket, device, stop, server, thread: thread.recv().unwrap(), next: 0x1230 }
    }

    /// Returns when the server has taken all that was sent, and waits for something.
    #[expect(unsafe_code, reason = "asks how much of what was sent has not been read")]
    pub(crate) fn waits(&self) {
        let stat = format!("/proc/self/task/{}/stat", self.thread);
        wait_until("the server's wait", || {
            let mut unread = -1;
            // SAFETY: the kernel writes one integer.
            let asked = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
            assert_eq!(asked, 0);
            unread == 0 && std::fs::read_to_string(&stat).unwrap().contains(") S ")
        });
    }

    /// Connected, with a version.
    pub(crate) fn new() -> Self {
        let mut client = Client::silent(PATIENCE);
        client.call(VERSION, HELLO).unwrap();
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn send_with(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let sent =
            sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// The next answer.
    #[expect(unsafe_code, reason = "takes descriptors out of a control message")]
    pub(crate) fn answer(&mut self) -> Answer {
        let mut header = [0; 16];
        let mut space = nix::cmsg_space!([i32; 8]);
        let mut fds = Vec::new();
        {
            let mut iov = [IoSliceMut::new(&mut header)];
            let raw = self.socket.as_raw_fd();
            let received =
                recvmsg::<()>(raw, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
            assert_eq!(received.bytes, 16, "a whole header at once");
            for control in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made them, for nobody else.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
        }
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        self.socket.read_exact(&mut payload).unwrap();
        let result = match word(8) {
            1 => Ok(payload),
            0x21 => {
                assert!(payload.is_empty());
                Err(Errno::from_raw_os_error(word(12) as i32))
            }
            flags => panic!("flags {flags:#x}"),
        };
        Answer { id: half(0), command: half(2), result, fds }
    }

    /// Sends a command and takes the answer, which must be to that.
    pub(crate) fn call_with(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        self.next += 1;
        let bytes = message(self.next, command, 0, payload);
        if fds.is_empty() {
            self.send(&bytes)
        } else {
            self.send_with(&bytes, fds)
        }
        let answer = self.answer();
        assert_eq!((answer.id, answer.command), (self.next, command));
        answer
    }

    pub(crate) fn call(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        self.call_with(command, payload, &[]).result
    }

    /// Both sides still agree on where messages begin, and the device is the same.
    pub(crate) fn works(&mut self) {
        let data = self.next.to_ne_bytes();
        assert_eq!(self.call(REGION_WRITE, &write(0, 8, &data)).unwrap(), access(0, 8, 2));
        let read = self.call(REGION_READ, &access(0, 8, 2)).unwrap();
        assert_eq!(read, write(0, 8, &data));
    }

    /// The server's end, while nobody reads.
    pub(crate) fn ended_unread(self) -> Result<End, ConnectionError> {
        let end = self.server.join().unwrap();
        assert_eq!(self.device.0.lock().disconnected, 1);
        end
    }

    /// The server's end, after which the client hears nothing more.
    pub(crate) fn ended(mut self) -> Result<End, ConnectionError> {
        let end = self.server.join().unwrap();
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
        assert_eq!(self.device.0.lock().disconnected, 1);
        end
    }

    /// Hangs up, which must end the server well.
    pub(crate) fn hang_up(self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        assert_eq!(self.server.join().unwrap().unwrap(), End::HungUp);
        assert_eq!(self.device.0.lock().disconnected, 1);
    }
}

pub(crate) fn borrow(files: &[std::fs::File]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}
