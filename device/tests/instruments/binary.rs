// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The options of the real binary, in its sandbox.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn device(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svmx-device"));
    command.arg("--socket").arg(folder.join("device.sock")).args(arguments).env_remove("SVMX_LOG");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

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
        let Output { status, stderr, .. } = device(folder.path(), arguments).output().unwrap();
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), text.lines().count()), (Some(2), 1), "{arguments:?}: {text}");
        assert!(text.contains(what), "{arguments:?}: {text}");
    }
    let output = device(folder.path(), &["--trace", "/nosuch/trace.json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = device(folder.path(), &[]).env("SVMX_LOG", "svmx_device=loud").output().unwrap();
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
    let mut child = device(folder.path(), &arguments).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("listening on") {
        assert!(log.read_line(&mut text).unwrap() > 0, "{text}");
    }
    assert!(text.contains("chaos: seed 5"), "{text}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    log.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains("exclusivity: pages compared") && text.contains("trace: complete"), "{text}");
    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    assert!(events.iter().any(|event| event["args"]["name"] == "control thread"));
}
