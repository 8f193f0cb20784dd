// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI configuration space (spec 1): bytes, which of their bits can be written, and which are cleared by
//! writing one. What a write means for the device is told to the caller, not done here.

use svmx_abi::pci::{
    BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_MSIX, BAR_MSIX_SIZE, BAR_REGS, BAR_REGS_SIZE, CLASS_CODE,
    DEVICE_ID, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, NUM_VECTORS, REVISION_ID, VENDOR_ID,
};

/// Bytes of configuration space.
pub const CONFIG_SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// Memory space, bus master, parity response, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const STATUS_WRITE_ONE_CLEARS: u16 = 0xf900;
const BARS: usize = 0x10;
const BAR_MEMORY_64: u32 = 0b0100;
const BAR_PREFETCHABLE: u32 = 0b1000;

const PM: usize = 0x40;
const PM_CONTROL: usize = PM + 4;
const PM_STATE: u8 = 0b11;
const PM_D3HOT: u8 = 0b11;
const PM_NO_SOFT_RESET: u16 = 1 << 3;

const MSIX: usize = 0x50;
const MSIX_WRITABLE: u16 = 0xc000;

const PCIE: usize = 0x60;
const DEVICE_CONTROL: usize = PCIE + 0x08;
/// Role-based error reporting, function-level reset.
const DEVICE_CAPABILITIES: u32 = (1 << 15) | (1 << 28);
const DEVICE_CONTROL_WRITABLE: u16 = 0x7fff;
/// Relaxed ordering, no snoop, 512-byte read requests.
const DEVICE_CONTROL_RESET: u16 = 0x2810;
/// In the upper byte of Device Control: begins a function-level reset, reads as zero.
const FUNCTION_LEVEL_RESET: u8 = 1 << 7;
/// One lane of 2.5 GT/s.
const LINK: u16 = 0x0011;
/// 32-bit and 64-bit AtomicOps.
const DEVICE_CAPABILITIES_2: u32 = (1 << 7) | (1 << 8);
/// Completion timeout, AtomicOp requester enable.
const DEVICE_CONTROL_2_WRITABLE: u16 = 0x005f;

const AER: usize = 0x100;
const AER_UNCORRECTABLE: u32 = 0x01ff_f030;
const AER_SEVERITY_RESET: u32 = 0x0046_2030;
const AER_CORRECTABLE: u32 = 0x0000_f1c1;
const AER_CORRECTABLE_MASK_RESET: u32 = 0x0000_2000;

/// Configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    layout: Layout,
}

/// What never changes: reset values and masks.
#[derive(Clone, Debug)]
struct Layout {
    reset: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
    write_one_clears: Box<[u8; CONFIG_SIZE]>,
}

/// What a write asks the device to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// A function-level reset was begun.
    pub reset: bool,
}

impl Default for ConfigSpace {
    fn default() -> Self {
        let layout = Layout::new();
        ConfigSpace { bytes: layout.reset.clone(), layout }
    }
}

impl ConfigSpace {
    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(positions(offset)) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes byte by byte, as far as each bit can be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut effect = Effect::default();
        for (&byte, at) in data.iter().zip(positions(offset)).filter(|&(_, at)| at < CONFIG_SIZE) {
            effect.reset |= at == DEVICE_CONTROL + 1 && byte & FUNCTION_LEVEL_RESET != 0;
            self.write_byte(at, byte);
        }
        effect
    }

    /// Whether the function may access memory and raise interrupts: bus master, and not in D3hot.
    pub fn bus_master(&self) -> bool {
        let powered = self.bytes[PM_CONTROL] & PM_STATE != PM_D3HOT;
        powered && self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    /// Back to the reset values (spec 1.1).
    pub fn reset(&mut self) {
        self.bytes = self.layout.reset.clone();
    }

    fn write_byte(&mut self, at: usize, byte: u8) {
        if at == PM_CONTROL && !matches!(byte & PM_STATE, 0 | PM_D3HOT) {
            // D1 and D2 are not there: such a write changes nothing.
            return;
        }
        let old = self.bytes[at];
        let writable = self.layout.writable[at];
        let cleared = self.layout.write_one_clears[at] & byte;
        self.bytes[at] = ((old & !writable) | (byte & writable)) & !cleared;
    }
}

