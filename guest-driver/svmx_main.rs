// SPDX-License-Identifier: GPL-2.0

//! svmx.ko: the crate root. Loading, unloading, module parameters.
//!
//! README.md beside this file has the code map and the locks. Section numbers cite docs/spec.md.

#[path = "../abi/src/lib.rs"]
pub mod abi;

mod ahead;
mod context;
mod control;
mod device;
mod doorbell;
mod driver;
mod faultq;
mod file;
mod grant;
mod hw;
mod ids;
mod leaves;
mod live;
mod mm;
mod mmap;
mod opener;
mod outlook;
mod owing;
mod pagetable;
mod policy;
mod queue;
mod quota;
mod ranges;
mod regs;
mod space;
mod span;
mod stats;
mod sys;
mod trace;
mod views;
mod waiters;
mod worker;

use kernel::{driver::Registration, pci, prelude::*};

/// The module's objects, dropped in this order.
#[pin_data]
struct SvmxModule {
    #[pin]
    _driver: Registration<pci::Adapter<driver::SvmxDriver>>,
    _workqueue: hw::Workqueue,
    _files: hw::debugfs::Files<views::Ended>,
    _folder: hw::debugfs::Root,
    _leaks: live::LeakCheck,
}

impl kernel::InPlaceModule for SvmxModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        owing::init();
        try_pin_init!(Self {
            _leaks: live::LeakCheck,
            _: {
                // SAFETY: The module is being loaded.
                unsafe { quota::init() };
            },
            // Before the first device can be found.
            _folder: hw::debugfs::Root::new(c"svmx"),
            _files: views::of_module()?,
            _workqueue: hw::Workqueue::new()?,
            _driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
        })
    }
}

/// Whether atomics are served without exclusive access, which loses updates.
fn protection_off() -> bool {
    hw::compat::parameter(&module_parameters::unsafe_map_without_exclusive_access) != 0
}

/// Most spans that a context has at the same time.
fn max_spans() -> usize {
    hw::compat::parameter(&module_parameters::max_spans).max(1) as usize
}

module! {
    type: SvmxModule,
    name: "svmx",
    authors: ["The svmx authors"],
    description: "Driver of the svmx device: atomics on process memory by exclusive access",
    license: "GPL",
    params: {
        max_contexts_per_user: u32 {
            default: 64,
            description: "Open files that a user without CAP_SYS_RESOURCE may have, over all devices",
        },
        max_queues_per_user: u32 {
            default: 128,
            description: "Queues that a user without CAP_SYS_RESOURCE may have, over all devices",
        },
        // Not a bool, which parameters can't be before 7.3.
        unsafe_map_without_exclusive_access: u8 {
            default: 0,
            description: "Serve atomics WITHOUT exclusive access. Loses updates. For the negative control of tests only",
        },
        max_spans: u32 {
            default: crate::space::MAX_SPANS,
            description: "Most 2 MiB spans of memory that a context has mapped at the same time; beyond that others are unmapped",
        },
    },
}
