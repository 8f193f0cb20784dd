// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The inputs that fuzzing starts from, written as what they mean: one for each command, control entry and
//! act, so that all of them are in reach of a mutation. `tests/replay.rs` keeps `corpus/` equal to them.

use svmx_abi::control::ControlOpcode;
use svmx_abi::queue::Opcode;

use crate::input::VA;

/// A seed: its target, its name, its bytes.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The target.
    pub target: &'static str,
    /// File name in the target's corpus.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

// The acts of `Scene::play`.
const SUBMIT: u8 = 0;
const DOORBELL: u8 = 1;
const CONSUME: u8 = 3;
const ANSWER: u8 = 4;
const CHANGE: u8 = 5;
const CONTROL: u8 = 6;
const TABLE: u8 = 8;
const SCRIBBLE_ANYWHERE: u8 = 9;
const WRITE: u8 = 10;
const READ: u8 = 11;
const KICK: u8 = 12;
const MAP: u8 = 13;
const UNMAP: u8 = 14;
const RESET: u8 = 15;
const INTERRUPTS: u8 = 16;
const RESTART: u8 = 17;
const CONVERSE: u8 = 18;

/// An input under construction. The methods write what those of [`crate::input::Input`] read.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn small(self, value: u8) -> Self {
        self.put(&[0, value])
    }
    fn pair(self, low: u8, high: i8) -> Self {
        self.put(&[1, low, high as u8])
    }
    fn va(self, offset: u16) -> Self {
        self.put(&[2]).put(&offset.to_le_bytes())
    }
    fn frame(self, page: u8) -> Self {
        self.put(&[3, page])
    }
    fn any(self, value: u64) -> Self {
        self.put(&[7]).put(&value.to_le_bytes())
    }

    /// A scalar command on the first queue, 64 bits wide.
    fn scalar(self, opcode: Opcode, page: u16) -> Self {
        self.put(&[SUBMIT, 0, code(opcode), 3, 0, 0b110]).va(page << 12).small(5)
    }
    /// The bulk form by stride.
    fn strided(self, opcode: Opcode, flags: u8) -> Self {
        let present = if flags & 8 != 0 { 0b1001_0110 } else { 0b1_0110 };
        let begun = self.put(&[SUBMIT, 0, code(opcode), 3, 1 | flags, present]).va(0x1000);
        let operand = if flags & 8 != 0 { begun.va(0x2000) } else { begun.small(1) };
        let bulk = operand.pair(40, 8);
        if flags & 8 != 0 { bulk.va(0x4000) } else { bulk }
    }
    /// The bulk form by an array of indices.
    fn indexed(self, opcode: Opcode, flags: u8) -> Self {
        let begun = self.put(&[SUBMIT, 1, code(opcode), 2, 1 | 2 | flags, 0b11_0110]).va(0x1000).small(1);
        begun.pair(20, 0).va(0x2000)
    }
    /// What every process does now and then.
    fn rest(self) -> Self {
        self.put(&[ANSWER, 3, 0, CONSUME, 0, CONSUME, 1])
    }
}

/// The byte that stands for an opcode: its place in the abi's list.
fn code(opcode: Opcode) -> u8 {
    Opcode::ALL.iter().position(|(_, other)| *other == opcode).map_or(0xe0, |at| at as u8)
}

/// All seeds.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Bytes| {
        seeds.push(Seed { target, name: name.to_ascii_lowercase(), bytes: bytes.0 });
    };
    for (name, bytes) in process() {
        // Even: the process alone is hostile. Odd: its driver too.
        add("memory", &format!("process-{name}"), Bytes(vec![0]).put(&bytes.0));
        add("sequences", &format!("process-{name}"), bytes);
    }
    for (name, bytes) in driver() {
        add("memory", &format!("driver-{name}"), Bytes(vec![1]).put(&bytes.0));
    }
    for (name, bytes) in messages() {
        // Even: VERSION is sent first.
        add("messages", name, Bytes(vec![0]).put(&bytes.0));
        add("sequences", &format!("message-{name}"), Bytes(vec![CONVERSE]).put(&bytes.0));
    }
    add("messages", "version", Bytes(vec![1]).put(&[0, 1, 0, 0, 3]).put(b"{}\0"));
    add("messages", "early", Bytes(vec![1]).put(&[0, 4, 0, 0]));
    for (name, bytes) in registers() {
        add("registers", name, bytes);
    }
    for (name, bytes) in host() {
        add("sequences", name, bytes);
    }
    seeds
}

