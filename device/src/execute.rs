// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of commands, access by access.
//!
//! A [`Work`] is a command and how far it has come. [`Work::next`] names the one access that comes next;
//! whoever has translated it performs it with [`Memory::perform`], which is all that changes progress.
//! So an access is done exactly once, by an engine or, on a REPLAY, by the control thread, and there
//! is nothing to undo when a translation is missing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use svmx_abi::fault::AccessKind;
use svmx_abi::pci::{PAGE_SHIFT, VA_END};
use svmx_abi::status::Status;

use crate::command::{Addressing, Atomic, AtomicOp, Bulk, Command, Target, Width};
use crate::memory::Page;

/// A command in progress.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    command: Command,
    /// Elements applied.
    pub applied: u32,
    /// Scalar READ and atomics: the old value.
    pub result: u64,
    /// The index of element `applied`, once it has been read.
    index: Option<u64>,
    /// Set if the command ends before its elements do: status and address.
    ended: Option<(Status, u64)>,
}

/// What a command needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One access to memory.
    Access(Access),
    /// Nothing: status and address for its completion.
    End(Status, u64),
}

/// One access to memory: aligned, so inside one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Virtual address, below 2^48.
    pub va: u64,
    /// Permission that it needs.
    pub kind: AccessKind,
    width: Width,
    to: To,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Index,
    Load,
    Store(u64),
    Atomic(Atomic),
}

impl Access {
    /// Whether it may change memory.
    pub fn writes(&self) -> bool {
        self.kind != AccessKind::READ
    }
}

impl Work {
    /// A command that has not begun.
    pub fn new(command: Command) -> Self {
        Work { command, applied: 0, result: 0, index: None, ended: None }
    }

    /// One that is over before it begins.
    pub fn refused(status: Status, va: u64) -> Self {
        Work { ended: Some((status, va)), ..Work::new(Command::Nop) }
    }

    /// Ends the command early; what has been applied stays.
    pub fn end(&mut self, status: Status, va: u64) {
        self.ended = Some((status, va));
    }

    /// What comes next.
    #[inline]
    pub fn next(&self) -> Next {
        if let Some((status, va)) = self.ended {
            return Next::End(status, va);
        }
        let (target, kind, to) = match self.command {
            Command::Bulk(bulk) => return self.next_in_bulk(&bulk),
            Command::Nop => return Next::End(Status::SUCCESS, 0),
            Command::Fence => {
                // spec 10.5: everything before was made by this queue's commands, in order.
                fence(Ordering::SeqCst);
                return Next::End(Status::SUCCESS, 0);
            }
            Command::Read(target) => (target, AccessKind::READ, To::Load),
            Command::Write(target, value) => (target, AccessKind::WRITE, To::Store(value)),
            Command::Atomic(target, atomic) => (target, AccessKind::ATOMIC, To::Atomic(atomic)),
        };
        if self.applied > 0 {
            return Next::End(Status::SUCCESS, 0);
        }
        let Target { va, width } = target;
        Next::Access(Access { va, kind, width, to })
    }

    #[inline]
    fn next_in_bulk(&self, bulk: &Bulk) -> Next {
        if self.applied >= bulk.count {
            return Next::End(Status::SUCCESS, 0);
        }
        // In 128 bits nothing wraps: spec 5.5.
        let i = i128::from(self.applied);
        let va = match (bulk.addressing, self.index) {
            (Addressing::Stride(stride), _) => i128::from(bulk.base) + i * i128::from(stride),
            (Addressing::Indexed { .. }, Some(index)) => {
                i128::from(bulk.base) + i128::from(index) * i128::from(bulk.width.bytes())
            }
            (Addressing::Indexed { array, index }, None) => {
                let va = i128::from(array) + i * i128::from(index.bytes());
                return in_range(va, |va| Access { va, kind: AccessKind::READ, width: index, to: To::Index });
            }
        };
        let (kind, width, to) = (AccessKind::ATOMIC, bulk.width, To::Atomic(bulk.atomic));
        in_range(va, |va| Access { va, kind, width, to })
    }

