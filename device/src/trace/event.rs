// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events of a trace, and their JSON.
//!
//! A slice is one complete event (`ph` is `X`), made when it ends: if one is dropped no other loses its begin or
//! its end. Times are microseconds with three decimals, which is how the format has nanoseconds. Nothing in an
//! event is text from outside, so nothing needs to be escaped.

use std::io::{self, Write};

use svmx_abi::control::ControlOpcode;
use svmx_abi::fault::AccessKind;
use svmx_abi::pte::Access;
use svmx_abi::status::Status;

use crate::command::{AtomicOp, Command};
use crate::instrument::Thread;
use crate::invalidate::Record;

/// The device's threads, as a process of the trace.
const THREADS: u32 = 1;
/// The queues, as another.
const QUEUES: u32 = 2;
/// Tracks of `THREADS` that are not engines. Engines have their number.
const CONTROL: u32 = 1000;
const INTERRUPTS: u32 = 1001;

/// Nanoseconds since the trace began: from, to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) u64, pub(super) u64);

/// A command, as far as a trace tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doing {
    pub(super) name: &'static str,
    pub(super) bulk: bool,
    pub(super) va: u64,
    pub(super) count: u32,
}

/// What happened. The first field of each is when.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A command, on its queue's track. `None`: its queue ended first.
    Command { span: Span, queue: u32, asid: u32, tag: u32, doing: Doing, end: Option<(Status, u32)> },
    /// A queue stalled, and went on by REPLAY or CANCEL, or ended (`None`).
    Fault { span: Span, queue: u32, fault_id: u32, va: u64, kind: AccessKind, replayed: Option<bool> },
    /// An engine worked for a queue.
    Work { span: Span, engine: u16, queue: u32 },
    /// A SYNC waited.
    Sync { span: Span },
    /// Another control entry.
    Control { time: u64, opcode: ControlOpcode },
    /// A thread obtained a translation.
    Translated { time: u64, thread: Thread, asid: u32, va: u64, span: u64, frame: u64, access: Access },
    /// An invalidation was published.
    Invalidating { time: u64, record: Record },
    /// A vector was raised.
    Interrupt { time: u64, vector: u16 },
}

impl Doing {
    /// One that is refused.
    pub(super) const REFUSED: Doing = Doing { name: "refused", bulk: false, va: 0, count: 0 };

    pub(super) fn new(command: &Command) -> Self {
        let doing = |name, va, count| Doing { name, bulk: false, va, count };
        match command {
            Command::Nop => doing("NOP", 0, 0),
            Command::Fence => doing("FENCE", 0, 0),
            Command::Read(target) => doing("READ", target.va, 1),
            Command::Write(target, _) => doing("WRITE", target.va, 1),
            Command::Atomic(target, atomic) => doing(atomic_name(atomic.op), target.va, 1),
            Command::Bulk(bulk) => Doing { bulk: true, ..doing(atomic_name(bulk.op), bulk.base, bulk.count) },
            Command::Copy(copy) => doing("COPY", copy.destination, copy.count),
            Command::Fill(fill) => doing("FILL", fill.destination, fill.count),
            Command::Wait(wait) => doing("WAIT", wait.target.va, 1),
        }
    }
}

fn atomic_name(op: AtomicOp) -> &'static str {
    match op {
        AtomicOp::Add => "FETCH_ADD",
        AtomicOp::And => "FETCH_AND",
        AtomicOp::Or => "FETCH_OR",
        AtomicOp::Xor => "FETCH_XOR",
        AtomicOp::Umin => "FETCH_UMIN",
        AtomicOp::Umax => "FETCH_UMAX",
        AtomicOp::Smin => "FETCH_SMIN",
        AtomicOp::Smax => "FETCH_SMAX",
        AtomicOp::Swap => "SWAP",
        AtomicOp::Cas => "CAS",
        AtomicOp::Fadd => "FETCH_FADD",
    }
}

fn track(thread: Thread) -> u32 {
    match thread {
        Thread::Engine(number) => number.into(),
        Thread::Control => CONTROL,
    }
}

