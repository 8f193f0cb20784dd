// SPDX-License-Identifier: GPL-2.0

//! The PCI driver: wires a device together when it is found, and takes it apart when it goes.

use super::abi::{control::ControlEntry, fault::FaultRecord, pci as ids, ring};
use super::control::CONTROL_LOG2;
use super::device::{Device, Hw};
use super::doorbell::Doorbells;
use super::faultq::FAULT_LOG2;
use super::file::Node;
use super::hw::{
    compat,
    debugfs::{Dir, Files},
    DmaBuf, Enabled, PciDevice, Vectors,
};
use super::regs::{Identity, Regs};
use super::views;
use kernel::{
    device::Core,
    pci,
    prelude::*,
    sync::{
        atomic::{Atomic, Full},
        Arc,
    },
    transmute::{AsBytes, FromBytes},
};

/// The fewest vectors: faults, events, and one for all completions.
const MIN_VECTORS: u16 = ids::VECTOR_COMPLETION_FIRST + 1;

const _: () = assert!(pci::Vendor::REDHAT.as_raw() == ids::VENDOR_ID);

// SAFETY: Integers without padding: `abi` derives the same of zerocopy.
unsafe impl AsBytes for ControlEntry {}
// SAFETY: Integers: any bytes are a value.
unsafe impl FromBytes for FaultRecord {}

/// The driver.
pub(crate) struct SvmxDriver;

compat::pci_device_table!(
    PCI_TABLE,
    <SvmxDriver as pci::Driver>::IdInfo,
    [(pci::DeviceId::from_id(pci::Vendor::REDHAT, ids::DEVICE_ID as u32), ())]
);

/// A bound device. The fields are dropped in this order, which is the order of taking it apart:
/// no new files; no contexts, and with them no mappings; nothing in debugfs; no interrupts; no hardware.
pub(crate) struct Binding {
    _node: Pin<KBox<Node>>,
    _contexts: EndContexts,
    _folder: Folder,
    _vectors: Vectors<Device>,
    _hardware: ReleaseHw,
    _number: Number,
    _enabled: Enabled,
}

struct EndContexts(Arc<Device>);

impl Drop for EndContexts {
    fn drop(&mut self) {
        self.0.end_contexts();
    }
}

/// The device's folder in debugfs. A device that is found again while files of the first are open has the same name.
struct Folder {
    _files: Files<Device>,
    device: Arc<Device>,
}

impl Folder {
    fn new(device: &Arc<Device>) -> Self {
        let folder = views::folder(device.number());
        *device.folder.lock() = folder.clone();
        Folder { _files: views::of_device(folder, device.clone()), device: device.clone() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Goes when the lock is released, or with the files.
        let folder = core::mem::replace(&mut *self.device.folder.lock(), Dir::none());
        drop(folder);
    }
}

struct ReleaseHw(Arc<Device>);

impl Drop for ReleaseHw {
    fn drop(&mut self) {
        self.0.release_hw();
    }
}

impl pci::Driver for SvmxDriver {
    type IdInfo = ();
    type Data<'bound> = Binding;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        device: &'bound pci::Device<Core<'_>>,
        _info: compat::IdInfo<'bound, Self::IdInfo>,
    ) -> impl PinInit<Binding, Error> + 'bound {
        bind(&PciDevice::new(device))
    }
}

fn bind(pci: &PciDevice) -> Result<Binding> {
    let enabled = pci.enable().inspect_err(|error| {
        if *error == compat::eopnotsupp() {
            dev_err!(pci.as_dev(), "DMA addresses are not guest-physical: not supported\n");
        }
    })?;
    if pci.enable_atomics().is_err() {
        dev_warn!(pci.as_dev(), "the AtomicOp requester bit can't be set\n");
    }
    let regs = Regs::map(pci)?;
    let identity = regs.identify()?;
    // Nothing of an earlier driver may be under way when the device can reach memory.
    regs.reset();
    pci.set_master();
    let hw = allocate(pci, regs)?;
    let vectors = Vectors::allocate(pci, MIN_VECTORS, ids::NUM_VECTORS)?;
    let number = Number::take()?;
    let device = Device::new(pci, number.0, identity, hw, vectors.count())?;
    // From here on a failure takes apart what is there, in the order of `Binding`.
    let hardware = ReleaseHw(device.clone());
    // Behind `hardware`, so that on a failure interrupts end before it.
    let mut vectors = vectors;
    vectors.connect(&device)?;
    start(&device)?;
    let folder = Folder::new(&device);
    let contexts = EndContexts(device.clone());
    let node = Node::register(device.clone(), number.0)?;
    announce(pci, &identity, number.0);
    Ok(Binding {
        _node: node,
        _contexts: contexts,
        _folder: folder,
        _vectors: vectors,
        _hardware: hardware,
        _number: number,
        _enabled: enabled,
    })
}

fn allocate(pci: &PciDevice, regs: Regs) -> Result<Hw> {
    Ok(Hw {
        regs,
        doorbells: Doorbells::map(pci)?,
        control: DmaBuf::new(pci, ring::entries(CONTROL_LOG2) as usize * size_of::<ControlEntry>())?,
        faults: DmaBuf::new(pci, ring::entries(FAULT_LOG2) as usize * size_of::<FaultRecord>())?,
        words: DmaBuf::new(pci, ids::PAGE_SIZE as usize)?,
    })
}

fn start(device: &Device) -> Result {
    device
        .with_hw(|hw| hw.regs.start((hw.control.dma(), CONTROL_LOG2), (hw.faults.dma(), FAULT_LOG2)))
        .ok_or(ENODEV)??;
    device.drain_and_arm();
    Ok(())
}

fn announce(pci: &PciDevice, identity: &Identity, number: u32) {
    dev_info!(
        pci.as_dev(),
        "svmx{}: version {}.{}, {} engines\n",
        number,
        identity.version.major(),
        identity.version.minor(),
        identity.num_engines
    );
    if super::protection_off() {
        dev_warn!(pci.as_dev(), "exclusive access is switched OFF: updates will be lost\n");
    }
}

/// The number of a device: the lowest that is free.
struct Number(u32);

/// One for each number that is taken, else zero.
static NUMBERS: [Atomic<i32>; MAX_DEVICES] = [const { Atomic::new(0) }; MAX_DEVICES];
/// Devices that can be bound at the same time.
pub(crate) const MAX_DEVICES: usize = 64;

impl Number {
    fn take() -> Result<Self> {
        for (number, taken) in NUMBERS.iter().enumerate() {
            if taken.cmpxchg(0, 1, Full).is_ok() {
                return Ok(Number(number as u32));
            }
        }
        Err(ENOSPC)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if let Some(taken) = NUMBERS.get(self.0 as usize) {
            taken.xchg(0, Full);
        }
    }
}