    #[inline]
    fn apply(&mut self, access: &Access, value: u64) {
        if access.to == To::Index {
            self.index = Some(value);
            return;
        }
        self.applied += 1;
        self.index = None;
        if !matches!(self.command, Command::Bulk(_)) {
            self.result = value;
        }
    }
}

#[inline]
fn in_range(va: i128, access: impl FnOnce(u64) -> Access) -> Next {
    match u64::try_from(va) {
        Ok(va) if va < VA_END => Next::Access(access(va)),
        // The low 64 bits, for those who look for the reason.
        _ => Next::End(Status::ADDRESS_RANGE, va as u64),
    }
}

/// Locks by guest-physical page, so that two contexts which map one page meet at one lock. Not by
/// host address: while a new snapshot spreads, two engines may know a page by two of those.
const STRIPES: usize = 1024;

/// Alone in its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(Mutex<()>);

/// How the device gets at memory.
#[derive(Debug)]
pub struct Memory {
    stripes: Box<[Stripe]>,
    rmw_delay: Duration,
}

impl Memory {
    /// With a time to let pass between the read and the write of an atomic on an *atomic* page.
    pub fn new(rmw_delay: Duration) -> Self {
        Memory { stripes: (0..STRIPES).map(|_| Stripe::default()).collect(), rmw_delay }
    }

    /// Performs `work`'s next access on the page it was translated to, whose permission suffices.
    #[inline]
    pub fn perform(&self, work: &mut Work, access: &Access, page: Page<'_>) {
        let old = match access.width {
            Width::W32 => u64::from(self.access32(access, page)),
            Width::W64 => self.access64(access, page),
        };
        work.apply(access, old);
    }

    fn stripe(&self, page: Page<'_>) -> &Mutex<()> {
        &self.stripes[(page.frame() >> PAGE_SHIFT) as usize % STRIPES].0
    }

    fn delay(&self) {
        if !self.rmw_delay.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.rmw_delay {
                std::hint::spin_loop();
            }
        }
    }
}

macro_rules! width {
    ($access:ident, $word:ident, $ty:ty, $atomic:ty, $signed:ty, $float:ty, $coherent:ident, $compute:ident) => {
        impl Memory {
            /// spec 6.3. Loads acquire and stores release, so that effects are seen in order (spec 10.1, 10.2).
            #[inline]
            fn $access(&self, access: &Access, page: Page<'_>) -> $ty {
                let word = page.$word(access.va);
                let coherent = page.access().coherent;
                match access.to {
                    To::Index | To::Load => word.load(Ordering::Acquire),
                    To::Store(value) => {
                        // Not between the read and the write of another engine's atomic.
                        let exclusive = page.access().atomic && !coherent;
                        let _serialized = exclusive.then(|| self.stripe(page).lock());
                        word.store(value as $ty, Ordering::Release);
                        0
                    }
                    To::Atomic(atomic) if coherent => $coherent(word, &atomic),
                    To::Atomic(atomic) => {
                        // What device hardware does: two transactions, serialized in the device only.
                        let _serialized = self.stripe(page).lock();
                        let old = word.load(Ordering::Acquire);
                        let new = $compute(&atomic, old);
                        self.delay();
                        word.store(new, Ordering::Release);
                        old
                    }
                }
            }
        }

        /// The element's new value (spec 5.2).
        fn $compute(atomic: &Atomic, old: $ty) -> $ty {
            let operand = atomic.operand as $ty;
            match atomic.op {
                AtomicOp::Add => old.wrapping_add(operand),
                AtomicOp::And => old & operand,
                AtomicOp::Or => old | operand,
                AtomicOp::Xor => old ^ operand,
                AtomicOp::Umin => old.min(operand),
                AtomicOp::Umax => old.max(operand),
                AtomicOp::Smin => (old as $signed).min(operand as $signed) as $ty,
                AtomicOp::Smax => (old as $signed).max(operand as $signed) as $ty,
                AtomicOp::Swap => operand,
                AtomicOp::Cas if old == atomic.compare as $ty => operand,
                AtomicOp::Cas => old,
                AtomicOp::Fadd => (<$float>::from_bits(old) + <$float>::from_bits(operand)).to_bits(),
            }
        }

        /// One atomic instruction of the host, or a loop around compare-and-swap; the old value.
        fn $coherent(word: &$atomic, atomic: &Atomic) -> $ty {
            const ORDER: Ordering = Ordering::SeqCst;
            let operand = atomic.operand as $ty;
            match atomic.op {
                AtomicOp::Add => word.fetch_add(operand, ORDER),
                AtomicOp::And => word.fetch_and(operand, ORDER),
                AtomicOp::Or => word.fetch_or(operand, ORDER),
                AtomicOp::Xor => word.fetch_xor(operand, ORDER),
                AtomicOp::Swap => word.swap(operand, ORDER),
                AtomicOp::Umin => word.fetch_min(operand, ORDER),
                AtomicOp::Umax => word.fetch_max(operand, ORDER),
                AtomicOp::Cas => match word.compare_exchange(atomic.compare as $ty, operand, ORDER, ORDER) {
                    Ok(old) | Err(old) => old,
                },
                AtomicOp::Smin | AtomicOp::Smax | AtomicOp::Fadd => {
                    let mut old = word.load(Ordering::Relaxed);
                    loop {
                        match word.compare_exchange_weak(old, $compute(atomic, old), ORDER, ORDER) {
                            Ok(old) => return old,
                            Err(seen) => old = seen,
                        }
                    }
                }
            }
        }
    };
}

