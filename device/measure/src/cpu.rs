// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPUs and threads: who runs where, and how much CPU time it had.

use std::fs;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;

/// Where a measurement's threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The thread that submits and waits.
    pub submitter: usize,
    /// The first engine, and the native loop that it is compared with.
    pub first: usize,
    /// The second engine.
    pub second: usize,
}

impl Places {
    /// Places on this machine; `None` if there is only one CPU, and nothing to choose.
    pub fn find() -> Option<Places> {
        Places::among(&allowed())
    }

    /// Numbers of hardware threads of one core are neighbours, or half of the count apart: the places
    /// are neither.
    fn among(cpus: &[usize]) -> Option<Places> {
        let place = |at: usize| cpus.get(at).copied();
        let (submitter, first) = (place(0)?, place(cpus.len().checked_sub(1)?)?);
        let second = if cpus.len() > 2 { place(cpus.len() / 2)? } else { submitter };
        (cpus.len() > 1).then_some(Places { submitter, first, second })
    }
}

/// The CPUs that this process may use.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect()
}

/// Lets a thread run on these CPUs only; 0 is the calling thread. A thread that can't be bound runs
/// where it likes: a worse measurement, not a wrong one.
pub fn bind(thread: i32, cpus: &[usize]) {
    let mut set = CpuSet::new();
    if cpus.iter().all(|&cpu| set.set(cpu).is_ok()) {
        let _ = sched_setaffinity(Pid::from_raw(thread), &set);
    }
}

/// The calling thread is bound while this lives.
#[derive(Debug)]
pub struct Bound(Vec<usize>);

/// Binds the calling thread to a CPU, if one is given, until the result is dropped. Threads that it starts
/// meanwhile are bound alike.
pub fn bound(cpu: Option<usize>) -> Bound {
    let before = allowed();
    if let Some(cpu) = cpu {
        bind(0, &[cpu]);
    }
    Bound(before)
}

impl Drop for Bound {
    fn drop(&mut self) {
        bind(0, &self.0);
    }
}

/// A thread of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub id: i32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
}

/// The threads of this process.
pub fn threads() -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let thread = |id: i32| {
        let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?.trim_end().to_owned();
        Some(Thread { id, name })
    };
    tasks.filter_map(|task| thread(task.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

/// The calling thread's number.
pub fn this_thread() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// CPU time that a thread of this process has had. It does not grow while another process has the CPU: what
/// one thread does alone is measured by it even on a machine that has more to do.
pub fn thread_time(thread: i32) -> Duration {
    /// The kernel's encoding of "the scheduler's clock of this thread" (`CPUCLOCK_PERTHREAD` and
    /// `CPUCLOCK_SCHED` beside the inverted number).
    const SCHED_PER_THREAD: i32 = 6;
    let clock = ClockId::from_raw((!thread << 3) | SCHED_PER_THREAD);
    clock.now().map_or(Duration::ZERO, Duration::from)
}

/// CPU time that a process has had, in all its threads.
pub fn process_time(process: u32) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.cast_signed()));
    clock.and_then(ClockId::now).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_different_cores_where_there_are_enough() {
        let among = |cpus: &[usize]| Places::among(cpus).map(|at| (at.submitter, at.first, at.second));
        assert_eq!(among(&[]), None);
        assert_eq!(among(&[3]), None);
        assert_eq!(among(&[2, 5]), Some((2, 5, 2)));
        assert_eq!(among(&[0, 1, 2]), Some((0, 2, 1)));
        assert_eq!(among(&[0, 1, 2, 3, 4, 5, 6, 7]), Some((0, 7, 4)));
    }

    #[test]
    fn a_thread_finds_itself() {
        let named = std::thread::Builder::new().name("find me".into());
        let (mine, all) = named.spawn(|| (this_thread(), threads())).unwrap().join().unwrap();
        assert!(all.contains(&Thread { id: mine, name: "find me".into() }), "{all:?}");
    }

    #[test]
    fn a_thread_s_time_is_its_own() {
        let worked = || {
            let before = thread_time(this_thread());
            while thread_time(this_thread()) - before < Duration::from_millis(20) {}
            this_thread()
        };
        let before = (thread_time(this_thread()), process_time(std::process::id()));
        std::thread::spawn(worked).join().unwrap();
        let after = (thread_time(this_thread()), process_time(std::process::id()));
        assert!(after.1 - before.1 >= Duration::from_millis(20));
        assert!(after.0 - before.0 < after.1 - before.1);
    }
}