fn process() -> Vec<(String, Bytes)> {
    let mut seeds = Vec::new();
    for (name, opcode) in Opcode::ALL {
        let scalar = Bytes::default().scalar(opcode, 0).scalar(opcode, 1).scalar(opcode, 6).rest();
        let bulk = scalar.clone().strided(opcode, 0).strided(opcode, 8).indexed(opcode, 0).rest();
        seeds.push((name.to_owned(), scalar));
        seeds.push((format!("{name}-bulk"), bulk));
    }
    let add = Opcode::FETCH_ADD;
    let fault = |kind| Bytes::default().strided(add, 0).scalar(add, 7).put(&[ANSWER, kind, 0]).rest();
    seeds.push(("cancel".to_owned(), fault(0)));
    seeds.push(("replay".to_owned(), fault(1)));
    seeds.push(("grant".to_owned(), fault(3)));
    let revoked = Bytes::default().strided(add, 0).put(&[CHANGE, 1, 0x80, CHANGE, 1, 0x85 | 0x38]).rest();
    seeds.push(("revoked".to_owned(), revoked));
    let bad = Bytes::default().scalar(add, 0).put(&[DOORBELL, 0, 0]).any(u64::MAX).rest();
    seeds.push(("bad-doorbell".to_owned(), bad));
    seeds.push(("armed".to_owned(), Bytes::default().put(&[DOORBELL, 0, 12]).small(1).scalar(add, 0).rest()));
    seeds.push(("read-only-map".to_owned(), Bytes::default().scalar(add, 8).scalar(add, 9).rest()));
    seeds
}

fn driver() -> Vec<(String, Bytes)> {
    let mut seeds = Vec::new();
    for (at, (name, _)) in ControlOpcode::ALL.iter().enumerate() {
        // Body words 0 to 2, with a completion word.
        let entry = Bytes::default().put(&[CONTROL, at as u8, 1, 0b111]).pair(1, 1).frame(2).frame(3);
        seeds.push(((*name).to_owned(), entry.scalar(Opcode::FETCH_ADD, 0).rest()));
    }
    for level in 0..4 {
        let table = Bytes::default().put(&[TABLE, level, 0, 0, 3]).put(&[TABLE, level, 1, 1 | 0x3c, 4]);
        let used = table.scalar(Opcode::FETCH_ADD, 0).scalar(Opcode::WRITE, 1).rest();
        seeds.push((format!("table-{level}"), used));
    }
    let scribbled = Bytes::default().put(&[SCRIBBLE_ANYWHERE, 0, 2]).any(0x1111_2222_3333_4444);
    seeds.push(("scribble".to_owned(), scribbled.scalar(Opcode::FETCH_ADD, 0).rest()));
    seeds
}

