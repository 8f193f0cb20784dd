// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vfio-user server against clients that do what no VMM should: over a socket pair, with a device that
//! checks what the server has promised it.

mod accelerator;
mod allocations;
mod client;
mod descriptors;
mod device;
mod dma;
mod framing;
mod info;
mod interrupts;
mod malformed;
mod properties;
mod regions;
mod version;
