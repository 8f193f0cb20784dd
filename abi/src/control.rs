// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The control queue's entries (spec 8), driver to device, executed in order.

use super::pte::Pte;
use super::status::Status;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcode of a control entry (spec 8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ControlOpcode(pub u8);

impl ControlOpcode {
    /// [`CreateContext`].
    pub const CREATE_CONTEXT: ControlOpcode = ControlOpcode(0x01);
    /// [`DestroyContext`].
    pub const DESTROY_CONTEXT: ControlOpcode = ControlOpcode(0x02);
    /// [`CreateQueue`].
    pub const CREATE_QUEUE: ControlOpcode = ControlOpcode(0x03);
    /// [`DestroyQueue`].
    pub const DESTROY_QUEUE: ControlOpcode = ControlOpcode(0x04);
    /// [`Replay`].
    pub const REPLAY: ControlOpcode = ControlOpcode(0x10);
    /// [`Cancel`].
    pub const CANCEL: ControlOpcode = ControlOpcode(0x11);
    /// [`TlbInvalidate`].
    pub const TLB_INVALIDATE: ControlOpcode = ControlOpcode(0x12);
    /// [`Sync`].
    pub const SYNC: ControlOpcode = ControlOpcode(0x13);

    /// Name and value of every opcode.
    pub const ALL: [(&'static str, ControlOpcode); 8] = [
        ("CREATE_CONTEXT", Self::CREATE_CONTEXT),
        ("DESTROY_CONTEXT", Self::DESTROY_CONTEXT),
        ("CREATE_QUEUE", Self::CREATE_QUEUE),
        ("DESTROY_QUEUE", Self::DESTROY_QUEUE),
        ("REPLAY", Self::REPLAY),
        ("CANCEL", Self::CANCEL),
        ("TLB_INVALIDATE", Self::TLB_INVALIDATE),
        ("SYNC", Self::SYNC),
    ];
}

/// Flags of a control entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ControlFlags(pub u8);

impl ControlFlags {
    /// Write the completion word when the command is done.
    pub const NOTIFY: ControlFlags = ControlFlags(1 << 0);
    /// After that, interrupt on `VECTOR_EVENT`.
    pub const INTERRUPT: ControlFlags = ControlFlags(1 << 1);

    /// Both sets together.
    pub const fn with(self, other: ControlFlags) -> ControlFlags {
        ControlFlags(self.0 | other.0)
    }
    /// Whether NOTIFY is set.
    pub const fn notify(self) -> bool {
        self.0 & Self::NOTIFY.0 != 0
    }
    /// Whether INTERRUPT is set.
    pub const fn interrupt(self) -> bool {
        self.0 & Self::INTERRUPT.0 != 0
    }
}

/// A control entry: 64 bytes, aligned to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct ControlEntry {
    /// What to do; says which of the bodies below `body` is.
    pub opcode: ControlOpcode,
    /// How to tell that it is done.
    pub flags: ControlFlags,
    /// Zero.
    pub reserved0: u16,
    /// Zero.
    pub reserved1: u32,
    /// NOTIFY: guest-physical address of the 64-bit completion word, a multiple of 8.
    pub notify_addr: u64,
    /// NOTIFY: the value of the completion word, below 2^48.
    pub notify_value: u64,
    /// One of the bodies, by `opcode`.
    pub body: [u64; 5],
}
const _: () = assert!(size_of::<ControlEntry>() == 64);

/// What the device stores at `notify_addr`: bits 0–47 the value, bits 48–63 the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionWord(pub u64);

impl CompletionWord {
    /// One past the highest value.
    pub const VALUE_END: u64 = 1 << 48;

    /// Packs the fields; the value's upper bits are dropped.
    pub const fn new(value: u64, status: Status) -> Self {
        CompletionWord((value & (Self::VALUE_END - 1)) | ((status.0 as u64) << 48))
    }
    /// The value that the command named.
    pub const fn value(self) -> u64 {
        self.0 & (Self::VALUE_END - 1)
    }
    /// How the command ended.
    pub const fn status(self) -> Status {
        Status((self.0 >> 48) as u16)
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident = $opcode:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        impl From<$name> for ControlEntry {
            fn from(body: $name) -> Self {
                ControlEntry {
                    opcode: ControlOpcode::$opcode,
                    body: zerocopy::transmute!(body),
                    ..Default::default()
                }
            }
        }

        impl From<[u64; 5]> for $name {
            fn from(body: [u64; 5]) -> Self {
                zerocopy::transmute!(body)
            }
        }
    )*};
}

