// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport: a vfio-user server on a UNIX socket. The only file that knows vfio-user; it turns
//! messages into calls of [`Device`] and nothing more.
//!
//! What the crate's server can't do: it answers a call that failed with errno 0, which a VMM takes for
//! success, and it goes on; it can't be told to end either. So a DMA map or unmap that is refused, after
//! which VMM and device would differ about what is mapped, unwinds through the server and ends the
//! connection. It serves one connection, and it panics on some malformed messages.

#![expect(unsafe_code, reason = "sets the process's umask for the socket's mode")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use nix::libc;
use svmx_abi::pci::{
    BAR_DOORBELLS, BAR_DOORBELLS_SIZE, BAR_MSIX, BAR_MSIX_SIZE, BAR_REGS, BAR_REGS_SIZE, NUM_VECTORS,
};
use vfio_bindings::bindings::vfio as abi;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea};

use crate::complain::complain;
use crate::config::CONFIG_SIZE;
use crate::device::{Device, Region};
use crate::memory::{DmaMap, MemoryError};

/// Why the transport can't begin, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Another process serves this socket.
    #[error("{0}: in use by another process")]
    InUse(PathBuf),
    /// What is there is not a socket.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// The socket can't be made.
    #[error("{path}: {source}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, and not because the VMM went.
    #[error("the connection broke: {0}")]
    Broken(#[source] vfio_user::Error),
    /// The VMM's idea of the device's memory can't be followed.
    #[error("DMA {what} refused: {error}")]
    Refused {
        /// Map or unmap.
        what: &'static str,
        /// Why.
        error: MemoryError,
    },
    /// The other side sent what the server could not survive.
    #[error("a malformed message ended the connection")]
    Malformed,
}

