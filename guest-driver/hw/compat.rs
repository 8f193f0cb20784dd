// SPDX-License-Identifier: GPL-2.0

//! Where the supported series of kernels differ, and nowhere else. Kbuild sets `linux_7_2` for that series; without it
//! the newest is meant.
//!
//! A module for each: the same names in all of them, in the newest one's terms. To drop a series, drop its module.

pub(crate) use series::{
    ecanceled, eopnotsupp, full_barrier, owned, parameter, pci_device_table, IdInfo, IRQ_HANDLED,
};

#[cfg(not(linux_7_2))]
mod series {
    use kernel::{
        bindings,
        error::{code, Error},
        module_param::ModuleParamAccess,
        sync::barrier::{mb, Full},
    };

    /// What an interrupt's handler returns that has seen to it.
    pub(crate) const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn::IRQ_HANDLED;

    /// The error of that name. (A constant that is missing would be taken for a variable in a pattern.)
    pub(crate) fn eopnotsupp() -> Error {
        code::EOPNOTSUPP
    }

    /// The error of that name.
    pub(crate) fn ecanceled() -> Error {
        code::ECANCELED
    }

    /// A full barrier, also where there is one CPU only: the other side is not one of them.
    pub(crate) fn full_barrier() {
        mb(Full);
    }

    /// What `probe` gets of the identifier that matched, which may be one that was added at run time.
    pub(crate) type IdInfo<'bound, T> = Option<&'bound T>;

    /// The table of PCI identifiers, for the driver and for the loader of modules.
    macro_rules! pci_device_table {
        ($name:ident, $info:ty, $entries:tt) => {
            kernel::pci_device_table!($name, $info, $entries);
        };
    }
    pub(crate) use pci_device_table;

    /// The value of a module's parameter.
    pub(crate) fn parameter<T: Copy>(access: &ModuleParamAccess<T>) -> T {
        access.value()
    }

    /// Operations that keep the module loaded as long as a file is open: those of `MiscDevice` do.
    pub(crate) const fn owned(fops: bindings::file_operations) -> bindings::file_operations {
        fops
    }
}

#[cfg(linux_7_2)]
mod series {
    use kernel::{bindings, error::Error, module_param::ModuleParamAccess, sync::barrier::smp_mb};

    pub(crate) const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn_IRQ_HANDLED;

    pub(crate) fn eopnotsupp() -> Error {
        Error::from_errno(-(bindings::EOPNOTSUPP as i32))
    }

    pub(crate) fn ecanceled() -> Error {
        Error::from_errno(-(bindings::ECANCELED as i32))
    }

    /// There is one for CPUs only, which is a full one if the kernel is for several.
    pub(crate) fn full_barrier() {
        const _: () = assert!(cfg!(CONFIG_SMP));
        smp_mb();
    }

    pub(crate) type IdInfo<'bound, T> = &'bound T;

    macro_rules! pci_device_table {
        ($name:ident, $info:ty, $entries:tt) => {
            kernel::pci_device_table!($name, MODULE_PCI_TABLE, $info, $entries);
        };
    }
    pub(crate) use pci_device_table;

    pub(crate) fn parameter<T: Copy>(access: &ModuleParamAccess<T>) -> T {
        *access.value()
    }

    /// `MiscDevice` leaves the owner out.
    pub(crate) const fn owned(fops: bindings::file_operations) -> bindings::file_operations {
        bindings::file_operations { owner: crate::THIS_MODULE.as_ptr(), ..fops }
    }
}