/// The positions of an access's bytes; those beyond the address space are all the last one.
pub(crate) fn positions(offset: u64) -> impl Iterator<Item = usize> {
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    (0..usize::MAX).map(move |at| first.saturating_add(at))
}

impl Layout {
    fn new() -> Self {
        let zero = || Box::new([0; CONFIG_SIZE]);
        let mut layout = Layout { reset: zero(), writable: zero(), write_one_clears: zero() };
        layout.header();
        layout.power_management();
        layout.msix();
        layout.express();
        layout.advanced_error_reporting();
        layout
    }

    fn header(&mut self) {
        self.constant(0x00, &VENDOR_ID.to_le_bytes());
        self.constant(0x02, &DEVICE_ID.to_le_bytes());
        self.field(COMMAND, &0u16.to_le_bytes(), &COMMAND_WRITABLE.to_le_bytes());
        self.constant(0x06, &STATUS_CAPABILITIES.to_le_bytes());
        self.write_one_clears[0x06..0x08].copy_from_slice(&STATUS_WRITE_ONE_CLEARS.to_le_bytes());
        // Revision, then the class code's three bytes.
        self.constant(0x08, &((CLASS_CODE << 8) | u32::from(REVISION_ID)).to_le_bytes());
        self.field(0x0c, &[0], &[0xff]); // cache line size
        self.bar(BAR_REGS, BAR_REGS_SIZE, BAR_MEMORY_64);
        self.bar(BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_MEMORY_64 | BAR_PREFETCHABLE);
        self.bar(BAR_MSIX, BAR_MSIX_SIZE, BAR_MEMORY_64);
        self.constant(0x2c, &VENDOR_ID.to_le_bytes());
        self.constant(0x2e, &DEVICE_ID.to_le_bytes());
        self.constant(0x34, &[PM as u8]);
        self.field(0x3c, &[0], &[0xff]); // interrupt line; there is no INTx pin
    }

    fn bar(&mut self, bar: u32, size: u64, flags: u32) {
        let address = !(size - 1);
        self.field(BARS + 4 * bar as usize, &u64::from(flags).to_le_bytes(), &address.to_le_bytes());
    }

    fn power_management(&mut self) {
        self.constant(PM, &[0x01, MSIX as u8]);
        self.constant(PM + 2, &3u16.to_le_bytes()); // version 1.2
        let state = u16::from(PM_STATE);
        self.field(PM_CONTROL, &PM_NO_SOFT_RESET.to_le_bytes(), &state.to_le_bytes());
    }

    fn msix(&mut self) {
        self.constant(MSIX, &[0x11, PCIE as u8]);
        self.field(MSIX + 2, &(NUM_VECTORS - 1).to_le_bytes(), &MSIX_WRITABLE.to_le_bytes());
        self.constant(MSIX + 4, &(MSIX_TABLE_OFFSET as u32 | BAR_MSIX).to_le_bytes());
        self.constant(MSIX + 8, &(MSIX_PBA_OFFSET as u32 | BAR_MSIX).to_le_bytes());
    }

    fn express(&mut self) {
        self.constant(PCIE, &[0x10, 0]);
        self.constant(PCIE + 0x02, &2u16.to_le_bytes()); // version 2, endpoint
        self.constant(PCIE + 0x04, &DEVICE_CAPABILITIES.to_le_bytes());
        let (reset, writable) = (DEVICE_CONTROL_RESET, DEVICE_CONTROL_WRITABLE);
        self.field(DEVICE_CONTROL, &reset.to_le_bytes(), &writable.to_le_bytes());
        self.write_one_clears[PCIE + 0x0a] = 0x0f; // device status
        self.constant(PCIE + 0x0c, &u32::from(LINK).to_le_bytes());
        self.field(PCIE + 0x10, &0u16.to_le_bytes(), &0x00c3u16.to_le_bytes()); // link control
        self.constant(PCIE + 0x12, &LINK.to_le_bytes());
        self.constant(PCIE + 0x24, &DEVICE_CAPABILITIES_2.to_le_bytes());
        self.field(PCIE + 0x28, &0u16.to_le_bytes(), &DEVICE_CONTROL_2_WRITABLE.to_le_bytes());
    }

