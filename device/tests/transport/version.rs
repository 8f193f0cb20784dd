// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Negotiation. What JSON may say is tested where it is parsed.

use std::os::fd::AsFd;

use svmx_device::vfio_user::{ConnectionError, Errno, PATIENCE};

use crate::client::*;
use crate::device::memory;

#[test]
fn nothing_before_version_and_version_only_once() {
    let mut client = Client::silent(PATIENCE);
    assert_eq!(client.call(RESET, &[]), Err(Errno::INVAL));
    assert_eq!(client.call(REGION_WRITE, &write(0, 0, &[1])), Err(Errno::INVAL));
    assert_eq!(client.call(REGION_READ, &access(0, 0, 1)), Err(Errno::INVAL));
    let file = memory(4096);
    let map = [words([32, 3]), words([0, 0, 0, 0, 4096, 0])].concat();
    assert_eq!(client.call_with(DMA_MAP, &map, &[file.as_fd()]).result, Err(Errno::INVAL));
    let reply = client.call(VERSION, HELLO).unwrap();
    assert_eq!((&reply[..4], reply.last()), (&[0; 4][..], Some(&0)));
    assert_eq!(client.call(VERSION, HELLO), Err(Errno::INVAL));
    client.works();
    let state = client.device.0.lock();
    assert_eq!((state.resets, state.registers.0[0], state.maps.len()), (0, 0, 0));
}

#[test]
fn a_version_that_can_not_be_spoken() {
    // It is answered, if it wants that, and then there is nothing more to say.
    let other = [&1u16.to_ne_bytes(), &HELLO[2..]].concat();
    for no_reply in [false, true] {
        let mut client = Client::silent(PATIENCE);
        if no_reply {
            client.send(&message(1, VERSION, 0x10, &other));
        } else {
            assert_eq!(client.call(VERSION, &other), Err(Errno::PROTONOSUPPORT));
        }
        let end = client.ended();
        assert!(matches!(end, Err(ConnectionError::NoCommonVersion)), "{end:?}");
    }
    let mut client = Client::silent(PATIENCE);
    // A later minor version is no obstacle.
    let later = [&[0, 0][..], &9u16.to_ne_bytes(), &HELLO[4..]].concat();
    assert_eq!(client.call(VERSION, &later).unwrap()[..4], [0; 4]);
    client.works();
}

#[test]
fn an_absurd_amount_of_version_data() {
    let mut client = Client::silent(PATIENCE);
    for size in [4097, 100_000, 1 << 20] {
        let data = [&[0; 4][..], &b" ".repeat(size)].concat();
        assert_eq!(client.call(VERSION, &data), Err(Errno::TOOBIG));
    }
    let long = [&[0; 4][..], b"{}", &b" ".repeat(4093), b"\0"].concat();
    client.call(VERSION, &long).unwrap();
    client.works();
}

#[test]
fn the_agreed_limit_holds() {
    let mut client = Client::silent(PATIENCE);
    client.call(VERSION, b"\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":32}}\0").unwrap();
    assert!(client.call(REGION_READ, &access(0, 0, 32)).is_ok());
    assert_eq!(client.call(REGION_READ, &access(0, 0, 33)), Err(Errno::INVAL));
    assert_eq!(client.call(REGION_WRITE, &write(0, 0, &[0; 33])), Err(Errno::INVAL));
    client.works();
}
