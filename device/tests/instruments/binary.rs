// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The options of the real binary, in its sandbox.

use std::fs;
use std::process::{Output, Stdio};

use mock_driver::binary::{Binary, command};
use nix::sys::signal::Signal;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_svmx-device");

#[test]
fn bad_values_are_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, what) in [
        (&["--chaos", "nosuch"][..], "no fault \"nosuch\""),
        (&["--chaos", "tlb-evict=often"], "tlb-evict takes a probability from 0 to 1, not \"often\""),
        (&["--chaos", ""], "--chaos"),
        (&["--seed", "1"], "required arguments"),
        (&["--chaos", "light", "--seed", "x"], "--seed"),
    ] {
        let mut command = command(PROGRAM, folder.path(), arguments);
        let Output { status, stderr, .. } = command.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), text.lines().count()), (Some(2), 1), "{arguments:?}: {text}");
        assert!(text.contains(what), "{arguments:?}: {text}");
    }
    let output = command(PROGRAM, folder.path(), &["--trace", "/nosuch/trace.json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(PROGRAM, folder.path(), &[]);
    command.env("SVMX_LOG", "svmx_device=loud").stderr(Stdio::piped());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("SVMX_LOG=svmx_device=loud"), "{text}");
}

#[test]
fn all_of_them_work_confined_and_end_well() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let arguments =
        ["--check-exclusive", "--chaos", "all", "--seed", "5", "--trace", trace.to_str().unwrap()];
    let mut device = Binary::start(PROGRAM, &arguments);
    device.signal(Signal::SIGTERM);
    let log = device.ends_well();
    assert!(log.contains("chaos: seed 5"), "{log}");
    assert!(log.contains("exclusivity: pages compared") && log.contains("trace: complete"), "{log}");
    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    assert!(events.iter().any(|event| event["args"]["name"] == "control thread"));
}