    fn advanced_error_reporting(&mut self) {
        self.constant(AER, &0x0002_0001u32.to_le_bytes()); // version 2, the last
        self.write_one_clears[AER + 0x04..AER + 0x08].copy_from_slice(&AER_UNCORRECTABLE.to_le_bytes());
        self.field(AER + 0x08, &0u32.to_le_bytes(), &AER_UNCORRECTABLE.to_le_bytes());
        self.field(AER + 0x0c, &AER_SEVERITY_RESET.to_le_bytes(), &AER_UNCORRECTABLE.to_le_bytes());
        self.write_one_clears[AER + 0x10..AER + 0x14].copy_from_slice(&AER_CORRECTABLE.to_le_bytes());
        let mask = AER_CORRECTABLE_MASK_RESET.to_le_bytes();
        self.field(AER + 0x14, &mask, &AER_CORRECTABLE.to_le_bytes());
    }

    fn constant(&mut self, at: usize, value: &[u8]) {
        self.reset[at..at + value.len()].copy_from_slice(value);
    }

    fn field(&mut self, at: usize, reset: &[u8], writable: &[u8]) {
        self.constant(at, reset);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(config: &ConfigSpace, at: u64) -> u32 {
        let mut bytes = [0; 4];
        config.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn identity_and_capabilities() {
        let config = ConfigSpace::default();
        assert_eq!(word(&config, 0), 0x5356_1b36);
        assert_eq!(word(&config, 8), 0x1200_0001);
        let mut found = vec![];
        let mut at = word(&config, 0x34) & 0xff;
        while at != 0 {
            let header = word(&config, at.into());
            found.push(header & 0xff);
            at = (header >> 8) & 0xff;
        }
        assert_eq!(found, [0x01, 0x11, 0x10]);
        assert_eq!(word(&config, 0x60) >> 16, 2);
        assert_eq!(word(&config, 0x100) & 0xffff, 1);
    }

    #[test]
    fn bars_tell_their_size() {
        let mut config = ConfigSpace::default();
        for (bar, size, flags) in [(0, 0x10000, 4), (2, 0x20_0000, 0xc), (4, 0x2000, 4)] {
            let at = 0x10 + 4 * bar;
            config.write(at, &[0xff; 8]);
            let value = u64::from(word(&config, at)) | u64::from(word(&config, at + 4)) << 32;
            assert_eq!(value, !(size - 1) | flags);
        }
    }

    #[test]
    fn flr_is_an_effect_and_reads_as_zero() {
        let mut config = ConfigSpace::default();
        let control = DEVICE_CONTROL as u64;
        assert_eq!(config.write(control, &0x8000u16.to_le_bytes()), Effect { reset: true });
        assert_eq!(word(&config, control) & 0x8000, 0);
        // A single byte, and the byte beside it.
        assert!(config.write(control + 1, &[0x80]).reset);
        assert!(!config.write(control, &[0x80]).reset);
    }

    #[test]
    fn bus_master_needs_power() {
        let mut config = ConfigSpace::default();
        assert!(!config.bus_master());
        config.write(4, &[0x06]);
        assert!(config.bus_master());
        config.write(PM_CONTROL as u64, &[2]);
        assert!(config.bus_master(), "D2 is not there");
        config.write(PM_CONTROL as u64, &[3]);
        assert!(!config.bus_master());
        config.reset();
        assert_eq!(word(&config, 4) & 0xffff, 0);
    }

    #[test]
    fn whatever_is_written_nothing_else_changes() {
        let mut config = ConfigSpace::default();
        config.write(0, &[0xff; CONFIG_SIZE + 64]);
        assert_eq!(word(&config, 0), 0x5356_1b36);
        assert_eq!(word(&config, 4), 0x0010_0546);
        config.write(u64::MAX - 1, &[0xff; 8]);
        let mut beyond = [1; 8];
        config.read(CONFIG_SIZE as u64 - 4, &mut beyond);
        assert_eq!(beyond[4..], [0; 4]);
    }
}
