// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport against the server of the `vfio_user` crate: the same device behind each, in processes of
//! their own, and the same client.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use measure::sample::Side;
use measure::{Aim, Comparison, Row, Samples, alternate};
use svmx_abi::pci::{BAR_REGS, BAR_REGS_SIZE};
use svmx_device::device::{Device, Region};
use svmx_device::model::Options;
use vfio_bindings::bindings::vfio;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};

use crate::process::{Mode, Process};

/// The option that makes this program the other server.
pub(crate) const FOREIGN_SERVER: &str = "--foreign-server";
/// Round trips of a round.
const TRIPS: usize = 2_000;

/// Half a tenth is within what the median of a run moves by.
const AIM: Aim = Aim::RatioAtMost(1.05);

/// Trapped writes and reads: by a device as users have it, and by one that is as open as the other server.
pub(crate) fn latency(name: &str, rounds: usize) -> Vec<Row> {
    let processes = [Process::start(&[]), Process::start(&["--no-sandbox"]), Process::foreign()];
    let processes = processes.map(|process| RefCell::new(process.bound()));
    let trips: [(&str, Trip); 2] = [
        ("trapped write, 8 bytes", Process::trapped_write),
        ("trapped read, 4 bytes", Process::trapped_read),
    ];
    let figures = Mode::ALL.into_iter().flat_map(|mode| trips.map(|trip| (mode, trip)));
    figures.flat_map(|(mode, trip)| rows(name, rounds, &processes, mode, trip)).collect()
}

type Trip = fn(&mut Process);

/// All three take turns.
fn rows(
    name: &str,
    rounds: usize,
    processes: &[RefCell<Process>; 3],
    mode: Mode,
    (what, trip): (&str, Trip),
) -> [Row; 2] {
    let sides = processes
        .iter()
        .map(|process| -> Side<'_> { Box::new(move || process.borrow_mut().trip(mode, TRIPS, trip)) })
        .collect();
    let Ok([confined, open, foreign]): Result<[Samples; 3], _> = alternate(rounds, sides).try_into() else {
        unreachable!("samples for each of three sides")
    };
    let walls = Comparison { value: confined.clone(), baseline: open.clone() }.ratios().median();
    let row = |how: &str, value: Samples| {
        let comparison = Comparison { value, baseline: foreign.clone() };
        let figure = format!("{what}, {how}; {}", mode.text());
        Row::compared(
            name,
            &figure,
            "us",
            "the same device behind the vfio_user crate's server",
            &comparison,
            AIM,
        )
    };
    let note =
        format!("with the sandbox, which the other server has not, {walls:.2} x of what it takes without");
    [row("confined", confined).with_note(note), row("no sandbox", open)]
}

/// Serves a device with the other server until the client goes.
pub(crate) fn serve_foreign(socket: &Path) -> ExitCode {
    let mut device = Device::new(Options::default()).unwrap();
    let regions = (0..vfio::VFIO_PCI_NUM_REGIONS).map(region).collect();
    let server = Server::new(socket, true, Vec::new(), regions).unwrap();
    // It ends with an error when the client is gone.
    let _ = server.run(&mut Foreign(&mut device));
    ExitCode::SUCCESS
}

fn region(index: u32) -> ServerRegion {
    let there = index == BAR_REGS;
    let access = vfio::VFIO_REGION_INFO_FLAG_READ | vfio::VFIO_REGION_INFO_FLAG_WRITE;
    let region_info = vfio::vfio_region_info {
        argsz: size_of::<vfio::vfio_region_info>() as u32,
        flags: if there { access } else { 0 },
        index,
        size: if there { BAR_REGS_SIZE } else { 0 },
        ..Default::default()
    };
    ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
}

/// Only what the figures need.
struct Foreign<'d>(&'d mut Device);

impl ServerBackend for Foreign<'_> {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(Region::Registers, offset, data);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(Region::Registers, offset, data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _file: Option<std::fs::File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(
        &mut self,
        _index: u32,
        _flags: u32,
        _start: u32,
        _count: u32,
        _files: Vec<std::fs::File>,
    ) -> io::Result<()> {
        Ok(())
    }
}