bodies! {
    /// Makes an address space.
    CreateContext = CREATE_CONTEXT {
        /// 1 to `MAX_CONTEXTS`, not in use.
        asid: u32,
        /// Zero.
        reserved0: u32,
        /// Guest-physical address of the root table, page-aligned.
        root: u64,
        /// Zero.
        reserved1: [u64; 3],
    }
    /// Ends an address space that no queue belongs to, and drops its translations.
    DestroyContext = DESTROY_CONTEXT {
        /// The address space.
        asid: u32,
        /// Zero.
        reserved0: u32,
        /// Zero.
        reserved1: [u64; 4],
    }
    /// Makes a queue. Its doorbell page must be zero but for what the device writes.
    CreateQueue = CREATE_QUEUE {
        /// 1 to `MAX_QUEUES`, not in use.
        queue: u32,
        /// The address space that its commands are in.
        asid: u32,
        /// Guest-physical address of the submission queue, page-aligned.
        sq_base: u64,
        /// Guest-physical address of the completion queue, page-aligned, zeroed.
        cq_base: u64,
        /// Binary logarithm of the submission queue's entries.
        sq_log2: u8,
        /// Binary logarithm of the completion queue's entries.
        cq_log2: u8,
        /// MSI-X vector of its completions.
        vector: u16,
        /// Zero.
        reserved0: u32,
        /// Zero.
        reserved1: u64,
    }
    /// Ends a queue at the next element boundary. When it is done the device touches neither the
    /// rings nor the doorbell page; no further completion is posted.
    DestroyQueue = DESTROY_QUEUE {
        /// The queue.
        queue: u32,
        /// Zero.
        reserved0: u32,
        /// Zero.
        reserved1: [u64; 4],
    }
    /// Lets a stalled queue go on. The access that faulted is done with the translation given here.
    Replay = REPLAY {
        /// The stalled queue.
        queue: u32,
        /// `fault_id` of the fault; another is ignored.
        fault_id: u32,
        /// A leaf of level 0 for the page of the fault (spec 8.4), or zero: look it up.
        pte: u64,
        /// Zero.
        reserved: [u64; 3],
    }
    /// Ends a stalled queue's command with a status; the queue goes on behind it.
    Cancel = CANCEL {
        /// The stalled queue.
        queue: u32,
        /// `fault_id` of the fault; another is ignored.
        fault_id: u32,
        /// The command's status: one that a CANCEL may carry.
        status: Status,
        /// Zero.
        reserved0: [u16; 3],
        /// Zero.
        reserved1: [u64; 3],
    }
    /// Drops the translations of `[va, va + len)` in one address space.
    TlbInvalidate = TLB_INVALIDATE {
        /// The address space, or 0 for all of them.
        asid: u32,
        /// Zero.
        reserved0: u32,
        /// Page-aligned.
        va: u64,
        /// Bytes, a multiple of the page size; `u64::MAX` is everything from `va` on.
        len: u64,
        /// Zero.
        reserved1: [u64; 2],
    }
    /// Completes when no engine uses a translation that was invalidated before it, and every effect
    /// made through one is visible in memory.
    Sync = SYNC {
        /// Zero.
        reserved: [u64; 5],
    }
}

impl Replay {
    /// The translation, or `None` to look it up.
    pub const fn translation(&self) -> Option<Pte> {
        match self.pte {
            0 => None,
            bits => Some(Pte(bits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_an_entry() {
        let replay = Replay { queue: 7, fault_id: 9, pte: 0x1003, ..Default::default() };
        let entry = ControlEntry::from(replay);
        assert_eq!(entry.opcode, ControlOpcode::REPLAY);
        assert_eq!(Replay::from(entry.body), replay);
    }

    #[test]
    fn completion_word_keeps_its_fields() {
        let word = CompletionWord::new((1 << 48) - 2, Status::BAD_ID);
        assert_eq!((word.value(), word.status()), ((1 << 48) - 2, Status::BAD_ID));
    }
}
