// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport against the server of the `vfio_user` crate: the same device behind each, in processes of
//! their own, and the same client.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use measure::sample::Side;
use measure::{Aim, Comparison, Row, alternate};
use svmx_abi::pci::{BAR_REGS, BAR_REGS_SIZE};
use svmx_device::device::{Device, Region};
use svmx_device::model::Options;
use vfio_bindings::bindings::vfio;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};

use crate::commands::median_of;
use crate::process::Process;

/// The option that makes this program the other server.
pub(crate) const FOREIGN_SERVER: &str = "--foreign-server";
/// Round trips of a round.
const TRIPS: usize = 2_000;

/// Trapped writes and reads.
pub(crate) fn latency(name: &str, rounds: usize) -> Vec<Row> {
    let mut foreign = Process::foreign();
    let mut row = |arguments: &[&str], figure: &str, trip: fn(&mut Process), aim| {
        let mut ours = Process::start(arguments);
        let sides: Vec<Side<'_>> = vec![
            Box::new(|| median_of(TRIPS, || trip(&mut ours))),
            Box::new(|| median_of(TRIPS, || trip(&mut foreign))),
        ];
        let comparison = Comparison::of(alternate(rounds, sides));
        Row::compared(
            name,
            figure,
            "us",
            "the same device behind the vfio_user crate's server",
            &comparison,
            aim,
        )
    };
    let write = |process: &mut Process| process.trapped_write(0);
    // Half a tenth is within what the median of a run moves by.
    let aim = Aim::RatioAtMost(1.05);
    vec![
        row(&["--no-sandbox"], "trapped write of 8 bytes, round trip, no sandbox on either side", write, aim),
        row(
            &["--no-sandbox"],
            "trapped read of 4 bytes, round trip, no sandbox on either side",
            Process::trapped_read,
            aim,
        ),
        row(&[], "trapped write of 8 bytes, round trip, confined as usual", write, Aim::None),
    ]
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
