// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plays every input that is kept: the seeds, and what fuzzing has found. `SVMX_WRITE_SEEDS=1` writes the
//! seeds, after a change of `src/seeds.rs`.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use svmx_fuzz::{TARGETS, end, seeds};

/// When an input is taken to hang. The driver in it gives up earlier, and says at what.
const HANG: Duration = Duration::from_secs(180);

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target)
}

/// Files of a folder, if there is one.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_corpus_is_what_the_seeds_say() {
    let write = std::env::var_os("SVMX_WRITE_SEEDS").is_some();
    let seeds = seeds::all();
    for seed in &seeds {
        let file = folder("corpus", seed.target).join(&seed.name);
        if write {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &seed.bytes).unwrap();
        }
        let kept = std::fs::read(&file).unwrap_or_default();
        assert_eq!(kept, seed.bytes, "{}: run this test with SVMX_WRITE_SEEDS=1", file.display());
    }
    let kept: usize = TARGETS.iter().map(|(target, _)| files(&folder("corpus", target)).len()).sum();
    assert_eq!(kept, seeds.len(), "there are files that no seed makes");
}

/// On a thread of its own, so that a hang is found here and not by whoever waits for the tests.
#[test]
fn every_input_that_is_kept_plays() {
    let (done, waiting) = mpsc::channel();
    let player = std::thread::spawn(move || {
        for (target, play) in TARGETS {
            for file in ["corpus", "regressions"].iter().flat_map(|kind| files(&folder(kind, target))) {
                let input = std::fs::read(&file).unwrap();
                done.send(file).unwrap();
                play(&input);
            }
        }
        end();
    });
    let mut last = PathBuf::new();
    loop {
        match waiting.recv_timeout(HANG) {
            Ok(file) => last = file,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("hang: {}", last.display()),
        }
    }
    assert!(player.join().is_ok(), "{}", last.display());
}
