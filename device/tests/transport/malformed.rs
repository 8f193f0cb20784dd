// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the server of the `vfio_user` crate does not survive, or answers wrongly: one case each.

use svmx_device::vfio_user::{ConnectionError, Errno, PATIENCE, wire::MAX_MESSAGE};

use crate::client::*;

/// It panics.
#[test]
fn a_version_without_terminator_or_json() {
    for data in [&b"\0\0\0\0"[..], b"\0\0\0\0\0", b"\0\0\0\0{\"capabilities\":", b"\0\0\0\0\xff\xfe\0"] {
        let mut client = Client::silent(PATIENCE);
        let answer = client.call(VERSION, data);
        // No data at all is a version like any other.
        assert_eq!(answer.err(), (data.len() > 4).then_some(Errno::INVAL), "{data:?}");
        if data.len() > 4 {
            client.call(VERSION, HELLO).unwrap();
        }
        client.works();
    }
}

/// It panics: the size of the JSON is less than nothing.
#[test]
fn a_version_smaller_than_its_fixed_part() {
    let mut client = Client::silent(PATIENCE);
    for size in 0..4 {
        assert_eq!(client.call(VERSION, &HELLO[..size]), Err(Errno::INVAL));
    }
    client.call(VERSION, HELLO).unwrap();
    client.works();
}

/// It allocates that.
#[test]
fn a_read_of_four_gibibytes() {
    let mut client = Client::new();
    for count in [u32::MAX, 1 << 31, (1 << 20) + 1] {
        assert_eq!(client.call(REGION_READ, &access(3, 0, count)), Err(Errno::INVAL));
    }
    assert_eq!(client.call(REGION_READ, &access(3, 0, 1 << 20)).unwrap().len(), 16 + (1 << 20));
    client.works();
}

/// It allocates that, and waits for the data.
#[test]
fn a_write_that_claims_more_than_it_has() {
    let mut client = Client::new();
    for count in [5, 3, 0, u32::MAX] {
        assert_eq!(client.call(REGION_WRITE, &[access(0, 0, count), vec![7; 4]].concat()), Err(Errno::INVAL));
    }
    client.works();
}

/// It takes the payload for the next message.
#[test]
fn a_payload_where_none_belongs() {
    let mut client = Client::new();
    assert_eq!(client.call(RESET, &[0; 16]), Err(Errno::INVAL));
    assert_eq!(client.device.0.lock().resets, 0);
    client.works();
}

/// It takes what it does not understand for the next message.
#[test]
fn commands_that_are_not_there() {
    let mut client = Client::new();
    for (command, errno) in [
        (0, Errno::NOSYS),
        (11, Errno::NOTSUP),
        (12, Errno::NOTSUP),
        (19, Errno::NOSYS),
        (0xffff, Errno::NOSYS),
    ] {
        for size in [0, 1, 16, 5000] {
            assert_eq!(client.call(command, &vec![0; size]), Err(errno), "{command}");
        }
    }
    for command in 14..=18 {
        assert_eq!(client.call(command, &[0; 32]), Err(Errno::NOTSUP), "{command}");
    }
    client.works();
}

/// It ignores the size in the header.
#[test]
fn a_size_that_is_not_the_commands() {
    let mut client = Client::new();
    for (command, right) in [
        (DMA_MAP, 32),
        (DMA_UNMAP, 24),
        (GET_INFO, 16),
        (GET_REGION_INFO, 32),
        (GET_REGION_IO_FDS, 16),
        (GET_IRQ_INFO, 16),
        (SET_IRQS, 20),
        (REGION_READ, 16),
        (RESET, 0),
    ] {
        for wrong in [0, 4, right - 1, right + 1, right + 16, 4096] {
            if wrong >= 0 && wrong != right {
                let payload = vec![0x11; wrong as usize];
                assert_eq!(client.call(command, &payload), Err(Errno::INVAL), "{command} {wrong}");
            }
        }
    }
    client.works();
}

/// It goes on with whatever comes next.
#[test]
fn a_size_that_no_message_has() {
    for size in [0, 1, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
        let mut client = Client::new();
        client.send(&header(1, REGION_READ, size, 0, &access(0, 0, 4)));
        let end = client.ended();
        assert!(matches!(end, Err(ConnectionError::Unframed(claimed)) if claimed == size), "{end:?}");
    }
}

/// It says that nothing went wrong.
#[test]
fn errors_carry_an_errno() {
    let mut client = Client::new();
    assert_eq!(client.call(REGION_WRITE, &write(1, 0, &[1])), Err(Errno::PERM), "the device's own");
    assert_eq!(client.call(REGION_READ, &access(9, 0, 4)), Err(Errno::INVAL));
    assert_eq!(client.call(DMA_UNMAP, &[words([24, 0]), words([0, 0, 4096, 0])].concat()), Err(Errno::NOENT));
    client.works();
}

/// It takes a reply for a command.
#[test]
fn replies_are_not_requests() {
    let mut client = Client::new();
    for flags in [1, 0x11, 0x21] {
        client.send(&message(7, RESET, flags, &[]));
    }
    // Not even an error: the next answer is to the next message.
    client.works();
    for flags in [2, 0xf, 0x20, 0x40, 0x8000_0000] {
        client.send(&message(7, RESET, flags, &[]));
        assert_eq!(client.answer().result, Err(Errno::INVAL), "{flags:#x}");
    }
    let state = client.device.0.lock();
    assert_eq!((state.resets, state.complaints.len()), (0, 8), "{:?}", state.complaints);
}

/// It ends the connection when a command for which it has an answer wants none.
#[test]
fn no_reply_is_no_reply() {
    const NO_REPLY: u32 = 0x10;
    let mut client = Client::new();
    client.send(&message(1, REGION_WRITE, NO_REPLY, &write(0, 0, &[42])));
    client.send(&message(2, REGION_READ, NO_REPLY, &access(0, 0, 1)));
    client.send(&message(3, RESET, NO_REPLY, &[]));
    client.send(&message(4, RESET, NO_REPLY, &[1]));
    client.send(&message(5, 99, NO_REPLY, &[1]));
    assert_eq!(client.call(REGION_READ, &access(0, 0, 1)).unwrap()[16], 42);
    let state = client.device.0.lock();
    assert_eq!((state.resets, state.complaints.len()), (1, 2), "{:?}", state.complaints);
}
