// SPDX-License-Identifier: Apache-2.0 OR MIT

//! REGION_READ and REGION_WRITE.

use svmx_device::vfio_user::Errno;

use crate::client::*;

#[test]
fn accesses_inside_a_region() {
    let mut client = Client::new();
    for (offset, data) in [(0, &b"12345678"[..]), (63, b"x"), (1, b"odd"), (0, &[9; 64])] {
        assert_eq!(
            client.call(REGION_WRITE, &write(0, offset, data)).unwrap(),
            access(0, offset, data.len() as u32)
        );
        let read = client.call(REGION_READ, &access(0, offset, data.len() as u32));
        assert_eq!(read.unwrap(), write(0, offset, data));
    }
    // The last byte of the largest region there can be.
    let last = client.call(REGION_READ, &access(3, u64::MAX - 1, 1)).unwrap();
    assert_eq!(last, write(3, u64::MAX - 1, &[3]));
    // Nothing, where something could be.
    assert_eq!(client.call(REGION_READ, &access(0, 64, 0)).unwrap(), access(0, 64, 0));
    assert_eq!(client.call(REGION_WRITE, &access(0, 64, 0)).unwrap(), access(0, 64, 0));
}

#[test]
fn accesses_outside() {
    let mut client = Client::new();
    for (region, offset, count) in [
        (0, 64, 1),
        (0, 63, 2),
        (0, 0, 65),
        (0, 65, 0),
        (0, u64::MAX, 1),
        (0, u64::MAX - 3, 8),
        (2, 0, 1),
        (3, u64::MAX, 1),
        (4, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let data = vec![1; count as usize];
        assert_eq!(client.call(REGION_READ, &access(region, offset, count)), Err(Errno::INVAL));
        assert_eq!(client.call(REGION_WRITE, &write(region, offset, &data)), Err(Errno::INVAL));
    }
    client.works();
}

/// Once the version has been negotiated nothing is allocated for an access, however large.
#[test]
fn accesses_allocate_nothing() {
    let mut client = Client::new();
    client.device.0.lock().allocations = Vec::with_capacity(102);
    client.works();
    client.call(REGION_READ, &access(3, 0, 1 << 20)).unwrap();
    for _ in 0..100 {
        client.works();
    }
    let allocations = client.device.0.lock().allocations.clone();
    assert_eq!(allocations, [allocations[0]; 102]);
}
