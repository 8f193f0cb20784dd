// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the threads' buffers to the file.
//!
//! Each thread of the device has a buffer of its own and takes nobody else's lock but the writer's, who swaps
//! full buffers for empty ones some times in a second. A buffer holds [`CAPACITY`] events and the file
//! [`MOST_BYTES`]; what does not fit is dropped and counted, and the file and the log say how many.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::event::{self, Event};

/// Events in a thread's buffer: about 1.5 MiB, twice.
pub(super) const CAPACITY: usize = 1 << 14;
/// Bytes of the file. Viewers have their limits, too.
const MOST_BYTES: u64 = 1 << 30;
/// How often buffers are emptied.
const INTERVAL: Duration = Duration::from_millis(50);

/// The buffers.
#[derive(Debug)]
pub(super) struct Buffers {
    buffers: Box<[Mutex<Vec<Event>>]>,
    dropped: AtomicU64,
    over: Mutex<bool>,
    hurry: Condvar,
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer(JoinHandle<io::Result<()>>);

impl Buffers {
    /// For that many threads.
    pub(super) fn new(threads: usize) -> Self {
        Buffers {
            buffers: (0..threads).map(|_| Mutex::new(Vec::with_capacity(CAPACITY))).collect(),
            dropped: AtomicU64::new(0),
            over: Mutex::new(false),
            hurry: Condvar::new(),
        }
    }

    /// Adds an event, if there is room.
    pub(super) fn push(&self, thread: usize, event: Event) {
        let Some(buffer) = self.buffers.get(thread) else { return };
        let mut buffer = buffer.lock();
        if buffer.len() >= CAPACITY {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        buffer.push(event);
        if buffer.len() == CAPACITY / 2 {
            self.hurry.notify_one();
        }
    }

    /// Events that did not fit, so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Begins to write what comes into the buffers.
    pub(super) fn start(file: File, engines: u16, buffers: Arc<Buffers>) -> io::Result<Self> {
        let mut to = Counted { to: BufWriter::new(file), written: 0 };
        // An array of events. Its end may be missing: what a process that was killed leaves can be opened.
        to.write_all(b"[\n")?;
        event::write_names(&mut to, engines)?;
        let thread = std::thread::Builder::new().name("trace".into());
        Ok(Writer(thread.spawn(move || write(&buffers, to))?))
    }

    /// Writes what is there, ends the file.
    pub(super) fn finish(self, buffers: &Buffers) -> io::Result<()> {
        *buffers.over.lock() = true;
        buffers.hurry.notify_one();
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the trace's writer panicked")))
    }
}

/// Knows how much it has written.
struct Counted {
    to: BufWriter<File>,
    written: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn write(buffers: &Buffers, mut to: Counted) -> io::Result<()> {
    let mut batch = Vec::with_capacity(CAPACITY);
    loop {
        let over = {
            let mut over = buffers.over.lock();
            if !*over {
                buffers.hurry.wait_for(&mut over, INTERVAL);
            }
            *over
        };
        for buffer in &buffers.buffers {
            std::mem::swap(&mut *buffer.lock(), &mut batch);
            for event in batch.drain(..) {
                if to.written < MOST_BYTES {
                    event.write(&mut to)?;
                } else {
                    buffers.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if over {
            let dropped = buffers.dropped();
            writeln!(
                to,
                r#"{{"name":"dropped events","ph":"M","pid":1,"tid":0,"args":{{"dropped":{dropped}}}}}"#
            )?;
            to.write_all(b"]\n")?;
            return to.flush();
        }
        to.flush()?;
    }
}
