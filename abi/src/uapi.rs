// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The driver's interface to user space (spec 9): ioctls on `/dev/svmxN` and their structures.
//!
//! Each structure begins with its own size and flags. A structure that is shorter or longer than the
//! driver's is refused with EINVAL unless the spec says otherwise; so is a flag it does not know.

use super::hist;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// ioctl type ("magic").
pub const IOC_TYPE: u32 = 0xb5;

/// Encodes a read-write ioctl number, as the kernel's `_IOWR`.
const fn iowr<T>(number: u32) -> u32 {
    (3 << 30) | ((size_of::<T>() as u32) << 16) | (IOC_TYPE << 8) | number
}

/// ioctl: [`Info`].
pub const IOC_INFO: u32 = iowr::<Info>(0x00);
/// ioctl: [`QueueCreate`].
pub const IOC_QUEUE_CREATE: u32 = iowr::<QueueCreate>(0x01);
/// ioctl: [`QueueDestroy`].
pub const IOC_QUEUE_DESTROY: u32 = iowr::<QueueDestroy>(0x02);
/// ioctl: [`Kick`].
pub const IOC_KICK: u32 = iowr::<Kick>(0x03);
/// ioctl: [`Wait`].
pub const IOC_WAIT: u32 = iowr::<Wait>(0x04);
/// ioctl: [`Stats`].
pub const IOC_STATS: u32 = iowr::<Stats>(0x05);
/// ioctl: [`Acquire`].
pub const IOC_ACQUIRE_EXCLUSIVE: u32 = iowr::<Acquire>(0x06);
/// ioctl: [`Release`].
pub const IOC_RELEASE: u32 = iowr::<Release>(0x07);
/// ioctl: [`SetPolicy`].
pub const IOC_POLICY: u32 = iowr::<SetPolicy>(0x08);

/// Every ioctl.
pub const IOCTLS: [u32; 9] = [
    IOC_INFO,
    IOC_QUEUE_CREATE,
    IOC_QUEUE_DESTROY,
    IOC_KICK,
    IOC_WAIT,
    IOC_STATS,
    IOC_ACQUIRE_EXCLUSIVE,
    IOC_RELEASE,
    IOC_POLICY,
];

/// What the device and driver can do.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Info {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// Out: `VERSION` of the device.
    pub version: u32,
    /// Out: engines.
    pub num_engines: u32,
    /// Out: opcodes that the device knows, a bit each.
    pub opcodes: u64,
    /// Out: opcodes that it knows in bulk form.
    pub bulk_opcodes: u64,
    /// Out: largest binary logarithm of a ring's entries.
    pub max_ring_log2: u32,
    /// Out: [`INFO_PROTECTION_OFF`].
    pub state: u32,
}
const _: () = assert!(size_of::<Info>() == 40);

/// [`Info::state`]: pages are mapped for atomics *without* exclusive access. Updates get lost.
pub const INFO_PROTECTION_OFF: u32 = 1 << 0;

/// Makes a queue in the caller's context.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueueCreate {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: binary logarithm of the submission queue's entries.
    pub sq_log2: u8,
    /// In: binary logarithm of the completion queue's entries.
    pub cq_log2: u8,
    /// In: zero.
    pub reserved: u16,
    /// Out: the queue's identifier.
    pub queue: u32,
    /// Out: offset to mmap the submission queue at; read and write; `sq_bytes` long.
    pub sq_offset: u64,
    /// Out: offset to mmap the completion queue at; read only; `cq_bytes` long.
    pub cq_offset: u64,
    /// Out: offset to mmap the doorbell page at; read and write; one page.
    pub doorbell_offset: u64,
    /// Out: bytes of the submission queue's mapping, whole pages.
    pub sq_bytes: u64,
    /// Out: bytes of the completion queue's mapping, whole pages.
    pub cq_bytes: u64,
}
const _: () = assert!(size_of::<QueueCreate>() == 56);

/// Ends a queue: what it is doing stops at the next element, its mappings turn to SIGBUS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueueDestroy {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: the queue.
    pub queue: u32,
    /// In: zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<QueueDestroy>() == 16);

/// Tells the device to look at a queue whose `need_kick` was seen set (spec 4.3).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kick {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: the queue.
    pub queue: u32,
    /// In: zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Kick>() == 16);

/// Sleeps until the completion at free-running index `index` is posted.
///
/// ENODEV if the device died, ETIMEDOUT, EINTR/ERESTARTSYS on a signal, ECANCELED if the queue is
/// destroyed meanwhile. An index more than a lap behind gets a meaningless, harmless answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Wait {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: the queue.
    pub queue: u32,
    /// In: index into the completion queue.
    pub index: u32,
    /// In: nanoseconds from now on, or -1 for ever.
    pub timeout_ns: i64,
}
const _: () = assert!(size_of::<Wait>() == 24);

