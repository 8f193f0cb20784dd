// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is right: every completion, and memory after it, against the reference.
//!
//! The reference does what the completion says was done, and not a step that the page's kind forbids. What
//! ended a command must be one of the accesses that it needed next, and there must be a reason.

use anyhow::{Context, Result, anyhow, bail, ensure};
use svmx_abi::queue::{Cqe, Opcode};
use svmx_abi::ring;
use svmx_abi::status::Status;

use crate::program::Window;
use crate::reference::{Access, End, Memory, Run, Verdict};
use crate::world::{Cancelled, Submitted, World, page_addresses};

impl World<'_> {
    /// Takes what is completed.
    pub(crate) fn take_completions(&mut self) -> Result<()> {
        for at in 0..self.queues.len() {
            while let Some(cqe) = self.queues[at].user.take() {
                self.completed(at, &cqe)?;
            }
        }
        Ok(())
    }

    /// One completion, the next of its queue.
    fn completed(&mut self, at: usize, cqe: &Cqe) -> Result<()> {
        let Some(command) = self.queues[at].pending.pop_front() else {
            bail!("nothing was submitted: {cqe:x?}")
        };
        let context = || format!("queue {at}: {command:x?}\nended with {cqe:x?}");
        ensure!(cqe.head.tag() == command.sqe.tag, "another command's tag; {}", context());
        ensure!(cqe.sq_head == self.queues[at].user.head, "sq_head; {}", context());
        let cancelled = self.queues[at].cancelled.remove(&command.sqe.tag);
        let mut memory = std::mem::take(&mut self.queues[at].memory);
        let checked = match Run::new(&command.sqe) {
            Err(refused) => refusal(cqe, refused),
            Ok(run) => self.execution(run, &mut memory, &command, cancelled, cqe),
        };
        self.queues[at].memory = memory;
        checked.with_context(context)
    }

    fn execution(
        &self,
        mut run: Run<'_>,
        memory: &mut Memory,
        command: &Submitted,
        cancelled: Option<Cancelled>,
        cqe: &Cqe,
    ) -> Result<()> {
        let status = cqe.head.status();
        let whole = matches!(status, Status::SUCCESS | Status::TIMEOUT);
        let mut ended = false;
        while !ended && !run.done() {
            let accesses = run.accesses(memory);
            if !whole && run.applied == cqe.applied {
                ended = self.ended_here(&accesses, memory, command, cancelled, cqe)?;
            }
            if !ended {
                ensure!(
                    run.applied <= cqe.applied,
                    "`fault_addr` is not what was needed next: {accesses:x?}"
                );
                all_allowed(&accesses, memory)?;
                run.step(memory);
            }
        }
        ensure!(whole || ended, "nothing was left to end the command: {} applied", run.applied);
        if whole {
            ensure!(cancelled.is_none(), "it was cancelled: {cancelled:x?}");
            if command.sqe.opcode == Opcode::WAIT {
                return wait_is_over(&run, command, cqe);
            }
            ensure!(status == Status::SUCCESS, "TIMEOUT is for WAIT");
        }
        ensure!(cqe.applied == run.applied, "{} were applied", run.applied);
        let (result, upper) = run.results(status);
        let open =
            result.unspecified || Window::Shared.contains(command.sqe.addr) || saw(command, memory, cqe);
        ensure!(open || u128::from(cqe.result) == result.bits, "`result` should be {:#x}", result.bits);
        ensure!(!whole || cqe.fault_addr == upper, "`fault_addr` should be {upper:#x}");
        Ok(())
    }

    /// Whether the command ended at one of these accesses; if so there must be a reason.
    fn ended_here(
        &self,
        accesses: &[Access],
        memory: &Memory,
        command: &Submitted,
        cancelled: Option<Cancelled>,
        cqe: &Cqe,
    ) -> Result<bool> {
        let status = cqe.head.status();
        let mut here = accesses.iter().filter(|access| access.va() == cqe.fault_addr).peekable();
        if here.peek().is_none() {
            return Ok(false);
        }
        let reason = here.any(|access| match cancelled {
            Some(Cancelled { va, kind, status: wanted }) => {
                (va, kind, wanted) == (access.va(), access.kind(), status)
            }
            None if access.verdict(memory) == Verdict::Ends(status) => true,
            None => {
                let frame = memory.page(access.va()).frame;
                status == Status::BAD_MEMORY && self.was_removed(frame, command.at)
            }
        });
        ensure!(reason, "no reason for {status:?} at {accesses:x?}; cancelled: {cancelled:x?}");
        Ok(true)
    }

    /// A queue is no more: what it completed is taken, and what it left half done must be the first elements
    /// of one command.
    pub(crate) fn bury(&mut self, at: usize) -> Result<()> {
        while let Some(cqe) = self.queues[at].user.peek() {
            self.queues[at].user.head = self.queues[at].user.head.wrapping_add(1);
            self.completed(at, &cqe)?;
        }
        let pending = std::mem::take(&mut self.queues[at].pending);
        self.queues[at].cancelled.clear();
        let queue = self.queues[at].user.id;
        self.waiting.retain(|record| record.head.queue() != queue);
        let Some(command) = pending.front() else { return Ok(()) };
        if Window::Shared.contains(command.sqe.addr) {
            self.allow_for(at, command);
        }
        let mut memory = std::mem::take(&mut self.queues[at].memory);
        memory.touch_as(&whole(command, &memory));
        memory.compare(|frame| self.found(frame));
        let checked = first_elements(command, &mut memory);
        memory.compare(|_| None);
        self.queues[at].memory = memory;
        checked.with_context(|| format!("queue {at}, cut short in {command:x?}"))
    }

    /// A frame's bytes, if it is one that only one queue uses.
    fn found(&self, frame: u64) -> Option<Vec<u8>> {
        let shared = self.shared.iter().any(|shared| shared.frame == frame);
        (!shared).then(|| self.get(frame))
    }

    /// How far a command got whose elements are on shared pages can't be seen.
    fn allow_for(&mut self, at: usize, command: &Submitted) {
        let memory = whole(command, &self.queues[at].memory);
        for shared in &mut self.shared {
            let after = words(memory.bytes(shared.frame));
            let added = after.zip(words(self.queues[at].memory.bytes(shared.frame)));
            shared.slack.iter_mut().zip(added).for_each(|(slack, (after, before))| *slack += after - before);
        }
    }

    /// Nothing is pending: memory is what the reference says, and the shared pages hold every sum.
    pub(crate) fn check_memory(&mut self) -> Result<()> {
        for at in 0..self.queues.len() {
            let mut memory = std::mem::take(&mut self.queues[at].memory);
            memory.compare(|frame| self.found(frame));
            let difference = memory.difference();
            memory.compare(|_| None);
            self.queues[at].memory = memory;
            if let Some((address, expected, found)) = difference {
                bail!("queue {at}: {found:#x} at {address:#x}, should be {expected:#x}");
            }
        }
        for (page, shared) in page_addresses(Window::Shared).zip(&self.shared) {
            let found = self.get(shared.frame);
            for (word, found) in words(&found).enumerate() {
                let of = |queue: &crate::world::Queue<'_>| queue.memory.load(page + 8 * word as u64, 8);
                let queues: u64 = self.queues.iter().filter_map(of).map(|value| value.bits as u64).sum();
                let sum = shared.cpu[word] + queues;
                let most = sum + shared.slack[word];
                ensure!(
                    (sum..=most).contains(&found),
                    "shared word {word} of {:?}: {found}, should be {sum} to {most}",
                    shared.access
                );
            }
        }
        Ok(())
    }
}

