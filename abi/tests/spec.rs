// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! The tables of docs/spec.md say what the constants say: every row is a constant of that value, and
//! every constant has its row.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use svmx_abi::control::{self, ControlEntry, ControlOpcode};
use svmx_abi::fault::FaultRecord;
use svmx_abi::queue::{Condition, Cqe, Opcode, Sqe, SqeFlags};
use svmx_abi::regs::{self, Counter, FatalError};
use svmx_abi::status::Status;
use svmx_abi::{doorbell, pci, uapi};

/// Name to value, from the table whose header row begins with `first` and whose value stands in `column`.
fn spec_table(first: &str, column: &str) -> BTreeMap<String, u64> {
    rows(first)
        .into_iter()
        .map(|row| (row[first].trim_matches('`').to_owned(), number(&row[column])))
        .collect()
}

/// The rows of the table whose header row begins with `first`, as column name to cell.
fn rows(first: &str) -> Vec<BTreeMap<String, String>> {
    let spec = include_str!("../../docs/spec.md");
    let mut found = Vec::new();
    let mut lines = spec.lines();
    while let Some(line) = lines.next() {
        let header = cells(line);
        if header.first().map(String::as_str) != Some(first) {
            continue;
        }
        let rule = lines.next().expect("a table has a rule below its header");
        assert!(rule.starts_with("|---"), "no rule below the header of `{first}`: {rule}");
        found.extend(
            lines
                .by_ref()
                .map_while(|line| line.starts_with('|').then(|| cells(line)))
                .map(|row| header.iter().cloned().zip(row).collect()),
        );
    }
    assert!(!found.is_empty(), "docs/spec.md has no table headed `{first}`");
    found
}

fn cells(line: &str) -> Vec<String> {
    match line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
        Some(inner) => inner.split('|').map(|cell| cell.trim().to_owned()).collect(),
        None => Vec::new(),
    }
}

fn number(cell: &str) -> u64 {
    let parsed = match cell.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => cell.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("not a number in docs/spec.md: `{cell}`"))
}

/// A table of constants, by the names they have in the source.
macro_rules! constants {
    ($module:path: $($name:ident),* $(,)?) => {{
        use $module as m;
        BTreeMap::from([$((stringify!($name).to_owned(), m::$name as u64)),*])
    }};
}

/// A table of `(offset, bytes)` of a structure's fields.
macro_rules! fields {
    ($ty:ident: $($field:ident),* $(,)?) => {{
        let zero = $ty::default();
        // Naming every field without `..` makes a field that the test forgets an error.
        let $ty { $($field),* } = zero;
        BTreeMap::from([$((
            stringify!($field).to_owned(),
            (offset_of!($ty, $field) as u64, size_of_val(&$field) as u64),
        )),*])
    }};
}

fn spec_fields(first: &str) -> BTreeMap<String, (u64, u64)> {
    let offsets = spec_table(first, "Offset");
    let bytes = spec_table(first, "Bytes");
    offsets.into_iter().map(|(name, offset)| (name.clone(), (offset, bytes[&name]))).collect()
}

#[test]
fn pci_constants() {
    let expected = constants!(pci:
        VENDOR_ID, DEVICE_ID, REVISION_ID, CLASS_CODE, BAR_REGS, BAR_REGS_SIZE, BAR_DOORBELLS,
        BAR_DOORBELLS_SIZE, BAR_MSIX, BAR_MSIX_SIZE, MSIX_TABLE_OFFSET, MSIX_PBA_OFFSET, NUM_VECTORS,
        VECTOR_FAULT, VECTOR_EVENT, VECTOR_COMPLETION_FIRST, MAX_QUEUES, MAX_CONTEXTS, MIN_RING_LOG2,
        MAX_RING_LOG2, PAGE_SIZE, VA_BITS,
    );
    assert_eq!(spec_table("Constant", "Value"), expected);
}

#[test]
fn registers() {
    let expected = constants!(regs:
        MAGIC, VERSION, OPCODES, BULK_OPCODES, MAX_CONTEXTS, MAX_QUEUES, MAX_RING_LOG2, VA_BITS,
        NUM_ENGINES, NUM_VECTORS, CONTROL, STATUS, FATAL_ERROR, KICK, CTL_BASE, CTL_LOG2, FAULT_BASE,
        FAULT_LOG2, LOOKAHEAD, COUNTERS,
    );
    assert_eq!(spec_table("Register", "Offset"), expected);
    let magic = rows("Register").into_iter().find(|row| row["Register"] == "`MAGIC`").unwrap();
    assert!(magic["Meaning"].starts_with(&format!("{:#x}", regs::MAGIC_VALUE)));
    assert!(include_str!("../../docs/spec.md").contains(&format!(
        "this page is {}.{}",
        regs::Version::CURRENT.major(),
        regs::Version::CURRENT.minor()
    )));
}

#[test]
fn counters_and_fatal_errors() {
    let counters = Counter::ALL.map(|counter| (format!("{counter:?}"), counter as u64));
    assert_eq!(spec_table("Counter", "Number"), BTreeMap::from(counters));
    let fatal = [
        FatalError::None,
        FatalError::BadRing,
        FatalError::BadControlTail,
        FatalError::BadNotifyAddress,
        FatalError::RingLost,
        FatalError::BadFaultHead,
    ]
    .map(|error| (format!("{error:?}"), error as u64));
    assert_eq!(spec_table("Fatal error", "Value"), BTreeMap::from(fatal));
}