/// A socket that waits for a VMM. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket, accessible to its owner only. One that nobody listens on is replaced.
    pub fn bind(path: &Path) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Bind { path: path.into(), source };
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !metadata.file_type().is_socket() {
                return Err(TransportError::NotASocket(path.into()));
            }
            // A datagram socket can't connect to a stream socket, but learns whether one is there: the
            // process that waits for its one VMM must not take this for it.
            match UnixDatagram::unbound().and_then(|probe| probe.connect(path)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(failed(error)),
                Ok(()) | Err(_) => return Err(TransportError::InUse(path.into())),
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        // SAFETY: umask has no preconditions; no other thread of this process makes files now.
        let umask = unsafe { libc::umask(0o177) };
        let listener = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(umask) };
        Ok(Socket { listener: listener.map_err(failed)?, path: path.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves one VMM until it goes.
    pub fn serve(&self, device: &mut Device) -> Result<(), TransportError> {
        let failed = |source| TransportError::Bind { path: self.path.clone(), source };
        let listener = OwnedFd::from(self.listener.try_clone().map_err(failed)?);
        let server = Server::from_owned_fd(listener, true, interrupts(), regions(device.doorbell_file()));
        let mut backend = Backend { device };
        // The server panics on some malformed messages; there is nothing of its own to be left broken.
        match catch_unwind(AssertUnwindSafe(|| server.run(&mut backend))) {
            Ok(Ok(())) => tracing::info!("the VMM closed the connection"),
            Ok(Err(error)) if is_hang_up(&error) => tracing::info!("the VMM is gone: {error}"),
            Ok(Err(error)) => return Err(TransportError::Broken(error)),
            Err(panic) => {
                let refused = panic.downcast::<TransportError>();
                return Err(refused.map_or(TransportError::Malformed, |refused| *refused));
            }
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the VMM has gone, perhaps in the middle of a message.
fn is_hang_up(error: &vfio_user::Error) -> bool {
    use vfio_user::Error::{ReceiveWithFd, SendWithFd, StreamRead, StreamWrite};
    let kind = match error {
        StreamRead(error) | StreamWrite(error) => error.kind(),
        ReceiveWithFd(error) | SendWithFd(error) => io::Error::from_raw_os_error(error.errno()).kind(),
        _ => return false,
    };
    matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Ends the connection, as nothing else would (see the top).
fn refuse(what: &'static str, error: MemoryError) -> ! {
    complain!("DMA {what} refused: {error}");
    // Without the hook: this is no mistake of ours.
    resume_unwind(Box::new(TransportError::Refused { what, error }))
}

/// All five kinds; only MSI-X is there. Vectors are set one by one, so NORESIZE is not.
fn interrupts() -> Vec<IrqInfo> {
    let kind = |index| {
        let there = index == abi::VFIO_PCI_MSIX_IRQ_INDEX;
        let (flags, count) = if there { (abi::VFIO_IRQ_INFO_EVENTFD, NUM_VECTORS.into()) } else { (0, 0) };
        IrqInfo { index, flags, count }
    };
    (0..abi::VFIO_PCI_NUM_IRQS).map(kind).collect()
}

fn regions(doorbells: &File) -> Vec<ServerRegion> {
    let access = abi::VFIO_REGION_INFO_FLAG_READ | abi::VFIO_REGION_INFO_FLAG_WRITE;
    let region = |index| {
        let size = match index {
            BAR_REGS => BAR_REGS_SIZE,
            BAR_DOORBELLS => BAR_DOORBELLS_SIZE,
            BAR_MSIX => BAR_MSIX_SIZE,
            abi::VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE as u64,
            _ => 0,
        };
        let mapped = index == BAR_DOORBELLS;
        let flags =
            if size == 0 { 0 } else { access } | if mapped { abi::VFIO_REGION_INFO_FLAG_MMAP } else { 0 };
        let region_info = abi::vfio_region_info {
            argsz: size_of::<abi::vfio_region_info>() as u32,
            flags,
            index,
            size,
            ..Default::default()
        };
        // Without an area that says so the server does not send the descriptor.
        let area = abi::vfio_region_sparse_mmap_area { offset: 0, size };
        let sparse_areas = if mapped { vec![SparseArea { area }] } else { vec![] };
        ServerRegion { region_info, sparse_areas, mmap_fd: mapped.then(|| doorbells.as_raw_fd()) }
    };
    (0..abi::VFIO_PCI_NUM_REGIONS).map(region).collect()
}

struct Backend<'a> {
    device: &'a mut Device,
}

fn region(index: u32) -> io::Result<Region> {
    match index {
        BAR_REGS => Ok(Region::Registers),
        BAR_DOORBELLS => Ok(Region::Doorbells),
        BAR_MSIX => Ok(Region::Msix),
        abi::VFIO_PCI_CONFIG_REGION_INDEX => Ok(Region::Config),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl ServerBackend for Backend<'_> {
    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device.read(region(index)?, offset, data);
        Ok(())
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write(region(index)?, offset, data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        tracing::debug!("DMA map {address:#x}+{size:#x} {flags:?} file {}", file.is_some());
        // A range without a file is a BAR: not memory that this device can use.
        let Some(file) = file.filter(|_| flags.contains(DmaMapFlags::READ)) else { return Ok(()) };
        let writable = flags.contains(DmaMapFlags::WRITE);
        let map = DmaMap { address, size, file, offset, writable };
        self.device.dma_map(map).unwrap_or_else(|error| refuse("map", error));
        Ok(())
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        tracing::debug!("DMA unmap {address:#x}+{size:#x} {flags:?}");
        // All but the last page of the address space, which nothing can be mapped at.
        let all = flags.contains(DmaUnmapFlags::UNMAP_ALL);
        let (address, size) = if all { (0, !0xfff) } else { (address, size) };
        self.device.dma_unmap(address, size).unwrap_or_else(|error| refuse("unmap", error));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        tracing::debug!("reset");
        self.device.reset();
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        tracing::debug!("interrupts {index} flags {flags:#x} from {start} count {count} files {}", fds.len());
        if index != abi::VFIO_PCI_MSIX_IRQ_INDEX || flags & abi::VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return Ok(());
        }
        let count = count.min(NUM_VECTORS.into());
        if flags & abi::VFIO_IRQ_SET_DATA_NONE != 0 {
            if count == 0 {
                self.device.disable_interrupts();
            }
            return Ok(());
        }
        let mut fds = fds.into_iter();
        for vector in (start..start.saturating_add(count)).take(NUM_VECTORS.into()) {
            self.device.set_interrupt(vector, fds.next());
        }
        Ok(())
    }
}
