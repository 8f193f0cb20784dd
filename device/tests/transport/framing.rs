// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where messages begin and end, and how long the rest of one is waited for.

use std::net::Shutdown;
use std::time::Duration;

use svmx_device::vfio_user::{ConnectionError, End, PATIENCE};

use crate::client::*;

const AT_ONCE: Duration = Duration::ZERO;

#[test]
fn a_message_may_come_byte_by_byte() {
    let mut client = Client::new();
    for byte in message(5, REGION_WRITE, 0, &write(0, 0, b"dribble")) {
        client.send(&[byte]);
        // So that the server is likely to see them one by one.
        std::thread::yield_now();
    }
    assert_eq!(client.answer().result.unwrap(), access(0, 0, 7));
    assert_eq!(client.device.0.lock().registers.0[..7], *b"dribble");
    client.works();
}

#[test]
fn several_messages_may_come_together_and_end_anywhere() {
    let one = message(1, REGION_WRITE, 0, &write(0, 0, b"abcdefgh"));
    let three = [one.clone(), message(2, REGION_READ, 0, &access(0, 0, 8)), one].concat();
    for cut in 0..three.len() {
        let mut client = Client::new();
        client.send(&three[..cut]);
        client.send(&three[cut..]);
        assert_eq!(client.answer().result.unwrap(), access(0, 0, 8));
        assert_eq!(client.answer().result.unwrap(), write(0, 0, b"abcdefgh"));
        assert_eq!(client.answer().result.unwrap(), access(0, 0, 8));
        client.works();
    }
}

#[test]
fn the_largest_message_fits() {
    let mut client = Client::new();
    let data = vec![1; 1 << 20];
    for _ in 0..3 {
        // Something before it, so that it may not begin where the server's buffer does.
        client.send(&message(2, REGION_READ, 0x10, &access(0, 0, 1)));
        let answer = client.call(REGION_WRITE, &write(3, 0, &data));
        assert_eq!(answer.unwrap_err().raw_os_error(), 1, "the device's own errno");
    }
    client.works();
}

#[test]
fn a_client_may_go_at_any_byte() {
    let bytes = message(1, REGION_WRITE, 0, &write(0, 0, b"12345678"));
    for length in 0..=bytes.len() {
        let mut client = Client::silent(PATIENCE);
        client.send(&bytes[..length]);
        client.socket.shutdown(Shutdown::Write).unwrap();
        if length == bytes.len() {
            assert!(client.answer().result.is_err());
        }
        assert_eq!(client.ended().unwrap(), End::HungUp);
    }
}

#[test]
fn half_a_message_is_not_waited_for_for_ever() {
    for length in [1, 15, 16, 31] {
        let mut client = Client::silent(AT_ONCE);
        client.send(&message(1, REGION_READ, 0, &access(0, 0, 4))[..length]);
        let end = client.ended();
        assert!(matches!(end, Err(ConnectionError::Partial { got }) if got == length), "{end:?}");
    }
}

#[test]
fn between_messages_there_is_no_haste() {
    let mut client = Client::silent(AT_ONCE);
    // The server waits before each of these, and would have given up if this time counted.
    client.call(VERSION, HELLO).unwrap();
    client.works();
    client.works();
    client.hang_up();
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let mut client = Client::silent(AT_ONCE);
    client.call(VERSION, HELLO).unwrap();
    let read = message(1, REGION_READ, 0, &access(3, 0, 1 << 20));
    // One answer is more than the socket holds.
    client.send(&read);
    let end = client.ended_unread();
    assert!(matches!(end, Err(ConnectionError::NotTaken)), "{end:?}");
}

#[test]
fn it_can_be_stopped_wherever_it_waits() {
    // Before a message; in one; while an answer is not taken.
    let read = message(1, REGION_READ, 0, &access(3, 0, 1 << 20));
    for bytes in [&[][..], &read[..20], &read] {
        let mut client = Client::new();
        client.send(bytes);
        client.waits();
        client.stop.stop();
        assert_eq!(client.ended_unread().unwrap(), End::Stopped);
    }
}

#[test]
fn it_can_be_stopped_while_there_is_plenty_to_do() {
    let mut client = Client::new();
    client.device.0.lock().stop = Some(client.stop.clone());
    let device = client.device.clone();
    client.send(&message(1, RESET, 0x10, &[]).repeat(1000));
    assert_eq!(client.ended_unread().unwrap(), End::Stopped);
    assert_eq!(device.0.lock().resets, 1);
}