fn refusal(cqe: &Cqe, refused: End) -> Result<()> {
    let End { status, fault_addr } = refused;
    let same = (cqe.head.status(), cqe.fault_addr, cqe.applied, cqe.result) == (status, fault_addr, 0, 0);
    ensure!(same, "should be refused: {refused:x?}");
    Ok(())
}

fn all_allowed(accesses: &[Access], memory: &Memory) -> Result<()> {
    match accesses.iter().find(|access| access.verdict(memory) != Verdict::Allowed) {
        Some(access) => Err(anyhow!("nothing allows {access:x?}: {:?}", access.verdict(memory))),
        None => Ok(()),
    }
}

/// spec 5.7: one that stalled may find its time over when it goes on.
fn wait_is_over(run: &Run<'_>, command: &Submitted, cqe: &Cqe) -> Result<()> {
    let (result, _) = run.results(Status::SUCCESS);
    let looked = (cqe.applied, u128::from(cqe.result)) == (run.applied, result.bits);
    let too_late = command.faulted && command.sqe.arg0 > 0 && (cqe.applied, cqe.result) == (0, 0);
    let status = cqe.head.status();
    let right = match status {
        Status::SUCCESS => looked && run.applied == 1,
        _ => looked && run.applied == 0 || too_late,
    };
    ensure!(
        right && cqe.fault_addr == 0,
        "WAIT of {:#x}: not {status:?} and {} applied",
        result.bits,
        cqe.applied
    );
    Ok(())
}

/// Memory after as much of a command as its pages allow.
fn whole(command: &Submitted, before: &Memory) -> Memory {
    let mut memory = before.clone();
    if let Ok(mut run) = Run::new(&command.sqe) {
        while !run.done() && all_allowed(&run.accesses(&memory), &memory).is_ok() {
            run.step(&mut memory);
        }
    }
    memory
}

/// Whether this is a WAIT that was ended after it had looked.
fn saw(command: &Submitted, memory: &Memory, cqe: &Cqe) -> bool {
    let element = memory.load(command.sqe.addr, 1 << command.sqe.width.0);
    command.sqe.opcode == Opcode::WAIT && element.is_some_and(|element| element.bits == cqe.result.into())
}

/// Does as many elements of a command as make memory what was found.
fn first_elements(command: &Submitted, memory: &mut Memory) -> Result<()> {
    let run = Run::new(&command.sqe);
    let mut run = run.ok();
    while !memory.same() {
        let difference = memory.difference();
        let next = run.as_mut().filter(|run| !run.done());
        let Some(run) = next else { bail!("no number of elements makes {difference:x?}") };
        all_allowed(&run.accesses(memory), memory)?;
        run.step(memory);
    }
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()))
}

/// The rings of the queues here.
pub(crate) const RING_LOG2: u8 = 6;

/// Whether a queue can take another command and its completion.
pub(crate) fn has_room(pending: usize) -> bool {
    pending < ring::entries(RING_LOG2) as usize
}