/// Each is one message or a few: how it is sent, its command, its payload's fields.
fn messages() -> Vec<(&'static str, Bytes)> {
    let say = |bytes: &[u8]| Bytes::default().put(bytes);
    const ONE_FD: u8 = 2 << 6;
    const MANY_FDS: u8 = 3 << 6;
    vec![
        ("version-again", say(&[0, 1, 0, 0, 3]).put(b"{}\0")),
        ("map", say(&[ONE_FD, 2, 0, 3, 0, 0, 16])),
        ("map-without-memory", say(&[0, 2, 0, 3, 0, 0, 16])),
        ("map-short-file", say(&[ONE_FD, 2, 0, 3, 1, 0, 16])),
        ("map-wraps", say(&[ONE_FD, 2, 0, 3, 0, 255]).any(!0xfff).put(&[2])),
        ("map-twice", say(&[ONE_FD, 2, 0, 1, 0, 0, 4, ONE_FD, 2, 0, 1, 0, 2, 4])),
        ("unmap", say(&[ONE_FD, 2, 0, 3, 0, 0, 4, 0, 3, 0, 0, 0, 4])),
        ("unmap-part", say(&[ONE_FD, 2, 0, 3, 0, 0, 4, 0, 3, 0, 0, 0, 2])),
        ("unmap-all", say(&[ONE_FD, 2, 0, 3, 0, 0, 4, 0, 3, 0, 2, 0, 0])),
        ("device-info", say(&[0, 4, 0, 0])),
        ("region-info", say(&[0, 5, 0, 2])),
        ("region-info-short", say(&[0, 5, 32, 2])),
        ("region-io-fds", say(&[0, 6, 0, 0])),
        ("irq-info", say(&[0, 7, 0, 2])),
        ("irqs-off", say(&[0, 8, 0x21, 2, 0, 0, 0])),
        ("irqs-one", say(&[ONE_FD, 8, 0x24, 2, 1, 1, 0])),
        ("irqs-all", say(&[MANY_FDS, 16, 8, 0x24, 2, 0, 16, 0])),
        ("irqs-bool", say(&[0, 8, 0x22, 2, 0, 2, 2, 1, 0])),
        ("too-many-fds", say(&[MANY_FDS, 19, 2, 0, 3, 0, 0, 4])),
        ("read", say(&[0, 9, 0]).small(0).put(&[4])),
        ("read-outside", say(&[0, 9, 0]).any(u64::MAX).put(&[4])),
        ("write", say(&[0, 10, 4, 0, 0, 0, 0, 0]).small(16)),
        ("reset", say(&[0, 13])),
        ("to-the-client", say(&[0, 11, 2, 0, 0, 0, 12, 0])),
        ("unknown", say(&[0, 20, 0])),
        ("no-reply", say(&[0x20, 4, 0x10, 0, 0, 0x20, 13, 0x10])),
        ("stray-reply", say(&[0x20, 4, 1, 0, 0])),
        ("split", say(&[8, 4, 0, 0, 5])),
        ("wrong-size", say(&[0x10, 4, 0, 0, 0xff])),
        ("unframed", say(&[7, 16, 0, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0])),
    ]
}

fn registers() -> Vec<(&'static str, Bytes)> {
    // A place is a byte of region and kind of offset and size, and an offset.
    let access = |act, kind, at| Bytes::default().put(&[act, kind, at]);
    let busy = Bytes::default().strided(Opcode::FETCH_ADD, 0);
    vec![
        ("read-register", access(READ, 0, 0)),
        ("read-wide", access(READ, 3 << 5, 2)),
        ("read-counter", access(READ, 3 << 2 | 3 << 5, 8)),
        ("write-control", busy.clone().put(&[WRITE, 2 << 2, 0]).small(0)),
        ("reset", busy.clone().put(&[WRITE, 2 << 2, 0]).small(2)),
        ("write-ring", access(WRITE, 2 << 2, 4).frame(2)),
        ("kick", busy.clone().put(&[KICK, 2, KICK, 0])),
        ("config-command", busy.clone().put(&[WRITE, 1, 1]).small(0).put(&[WRITE, 1, 1]).small(6)),
        ("config-read", access(READ, 1, 0)),
        ("msix", access(WRITE, 3, 1).any(0xfee0_0000)),
        ("doorbell", access(WRITE, 2 | 5 << 2, 0).small(1)),
        ("large", access(READ, 6 << 5, 0).put(&[64])),
    ]
}

fn host() -> Vec<(&'static str, Bytes)> {
    let busy = Bytes::default().strided(Opcode::FETCH_ADD, 0).indexed(Opcode::FETCH_ADD, 0);
    vec![
        ("unmap-all", busy.clone().put(&[UNMAP, 0]).scalar(Opcode::READ, 0)),
        ("map", busy.clone().put(&[MAP, 4]).any(0x1_0000_0000).put(&[0]).small(0).put(&[0])),
        ("map-again", busy.clone().put(&[UNMAP, 0, MAP, 255]).small(0).put(&[0]).small(0).put(&[1])),
        ("reset", busy.clone().put(&[RESET, 0, RESTART]).scalar(Opcode::FETCH_ADD, 0).rest()),
        ("stop", busy.clone().put(&[RESET, 2, RESET, 3]).scalar(Opcode::FETCH_ADD, 0)),
        ("bus-master", busy.clone().put(&[RESET, 4, 1, RESET, 4, 0]).rest()),
        (
            "interrupts",
            busy.put(&[INTERRUPTS, 2, 2, DOORBELL, 0, 12]).small(1).put(&[INTERRUPTS, 0, 0]).rest(),
        ),
    ]
}

/// Where seeds believe the process's memory to be.
const _: () = assert!(VA == 0x7000_0000);