/// A latency histogram in nanoseconds: see [`hist`].
pub type Histogram = [u64; hist::BUCKETS];

/// What happened in the caller's context since it was opened.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stats {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// Out: fault records taken.
    pub faults: u64,
    /// Out: pages that exclusive access was obtained for.
    pub grants: u64,
    /// Out: pages whose exclusive access was revoked.
    pub revocations: u64,
    /// Out: pages mapped without exclusive access.
    pub shared_grants: u64,
    /// Out: faults answered with REPLAY.
    pub replays: u64,
    /// Out: faults answered with CANCEL.
    pub cancels: u64,
    /// Out: attempts at a grant that failed because an invalidation came between.
    pub retries: u64,
    /// Out: notifier events that found something mapped.
    pub invalidations: u64,
    /// Out: pages that were mapped before the device asked for them.
    pub ahead: u64,
    /// Out: those of them that were invalidated afterwards, used or not.
    pub ahead_lost: u64,
    /// Out: spans of 2 MiB that were unmapped because the context had too many.
    pub evictions: u64,
    /// Out: 2 MiB pages mapped as such, without exclusive access.
    pub huge_grants: u64,
    /// Out: SYNCs that the driver has put on the device's control queue, for all contexts.
    pub syncs: u64,
    /// Out: time to obtain one page: step 1 to the device PTE. Of pages that are obtained together, their average.
    pub grant_ns: Histogram,
    /// Out: time of an invalidation: PTE cleared to SYNC seen.
    pub revoke_ns: Histogram,
    /// Out: time from the fault's arrival in the driver to its REPLAY.
    pub replay_ns: Histogram,
}
const _: () = assert!(size_of::<Stats>() == 112 + 3 * 8 * hist::BUCKETS);

/// Gets the device each page of a range ahead of use, as an atomic on it would by its policy (spec 9.7).
///
/// EFAULT: no memory; EACCES: not writable; EOPNOTSUPP: memory that can't be exclusive; EAGAIN: a page was taken back each
/// time that it was had; EINTR: a signal came; ENOMEM; ENODEV. `done` is written with these, too.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Acquire {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: first address, page-aligned.
    pub addr: u64,
    /// In: bytes, whole pages, not zero, at most [`MAX_ACQUIRE_PAGES`]. The range lies below 2^48.
    pub len: u64,
    /// Out: pages from the first on that the device got, or had.
    pub done: u64,
}
const _: () = assert!(size_of::<Acquire>() == 32);

/// Most pages of one [`Acquire`].
pub const MAX_ACQUIRE_PAGES: u64 = 1 << 18;

/// Takes a range from the device, and gives the CPU the pages back that the device had exclusively (spec 9.7).
///
/// EINTR: a signal came; ENODEV. `done` is written with these, too.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Release {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: first address, page-aligned.
    pub addr: u64,
    /// In: bytes, whole pages, not zero. The range lies below 2^48.
    pub len: u64,
    /// Out: pages that the device had, in whichever way, and has no more.
    pub done: u64,
}
const _: () = assert!(size_of::<Release>() == 32);

/// Says how atomics on a range of addresses are served (spec 9.6).
///
/// What the device has of the range is taken away first. The policy belongs to the addresses, whatever is mapped
/// there, until it is set anew. ENOSPC: see [`MAX_POLICIES`]; nothing has changed then.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetPolicy {
    /// In: bytes of this structure.
    pub size: u32,
    /// In: zero.
    pub flags: u32,
    /// In: first address, page-aligned.
    pub addr: u64,
    /// In: bytes, whole pages, not zero. The range lies below 2^48.
    pub len: u64,
    /// In: see [`Policy`].
    pub policy: Policy,
    /// In: zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SetPolicy>() == 32);

/// How an atomic on a page is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Policy(pub u32);

impl Policy {
    /// By exclusive access; memory that can't be exclusive gives NOT_EXCLUSIVE. What no policy was set for.
    pub const EXCLUSIVE: Policy = Policy(0);
    /// By single atomic instructions on memory that is always shared with the CPU.
    pub const COHERENT: Policy = Policy(1);
    /// By exclusive access where the memory allows it, else as [`COHERENT`](Self::COHERENT).
    pub const AUTO: Policy = Policy(2);

    /// Every policy.
    pub const ALL: [(&'static str, Policy); 3] =
        [("EXCLUSIVE", Self::EXCLUSIVE), ("COHERENT", Self::COHERENT), ("AUTO", Self::AUTO)];

    /// Whether there is such a policy.
    pub const fn is_known(self) -> bool {
        self.0 <= Self::AUTO.0
    }
}

/// Most ranges of a context that have a policy other than [`Policy::EXCLUSIVE`]. Neighbours with the same policy are
/// one range.
pub const MAX_POLICIES: usize = 1024;
