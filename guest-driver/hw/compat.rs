// SPDX-License-Identifier: GPL-2.0

//! Where the supported series of kernels differ, and nowhere else. Kbuild sets `linux_7_2` for that series; without it
//! the newest is meant.
//!
//! A module for each: the same names in all of them, in the newest one's terms. To drop a series, drop its module.

pub(crate) use series::{owned, parameter, pci_device_table, IdInfo};

#[cfg(not(linux_7_2))]
mod series {
    use kernel::{bindings, module_param::ModuleParamAccess};

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
    use kernel::{bindings, module_param::ModuleParamAccess};

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
