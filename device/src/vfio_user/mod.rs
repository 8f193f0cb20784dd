// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vfio-user server: lets a VMM use a device that lives in this process, over a UNIX socket. It knows no
//! device; whoever has one implements [`Backend`], describes it in a [`Description`], and calls [`serve`] with
//! each connection that a [`Listener`] accepts. Nothing here depends on the rest of this crate.
//!
//! # What a client can't do
//!
//! The client is not trusted. Whatever it sends, the server does not panic; its memory does not grow beyond
//! two buffers of [`wire::MAX_MESSAGE`] bytes (touched only as far as they are used), [`wire::MAX_FDS`]
//! descriptors for each of two messages, and one entry for each of [`Description::max_dma_maps`] ranges; and
//! it knows where the next message begins. So every message that can be framed gets its answer: if something
//! is wrong with it an errno, after which the connection goes on. A message that can't be framed ends the
//! connection.
//!
//! # Commands and checks
//!
//! Sizes are those of the payload: of what follows the 16-byte header. A size that is not the command's is
//! refused before anything in the payload is looked at. In every row what is wrong is answered with `EINVAL`
//! where no other errno is named.
//!
//! | Command | Size | Checks | Answer |
//! |---|---|---|---|
//! | any | header's size from 16 to [`wire::MAX_MESSAGE`], or the connection ends | type *command*, no flag but no-reply; no descriptors where none are named below; not more than [`wire::MAX_FDS`] (`E2BIG`) | none if no-reply is set, not even an error |
//! | `VERSION` (1) | 4 + up to 4096 (`E2BIG`) | first message, and only that; major 0 (`EPROTONOSUPPORT`, after which the connection ends); JSON with terminator, members of the right type; 4 KiB pages | minor 0; limits: the smaller of both sides |
//! | `DMA_MAP` (2) | 32 | `argsz` ≥ 32; readable or writable, no other flag; address, size and offset whole pages, size not 0, ends don't wrap; overlaps no other (`EEXIST`); number of maps (`ENOSPC`); at most one descriptor, without one offset 0; file as long as the range: the backend | header |
//! | `DMA_UNMAP` (3) | 24 | `argsz` ≥ 24; range as above, which takes every map inside; none (`ENOENT`); none may reach out of it; *all* with address and size 0; dirty bitmap: `ENOTSUP` | the request |
//! | `DEVICE_GET_INFO` (4) | 16 | `argsz` ≥ 16 | PCI, reset |
//! | `DEVICE_GET_REGION_INFO` (5) | 32 | `argsz` ≥ 32; index | areas and descriptor if `argsz` has room, else only that there are capabilities and how much they take; not mappable for a client with `max_msg_fds` 0 |
//! | `DEVICE_GET_REGION_IO_FDS` (6) | 16 | `argsz` ≥ 16; flags and count 0; index | count 0 |
//! | `DEVICE_GET_IRQ_INFO` (7) | 16 | `argsz` ≥ 16; index | eventfd; not maskable |
//! | `DEVICE_SET_IRQS` (8) | 20, and a byte for each vector with `DATA_BOOL` | `argsz` = size; one action, one kind of data; `MASK`, `UNMASK`: never; index, vectors in range; count 0 only to disable; with `DATA_EVENTFD` no descriptor or one for each vector | header |
//! | `REGION_READ` (9) | 16 | index; range inside the region; count ≤ the agreed `max_data_xfer_size` | the request, data |
//! | `REGION_WRITE` (10) | 16 + count | as for reading | the request |
//! | `DEVICE_RESET` (13) | 0 | | header |
//! | `DMA_READ`, `DMA_WRITE` (11, 12) | any | they go from server to client | `ENOTSUP` |
//! | 14 to 18 | any | dirty pages, several writes at once, features, migration are not offered | `ENOTSUP` |
//! | others | any | | `ENOSYS` |
//!
//! A message of type *reply* is dropped: nothing was asked, and two servers that answered each other's errors
//! would never stop.
//!
//! # Where this is not the specification to the letter
//!
//! | Specification | Here | Because |
//! |---|---|---|
//! | a version that can't be spoken closes the connection | it is answered first | whoever looks for the reason finds one |
//! | an unmap names a range as it was mapped | it may span several maps, and what lies between, but split none; *all* takes every map | VFIO's own semantics, which VMMs are written for |
//!
//! # Time
//!
//! Between messages a client may be silent for ever. Once a message has begun, the next bytes of it must come
//! within [`PATIENCE`] of the last ones, whatever else happens meanwhile; the same holds for taking an answer. It is waited for without regard to how often this
//! process was stopped and continued: what has come is read before the time is held to be over.
//!
//! # Clients
//!
//! One at a time. Another that connects meanwhile is hung up on, and the backend hears of it; or it waits, if it
//! can't be hung up on, and the backend hears why. The next one is accepted when the first has gone, and finds a
//! device on which [`Backend::disconnected`] has been called.
//!
//! # Tests
//!
//! [`feed::feed`] serves a client that sends whatever it is given, and returns what it was answered: the way in
//! for fuzzers and property tests.
//!
//! # Why not `nix`
//!
//! Its `recvmsg` does not give out descriptors if some of them were lost (`MSG_CTRUNC`), and nobody can close
//! those that did come; `rustix` does.

pub mod backend;
pub mod feed;
mod ranges;
pub mod request;
pub mod server;
pub mod socket;
pub mod stream;
mod version;
pub mod wire;

pub use backend::{Backend, Complaint, Description, DmaMap, Mapping, Refusal, Region};
pub use rustix::io::Errno;
pub use server::{End, serve};
pub use socket::{Attention, BindError, Listener, PATIENCE, Stop};
pub use stream::ConnectionError;
