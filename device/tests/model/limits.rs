// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The limits of docs/architecture.md: all of it at once works, and one more is refused without harm.

use std::fs::File;

use svmx_abi::control::{CreateContext, CreateQueue};
use svmx_abi::pci::{MAX_CONTEXTS, MAX_QUEUES, PAGE_SIZE};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::status::Status;
use svmx_device::host;
use svmx_device::memory::{DmaMap, MAX_MAPS, MemoryError};

use mock_driver::{Mock, RAM, UserQueue, add, memfd};

const VA: u64 = 0x7000_0000;

#[test]
fn every_queue_and_every_context_at_once_and_not_one_more() {
    let mock = Mock::new();
    let spaces: Vec<_> = (0..MAX_CONTEXTS).map(|_| mock.space()).collect();
    let last = *spaces.last().unwrap();
    assert_eq!(last.asid, MAX_CONTEXTS);
    let one_more = CreateContext { asid: MAX_CONTEXTS + 1, root: mock.pages(1), ..Default::default() };
    assert_eq!(mock.control(one_more), Status::BAD_ID);

    // Rings that nobody writes can be shared.
    let first = UserQueue::new(&mock, spaces[0]);
    for space in &spaces[1..MAX_QUEUES as usize - 1] {
        let queue = mock.next_queue();
        assert_eq!(mock.control(CreateQueue { queue, ..first.description(*space) }), Status::SUCCESS);
    }
    let mut queue = UserQueue::new(&mock, last);
    assert_eq!(queue.id, MAX_QUEUES);
    let one_more = CreateQueue { queue: MAX_QUEUES + 1, ..first.description(last) };
    assert_eq!(mock.control(one_more), Status::BAD_ID);

    mock.map(last, VA, Pte::leaf(mock.pages(1), Access::EXCLUSIVE));
    assert_eq!(queue.run(add(VA, 1)).head.status(), Status::SUCCESS);
}

#[test]
fn every_map_at_once_and_not_one_more() {
    host::raise_file_limit();
    let mock = Mock::new();
    let file = memfd(PAGE_SIZE);
    let map = |file: File, number: usize| {
        let address = RAM + number as u64 * PAGE_SIZE;
        DmaMap { address, size: PAGE_SIZE, file, offset: 0, writable: true }
    };
    // The first is RAM.
    for number in 1..MAX_MAPS {
        mock.device.lock().dma_map(map(file.try_clone().unwrap(), number)).unwrap();
    }
    let refused = mock.device.lock().dma_map(map(file, MAX_MAPS));
    assert!(matches!(refused, Err(MemoryError::TooMany)), "{refused:?}");
    assert_eq!(refused.unwrap_err().to_string(), "more than 1024 maps");

    // The last one is of use: an atomic reaches it.
    let space = mock.space();
    let last = RAM + (MAX_MAPS as u64 - 1) * PAGE_SIZE;
    mock.map(space, VA, Pte::leaf(last, Access::EXCLUSIVE));
    assert_eq!(UserQueue::new(&mock, space).run(add(VA, 1)).head.status(), Status::SUCCESS);
}
