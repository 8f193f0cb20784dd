// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The instruments against a mock driver: what they find, what they don't, and that nothing else changes.

mod binary;
mod chaos;
mod exclusivity;
mod trace;

use mock_driver::{Mock, RAM, options};
use svmx_device::chaos::Settings;
use svmx_device::instruments::Request;

const VA: u64 = 0x7000_0000;

/// A device with the exclusivity checker.
fn checked() -> Mock {
    Mock::watched(options(), 6, RAM, Request { check_exclusive: true, ..Default::default() })
}

/// The same with chaos.
fn chaotic(faults: &str, seed: u64) -> Mock {
    let chaos = Some(Settings { faults: faults.parse().unwrap(), seed });
    Mock::watched(options(), 6, RAM, Request { check_exclusive: true, chaos, trace: None })
}
