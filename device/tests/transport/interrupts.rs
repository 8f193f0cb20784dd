// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

use std::fs::File;

use svmx_device::vfio_user::Errno;

use crate::client::*;
use crate::device::memory;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words([20, flags, index, start, count])
}

fn with_bools(index: u32, start: u32, bools: &[u8]) -> Vec<u8> {
    let head = [20 + bools.len() as u32, BOOL | TRIGGER, index, start, bools.len() as u32];
    [words(head), bools.into()].concat()
}

#[test]
fn info() {
    let mut client = Client::new();
    for (index, flags, count) in [(0, 0, 0), (1, 1, 4), (2, 1, 1000)] {
        let expected = words([16, flags, index, count]);
        assert_eq!(client.call(GET_IRQ_INFO, &words([16, 0, index, 0])), Ok(expected.clone()));
        assert_eq!(client.call(GET_IRQ_INFO, &words([99, 0, index, 0])), Ok(expected));
    }
    assert_eq!(client.call(GET_IRQ_INFO, &words([15, 0, 1, 0])), Err(Errno::INVAL));
    for index in [3, u32::MAX] {
        assert_eq!(client.call(GET_IRQ_INFO, &words([16, 0, index, 0])), Err(Errno::INVAL));
    }
}

#[test]
fn events_come_and_go() {
    let mut client = Client::new();
    let files: Vec<File> = (0..3).map(|_| memory(0)).collect();
    let vectors = |client: &Client| client.device.0.lock().events.keys().copied().collect::<Vec<_>>();
    // As QEMU does it: nothing, then one, then another in its place.
    client.call(SET_IRQS, &set(EVENTFD | TRIGGER, 2, 7, 1)).unwrap();
    for _ in 0..2 {
        client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, 2, 7, 1), &borrow(&files[..1])).result.unwrap();
    }
    client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, 2, 997, 3), &borrow(&files)).result.unwrap();
    client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, 1, 0, 1), &borrow(&files[..1])).result.unwrap();
    assert_eq!(vectors(&client), [(1, 0), (2, 7), (2, 997), (2, 998), (2, 999)]);
    client.call(SET_IRQS, &set(EVENTFD | TRIGGER, 2, 0, 998)).unwrap();
    assert_eq!(vectors(&client), [(1, 0), (2, 998), (2, 999)]);
    client.call(SET_IRQS, &set(NONE | TRIGGER, 2, 0, 0)).unwrap();
    assert_eq!(vectors(&client), [(1, 0)]);
    // As QEMU disables what is not there.
    client.call(SET_IRQS, &set(NONE | TRIGGER, 0, 0, 0)).unwrap();
}

#[test]
fn a_client_may_trigger() {
    let mut client = Client::new();
    client.call(SET_IRQS, &set(NONE | TRIGGER, 1, 1, 2)).unwrap();
    client.call(SET_IRQS, &with_bools(1, 0, &[0, 1, 0, 0xff])).unwrap();
    assert_eq!(client.device.0.lock().triggered, [(1, 1), (1, 2), (1, 1), (1, 3)]);
}

#[test]
fn every_combination_of_flags() {
    let mut client = Client::new();
    for flags in 0..0x80 {
        for count in 0..2 {
            let payload = match flags & 7 {
                BOOL => [words([20 + count, flags, 1, 0, count]), vec![1; count as usize]].concat(),
                _ => set(flags, 1, 0, count),
            };
            let good = match flags {
                0x21 => true,
                0x22 | 0x24 => count == 1,
                _ => false,
            };
            let answer = client.call(SET_IRQS, &payload);
            assert_eq!(answer.err(), (!good).then_some(Errno::INVAL), "{flags:#x} {count}");
        }
    }
    for action in [MASK, UNMASK] {
        assert_eq!(client.call(SET_IRQS, &set(NONE | action, 1, 0, 1)), Err(Errno::INVAL));
    }
    client.works();
}

#[test]
fn vectors_that_are_not_there() {
    let mut client = Client::new();
    for (index, start, count) in [
        (1, 4, 1),
        (1, 0, 5),
        (1, 3, 2),
        (1, u32::MAX, 1),
        (1, 1, u32::MAX),
        (1, u32::MAX, u32::MAX),
        (1, 1, 0),
        (0, 0, 1),
        (3, 0, 0),
        (3, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let payload = set(NONE | TRIGGER, index, start, count);
        assert_eq!(client.call(SET_IRQS, &payload), Err(Errno::INVAL), "{index} {start} {count}");
    }
    client.works();
}

#[test]
fn sizes_and_descriptors_that_do_not_fit() {
    let mut client = Client::new();
    let files: Vec<File> = (0..4).map(|_| memory(0)).collect();
    let mut wrong = |payload: &[u8], fds: usize| {
        let answer = client.call_with(SET_IRQS, payload, &borrow(&files[..fds]));
        assert_eq!(answer.result, Err(Errno::INVAL), "{payload:?} {fds}");
    };
    wrong(&set(EVENTFD | TRIGGER, 2, 0, 2), 1);
    wrong(&set(EVENTFD | TRIGGER, 2, 0, 2), 3);
    wrong(&set(NONE | TRIGGER, 2, 0, 1), 1);
    wrong(&set(NONE | TRIGGER, 2, 0, 0), 1);
    wrong(&with_bools(1, 0, &[1]), 1);
    // argsz, and data, that are not what the rest says.
    wrong(&words([19, NONE | TRIGGER, 1, 0, 1]), 0);
    wrong(&words([24, NONE | TRIGGER, 1, 0, 1]), 0);
    wrong(&[words([21, NONE | TRIGGER, 1, 0, 1]), vec![1]].concat(), 0);
    wrong(&words([24, EVENTFD | TRIGGER, 1, 0, 1, 5]), 0);
    wrong(&[words([21, BOOL | TRIGGER, 1, 0, 2]), vec![1]].concat(), 0);
    wrong(&[words([20, BOOL | TRIGGER, 1, 0, 1]), vec![1]].concat(), 0);
    assert!(client.device.0.lock().triggered.is_empty());
    client.works();
}
