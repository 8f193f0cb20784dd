// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device as its host sees it: configuration space, BARs, DMA maps, interrupts, reset. One thread at a
//! time calls it, in the order in which the guest's accesses happen; how they arrive is not known here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use svmx_abi::pci::{
    BAR_DOORBELLS_SIZE, MAX_QUEUES, MAX_RING_LOG2, MIN_RING_LOG2, MSIX_PBA_OFFSET, NUM_VECTORS, VECTOR_EVENT,
    page_offset,
};
use svmx_abi::regs::{Control, Counter, DeviceStatus, FatalError, MAX_LOOKAHEAD};
use svmx_abi::ring;

use crate::complain::complain;
use crate::config::{ConfigSpace, positions};
use crate::control::Controller;
use crate::engine::Engine;
use crate::instrument::{Instrument, Plain, Thread};
use crate::memory::{DmaMap, GuestMemory, MemoryError, Removed};
use crate::model::{ControlRing, Model, Options};
use crate::regs::{self, Part, Register, RingRegisters};

/// Bytes of the MSI-X table.
const MSIX_TABLE_BYTES: usize = 16 * NUM_VECTORS as usize;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Configuration space.
    Config,
    /// BAR0.
    Registers,
    /// BAR2, for those who can't map it.
    Doorbells,
    /// BAR4.
    Msix,
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No memory for the doorbells.
    #[error("making the doorbell memory: {0}")]
    Doorbells(#[source] std::io::Error),
    /// No memory for an engine.
    #[error("making room for an engine's TLB: {0}")]
    Engine(#[source] std::io::Error),
    /// No memory for the exclusivity checker.
    #[error("making room for the exclusivity checker: {0}")]
    Checker(#[source] std::io::Error),
    /// The trace can't be written.
    #[error("writing the trace: {0}")]
    Trace(#[source] std::io::Error),
    /// No thread.
    #[error("starting a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A device. Dropping it ends its threads.
#[derive(Debug)]
pub struct Device {
    model: Arc<Model>,
    config: ConfigSpace,
    rings: RingRegisters,
    /// What the guest writes to the MSI-X table; the VMM routes by it.
    msix_table: [u8; MSIX_TABLE_BYTES],
    memory: GuestMemory,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// A device in its reset state, its threads asleep.
    pub fn new(options: Options) -> Result<Self, DeviceError> {
        Self::watched(options, |_, _| Plain)
    }

    /// The same with an instrument for each thread that works.
    pub fn watched<I: Instrument>(
        options: Options,
        mut instrument: impl FnMut(&Arc<Model>, Thread) -> I,
    ) -> Result<Self, DeviceError> {
        let model = Arc::new(Model::new(options).map_err(DeviceError::Doorbells)?);
        let mut threads = Vec::new();
        for number in 0..model.options.engines {
            let watched = instrument(&model, Thread::Engine(number as u16));
            let engine = Engine::new(model.clone(), number, watched).map_err(DeviceError::Engine)?;
            threads.push(spawn(format!("engine-{number}"), move || engine.run())?);
        }
        let watched = instrument(&model, Thread::Control);
        let controller = Controller::new(model.clone(), watched);
        threads.push(spawn("control".into(), move || controller.run())?);
        Ok(Device {
            model,
            config: ConfigSpace::default(),
            rings: RingRegisters::default(),
            msix_table: [0; MSIX_TABLE_BYTES],
            memory: GuestMemory::default(),
            threads,
        })
    }

    /// What the device's threads share, for those who must end it from another thread.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The memory behind BAR2.
    pub fn doorbell_file(&self) -> &File {
        self.model.doorbells.file()
    }

    /// A guest's read. What is not there reads as zero.
    pub fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            Region::Config => self.config.read(offset, data),
            Region::Registers => {
                let decoded = regs::decode(offset, data.len());
                let value = decoded.map_or(0, |(register, part)| part.of(self.read_register(register)));
                let bytes = value.to_le_bytes();
                data.iter_mut().enumerate().for_each(|(at, byte)| *byte = *bytes.get(at).unwrap_or(&0));
            }
            Region::Doorbells => {
                data.fill(0);
                let _ = self.doorbell_file().read_at(data, offset);
            }
            Region::Msix => {
                let pending = self.model.interrupts.pending().to_le_bytes();
                for (byte, at) in data.iter_mut().zip(positions(offset)) {
                    let in_pending = at.checked_sub(MSIX_PBA_OFFSET as usize).and_then(|at| pending.get(at));
                    *byte = *self.msix_table.get(at).or(in_pending).unwrap_or(&0);
                }
            }
        }
    }

    /// A guest's write. When this returns its effects on the device have happened.
    pub fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match region {
            Region::Config => self.write_config(offset, data),
            Region::Registers => {
                if let Some((register, part)) = regs::decode(offset, data.len()) {
                    let mut bytes = [0; 8];
                    bytes[..data.len()].copy_from_slice(data);
                    self.write_register(register, part, u64::from_le_bytes(bytes));
                }
            }
            Region::Doorbells => {
                let end = offset.checked_add(data.len() as u64);
                if end.is_some_and(|end| end <= BAR_DOORBELLS_SIZE) {
                    let _ = self.doorbell_file().write_at(data, offset);
                }
            }
            Region::Msix => {
                for (&byte, at) in data.iter().zip(positions(offset)) {
                    if let Some(place) = self.msix_table.get_mut(at) {
                        *place = byte;
                    }
                }
            }
        }
    }

    /// Gives the device guest memory.
    pub fn dma_map(&mut self, map: DmaMap) -> Result<(), MemoryError> {
        self.memory = self.memory.with_map(map)?;
        self.model.replace_memory(self.memory.clone());
        Ok(())
    }

    /// Takes guest memory away, every map that overlaps the range. When this returns no thread uses it.
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), MemoryError> {
        let (memory, removed) = self.memory.without(address, size)?;
        if removed == Removed::MoreThanAsked {
            complain!("DMA unmap {address:#x}+{size:#x} splits a map: all of that map is gone");
        }
        if removed != Removed::None {
            self.memory = memory;
            if self.model.conditions().enabled && !self.rings_usable() {
                complain!("the memory of the driver's rings was unmapped; stopped until reset");
                self.fail(FatalError::RingLost);
            }
            self.model.replace_memory(self.memory.clone());
        }
        Ok(())
    }

    /// Gives a vector its eventfd, or takes it away. False if it was given something else, which is not taken.
    pub fn set_interrupt(&self, vector: u32, event: Option<File>) -> bool {
        self.model.interrupts.set(vector, event)
    }

    /// Takes all events away.
    pub fn disable_interrupts(&self) {
        self.model.interrupts.disable();
    }

    /// A conventional reset or FLR (spec 1.1).
    pub fn reset(&mut self) {
        self.config.reset();
        self.msix_table = [0; MSIX_TABLE_BYTES];
        self.model.change(None, |conditions| conditions.bus_master = false);
        self.reset_registers();
    }

    /// The host is gone: a reset, and what it gave is given up. Memory goes after the reset, when no ring is
    /// in it any more.
    pub fn disconnect(&mut self) {
        self.reset();
        self.memory = GuestMemory::default();
        self.model.replace_memory(self.memory.clone());
        self.disable_interrupts();
    }

    /// Ends all threads.
    pub fn end(&mut self) {
        self.model.exit();
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended the process (see `spawn`).
            let _ = thread.join();
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let effect = self.config.write(offset, data);
        if effect.reset {
            self.reset();
            return;
        }
        let bus_master = self.config.bus_master();
        if bus_master != self.model.conditions().bus_master {
            self.model.change(None, |conditions| conditions.bus_master = bus_master);
        }
    }

    fn read_register(&self, register: Register) -> u64 {
        let conditions = self.model.conditions();
        match register {
            Register::Constant(value) => value,
            Register::NumEngines => self.model.options.engines as u64,
            Register::Control if conditions.enabled => Control::ENABLE.0.into(),
            Register::Control | Register::Kick => 0,
            Register::Status if conditions.fatal != FatalError::None => DeviceStatus::FATAL.0.into(),
            Register::Status if conditions.enabled => DeviceStatus::READY.0.into(),
            Register::Status => 0,
            Register::FatalError => conditions.fatal as u64,
            Register::CtlBase => self.rings.ctl_base,
            Register::CtlLog2 => self.rings.ctl_log2.into(),
            Register::FaultBase => self.rings.fault_base,
            Register::FaultLog2 => self.rings.fault_log2.into(),
            Register::LookAhead => self.rings.lookahead.into(),
            Register::Counter(counter) => self.model.counters.read(counter),
        }
    }

    fn write_register(&mut self, register: Register, part: Part, value: u64) {
        match register {
            Register::Control => self.write_control(Control(value as u32)),
            Register::Kick => self.kick(value),
            _ if self.model.conditions().enabled => {}
            Register::CtlBase => self.rings.ctl_base = part.replace(self.rings.ctl_base, value),
            Register::CtlLog2 => self.rings.ctl_log2 = value as u32,
            Register::FaultBase => self.rings.fault_base = part.replace(self.rings.fault_base, value),
            Register::FaultLog2 => self.rings.fault_log2 = value as u32,
            Register::LookAhead => self.rings.lookahead = (value as u32).min(MAX_LOOKAHEAD),
            _ => {}
        }
    }

    fn write_control(&mut self, control: Control) {
        let enabled = self.model.conditions().enabled;
        if control.reset() {
            self.reset_registers();
        } else if control.enable() && !enabled {
            self.enable();
        } else if !control.enable() && enabled {
            self.stop();
        }
    }

    /// spec 3.2.
    fn enable(&mut self) {
        if self.model.conditions().fatal != FatalError::None {
            return;
        }
        if !self.rings_usable() {
            complain!("ENABLE with rings that can't be used: {:x?}", self.rings);
            self.fail(FatalError::BadRing);
            return;
        }
        let RingRegisters { ctl_base, ctl_log2, fault_base, fault_log2, lookahead } = self.rings;
        *self.model.control_ring.lock() = ControlRing { base: ctl_base, log2: ctl_log2 as u8, head: 0 };
        self.model.faults.start(fault_base, fault_log2 as u8);
        self.model.set_lookahead(lookahead);
        self.model.change(None, |conditions| conditions.enabled = true);
    }

    fn rings_usable(&self) -> bool {
        let RingRegisters { ctl_base, ctl_log2, fault_base, fault_log2, .. } = self.rings;
        let good = |base: u64, log2: u32, write| {
            let sizes = u32::from(MIN_RING_LOG2)..=u32::from(MAX_RING_LOG2);
            let bytes = 64 << log2.min(MAX_RING_LOG2.into());
            page_offset(base) == 0 && sizes.contains(&log2) && self.memory.contains(base, bytes, write)
        };
        good(ctl_base, ctl_log2, false) && good(fault_base, fault_log2, true)
    }

    /// spec 3.3. VECTOR_EVENT is raised if the device may raise anything.
    fn fail(&self, fatal: FatalError) {
        let bus_master = self.model.conditions().bus_master;
        self.model.change(None, |conditions| conditions.fatal = fatal);
        if bus_master {
            self.model.interrupt(self.model.transport_thread(), VECTOR_EVENT);
        }
    }

    /// ENABLE is cleared: as a reset, but the ring registers stay, and so does a fatal error.
    fn stop(&mut self) {
        self.model.change(None, |conditions| conditions.enabled = false);
        self.model.forget_all();
    }

    /// `CONTROL.RESET`, and the part of every other reset that is the same.
    fn reset_registers(&mut self) {
        self.stop();
        self.model.change(None, |conditions| conditions.fatal = FatalError::None);
        self.model.counters.reset();
        self.rings = RingRegisters::default();
    }

    /// spec 4.3.
    fn kick(&self, page: u64) {
        let Some(page) = u32::try_from(page).ok().filter(|&page| page <= MAX_QUEUES) else { return };
        self.model.counters.add(self.model.transport_thread(), Counter::Kicks, 1);
        if page == svmx_abi::doorbell::DRIVER_PAGE {
            self.model.nudge();
        } else {
            self.model.activate(page);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a thread of the device. If it panics the process ends: others wait for it.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DeviceError> {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                tracing::error!("a thread of the device panicked");
                std::process::abort();
            }
        }
    }
    let guarded = move || {
        let _guard = AbortOnPanic;
        body();
    };
    std::thread::Builder::new().name(name).spawn(guarded).map_err(DeviceError::Thread)
}

/// The last entry of a ring is inside it, whatever the driver wrote: `rings_usable` has bounded `log2`.
const _: () = assert!(ring::entries(MAX_RING_LOG2) == 4096);
