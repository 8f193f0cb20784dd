// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `pins`: what the kernel does not promise. Exclusive access takes a page out of page tables; who had a reference to the
//! page before has it still, and reads and writes it beside the device (`make_device_exclusive()` says so: "concurrent
//! access through other page references (e.g., earlier GUP invocation) is not handled"). Who wants one afterwards
//! gets the page through the page table (`get_user_pages()`, `do_swap_page()`), which takes it from the device first.
//!
//! So a process must not let devices and pinned buffers write to the same memory at the same time. This shows
//! that it is so, and no more than that: the exclusivity checkers must see the stores of whoever has a pin.
#![expect(unsafe_code, reason = "submits entries that name the scenario's memory")]

use crate::area::{Area, Backing, PAGE, RawQueue, scalar};
use crate::link::metric;
use crate::scenario::{Run, Shown, step};
use crate::system::pins::{Pinned, Spliced, file_of};
use anyhow::{Context, Result, ensure};
use svmx::abi::queue::{Opcode, WidthLog2};
use svmx::{Device, QueueSize};

/// What a file full of one byte has in a word.
const FILLED: u64 = 0x0707_0707_0707_0707;

pub(crate) fn run(_: &Run) -> Result<Shown> {
    let mut pins = Pins::new()?;
    step("a pin that was taken earlier");
    pins.earlier().context("a pin that was taken earlier")?;
    step("a pin that is taken later");
    pins.later().context("a pin that is taken later")?;
    step("pages in a pipe");
    pins.in_a_pipe().context("pages in a pipe")?;
    metric("revocations", pins.revocations()?);
    Ok(Shown::Pass(
        "pins that were taken earlier go on beside the device, later ones take the page from it".into(),
    ))
}

struct Pins {
    device: Device,
    queue: RawQueue,
    area: Area,
}

impl Pins {
    fn new() -> Result<Self> {
        let device = Device::open_nth(0)?;
        // SAFETY: its entries name areas.
        let queue = unsafe { RawQueue::new(device.create_queue(QueueSize::default())?) };
        Ok(Pins { device, queue, area: Area::new(Backing::Private, 3 * PAGE)? })
    }

    /// The device adds to the word at `offset`, of which it has the page then.
    fn adds(&mut self, offset: u64, expected: u64) -> Result<()> {
        let add = scalar(Opcode::FETCH_ADD, WidthLog2::W64, self.area.address(offset), 1);
        let found = self.queue.execute(&add)?;
        let good = found.status.is_success() && found.result == expected.into();
        ensure!(good, "the device expected {expected:#x}, found {found:x?}");
        Ok(())
    }

    fn revocations(&self) -> Result<u64> {
        Ok(self.device.stats()?.revocations)
    }

    /// The buffer is registered, then the device gets the page, then the buffer is used.
    fn earlier(&mut self) -> Result<()> {
        self.area.store(0, WidthLog2::W64, 1);
        let mut pinned = Pinned::new(self.area.address(0), PAGE as u32)?;
        self.adds(0, 1)?;
        let revoked = self.revocations()?;
        // Beside the device, in both directions: it is not asked, and what both see is the same page.
        let written = file_of(&[0; PAGE as usize])?;
        pinned.write_to(&written)?;
        let mut word = [0; 8];
        nix::sys::uio::pread(&written, &mut word, 0)?;
        ensure!(u64::from_ne_bytes(word) == 2, "the buffer has {word:x?}, not what the device left there");
        pinned.fill_from(&file_of(&[7; PAGE as usize])?)?;
        let still = self.revocations()?;
        ensure!(still == revoked, "{} pages were taken from the device", still - revoked);
        self.adds(0, FILLED)?;
        let found = self.area.load(0, WidthLog2::W64);
        ensure!(found == FILLED + 1, "the CPU found {found:#x}");
        Ok(())
    }

    /// The device gets the page, then the buffer is registered.
    fn later(&mut self) -> Result<()> {
        self.area.store(PAGE, WidthLog2::W64, 1);
        self.adds(PAGE, 1)?;
        let revoked = self.revocations()?;
        let mut pinned = Pinned::new(self.area.address(PAGE), PAGE as u32)?;
        let now = self.revocations()?;
        ensure!(
            now == revoked + 1,
            "expected that the page is taken from the device, found {}",
            now - revoked
        );
        pinned.fill_from(&file_of(&[7; PAGE as usize])?)?;
        self.adds(PAGE, FILLED)?;
        let found = self.area.load(PAGE, WidthLog2::W64);
        ensure!(found == FILLED + 1, "the CPU found {found:#x}");
        Ok(())
    }

    /// A pipe has the page, not what was in it.
    fn in_a_pipe(&mut self) -> Result<()> {
        self.area.store(2 * PAGE, WidthLog2::W64, 1);
        let spliced = Spliced::new(self.area.address(2 * PAGE), PAGE as usize)?;
        self.adds(2 * PAGE, 1)?;
        let revoked = self.revocations()?;
        let bytes = spliced.take()?;
        ensure!(self.revocations()? == revoked, "the page was taken from the device");
        ensure!(bytes[..8] == 2u64.to_ne_bytes(), "the pipe had {:x?}", &bytes[..8]);
        self.adds(2 * PAGE, 2)
    }
}
