// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_RESET.

use svmx_device::vfio_user::{Errno, PATIENCE};

use crate::client::*;
use crate::device::SIZES;

fn region_info(argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64) -> Vec<u8> {
    let numbers = [size, 0].iter().flat_map(|number| number.to_ne_bytes()).collect();
    [words([argsz, flags, index, cap_offset]), numbers].concat()
}

#[test]
fn the_device() {
    let mut client = Client::new();
    for argsz in [16, 32, u32::MAX] {
        assert_eq!(client.call(GET_INFO, &words([argsz, 0, 0, 0])), Ok(words([16, 3, 4, 3])));
    }
    assert_eq!(client.call(GET_INFO, &words([15, 0, 0, 0])), Err(Errno::INVAL));
    client.call(RESET, &[]).unwrap();
    assert_eq!(client.device.0.lock().resets, 1);
}

#[test]
fn a_region_without_memory() {
    let mut client = Client::new();
    for (index, flags) in [(0, 3), (2, 0), (3, 3)] {
        let answer = client.call_with(GET_REGION_INFO, &region_info(32, 0, index, 0, 0), &[]);
        assert_eq!(answer.result, Ok(region_info(32, flags, index, 0, SIZES[index as usize])));
        assert!(answer.fds.is_empty());
    }
    for (argsz, index) in [(31, 0), (0, 0), (32, 4), (32, u32::MAX)] {
        assert_eq!(client.call(GET_REGION_INFO, &region_info(argsz, 0, index, 0, 0)), Err(Errno::INVAL));
    }
}

#[test]
fn a_region_with_memory() {
    let mut client = Client::new();
    let fixed = region_info(80, 0xf, 1, 32, 8192);
    // Not enough room: only how much there is, no capability and nothing to map.
    for argsz in [32, 79] {
        let answer = client.call_with(GET_REGION_INFO, &region_info(argsz, 0, 1, 0, 0), &[]);
        assert_eq!((answer.result, answer.fds.len()), (Ok(region_info(80, 3, 1, 0, 8192)), 0));
    }
    for argsz in [80, u32::MAX] {
        let answer = client.call_with(GET_REGION_INFO, &region_info(argsz, 0, 1, 0, 0), &[]);
        let capability = [1u16.to_ne_bytes(), 1u16.to_ne_bytes()].concat();
        let areas = [words([0, 2, 0]), words([0, 0, 4096, 0]), words([4096, 0, 4096, 0])].concat();
        assert_eq!(answer.result, Ok([fixed.clone(), capability, areas].concat()));
        assert_eq!(
            std::fs::File::from(answer.fds.into_iter().next().unwrap()).metadata().unwrap().len(),
            8192
        );
    }
}

#[test]
fn a_client_that_takes_no_descriptors_can_not_map() {
    let mut client = Client::silent(PATIENCE);
    client.call(VERSION, b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":0}}\0").unwrap();
    let answer = client.call_with(GET_REGION_INFO, &region_info(100, 0, 1, 0, 0), &[]);
    assert_eq!((answer.result, answer.fds.len()), (Ok(region_info(32, 3, 1, 0, 8192)), 0));
}

#[test]
fn no_region_has_descriptors_for_its_parts() {
    let mut client = Client::new();
    for index in 0..4 {
        let answer = client.call(GET_REGION_IO_FDS, &words([100, 0, index, 0]));
        assert_eq!(answer, Ok(words([16, 0, index, 0])));
    }
    for wrong in [[15, 0, 0, 0], [16, 1, 0, 0], [16, 0, 4, 0], [16, 0, 0, 1]] {
        assert_eq!(client.call(GET_REGION_IO_FDS, &words(wrong)), Err(Errno::INVAL), "{wrong:?}");
    }
}
