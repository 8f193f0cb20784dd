// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Descriptors: which message they belong to, how many there may be, and that none is left behind.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use svmx_device::vfio_user::Errno;

use crate::client::*;
use crate::device::memory;
use crate::dma::map;

fn files(count: usize) -> Vec<File> {
    (0..count).map(|_| memory(4096)).collect()
}

fn set_events(start: u32, count: u32) -> Vec<u8> {
    words([20, 0x24, 2, start, count])
}

#[test]
fn as_many_as_agreed_and_no_more() {
    let mut client = Client::new();
    let all = files(253);
    for count in [1, 2, 15, 16] {
        let answer = client.call_with(SET_IRQS, &set_events(0, count), &borrow(&all[..count as usize]));
        assert!(answer.result.is_ok());
        assert_eq!(client.device.0.lock().events.len(), count as usize);
    }
    for count in [17, 32, 33, 253] {
        let answer = client.call_with(SET_IRQS, &set_events(0, count), &borrow(&all[..count as usize]));
        assert_eq!(answer.result, Err(Errno::TOOBIG), "{count}");
    }
    client.works();
}

/// Whether nobody else had this end of a pipe: who reads the other one learns that.
fn was_last(writer: PipeWriter, reader: &mut PipeReader) -> bool {
    fcntl(&*reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    drop(writer);
    reader.read(&mut [0]).is_ok_and(|bytes| bytes == 0)
}

#[test]
fn what_is_not_used_is_closed() {
    let mut client = Client::new();
    for (command, payload, count) in [
        (REGION_READ, access(0, 0, 4), 1),
        (RESET, vec![], 16),
        (99, vec![], 3),
        (SET_IRQS, set_events(0, 1), 2),
        (SET_IRQS, set_events(0, 17), 17),
        (SET_IRQS, set_events(0, 200), 200),
        (SET_IRQS, set_events(999, 2), 2),
        (DMA_MAP, map(0, 4096, 3), 2),
        (DMA_MAP, map(1, 4096, 3), 1),
        (VERSION, HELLO.to_vec(), 1),
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fds = vec![writer.as_fd(); count];
        let answer = client.call_with(command, &payload, &fds);
        assert!(answer.result.is_err(), "{command} {count}");
        // What is left over may be held until the next message.
        client.works();
        assert!(was_last(writer, &mut reader), "{command} {count}");
    }
}

#[test]
fn they_belong_to_the_message_they_are_sent_with() {
    let mut client = Client::new();
    let file = memory(4096);
    // Sent ahead, so that the server may read them all at once.
    client.send(&message(1, REGION_READ, 0, &access(0, 0, 4)));
    client.send_with(&message(2, DMA_MAP, 0, &map(0, 4096, 3)), &[file.as_fd()]);
    client.send(&message(3, REGION_READ, 0, &access(0, 0, 4)));
    client.send_with(&message(4, SET_IRQS, 0, &set_events(5, 1)), &[file.as_fd()]);
    client.send(&message(5, DMA_MAP, 0, &map(0x1000, 4096, 3)));
    for id in 1..=5 {
        let answer = client.answer();
        assert_eq!((answer.id, answer.result.is_ok()), (id, true), "{:?}", answer.result);
    }
    let state = client.device.0.lock();
    assert!(state.maps[&0].file.is_some() && state.maps[&0x1000].file.is_none());
    assert_eq!(state.events.keys().collect::<Vec<_>>(), [&(2, 5)]);
}

#[test]
fn a_message_may_be_split_anywhere_around_them() {
    let file = memory(4096);
    let bytes = message(1, DMA_MAP, 0, &map(0, 4096, 3));
    for cut in 1..bytes.len() {
        for with_first in [true, false] {
            let mut client = Client::new();
            let (first, second) = bytes.split_at(cut);
            if with_first {
                client.send_with(first, &[file.as_fd()]);
                client.send(second);
            } else {
                client.send(first);
                client.send_with(second, &[file.as_fd()]);
            }
            client.answer().result.unwrap();
            assert!(client.device.0.lock().maps[&0].file.is_some());
        }
    }
}

#[test]
fn a_dribble_of_them_is_bounded() {
    let mut client = Client::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    for byte in message(1, SET_IRQS, 0, &set_events(0, 16)) {
        client.send_with(&[byte], &[writer.as_fd(); 16]);
    }
    assert_eq!(client.answer().result, Err(Errno::TOOBIG));
    client.works();
    assert!(was_last(writer, &mut reader));
}

#[test]
fn they_are_not_inherited() {
    let mut client = Client::new();
    let file = memory(4096);
    client.call_with(DMA_MAP, &map(0, 4096, 3), &[file.as_fd()]).result.unwrap();
    let state = client.device.0.lock();
    let flags = fcntl(state.maps[&0].file.as_ref().unwrap(), FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
}