width!(access32, word32, u32, AtomicU32, i32, f32, coherent32, compute32);
width!(access64, word64, u64, AtomicU64, i64, f64, coherent64, compute64);

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(addressing: Addressing, base: u64, count: u32) -> Work {
        let atomic = Atomic { op: AtomicOp::Add, operand: 1, compare: 0 };
        Work::new(Command::Bulk(Bulk { atomic, width: Width::W64, base, count, addressing }))
    }

    fn va(next: Next) -> u64 {
        let Next::Access(access) = next else { panic!("{next:?}") };
        access.va
    }

    #[test]
    fn strides_go_both_ways_and_never_wrap() {
        let mut work = bulk(Addressing::Stride(-8), 8, 3);
        for expected in [8, 0] {
            assert_eq!(va(work.next()), expected);
            work.applied += 1;
        }
        assert_eq!(work.next(), Next::End(Status::ADDRESS_RANGE, 8u64.wrapping_neg()));
        let work = bulk(Addressing::Stride(8), u64::MAX - 7, 1);
        assert_eq!(work.next(), Next::End(Status::ADDRESS_RANGE, u64::MAX - 7));
        assert_eq!(bulk(Addressing::Stride(8), u64::MAX - 7, 0).next(), Next::End(Status::SUCCESS, 0));
    }

    #[test]
    fn an_index_is_read_once_per_element() {
        let mut work = bulk(Addressing::Indexed { array: 0x2000, index: Width::W32 }, 0x8000, 2);
        let Next::Access(read) = work.next() else { panic!() };
        assert_eq!((read.va, read.kind), (0x2000, AccessKind::READ));
        work.apply(&read, 5);
        let Next::Access(add) = work.next() else { panic!() };
        assert_eq!((add.va, add.kind), (0x8000 + 5 * 8, AccessKind::ATOMIC));
        work.apply(&add, 99);
        assert_eq!((va(work.next()), work.applied, work.result), (0x2004, 1, 0));
        work.apply(&read, u64::MAX);
        assert!(matches!(work.next(), Next::End(Status::ADDRESS_RANGE, _)));
    }

    #[test]
    fn signs_and_widths() {
        let atomic = |op, operand| Atomic { op, operand, compare: 0 };
        let minus_one = u64::from(u32::MAX);
        assert_eq!(compute32(&atomic(AtomicOp::Smin, minus_one), 1), u32::MAX);
        assert_eq!(compute32(&atomic(AtomicOp::Umin, minus_one), 1), 1);
        assert_eq!(compute64(&atomic(AtomicOp::Smin, minus_one), 1), 1);
        assert_eq!(compute32(&atomic(AtomicOp::Add, 1), u32::MAX), 0);
        assert_eq!(compute64(&atomic(AtomicOp::Fadd, 1.5f64.to_bits()), 2.0f64.to_bits()), 3.5f64.to_bits());
    }
}
