// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMA_MAP and DMA_UNMAP.

use std::os::fd::AsFd;

use svmx_device::vfio_user::Errno;

use crate::client::*;
use crate::device::{BROKEN, MAX_MAPS, memory};

/// DMA_MAP's payload: offset, address, size.
pub(crate) fn map_from(argsz: u32, flags: u32, numbers: [u64; 3]) -> Vec<u8> {
    [words([argsz, flags]), numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()].concat()
}

/// DMA_MAP's payload, at offset 0 of its file.
pub(crate) fn map(address: u64, size: u64, flags: u32) -> Vec<u8> {
    map_from(32, flags, [0, address, size])
}

/// DMA_UNMAP's payload.
pub(crate) fn unmap(address: u64, size: u64, flags: u32) -> Vec<u8> {
    [words([24, flags]), [address, size].iter().flat_map(|number| number.to_ne_bytes()).collect()].concat()
}

#[test]
fn maps_come_and_go() {
    let mut client = Client::new();
    let file = memory(0x4000);
    let (top, size) = (u64::MAX << 13, 4096);
    client.call_with(DMA_MAP, &map_from(40, 3, [0x3000, 0x1000, 0x1000]), &[file.as_fd()]).result.unwrap();
    client.call_with(DMA_MAP, &map(0x8000, 0x4000, 1), &[file.as_fd()]).result.unwrap();
    assert_eq!(client.call(DMA_MAP, &map(top, size, 2)), Ok(vec![]));
    {
        let state = client.device.0.lock();
        let seen = |at: u64| {
            let map = &state.maps[&at];
            (map.size, map.offset, map.readable, map.writable, map.file.is_some())
        };
        assert_eq!(seen(0x1000), (0x1000, 0x3000, true, true, true));
        assert_eq!(seen(0x8000), (0x4000, 0, true, false, true));
        assert_eq!(seen(top), (size, 0, false, true, false));
    }
    let request = unmap(0x1000, 0x1000, 0);
    assert_eq!(client.call(DMA_UNMAP, &request), Ok(request), "the reply is the request");
    // One range over several maps.
    client.call(DMA_UNMAP, &unmap(0, u64::MAX << 12, 0)).unwrap();
    assert!(client.device.0.lock().maps.is_empty());
    client.works();
}

#[test]
fn all_go_at_once() {
    let mut client = Client::new();
    client.call(DMA_UNMAP, &unmap(0, 0, 2)).unwrap();
    for page in 0..5 {
        client.call(DMA_MAP, &map(page << 12, 4096, 3)).unwrap();
    }
    for (address, size) in [(0, 4096), (4096, 0)] {
        assert_eq!(client.call(DMA_UNMAP, &unmap(address, size, 2)), Err(Errno::INVAL));
    }
    assert_eq!(client.device.0.lock().maps.len(), 5);
    client.call(DMA_UNMAP, &unmap(0, 0, 2)).unwrap();
    assert!(client.device.0.lock().maps.is_empty());
}

#[test]
fn ranges_that_are_none() {
    let mut client = Client::new();
    for (offset, address, size) in [
        (0, 0, 0),
        (0, 1, 4096),
        (0, 0, 4097),
        (1, 0, 4096),
        (0, !0xfff, 4096),
        (0, 0x1000, !0xfff),
        (!0xfff, 0, 4096),
        // Somewhere in no file.
        (4096, 0, 4096),
    ] {
        let payload = map_from(32, 3, [offset, address, size]);
        assert_eq!(client.call(DMA_MAP, &payload), Err(Errno::INVAL), "{offset:#x} {address:#x}+{size:#x}");
    }
    for (address, size) in [(0, 0), (1, 4096), (0, 4097), (!0xfff, 4096), (0x1000, !0xfff)] {
        assert_eq!(client.call(DMA_UNMAP, &unmap(address, size, 0)), Err(Errno::INVAL));
    }
    client.works();
}

#[test]
fn flags_and_sizes_of_arguments() {
    let mut client = Client::new();
    for flags in [0, 4, 7, 1 << 31] {
        assert_eq!(client.call(DMA_MAP, &map(0, 4096, flags)), Err(Errno::INVAL), "{flags:#x}");
    }
    assert_eq!(client.call(DMA_MAP, &map_from(31, 3, [0, 0, 4096])), Err(Errno::INVAL));
    client.call(DMA_MAP, &map(0, 4096, 3)).unwrap();
    for (flags, errno) in [(1, Errno::NOTSUP), (3, Errno::INVAL), (4, Errno::INVAL), (1 << 31, Errno::INVAL)]
    {
        assert_eq!(client.call(DMA_UNMAP, &unmap(0, 4096, flags)), Err(errno), "{flags:#x}");
    }
    let mut small = unmap(0, 4096, 0);
    small[0] = 23;
    assert_eq!(client.call(DMA_UNMAP, &small), Err(Errno::INVAL));
    assert_eq!(client.device.0.lock().maps.len(), 1);
}

#[test]
fn ranges_that_meet_others() {
    let mut client = Client::new();
    client.call(DMA_MAP, &map(0x2000, 0x2000, 3)).unwrap();
    for (address, size) in [(0x2000, 0x2000), (0x3000, 0x1000), (0, 0x3000), (0, 0x10000)] {
        assert_eq!(client.call(DMA_MAP, &map(address, size, 3)), Err(Errno::EXIST));
    }
    for (address, size) in [(0x2000, 0x1000), (0x3000, 0x1000), (0, 0x3000)] {
        assert_eq!(client.call(DMA_UNMAP, &unmap(address, size, 0)), Err(Errno::INVAL));
    }
    assert_eq!(client.call(DMA_UNMAP, &unmap(0x4000, 0x1000, 0)), Err(Errno::NOENT));
    assert_eq!(client.device.0.lock().maps.len(), 1);
}

#[test]
fn what_the_device_refuses_is_not_there() {
    let mut client = Client::new();
    for _ in 0..2 {
        assert_eq!(client.call(DMA_MAP, &map(BROKEN, 4096, 3)), Err(Errno::NXIO));
        assert_eq!(client.call(DMA_UNMAP, &unmap(BROKEN, 4096, 0)), Err(Errno::NOENT));
    }
}

#[test]
fn the_number_of_maps_is_limited() {
    let mut client = Client::new();
    for page in 0..u64::from(MAX_MAPS) {
        client.call(DMA_MAP, &map(page << 12, 4096, 3)).unwrap();
    }
    assert_eq!(client.call(DMA_MAP, &map(1 << 40, 4096, 3)), Err(Errno::NOSPC));
    client.call(DMA_UNMAP, &unmap(0, 4096, 0)).unwrap();
    client.call(DMA_MAP, &map(1 << 40, 4096, 3)).unwrap();
}