/// Names of processes and tracks.
pub(super) fn write_names(to: &mut impl Write, engines: u16) -> io::Result<()> {
    let mut name = |kind: &str, pid: u32, tid: u32, name: &str| {
        let args = format_args!(r#""args":{{"name":"{name}"}}"#);
        writeln!(to, r#"{{"name":"{kind}","ph":"M","pid":{pid},"tid":{tid},{args}}},"#)
    };
    name("process_name", THREADS, 0, "svmx-device")?;
    name("process_name", QUEUES, 0, "queues")?;
    for engine in 0..engines {
        name("thread_name", THREADS, engine.into(), &Thread::Engine(engine).to_string())?;
    }
    name("thread_name", THREADS, CONTROL, "control thread")?;
    name("thread_name", THREADS, INTERRUPTS, "interrupts")
}

impl Event {
    /// One line, with a comma at its end.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match *self {
            Event::Command { span, queue, asid, tag, doing, end } => {
                let Doing { name, bulk, va, count } = doing;
                let bulk = if bulk { " bulk" } else { "" };
                slice(to, format_args!("{name}{bulk}"), "command", span, QUEUES, queue)?;
                write!(to, r#""asid":{asid},"tag":{tag},"va":"{va:#x}","count":{count}"#)?;
                match end {
                    None => write!(to, r#","ended":"with its queue""#)?,
                    Some((status, applied)) => {
                        let status = status.name().unwrap_or("?");
                        write!(to, r#","status":"{status}","applied":{applied}"#)?;
                    }
                }
            }
            Event::Fault { span, queue, fault_id, va, kind, replayed } => {
                let how = match replayed {
                    Some(true) => "REPLAY",
                    Some(false) => "CANCEL",
                    None => "its queue's end",
                };
                let kind = match kind {
                    AccessKind::READ => "read",
                    AccessKind::WRITE => "write",
                    _ => "atomic",
                };
                slice(to, format_args!("fault"), "fault", span, QUEUES, queue)?;
                write!(to, r#""fault_id":{fault_id},"va":"{va:#x}","access":"{kind}","ended_by":"{how}""#)?;
            }
            Event::Work { span, engine, queue } => {
                slice(to, format_args!("queue {queue}"), "engine", span, THREADS, engine.into())?;
            }
            Event::Sync { span } => slice(to, format_args!("SYNC"), "control", span, THREADS, CONTROL)?,
            Event::Control { time, opcode } => {
                let known = ControlOpcode::ALL.iter().find(|(_, known)| *known == opcode);
                let name = known.map_or("unknown entry", |(name, _)| name);
                instant(to, format_args!("{name}"), "control", time, CONTROL)?;
            }
            Event::Translated { time, thread, asid, va, span, frame, access } => {
                let Access { read, write, atomic, coherent } = access;
                instant(to, format_args!("translated"), "page", time, track(thread))?;
                write!(to, r#""asid":{asid},"va":"{va:#x}","bytes":{span},"frame":"{frame:#x}","#)?;
                write!(to, r#""read":{read},"write":{write},"atomic":{atomic},"coherent":{coherent}"#)?;
            }
            Event::Invalidating { time, record } => {
                instant(to, format_args!("invalidate"), "page", time, CONTROL)?;
                if let Record::Range { asid, va, len } = record {
                    write!(to, r#""asid":{asid},"va":"{va:#x}","bytes":"{len:#x}""#)?;
                }
            }
            Event::Interrupt { time, vector } => {
                instant(to, format_args!("vector {vector}"), "interrupt", time, INTERRUPTS)?;
            }
        }
        writeln!(to, "}}}},")
    }
}

/// A slice, up to its arguments.
fn slice(
    to: &mut impl Write,
    name: std::fmt::Arguments<'_>,
    category: &str,
    Span(from, until): Span,
    pid: u32,
    tid: u32,
) -> io::Result<()> {
    let (from, duration) = (Micros(from), Micros(until.saturating_sub(from)));
    write!(to, r#"{{"name":"{name}","cat":"{category}","ph":"X","ts":{from},"dur":{duration},"#)?;
    write!(to, r#""pid":{pid},"tid":{tid},"args":{{"#)
}

/// An instant on a thread's track, up to its arguments.
fn instant(
    to: &mut impl Write,
    name: std::fmt::Arguments<'_>,
    category: &str,
    time: u64,
    tid: u32,
) -> io::Result<()> {
    write!(to, r#"{{"name":"{name}","cat":"{category}","ph":"i","s":"t","ts":{},"#, Micros(time))?;
    write!(to, r#""pid":{THREADS},"tid":{tid},"args":{{"#)
}

/// Nanoseconds, shown in microseconds.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
