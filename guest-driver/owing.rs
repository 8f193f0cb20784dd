// SPDX-License-Identifier: GPL-2.0

//! Devices that owe a SYNC to an event which is under way.
//!
//! An event may concern contexts of several devices. It puts TLB_INVALIDATEs on their control queues in its first pass and
//! waits in its second (`mm/notifier.rs`), context by context. So that the devices work at the same time and not one after
//! another, whoever waits first asks all of them for a SYNC. This is a head start and nothing else: each wait still asks
//! for its own (`Device::wait_synced`), and finds that it stands there.

use super::device::Device;
use super::driver::MAX_DEVICES;
use kernel::{prelude::*, sync::Arc};

/// Each device is here once at most; `None`s are at the end.
type Devices = [Option<Arc<Device>>; MAX_DEVICES];

kernel::sync::global_lock! {
    // SAFETY: Initialized when the module is loaded, before there are devices.
    unsafe(uninit) static OWING: SpinLock<Devices> = [const { None }; MAX_DEVICES];
}

/// To be called once, when the module is loaded.
pub(crate) fn init() {
    // SAFETY: Called once.
    unsafe { OWING.init() };
}

/// An entry was put on the queue of `device` that this thread is going to wait for: [`ask_all`] follows.
pub(crate) fn owes(device: &Arc<Device>) {
    let mut devices = OWING.lock();
    for slot in devices.iter_mut() {
        match slot {
            Some(other) if Arc::ptr_eq(other, device) => return,
            Some(_) => {}
            None => {
                *slot = Some(device.clone());
                return;
            }
        }
    }
}

/// Asks every device that owes a SYNC for it, also on behalf of others who are about to wait.
pub(crate) fn ask_all() {
    loop {
        // A statement of its own: the lock is released at its end.
        let device = OWING.lock().iter_mut().rev().find_map(Option::take);
        let Some(device) = device else { return };
        device.try_request_sync();
    }
}
