// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rubbish in everything that a guest can write: the device refuses, stops or goes on, but never panics,
//! hangs, or writes where nothing allows it.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use svmx_abi::control::{ControlEntry, ControlFlags, ControlOpcode, Sync};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe, SqeFlags, WidthLog2};
use svmx_abi::regs::{self, Control};
use svmx_abi::status::Status;
use svmx_device::device::Region;

use mock_driver::{Mock, UserQueue, add};

const VA: u64 = 0x7000_0000;

/// Numbers that are near something, or anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x40u64,
        any::<u64>(),
        (0..=64u32, 0..17u64).prop_map(|(bit, less)| 1u64
            .checked_shl(bit)
            .unwrap_or(0)
            .wrapping_sub(8)
            .wrapping_add(less)),
        (0..0x40u64).prop_map(|page| page * PAGE_SIZE),
        (0..0x400u64).prop_map(|word| VA + 8 * word),
    ]
}

fn sqe() -> impl Strategy<Value = Sqe> {
    let ids = (0..0x2au8, 0..5u8, 0..0x40u16, any::<bool>());
    (ids, number(), number(), number(), 0..2000u32, any::<i16>(), (number(), number())).prop_map(
        |((opcode, width, flags, tidy), addr, operand, compare, count, stride, (index_addr, arg0))| {
            let bulk = flags & 1 != 0;
            Sqe {
                opcode: Opcode(opcode),
                width: WidthLog2(width),
                flags: SqeFlags(if tidy { flags & 0x1f } else { flags }),
                addr,
                operand,
                compare: if tidy { 0 } else { compare },
                count: if tidy && !bulk { 0 } else { count },
                stride: if tidy { i32::from(stride) & !7 } else { stride.into() },
                index_addr: if tidy && flags & 2 == 0 { 0 } else { index_addr },
                arg0: if tidy && opcode < 0x20 && flags & 0x10 == 0 { 0 } else { arg0 },
                // A WAIT without end would be one: no more than a moment.
                arg1: 0,
                ..Default::default()
            }
        },
    )
}

fn control() -> impl Strategy<Value = ControlEntry> {
    (0..0x15u8, 0..2u8, number(), prop::array::uniform5(number())).prop_map(
        |(opcode, flags, notify, body)| ControlEntry {
            opcode: ControlOpcode(opcode),
            flags: ControlFlags(flags & !u8::from(opcode % 4 != 0)),
            notify_addr: notify,
            body,
            ..Default::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]

    /// A process that writes what it likes harms nobody else: another queue works, and no memory changes but
    /// what its page table allows.
    #[test]
    fn a_hostile_process_harms_itself(
        program in prop::collection::vec(sqe(), 1..80),
        words in prop::collection::vec((0..0x40u64, any::<u32>()), 0..4),
        ptes in prop::collection::vec((0..512u64, number()), 0..8),
    ) {
        let mock = Mock::new();
        let (space, victim) = (mock.space(), mock.space());
        let (mine, theirs) = (mock.pages(1), mock.pages(1));
        let guard = mock.pages(4);
        mock.map(space, VA, Pte::leaf(mine, Access::EXCLUSIVE));
        mock.map(victim, VA, Pte::leaf(theirs, Access::EXCLUSIVE));
        for (index, bits) in ptes {
            // Read-only rubbish: what it allows must not be more than reading.
            let table = mock.pte_at(space, VA, 0) & !0xfff;
            if index != 0 {
                mock.ram64(table + 8 * index).store(bits & !0x1c, Ordering::Release);
            }
        }
        let mut bad = UserQueue::new(&mock, space);
        let mut good = UserQueue::new(&mock, victim);
        for (at, sqe) in program.into_iter().enumerate() {
            bad.submit(sqe);
            if at % 8 == 0 {
                prop_assert_eq!(good.run(add(VA, 1)).head.status(), Status::SUCCESS);
            }
            while let Some(fault) = mock.fault() {
                let (queue, fault_id, status) = (fault.head.queue(), fault.fault_id, Status::FAULT);
                mock.post(svmx_abi::control::Cancel { queue, fault_id, status, ..Default::default() });
            }
            while bad.take().is_some() {}
        }
        for (word, value) in words {
            mock.ring(bad.id, 4 * word, value);
        }
        let before = mock.ram64(theirs).load(Ordering::Relaxed);
        prop_assert_eq!(good.run(add(VA, 1)).head.status(), Status::SUCCESS);
        prop_assert_eq!(mock.ram64(theirs).load(Ordering::Relaxed), before + 1);
        for at in (0..4 * PAGE_SIZE).step_by(8) {
            prop_assert_eq!(mock.ram64(guard + at).load(Ordering::Relaxed), 0);
        }
        bad.destroy();
    }

    /// A driver that writes what it likes stops itself at most: a reset brings the device back.
    #[test]
    fn a_hostile_driver_stops_itself(
        entries in prop::collection::vec(control(), 1..60),
        doorbells in prop::collection::vec((0..5u32, 0..0x50u64, any::<u32>()), 0..6),
        registers in prop::collection::vec((0..0x130u64, number(), 0..9usize), 0..12),
        config in prop::collection::vec((0..0x120u64, any::<[u8; 4]>()), 0..6),
    ) {
        let mock = Mock::new();
        for (at, entry) in entries.into_iter().enumerate() {
            if mock.read(regs::STATUS, 4) == 1 {
                mock.post_raw(entry);
            }
            if let Some((page, word, value)) = doorbells.get(at) {
                mock.ring(*page, 4 * word, *value);
            }
        }
        for (offset, value, size) in registers {
            mock.write(offset, value, size.min(8));
            let mut data = vec![0; size];
            mock.device.lock().read(Region::Registers, offset, &mut data);
        }
        for (offset, bytes) in config {
            mock.device.lock().write(Region::Config, offset, &bytes);
        }
        mock.device.lock().reset();
        mock.write(regs::CONTROL, Control::RESET.0.into(), 4);
        // What the rubbish left in memory is not the next driver's.
        mock.rewind();
        mock.start();
        let space = mock.space();
        let frame = mock.pages(1);
        mock.map(space, VA, Pte::leaf(frame, Access::EXCLUSIVE));
        prop_assert_eq!(UserQueue::new(&mock, space).run(add(VA, 3)).head.status(), Status::SUCCESS);
        prop_assert_eq!(mock.ram64(frame).load(Ordering::Relaxed), 3);
        prop_assert_eq!(mock.control(Sync::default()), Status::SUCCESS);
    }
}
