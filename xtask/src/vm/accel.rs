// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which accelerator runs the guest: KVM only where the probe shows that it works, else TCG.

use super::probe;
use crate::failure::bad_request;
use crate::progress::Progress;
use anyhow::Result;

/// What `--accel` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM if it works here, else TCG
    #[default]
    Auto,
    /// KVM or nothing
    Kvm,
    /// Software emulation
    Tcg,
}

/// What QEMU is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// Decides, and says once why KVM is not used although it might have been.
    ///
    /// # Errors
    /// When KVM is insisted on and does not work.
    pub(crate) async fn choose(choice: AccelChoice, progress: &Progress) -> Result<Self> {
        if choice == AccelChoice::Tcg {
            return Ok(Accel::Tcg);
        }
        match (probe::probe().await, choice) {
            (Ok(()), _) => Ok(Accel::Kvm),
            (Err(reason), AccelChoice::Kvm) => Err(bad_request(format!("KVM can't run the guest: {reason}"))),
            (Err(reason), _) => {
                progress.say(format!("KVM can't run the guest: {reason}; using TCG"));
                Ok(Accel::Tcg)
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    /// QEMU's `-accel` and `-cpu`. With one TCG thread for all CPUs, or a single CPU, the guest's atomic
    /// instructions would not be atomic against the device.
    pub(crate) fn qemu_arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}
