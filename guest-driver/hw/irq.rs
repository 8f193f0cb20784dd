// SPDX-License-Identifier: GPL-2.0

//! MSI-X vectors and their handlers.

use super::compat::IRQ_HANDLED;
use super::pci::PciDevice;
use core::ffi::c_void;
use kernel::{bindings, error::to_result, prelude::*, sync::Arc};

/// Who takes a device's interrupts.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Called in interrupt context: must not sleep.
    fn handle(this: &Arc<Self>, vector: u16);
}

/// Allocated vectors; each has a handler once [`connect`](Self::connect) has run.
pub(crate) struct Vectors<H: Handler> {
    /// Dropped, which means disconnected, before the vectors are freed.
    lines: KVec<Line<H>>,
    allocated: Allocated,
}

struct Allocated {
    device: PciDevice,
    count: u16,
}

struct Line<H: Handler> {
    irq: u32,
    cookie: KBox<Cookie<H>>,
}

struct Cookie<H: Handler> {
    handler: Arc<H>,
    vector: u16,
}

impl<H: Handler> Vectors<H> {
    /// Allocates at least `min` and at most `max` MSI-X vectors.
    pub(crate) fn allocate(device: &PciDevice, min: u16, max: u16) -> Result<Self> {
        // SAFETY: The device is valid and enabled.
        let count = unsafe {
            bindings::pci_alloc_irq_vectors(device.as_raw(), min.into(), max.into(), bindings::PCI_IRQ_MSIX)
        };
        to_result(count)?;
        let allocated = Allocated { device: device.clone(), count: count as u16 };
        Ok(Vectors { lines: KVec::new(), allocated })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u16 {
        self.allocated.count
    }

    /// Gives every vector to `handler`, until this is dropped.
    pub(crate) fn connect(&mut self, handler: &Arc<H>) -> Result {
        for vector in 0..self.allocated.count {
            self.lines.reserve(1, GFP_KERNEL)?;
            // SAFETY: The device is valid and has this vector.
            let irq = unsafe { bindings::pci_irq_vector(self.allocated.device.as_raw(), vector.into()) };
            to_result(irq)?;
            let cookie = KBox::new(Cookie { handler: handler.clone(), vector }, GFP_KERNEL)?;
            let raw = core::ptr::from_ref::<Cookie<H>>(&cookie).cast_mut().cast();
            // SAFETY: The cookie lives until `Line::drop` has freed the interrupt.
            to_result(unsafe {
                bindings::request_irq(irq as u32, Some(callback::<H>), 0, c"svmx".as_char_ptr(), raw)
            })?;
            let line = Line { irq: irq as u32, cookie };
            // There is room: it was reserved. A line that did not fit would be disconnected again.
            self.lines.push_within_capacity(line).map_err(|_| ENOMEM)?;
        }
        Ok(())
    }
}

impl<H: Handler> Drop for Line<H> {
    fn drop(&mut self) {
        let raw = core::ptr::from_ref::<Cookie<H>>(&self.cookie).cast_mut().cast();
        // SAFETY: The interrupt was requested with this cookie. Waits for running handlers.
        unsafe { bindings::free_irq(self.irq, raw) };
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: The vectors were allocated once, and no handler is left.
        unsafe { bindings::pci_free_irq_vectors(self.device.as_raw()) };
    }
}

/// # Safety
///
/// `raw` is the cookie of a connected line.
unsafe extern "C" fn callback<H: Handler>(_irq: i32, raw: *mut c_void) -> bindings::irqreturn_t {
    // SAFETY: By the requirement of this function.
    let cookie = unsafe { &*raw.cast::<Cookie<H>>() };
    H::handle(&cookie.handler, cookie.vector);
    IRQ_HANDLED
}
