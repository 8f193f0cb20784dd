// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport: svmx's device as a [`vfio_user`] backend. The only file that knows both; it turns calls of
//! one into calls of the other and nothing more.

use std::fs::File;
use std::os::fd::OwnedFd;

use svmx_abi::pci::{
    BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_MSIX, BAR_MSIX_SIZE, BAR_REGS, BAR_REGS_SIZE, NUM_VECTORS,
};
use vfio_bindings::bindings::vfio as abi;
use vm_memory::mmap::MmapRegionError;

use crate::complain::complain;
use crate::config::CONFIG_SIZE;
use crate::device::{Device, Region};
use crate::memory::{self, MAX_MAPS, MemoryError};
use crate::vfio_user::{
    self, Attention, Backend, Complaint, ConnectionError, Description, DmaMap, End, Errno, Mapping, Refusal,
    wire::Area,
};

pub use crate::vfio_user::{Listener, Stop};

/// Why the transport ended badly.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No client can be accepted, or the doorbells can't be shared.
    #[error("serving: {0}")]
    Socket(#[from] std::io::Error),
    /// The connection broke, and not because the VMM went.
    #[error("the connection broke: {0}")]
    Broken(#[from] ConnectionError),
}

/// How many VMMs a device serves, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// The first one; its connection's end is the end.
    Once,
    /// Any number. Each finds the device in its reset state.
    Forever,
}

/// Serves VMMs until told to stop, or until the first has gone.
pub fn serve(
    listener: &Listener,
    device: &mut Device,
    stop: &Stop,
    how: Serve,
) -> Result<(), TransportError> {
    let description = describe(device)?;
    let attention = Attention { listener: Some(listener), ..Attention::new(stop) };
    while let Some(client) = listener.accept(stop)? {
        complain!(CONNECTIONS, Level::INFO, "a VMM connected");
        let end = vfio_user::serve(&client, &description, &mut Adapter(device), attention);
        match end {
            Ok(End::HungUp) => complain!(CONNECTIONS, Level::INFO, "the VMM is gone"),
            Ok(End::Stopped) => break,
            Err(error) if how == Serve::Once => return Err(error.into()),
            Err(error) => complain!(CONNECTIONS, Level::ERROR, "the connection broke: {error}"),
        }
        if how == Serve::Once {
            break;
        }
    }
    Ok(())
}

/// The bus's nine regions and five kinds of interrupt, most of which are not there.
pub fn describe(device: &Device) -> std::io::Result<Description> {
    let doorbells = device.doorbell_file().try_clone()?;
    let mut regions: Vec<_> = (0..abi::VFIO_PCI_NUM_REGIONS).map(|_| vfio_user::Region::default()).collect();
    let mut put = |index: u32, size, mapping| {
        if let Some(place) = regions.get_mut(index as usize) {
            *place = vfio_user::Region { size, mapping };
        }
    };
    let area = Area { offset: 0, size: BAR_DOORBELLS_SIZE };
    put(BAR_REGS, BAR_REGS_SIZE, None);
    put(BAR_DOORBELLS, BAR_DOORBELLS_SIZE, Some(Mapping { file: doorbells, areas: vec![area] }));
    put(BAR_MSIX, BAR_MSIX_SIZE, None);
    put(abi::VFIO_PCI_CONFIG_REGION_INDEX, CONFIG_SIZE as u64, None);
    let msix = |index| if index == abi::VFIO_PCI_MSIX_IRQ_INDEX { NUM_VECTORS.into() } else { 0 };
    let interrupts = (0..abi::VFIO_PCI_NUM_IRQS).map(msix).collect();
    Ok(Description { regions, interrupts, max_dma_maps: MAX_MAPS as u32 })
}

fn region(index: u32) -> Result<Region, Refusal> {
    match index {
        BAR_REGS => Ok(Region::Registers),
        BAR_DOORBELLS => Ok(Region::Doorbells),
        BAR_MSIX => Ok(Region::Msix),
        abi::VFIO_PCI_CONFIG_REGION_INDEX => Ok(Region::Config),
        _ => Err(Refusal::new(Errno::INVAL, "there is no such region")),
    }
}

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Self {
        let errno = match &error {
            MemoryError::BadRange { .. } | MemoryError::ShortFile { .. } => Errno::INVAL,
            MemoryError::Overlap { .. } => Errno::EXIST,
            MemoryError::TooMany | MemoryError::TooMuch { .. } => Errno::NOSPC,
            MemoryError::Mmap(MmapRegionError::Mmap(error)) => {
                Errno::from_io_error(error).unwrap_or(Errno::NOMEM)
            }
            MemoryError::Mmap(_) => Errno::INVAL,
        };
        Refusal::new(errno, error.to_string())
    }
}

/// A device as a backend.
#[derive(Debug)]
pub struct Adapter<'a>(pub &'a mut Device);

impl Backend for Adapter<'_> {
    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Refusal> {
        self.0.read(region(index)?, offset, data);
        Ok(())
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        self.0.write(region(index)?, offset, data);
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Refusal> {
        let DmaMap { address, size, file, offset, readable, writable } = map;
        tracing::debug!(
            "DMA map {address:#x}+{size:#x} read {readable} write {writable} file {}",
            file.is_some()
        );
        // A range without a file is a BAR: not memory that this device can use.
        let Some(file) = file else { return Ok(()) };
        if !readable {
            return Err(Refusal::new(Errno::NOTSUP, "memory that may be written and not read"));
        }
        Ok(self.0.dma_map(memory::DmaMap { address, size, file, offset, writable })?)
    }

    fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), Refusal> {
        tracing::debug!("DMA unmap {address:#x}+{size:#x}");
        Ok(self.0.dma_unmap(address, size)?)
    }

    fn set_interrupt(&mut self, _index: u32, vector: u32, event: Option<OwnedFd>) -> Result<(), Refusal> {
        tracing::debug!("interrupt {vector} event {}", event.is_some());
        if self.0.set_interrupt(vector, event.map(File::from)) {
            return Ok(());
        }
        Err(Refusal::new(Errno::INVAL, format!("what vector {vector} was given is no eventfd")))
    }

    fn trigger(&mut self, _index: u32, vector: u32) -> Result<(), Refusal> {
        self.0.model().interrupts.raise(vector as u16);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        tracing::debug!("reset");
        self.0.reset();
        Ok(())
    }

    fn disconnected(&mut self) {
        self.0.disconnect();
    }

    fn complain(&mut self, complaint: Complaint) {
        complain!("{complaint}");
    }
}
