// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The user's cache: folders keyed by the content that produced them.
//!
//! An entry is made in `<name>.partial` beside its place and renamed into it, so it is there whole or
//! not at all. A file lock per entry lets two xtasks work at once: the second waits and uses the
//! first one's result.

use crate::progress::Progress;
use anyhow::{Context, Result};
use etcetera::BaseStrategy;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The cache folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// Accumulates what produces an entry; every part is separated from the next.
#[derive(Clone, Default)]
pub(crate) struct Key(Sha256);

impl Key {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn part(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Sixteen hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        self.0.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Cache {
    /// `$XDG_CACHE_HOME/svmx` or `~/.cache/svmx`.
    pub(crate) fn open() -> Result<Self> {
        let cache = Self::locate()?;
        fs::create_dir_all(&cache.dir).with_context(|| format!("can't create {}", cache.dir.display()))?;
        Ok(cache)
    }

    /// The same for somebody who only looks: it may not be there.
    pub(crate) fn locate() -> Result<Self> {
        let base = etcetera::base_strategy::Xdg::new().context("the home folder is not known")?;
        Ok(Cache { dir: base.cache_dir().join("svmx") })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry's folder if the entry is complete.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        let place = self.dir.join(name);
        place.is_dir().then_some(place)
    }

    /// Where the steps that fill the entry write their logs.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("logs");
        fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{name}.log")))
    }

    /// The entry's folder, which `make` fills first if the entry is not there yet.
    pub(crate) async fn entry(
        &self,
        name: &str,
        progress: &Progress,
        make: impl AsyncFnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.dir.join(name);
        if place.is_dir() {
            progress.detail(format!("cached: {}", place.display()));
            return Ok(place);
        }
        let _lock = lock(&self.dir.join(format!("{name}.lock")), progress).await?;
        if place.is_dir() {
            return Ok(place);
        }
        self.sweep(name)?;
        let partial = self.dir.join(format!("{name}.partial"));
        fs::create_dir(&partial)?;
        make(&partial).await?;
        fs::rename(&partial, &place)?;
        Ok(place)
    }
}

impl Cache {
    /// Removes what interrupted steps left: this entry's, whose lock we hold, and every other that nobody
    /// holds the lock of.
    fn sweep(&self, ours: &str) -> Result<()> {
        for file in fs::read_dir(&self.dir)? {
            let Ok(name) = file?.file_name().into_string() else { continue };
            let Some(entry) = name.strip_suffix(".partial") else { continue };
            let lock = File::create(self.dir.join(format!("{entry}.lock")))?;
            // Held until the removal is done.
            let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
            if entry == ours || held.is_ok() {
                remove_tree(&self.dir.join(&name))?;
            }
        }
        Ok(())
    }
}

/// Takes the lock at `path`, saying so once if another xtask has it. It is held until dropped.
pub(crate) async fn lock(path: &Path, progress: &Progress) -> Result<Flock<File>> {
    let open = || File::create(path).with_context(|| format!("can't create {}", path.display()));
    let mut file = open()?;
    let mut said = false;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EAGAIN)) => file,
            Err((_, errno)) => return Err(errno).with_context(|| format!("can't lock {}", path.display())),
        };
        if !said {
            progress.say(format!(
                "another xtask makes or uses {}; waiting for it",
                path.with_extension("").display()
            ));
            said = true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Lets others use what is locked too, while none may change it.
pub(crate) async fn share(lock: Flock<File>) -> Result<Flock<File>> {
    // Another xtask may come between; it brings the same thing up to date again.
    while let Err(errno) = lock.relock(FlockArg::LockSharedNonblock) {
        if errno != Errno::EAGAIN {
            return Err(errno).context("can't share a lock");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(lock)
}

/// Removes a folder and what is in it, if it exists.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { dir: dir.path().to_owned() };
        (dir, cache)
    }

    #[test]
    fn key_separates_its_parts() {
        assert_ne!(Key::new().part("ab").part("c").finish(), Key::new().part("a").part("bc").finish());
        assert_eq!(Key::new().part("a").finish().len(), 16);
    }

    #[tokio::test]
    async fn a_failed_step_leaves_no_entry_and_the_next_one_starts_clean() {
        let (_dir, cache) = scratch();
        let progress = Progress::new(false);
        let failed = cache
            .entry("x", &progress, async |dir| {
                fs::write(dir.join("half"), "")?;
                anyhow::bail!("interrupted")
            })
            .await;
        assert!(failed.is_err());
        assert!(cache.find("x").is_none());
        let made = cache
            .entry("x", &progress, async |dir| {
                assert!(!dir.join("half").exists());
                Ok(fs::write(dir.join("whole"), "")?)
            })
            .await
            .unwrap();
        assert!(made.join("whole").exists());
    }

    #[tokio::test]
    async fn what_was_abandoned_goes_and_what_is_being_made_stays() {
        let (_dir, cache) = scratch();
        let progress = Progress::new(false);
        for name in ["abandoned", "busy"] {
            fs::create_dir(cache.dir.join(format!("{name}.partial"))).unwrap();
        }
        let _busy = lock(&cache.dir.join("busy.lock"), &progress).await.unwrap();
        cache.entry("x", &progress, async |_| Ok(())).await.unwrap();
        assert!(!cache.dir.join("abandoned.partial").exists());
        assert!(cache.dir.join("busy.partial").exists());
    }

    #[tokio::test]
    async fn what_is_shared_is_not_changed() {
        let (_dir, cache) = scratch();
        let (path, progress) = (cache.dir.join("x.lock"), Progress::new(false));
        let shared = share(lock(&path, &progress).await.unwrap()).await.unwrap();
        let open = || File::create(&path).unwrap();
        assert!(Flock::lock(open(), FlockArg::LockSharedNonblock).is_ok());
        assert!(Flock::lock(open(), FlockArg::LockExclusiveNonblock).is_err());
        drop(shared);
        assert!(Flock::lock(open(), FlockArg::LockExclusiveNonblock).is_ok());
    }

    #[tokio::test]
    async fn two_at_once_make_an_entry_once() {
        let (_dir, cache) = scratch();
        let progress = Progress::new(false);
        let made = std::cell::Cell::new(0);
        let make = async || {
            cache
                .entry("x", &progress, async |_| {
                    made.set(made.get() + 1);
                    tokio::time::sleep(Duration::from_millis(150)).await;
                    Ok(())
                })
                .await
        };
        let (a, b) = tokio::join!(make(), make());
        assert_eq!(a.unwrap(), b.unwrap());
        assert_eq!(made.get(), 1);
    }
}