#[test]
fn doorbell_words() {
    assert_eq!(
        spec_table("Word of a queue's page", "Offset"),
        constants!(doorbell::queue: SQ_TAIL, CQ_HEAD, NEED_KICK, CQ_ARM)
    );
    assert_eq!(
        spec_table("Word of the driver's page", "Offset"),
        constants!(doorbell::driver: CTL_TAIL, FAULT_HEAD, NEED_KICK, FAULT_ARM, CTL_HEAD)
    );
}

#[test]
fn entries() {
    assert_eq!(
        spec_fields("Field of a submission"),
        fields!(Sqe: opcode, width, flags, tag, addr, operand, compare, count, stride, index_addr, arg0, arg1)
    );
    assert_eq!(
        spec_fields("Field of a completion"),
        fields!(Cqe: head, result, applied, sq_head, fault_addr)
    );
    assert_eq!(
        spec_fields("Field of a fault record"),
        fields!(FaultRecord: head, asid, fault_id, va, tag, pages, reserved)
    );
    assert_eq!(
        spec_fields("Field of a control entry"),
        fields!(ControlEntry: opcode, flags, reserved0, reserved1, notify_addr, notify_value, body)
    );
}

#[test]
fn opcodes_flags_and_status() {
    let opcodes = Opcode::ALL.map(|(name, opcode)| (name.to_owned(), u64::from(opcode.0)));
    assert_eq!(spec_table("Opcode", "Value"), BTreeMap::from(opcodes));
    let control = ControlOpcode::ALL.map(|(name, opcode)| (name.to_owned(), u64::from(opcode.0)));
    assert_eq!(spec_table("Control opcode", "Value"), BTreeMap::from(control));
    let flags = SqeFlags::ALL.map(|(name, flag)| (name.to_owned(), u64::from(flag.0.trailing_zeros())));
    assert_eq!(spec_table("Flag", "Bit"), BTreeMap::from(flags));
    let status = Status::ALL.map(|(name, status, _)| (name.to_owned(), u64::from(status.0)));
    assert_eq!(spec_table("Status", "Value"), BTreeMap::from(status));
    let conditions = Condition::ALL.map(|condition| (format!("{condition:?}"), condition as u64));
    assert_eq!(spec_table("Condition", "Number"), BTreeMap::from(conditions));
}

#[test]
fn statuses_that_a_cancel_may_carry() {
    for row in rows("Status") {
        let name = row["Status"].trim_matches('`');
        let (_, status, _) = Status::ALL.into_iter().find(|(known, ..)| *known == name).unwrap();
        assert_eq!(row["Meaning"].ends_with("by CANCEL"), status.may_cancel(), "{name}");
    }
}

#[test]
fn control_bodies() {
    /// The fields of a body that are not reserved, as docs/spec.md lists them.
    macro_rules! body {
        ($ty:ident: $($field:ident),* ; $($reserved:ident),*) => {{
            let control::$ty { $($field: _,)* $($reserved: _),* } = control::$ty::default();
            (ControlEntry::from(control::$ty::default()).opcode, vec![$(stringify!($field)),*])
        }};
    }
    let bodies: [(ControlOpcode, Vec<&str>); 8] = [
        body!(CreateContext: asid, root; reserved0, reserved1),
        body!(DestroyContext: asid; reserved0, reserved1),
        body!(CreateQueue: queue, asid, sq_base, cq_base, sq_log2, cq_log2, vector; reserved0, reserved1),
        body!(DestroyQueue: queue; reserved0, reserved1),
        body!(Replay: queue, fault_id, pte; reserved),
        body!(Cancel: queue, fault_id, status; reserved0, reserved1),
        body!(TlbInvalidate: asid, va, len; reserved0, reserved1),
        body!(Sync: ; reserved),
    ];
    for row in rows("Control opcode") {
        let value = number(&row["Value"]);
        let (_, fields) = bodies.iter().find(|(opcode, _)| u64::from(opcode.0) == value).unwrap();
        let listed: Vec<&str> = row["Body"].split('`').skip(1).step_by(2).collect();
        assert_eq!(&listed, fields, "{}", row["Control opcode"]);
    }
}

#[test]
fn ioctls() {
    let numbers = spec_table("ioctl", "Number");
    let bytes = spec_table("ioctl", "Bytes");
    let expected: BTreeMap<String, u64> = constants!(uapi:
        IOC_INFO, IOC_QUEUE_CREATE, IOC_QUEUE_DESTROY, IOC_KICK, IOC_WAIT, IOC_STATS,
        IOC_ACQUIRE_EXCLUSIVE, IOC_RELEASE, IOC_POLICY,
    );
    assert_eq!(numbers.len(), expected.len());
    let listed: BTreeSet<u64> = uapi::IOCTLS.map(u64::from).into();
    assert_eq!(listed, expected.values().copied().collect());
    for (name, encoded) in expected {
        let iowr = (3 << 30) | (bytes[&name] << 16) | (u64::from(uapi::IOC_TYPE) << 8) | numbers[&name];
        assert_eq!(encoded, iowr, "{name}");
    }
}

#[test]
fn policies() {
    let expected = uapi::Policy::ALL.map(|(name, policy)| (name.to_owned(), policy.0.into()));
    assert_eq!(spec_table("Policy", "Value"), BTreeMap::from(expected));
    let spec = include_str!("../../docs/spec.md");
    assert!(spec.contains(&format!("{} ranges (`MAX_POLICIES`)", uapi::MAX_POLICIES)));
    assert!(spec.contains(&format!("{} pages (`MAX_ACQUIRE_PAGES`)", uapi::MAX_ACQUIRE_PAGES)));
    assert!(!uapi::Policy(uapi::Policy::ALL.len() as u32).is_known());
}
