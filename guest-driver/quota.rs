// SPDX-License-Identifier: GPL-2.0

//! Quotas: how many contexts and queues one user may have at a time, over all devices, so that none takes them all
//! from others. Memory is not limited here: it is charged to the memory cgroup of whoever it is for.
//!
//! A user is a real user identifier, as for the kernel's resource limits: the one of whoever opened the file or made the
//! queue, whatever the process becomes later. Who has CAP_SYS_RESOURCE may go on beyond the limit; what they take counts
//! all the same.

use super::hw::compat::parameter;
use super::module_parameters;
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{AtomicFlag, Relaxed},
    task::Kuid,
};

/// What is counted.
#[derive(Clone, Copy)]
pub(crate) enum Resource {
    Context,
    Queue,
}

impl Resource {
    fn limit(self) -> u32 {
        match self {
            Resource::Context => parameter(&module_parameters::max_contexts_per_user),
            Resource::Queue => parameter(&module_parameters::max_queues_per_user),
        }
    }
}

/// A user who has something.
struct User {
    uid: Kuid,
    contexts: u32,
    queues: u32,
}

impl User {
    fn count(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Context => self.contexts,
            Resource::Queue => self.queues,
        }
    }

    fn change(&mut self, resource: Resource, by: i32) {
        let count = match resource {
            Resource::Context => &mut self.contexts,
            Resource::Queue => &mut self.queues,
        };
        *count = count.wrapping_add_signed(by);
    }
}

kernel::sync::global_lock! {
    // SAFETY: `init` is called when the module is loaded, before anything can use it.
    unsafe(uninit) static USERS: Mutex<KVec<User>> = KVec::new();
}

/// Makes the table.
///
/// # Safety
///
/// To be called once, when the module is loaded.
pub(crate) unsafe fn init() {
    // SAFETY: By the requirement of this function.
    unsafe { USERS.init() };
}

/// One of a user's, until it is given back or dropped, whichever is first.
pub(crate) struct Taken {
    uid: Kuid,
    resource: Resource,
    given: AtomicFlag,
}

impl Taken {
    /// One more for the calling process's user. Fails with EDQUOT if they may not have it.
    pub(crate) fn new(resource: Resource) -> Result<Self> {
        let uid = kernel::current!().uid();
        let mut users = USERS.lock();
        let index = users.iter().position(|user| user.uid == uid);
        let count = index.and_then(|index| users.get(index)).map_or(0, |user| user.count(resource));
        if count >= resource.limit() && !is_privileged() {
            return Err(EDQUOT);
        }
        match index.and_then(|index| users.get_mut(index)) {
            Some(user) => user.change(resource, 1),
            None => {
                let mut user = User { uid, contexts: 0, queues: 0 };
                user.change(resource, 1);
                users.push(user, GFP_KERNEL)?;
            }
        }
        Ok(Taken { uid, resource, given: AtomicFlag::new(false) })
    }

    /// Gives it back although the object may live on: whoever waits for a queue keeps it a little longer than the one
    /// who destroys it, and makes another. Does so once. Sleeps.
    pub(crate) fn give(&self) {
        if self.given.xchg(true, Relaxed) {
            return;
        }
        let mut users = USERS.lock();
        let Some(index) = users.iter().position(|user| user.uid == self.uid) else { return };
        let Some(user) = users.get_mut(index) else { return };
        user.change(self.resource, -1);
        if (user.contexts, user.queues) == (0, 0) {
            // The index is one of the table's.
            let _ = users.remove(index);
        }
        if users.is_empty() {
            // A static is not dropped when the module is unloaded: its memory goes with the last user.
            *users = KVec::new();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give();
    }
}

fn is_privileged() -> bool {
    // SAFETY: Has no preconditions.
    unsafe { bindings::capable(bindings::CAP_SYS_RESOURCE as i32) }
}
