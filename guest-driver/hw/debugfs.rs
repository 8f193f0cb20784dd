// SPDX-License-Identifier: GPL-2.0

//! debugfs: folders, and files that show an object as text.
//!
//! Not `kernel::debugfs`, whose files hold no reference to the module: closing one that was open when the
//! module went would call a function that is gone. Failures are not reported, as is the custom: what can't
//! be made is not there to be looked at.

use core::{marker::PhantomData, ptr::null_mut};
use kernel::{bindings, fmt, prelude::*, seq_file::SeqFile, seq_print, str::CStrExt, sync::Arc};

/// An entry, removed when dropped; then no reader of it is under way any more.
///
/// # Invariants
///
/// `raw` is an entry that nobody else removes, as what it is in lives as long; or an error, which debugfs ignores.
struct Entry {
    raw: *mut bindings::dentry,
    _parent: Option<Arc<Entry>>,
}

// SAFETY: An entry is not tied to a thread.
unsafe impl Send for Entry {}
// SAFETY: debugfs synchronizes itself.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is there, or an error, which is ignored.
        unsafe { bindings::debugfs_remove(self.raw) };
    }
}

/// A folder. It goes with its last clone, and with the last of what is in it.
#[derive(Clone)]
pub(crate) struct Dir(Option<Arc<Entry>>);

impl Dir {
    /// The module's own folder.
    pub(crate) fn root() -> Self {
        ROOT.lock().clone().unwrap_or(Dir(None))
    }

    /// A folder in this one.
    pub(crate) fn dir(&self, name: &CStr) -> Self {
        match &self.0 {
            Some(entry) => Self::make(entry.raw, Some(entry.clone()), name),
            None => Dir(None),
        }
    }

    /// What is put into it is not there.
    pub(crate) const fn none() -> Self {
        Dir(None)
    }

    fn make(parent: *mut bindings::dentry, keep: Option<Arc<Entry>>, name: &CStr) -> Self {
        // SAFETY: The name is a string, which is copied; the parent is a folder, an error or null.
        let raw = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) };
        Dir(Arc::new(Entry { raw, _parent: keep }, GFP_KERNEL).ok())
    }
}

/// A way to show a `T`.
pub(crate) trait View<T>: 'static {
    /// Writes text. May sleep, but not for ever: whoever drops the [`Files`] waits for it.
    fn show(shown: &T, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Files that show an object. They are removed, and their readers gone, before the object is let go.
pub(crate) struct Files<T: Send + Sync + 'static> {
    entries: KVec<Entry>,
    dir: Dir,
    shown: Arc<T>,
}

impl<T: Send + Sync + 'static> Files<T> {
    /// None as yet, in `dir`.
    pub(crate) fn new(dir: Dir, shown: Arc<T>) -> Self {
        Files { entries: KVec::new(), dir, shown }
    }

    /// One more, for root to read.
    pub(crate) fn with<V: View<T>>(mut self, name: &CStr) -> Self {
        let Some(dir) = &self.dir.0 else { return self };
        if self.entries.reserve(1, GFP_KERNEL).is_err() {
            return self;
        }
        let data = core::ptr::from_ref::<T>(&self.shown).cast_mut().cast();
        // SAFETY: The name is a string; `data` is a `T`, as the operations want, and outlives the file,
        // because the entries are dropped first.
        let raw = unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                dir.raw,
                data,
                core::ptr::null(),
                &Operations::<T, V>::OPERATIONS,
            )
        };
        // There is room, see above. If there were none the entry would be removed at once.
        let _ = self.entries.push_within_capacity(Entry { raw, _parent: Some(dir.clone()) });
        self
    }
}

struct Operations<T, V>(PhantomData<(T, V)>);

impl<T: Send + Sync + 'static, V: View<T>> Operations<T, V> {
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        // An open file keeps the module.
        owner: (&raw const bindings::__this_module).cast_mut(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the kernel for a file of [`Files::with`] that is not removed.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> i32 {
        // SAFETY: The inode and the file are valid; the inode's data is what `show` wants.
        unsafe { bindings::single_open(file, Some(Self::show), (*inode).i_private) }
    }

    /// # Safety
    ///
    /// Called by the kernel in a read of such a file, which the file's removal waits for.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut core::ffi::c_void) -> i32 {
        // SAFETY: `open` made it of a `T` that outlives the read; nobody else uses the `seq_file` now.
        let (shown, seq) = unsafe { (&*(*seq).private.cast::<T>(), SeqFile::from_raw(seq)) };
        let text: Shown<'_, T, V> = Shown(shown, PhantomData);
        seq_print!(seq, "{}", text);
        0
    }
}

struct Shown<'a, T, V>(&'a T, PhantomData<V>);

impl<T, V: View<T>> fmt::Display for Shown<'_, T, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        V::show(self.0, f)
    }
}

kernel::sync::global_lock! {
    // SAFETY: `Root::new` initializes it, when the module is loaded, before anything can use it.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// Owns the module's folder.
pub(crate) struct Root(());

impl Root {
    /// Makes it. To be called once, when the module is loaded.
    pub(crate) fn new(name: &CStr) -> Self {
        // SAFETY: By the requirement of this function it is called once.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(Dir::make(null_mut(), None, name));
        Root(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Entries are not removed with the lock held.
        let root = ROOT.lock().take();
        drop(root);
    }
}
