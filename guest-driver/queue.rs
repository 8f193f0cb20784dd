// SPDX-License-Identifier: GPL-2.0

//! A queue pair of a context: rings in memory that the process maps, and a doorbell page.

use super::abi::{
    control::{CreateQueue, DestroyQueue},
    pci,
    queue::{Cqe, CqeHead, Sqe},
    ring,
};
use super::device::Device;
use super::hw::DmaBuf;
use super::live::{Kind, Live};
use super::quota::{Resource, Taken};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Acquire, AtomicFlag, Release},
        Arc,
    },
};

/// A queue that the device knows.
///
/// The rings are freed with the last reference; before that the device has confirmed its end, or is
/// dead, and the process's mappings are gone: see `Context::end_queue`.
pub(crate) struct Queue {
    device: Arc<Device>,
    id: u32,
    sq: DmaBuf,
    cq: DmaBuf,
    cq_log2: u8,
    /// Set before waiters are woken for the last time.
    destroyed: AtomicFlag,
    taken: Taken,
    _live: Live,
}

/// What can be mapped of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    Submissions,
    Completions,
    Doorbell,
}

impl Queue {
    /// Makes a queue in the context `asid`, with completions on the vector of `index`.
    pub(crate) fn create(
        device: &Arc<Device>,
        asid: u32,
        index: u16,
        sq_log2: u8,
        cq_log2: u8,
    ) -> Result<Arc<Self>> {
        let taken = Taken::new(Resource::Queue)?;
        let sq = DmaBuf::for_process(device.pci(), ring::entries(sq_log2) as usize * size_of::<Sqe>())?;
        let cq = DmaBuf::for_process(device.pci(), ring::entries(cq_log2) as usize * size_of::<Cqe>())?;
        let id = device.queue_ids.lock().take().ok_or(ENOSPC)?;
        let create = CreateQueue {
            queue: id,
            asid,
            sq_base: sq.dma(),
            cq_base: cq.dma(),
            sq_log2,
            cq_log2,
            vector: pci::VECTOR_COMPLETION_FIRST + index,
            ..Default::default()
        };
        let queue = Queue {
            device: device.clone(),
            id,
            sq,
            cq,
            cq_log2,
            destroyed: AtomicFlag::new(false),
            taken,
            _live: Live::new(Kind::Queue),
        };
        let made = Arc::new(queue, GFP_KERNEL_ACCOUNT).map_err(Error::from);
        let made = made.and_then(|queue| device.command(create.into()).map(|()| queue));
        match &made {
            Ok(_) => device.queue_made(),
            Err(_) => device.queue_ids.lock().give(id),
        }
        made
    }

    /// Ends the queue on the device, and gives its identifier back. Nobody can map it any more.
    pub(crate) fn destroy(&self) {
        let destroy = DestroyQueue { queue: self.id, ..Default::default() };
        // Fails only if the device is dead, which then makes no access to the rings either.
        let _ = self.device.command(destroy.into());
        self.destroyed.store(true, Release);
        self.device.queue_gone();
        self.device.queue_ids.lock().give(self.id);
        self.taken.give();
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Acquire)
    }

    /// Whether the completion at free-running `index` is posted. Acquire: its partner is the device's
    /// release store of the word with the phase.
    pub(crate) fn is_posted(&self, index: u32) -> bool {
        let offset = ring::slot(index, self.cq_log2) as usize * size_of::<Cqe>();
        CqeHead(self.cq.word(offset).load(Acquire)).phase() == ring::phase(index, self.cq_log2)
    }

    /// Whether the completion at `index` is posted; if not, asks for an interrupt when one is.
    pub(crate) fn is_posted_or_arm(&self, index: u32) -> bool {
        if self.is_posted(index) {
            return true;
        }
        self.device.with_hw(|hw| hw.doorbells.arm_completions(self.id));
        self.is_posted(index)
    }

    /// Where the process says that it reads next. Any value; it is used for nothing but a look.
    pub(crate) fn consumer_head(&self) -> u32 {
        self.device.with_hw(|hw| hw.doorbells.completion_head(self.id)).unwrap_or(0)
    }

    /// Tells the device to look at the queue.
    pub(crate) fn kick(&self) {
        self.device.with_hw(|hw| hw.regs.kick(self.id));
    }

    /// Bytes of a region: whole pages.
    pub(crate) fn bytes(&self, region: Region) -> u64 {
        match region {
            Region::Submissions => self.sq.size() as u64,
            Region::Completions => self.cq.size() as u64,
            Region::Doorbell => pci::PAGE_SIZE,
        }
    }

    /// The page frame of a region's page, which is below the region's size.
    pub(crate) fn pfn(&self, region: Region, page: usize) -> Option<usize> {
        match region {
            Region::Submissions => Some(self.sq.pfn(page)),
            Region::Completions => Some(self.cq.pfn(page)),
            Region::Doorbell => {
                self.device.with_hw(|hw| (hw.doorbells.phys(self.id) / pci::PAGE_SIZE) as usize)
            }
        }
    }
}
