// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loading and unloading the driver, for the init and for the scenario that does nothing else.

use crate::device::Device;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the initramfs has it.
pub const PATH: &str = "/lib/svmx.ko";
const NAME: &std::ffi::CStr = c"svmx";

/// Why the driver can't be loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The file can't be read.
    #[error("can't open {PATH}")]
    Open(#[from] std::io::Error),
    /// A parameter has a zero byte.
    #[error("bad module parameters")]
    Parameters(#[from] std::ffi::NulError),
    /// The kernel refused to load it.
    #[error("loading {PATH}: {0}")]
    Load(Errno),
    /// The kernel refused to unload it.
    #[error("unloading svmx: {0}")]
    Unload(Errno),
    /// A device's file did not come.
    #[error("/dev/svmx{0} did not appear")]
    NoDevice(u32),
}

/// Loads the driver with `parameters`, separated by commas.
///
/// # Errors
/// All of [`ModuleError`] but the last two.
pub fn load(parameters: &str) -> Result<(), ModuleError> {
    let parameters = CString::new(parameters.replace(',', " "))?;
    finit_module(File::open(PATH)?, &parameters, ModuleInitFlags::empty()).map_err(ModuleError::Load)
}

/// Unloads the driver; does not wait until it is unused.
///
/// # Errors
/// [`ModuleError::Unload`]: EAGAIN and EBUSY mean that it is in use.
pub fn unload() -> Result<(), ModuleError> {
    delete_module(NAME, DeleteModuleFlags::O_NONBLOCK).map_err(ModuleError::Unload)
}

/// Whether the driver is loaded.
pub fn is_loaded() -> bool {
    Path::new("/sys/module/svmx").exists()
}

/// Waits until the files of the first `count` devices are there.
///
/// # Errors
/// [`ModuleError::NoDevice`] after `timeout`.
pub fn wait_for_devices(count: u32, timeout: Duration) -> Result<(), ModuleError> {
    let start = Instant::now();
    for n in 0..count {
        while !Device::path(n).exists() {
            if start.elapsed() > timeout {
                return Err(ModuleError::NoDevice(n));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}
