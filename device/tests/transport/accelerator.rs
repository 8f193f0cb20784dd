// SPDX-License-Identifier: Apache-2.0 OR MIT

//! This project's own device behind the server: what it refuses, with which errno, and that its engines go
//! their own way.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use mock_driver::{Mock, UserQueue, add, memfd};
use svmx_abi::pci::{BAR_REGS, PAGE_SIZE};
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe};
use svmx_abi::status::Status;
use svmx_device::memory::{MAX_MAPPED, MAX_MAPS};
use svmx_device::vfio::{Adapter, describe};
use svmx_device::vfio_user::{Backend, Complaint, DmaMap, Errno, PATIENCE, Refusal};

use crate::client::*;
use crate::device::TestDevice;
use crate::dma::{map, map_from, unmap};

const VA: u64 = 0x7000_0000;
/// Where memory is mapped that the driver's is not.
const MORE: u64 = 1 << 32;
const READ: u32 = 1;
const WRITE: u32 = 2;

/// The device of a driver who is there at the same time.
struct Shared {
    mock: Arc<Mock>,
    notes: TestDevice,
}

impl Backend for Shared {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).region_read(region, offset, data)
    }
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).region_write(region, offset, data)
    }
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).dma_map(map)
    }
    fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).dma_unmap(address, size)
    }
    fn set_interrupt(&mut self, index: u32, vector: u32, event: Option<OwnedFd>) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).set_interrupt(index, vector, event)
    }
    fn trigger(&mut self, index: u32, vector: u32) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).trigger(index, vector)
    }
    fn reset(&mut self) -> Result<(), Refusal> {
        Adapter(&mut self.mock.device.lock()).reset()
    }
    fn disconnected(&mut self) {
        Adapter(&mut self.mock.device.lock()).disconnected();
        self.notes.disconnected();
    }
    fn complain(&mut self, complaint: Complaint) {
        self.notes.complain(complaint);
    }
}

fn connected() -> (Arc<Mock>, Client) {
    let (mock, notes) = (Arc::new(Mock::new()), TestDevice::default());
    let description = describe(&mock.device.lock()).unwrap();
    let backend = Shared { mock: mock.clone(), notes: notes.clone() };
    let mut client = Client::serving(PATIENCE, notes, description, backend);
    client.call(VERSION, HELLO).unwrap();
    (mock, client)
}

#[test]
fn memory_that_it_does_not_take() {
    let (_mock, mut client) = connected();
    let file = memfd(PAGE_SIZE);
    let only_read = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let huge = memfd(2 * MAX_MAPPED);
    for (payload, file, errno) in [
        (map(MORE, 2 * PAGE_SIZE, READ | WRITE), &file, Errno::INVAL),
        (map_from(32, READ | WRITE, [PAGE_SIZE, MORE, PAGE_SIZE]), &file, Errno::INVAL),
        (map(MORE, PAGE_SIZE, READ | WRITE), &only_read, Errno::ACCESS),
        (map(MORE, PAGE_SIZE, WRITE), &file, Errno::NOTSUP),
        (map(MORE, MAX_MAPPED, READ | WRITE), &huge, Errno::NOSPC),
    ] {
        assert_eq!(client.call_with(DMA_MAP, &payload, &[file.as_fd()]).result, Err(errno));
        assert_eq!(client.call(DMA_UNMAP, &unmap(MORE, PAGE_SIZE, 0)), Err(Errno::NOENT), "it is not there");
    }
    client.call_with(DMA_MAP, &map(MORE, PAGE_SIZE, READ), &[only_read.as_fd()]).result.unwrap();
    client.hang_up();
}

#[test]
fn more_maps_than_it_takes() {
    let (_mock, mut client) = connected();
    for number in 0..MAX_MAPS as u64 {
        client.call(DMA_MAP, &map(MORE + number * PAGE_SIZE, PAGE_SIZE, READ | WRITE)).unwrap();
    }
    assert_eq!(client.call(DMA_MAP, &map(0, PAGE_SIZE, READ | WRITE)), Err(Errno::NOSPC));
    client.call(DMA_UNMAP, &unmap(MORE, PAGE_SIZE, 0)).unwrap();
    client.call(DMA_MAP, &map(0, PAGE_SIZE, READ | WRITE)).unwrap();
    client.hang_up();
}

#[test]
fn events_that_are_none() {
    let (_mock, mut client) = connected();
    let (reader, writer) = std::io::pipe().unwrap();
    for fd in [reader.as_fd(), writer.as_fd(), memfd(8).as_fd()] {
        let answer = client.call_with(SET_IRQS, &words([20, 0x24, 2, 0, 1]), &[fd]);
        assert_eq!(answer.result, Err(Errno::INVAL));
    }
    client.hang_up();
}

#[test]
fn a_map_for_reading_is_only_read() {
    let (mock, mut client) = connected();
    let file = memfd(PAGE_SIZE);
    client.call_with(DMA_MAP, &map(MORE, PAGE_SIZE, READ), &[file.as_fd()]).result.unwrap();
    let space = mock.space();
    mock.map(space, VA, Pte::leaf(MORE, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    let read = Sqe { opcode: Opcode::READ, ..add(VA, 0) };
    assert_eq!(queue.run(read).head.status(), Status::SUCCESS);
    assert_eq!(queue.run(add(VA, 1)).head.status(), Status::BAD_MEMORY);
    // The same file again, to be written as well.
    client.call(DMA_UNMAP, &unmap(MORE, PAGE_SIZE, 0)).unwrap();
    client.call_with(DMA_MAP, &map(MORE, PAGE_SIZE, READ | WRITE), &[file.as_fd()]).result.unwrap();
    assert_eq!(queue.run(add(VA, 1)).head.status(), Status::SUCCESS);
    client.hang_up();
}

#[test]
fn engines_do_not_wait_for_the_rest_of_a_message() {
    let (mock, mut client) = connected();
    let space = mock.space();
    let frame = mock.pages(1);
    mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
    let mut queue = UserQueue::new(&mock, space);
    let message = message(7, REGION_READ, 0, &access(BAR_REGS, 0, 4));
    for half in [1, 16, 20] {
        let (begun, rest) = message.split_at(half);
        client.send(begun);
        client.waits();
        for _ in 0..100 {
            assert_eq!(queue.run(add(VA, 1)).head.status(), Status::SUCCESS);
        }
        client.send(rest);
        client.answer().result.unwrap();
    }
    client.hang_up();
}
