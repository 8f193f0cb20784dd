// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! Control registers in BAR0 (spec 3): offsets from its start, and their fields.

/// Read-only, 32 bits: [`MAGIC_VALUE`]. All-ones means that the device is gone.
pub const MAGIC: u64 = 0x000;
/// What [`MAGIC`] reads: "SVMX".
pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"SVMX");
/// Read-only, 32 bits: [`Version`] of the programming interface.
pub const VERSION: u64 = 0x004;
/// Read-only, 64 bits: bit *n* is set if the scalar command with opcode *n* is there.
pub const OPCODES: u64 = 0x008;
/// Read-only, 64 bits: bit *n* is set if the bulk form of opcode *n* is there.
pub const BULK_OPCODES: u64 = 0x010;
/// Read-only, 32 bits: the highest ASID.
pub const MAX_CONTEXTS: u64 = 0x018;
/// Read-only, 32 bits: the highest queue identifier.
pub const MAX_QUEUES: u64 = 0x01c;
/// Read-only, 32 bits: the largest binary logarithm of the entries of a ring.
pub const MAX_RING_LOG2: u64 = 0x020;
/// Read-only, 32 bits: bits of a virtual address.
pub const VA_BITS: u64 = 0x024;
/// Read-only, 32 bits: number of engines.
pub const NUM_ENGINES: u64 = 0x028;
/// Read-only, 32 bits: number of MSI-X vectors.
pub const NUM_VECTORS: u64 = 0x02c;

/// Read-write, 32 bits: [`Control`].
pub const CONTROL: u64 = 0x100;
/// Read-only, 32 bits: [`DeviceStatus`].
pub const STATUS: u64 = 0x104;
/// Read-only, 32 bits: [`FatalError`], meaningful while `STATUS.FATAL` is set.
pub const FATAL_ERROR: u64 = 0x108;
/// Write-only, 32 bits: a page of the doorbell BAR whose `need_kick` the writer saw set (spec 4.3).
pub const KICK: u64 = 0x10c;
/// Read-write while disabled, 64 bits: guest-physical address of the control queue's ring.
pub const CTL_BASE: u64 = 0x110;
/// Read-write while disabled, 32 bits: binary logarithm of the control queue's entries.
pub const CTL_LOG2: u64 = 0x118;
/// Read-write while disabled, 64 bits: guest-physical address of the fault queue's ring.
pub const FAULT_BASE: u64 = 0x120;
/// Read-write while disabled, 32 bits: binary logarithm of the fault queue's entries.
pub const FAULT_LOG2: u64 = 0x128;
/// Read-write while disabled, 32 bits: pages that a fault may report ahead, at most [`MAX_LOOKAHEAD`]; 0 for
/// none.
pub const LOOKAHEAD: u64 = 0x12c;
/// Largest value of [`LOOKAHEAD`]; a greater one becomes this.
pub const MAX_LOOKAHEAD: u32 = 256;

/// Read-only, 64 bits each: the first of the [`Counter`]s, indexed by their number.
pub const COUNTERS: u64 = 0x1000;

/// What the device counts since its last reset (spec 3.4), each 64 bits wide at
/// `COUNTERS + 8 * number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Commands completed, with whatever status.
    Commands = 0,
    /// Elements applied by atomics, READ and WRITE, scalar or bulk.
    Elements = 1,
    /// Fault records written.
    Faults = 2,
    /// REPLAYs that found their fault outstanding.
    Replays = 3,
    /// CANCELs that found their fault outstanding.
    Cancels = 4,
    /// TLB_INVALIDATEs executed.
    Invalidations = 5,
    /// SYNCs completed.
    Syncs = 6,
    /// Interrupts raised.
    Interrupts = 7,
    /// Kicks received.
    Kicks = 8,
    /// Page-table walks.
    Walks = 9,
    /// Pages reported ahead.
    Lookahead = 10,
}

impl Counter {
    /// Every counter, by number.
    pub const ALL: [Counter; 11] = [
        Counter::Commands,
        Counter::Elements,
        Counter::Faults,
        Counter::Replays,
        Counter::Cancels,
        Counter::Invalidations,
        Counter::Syncs,
        Counter::Interrupts,
        Counter::Kicks,
        Counter::Walks,
        Counter::Lookahead,
    ];

    /// Offset of the counter in BAR0.
    pub const fn offset(self) -> u64 {
        COUNTERS + 8 * self as u64
    }
}

/// The programming interface's version, as `VERSION` reads.
///
/// A driver accepts its own major version only; minor versions add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

impl Version {
    /// The version that this source describes.
    pub const CURRENT: Version = Version::new(1, 1);

    /// Packs a version.
    pub const fn new(major: u16, minor: u16) -> Self {
        Version(((major as u32) << 16) | minor as u32)
    }
    /// Incompatible changes.
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// Compatible additions.
    pub const fn minor(self) -> u16 {
        self.0 as u16
    }
}

/// The `CONTROL` register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control(pub u32);

impl Control {
    /// The device processes the control queue and every other queue.
    pub const ENABLE: Control = Control(1 << 0);
    /// Writing one resets the device; reads as zero.
    pub const RESET: Control = Control(1 << 1);

    /// Whether ENABLE is set.
    pub const fn enable(self) -> bool {
        self.0 & Self::ENABLE.0 != 0
    }
    /// Whether RESET is set.
    pub const fn reset(self) -> bool {
        self.0 & Self::RESET.0 != 0
    }
}

/// The `STATUS` register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus(pub u32);

impl DeviceStatus {
    /// ENABLE was written and accepted.
    pub const READY: DeviceStatus = DeviceStatus(1 << 0);
    /// The device stopped; `FATAL_ERROR` says why; only a reset helps.
    pub const FATAL: DeviceStatus = DeviceStatus(1 << 1);

    /// Whether READY is set.
    pub const fn ready(self) -> bool {
        self.0 & Self::READY.0 != 0
    }
    /// Whether FATAL is set.
    pub const fn fatal(self) -> bool {
        self.0 & Self::FATAL.0 != 0
    }
}

/// Why the device stopped: `FATAL_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FatalError {
    /// Nothing is wrong.
    None = 0,
    /// ENABLE with a ring that is misaligned, has a size out of range, or is not in guest memory.
    BadRing = 1,
    /// The control queue's tail is further from its head than the ring is long.
    BadControlTail = 2,
    /// A control entry's completion word is not in guest memory or is misaligned.
    BadNotifyAddress = 3,
    /// Guest memory that holds a ring of the driver was unmapped or is read-only.
    RingLost = 4,
    /// The fault queue's head is further from its tail than the ring is long.
    BadFaultHead = 5,
}
