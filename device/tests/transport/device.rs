// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that believes nothing: it checks what it is promised about every call, and notes what happened.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use svmx_device::vfio_user::wire::Area;
use svmx_device::vfio_user::{
    Backend, Complaint, Description, DmaMap, Errno, Mapping, Refusal, Region, Stop,
};

use crate::allocations;

/// Region 0: trapped. Region 1: mapped. Region 2: not there. Region 3: as large as regions get.
pub(crate) const SIZES: [u64; 4] = [64, 8192, 0, u64::MAX];
/// Vectors by kind.
pub(crate) const VECTORS: [u32; 3] = [0, 4, 1000];
pub(crate) const MAX_MAPS: u32 = 20;
/// Nothing can be mapped here.
pub(crate) const BROKEN: u64 = 0xbad_0000;

pub(crate) fn description() -> Description {
    let mut regions: Vec<_> = SIZES.iter().map(|&size| Region { size, mapping: None }).collect();
    let file = memory(SIZES[1]);
    let areas = vec![Area { offset: 0, size: 4096 }, Area { offset: 4096, size: 4096 }];
    regions[1].mapping = Some(Mapping { file, areas });
    Description { regions, interrupts: VECTORS.into(), max_dma_maps: MAX_MAPS }
}

pub(crate) fn memory(size: u64) -> File {
    let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// Region 0.
#[derive(Debug)]
pub(crate) struct Registers(pub(crate) [u8; 64]);

impl Default for Registers {
    fn default() -> Self {
        Registers([0; 64])
    }
}

/// What has happened to the device.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) registers: Registers,
    pub(crate) maps: BTreeMap<u64, DmaMap>,
    pub(crate) events: BTreeMap<(u32, u32), OwnedFd>,
    pub(crate) triggered: Vec<(u32, u32)>,
    pub(crate) resets: u32,
    /// Told by the next reset.
    pub(crate) stop: Option<Stop>,
    pub(crate) disconnected: u32,
    pub(crate) complaints: Vec<String>,
    /// Allocations of the server's thread when a region was read.
    pub(crate) allocations: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct TestDevice(pub(crate) Arc<Mutex<State>>);

fn check_access(region: u32, offset: u64, length: usize) {
    assert!(length > 0);
    assert!(offset.checked_add(length as u64).unwrap() <= SIZES[region as usize]);
}

impl Backend for TestDevice {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Refusal> {
        check_access(region, offset, data.len());
        let mut state = self.0.lock();
        if region == 0 {
            let from = offset as usize;
            data.copy_from_slice(&state.registers.0[from..from + data.len()]);
        } else {
            data.fill(region as u8);
        }
        if state.allocations.len() < state.allocations.capacity() {
            state.allocations.push(allocations::count());
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        check_access(region, offset, data.len());
        if region == 0 {
            let from = offset as usize;
            self.0.lock().registers.0[from..from + data.len()].copy_from_slice(data);
            return Ok(());
        }
        Err(Refusal::new(Errno::PERM, "this region is for reading"))
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        let page = |value: u64| value.is_multiple_of(4096);
        assert!(page(map.address) && page(map.size) && page(map.offset) && map.size > 0);
        assert!(map.readable || map.writable);
        let end = map.address.checked_add(map.size).unwrap();
        map.offset.checked_add(map.size).unwrap();
        assert!(
            state
                .maps
                .values()
                .all(|other| other.address >= end || other.address + other.size <= map.address)
        );
        if map.address == BROKEN {
            return Err(Refusal::new(Errno::NXIO, "nothing can be mapped here"));
        }
        state.maps.insert(map.address, map);
        assert!(state.maps.len() <= MAX_MAPS as usize);
        Ok(())
    }

    fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), Refusal> {
        assert_eq!(self.0.lock().maps.remove(&address).unwrap().size, size);
        Ok(())
    }

    fn set_interrupt(&mut self, index: u32, vector: u32, event: Option<OwnedFd>) -> Result<(), Refusal> {
        assert!(vector < VECTORS[index as usize]);
        let mut state = self.0.lock();
        state.events.remove(&(index, vector));
        state.events.extend(event.map(|event| ((index, vector), event)));
        Ok(())
    }

    fn trigger(&mut self, index: u32, vector: u32) -> Result<(), Refusal> {
        assert!(vector < VECTORS[index as usize]);
        self.0.lock().triggered.push((index, vector));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        state.resets += 1;
        state.stop.take().iter().for_each(Stop::stop);
        Ok(())
    }

    fn disconnected(&mut self) {
        let mut state = self.0.lock();
        state.maps.clear();
        state.events.clear();
        state.disconnected += 1;
    }

    fn complain(&mut self, complaint: Complaint) {
        self.0.lock().complaints.push(complaint.to_string());
    }
}
