// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The trace is JSON as viewers take it: times, tracks, slices inside each other or apart. No viewer is asked;
//! Perfetto's own checker is a binary that would have to be fetched.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::io::Seek;

use mock_driver::{Mock, RAM, UserQueue, add, add_strided, options};
use serde_json::Value;
use svmx_abi::control::{Cancel, Replay, Sync, TlbInvalidate};
use svmx_abi::pci::PAGE_SIZE;
use svmx_abi::pte::{Access, Pte};
use svmx_abi::queue::{Opcode, Sqe};
use svmx_abi::status::Status;
use svmx_device::instruments::Request;

use super::VA;

/// A slice: process and track, name, begin and end in nanoseconds, arguments.
struct Slice {
    track: (u64, u64),
    name: String,
    begin: u64,
    end: u64,
    args: Value,
}

/// Nanoseconds of a time in microseconds.
fn nanoseconds(value: &Value) -> u64 {
    // The number as it is written: a float would round it.
    let text = value.to_string();
    let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
    let part = format!("{part:0<3}");
    whole.parse::<u64>().unwrap() * 1000 + part.parse::<u64>().unwrap()
}

/// What the device did, by a program with everything in it.
fn trace() -> Vec<Value> {
    let mut file = tempfile::tempfile().unwrap();
    let request = Request { trace: Some(file.try_clone().unwrap()), ..Default::default() };
    let mock = Mock::watched(options(), 6, RAM, request);
    work(&mock);
    drop(mock);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn work(mock: &Mock) {
    let space = mock.space();
    let frame = mock.pages(1);
    let entry = Pte::leaf(frame, Access::EXCLUSIVE);
    let mut queues = [0, 1].map(|_| UserQueue::new(mock, space));
    let ids = queues.each_ref().map(|queue| queue.id);
    queues[0].submit(Sqe { tag: 77, ..add_strided(VA, 5000, 0) });
    let fault_id = mock.next_fault().fault_id;
    mock.map(space, VA, entry);
    mock.control(Replay { queue: ids[0], fault_id, pte: entry.0, ..Default::default() });
    assert_eq!(queues[0].wait().head.status(), Status::SUCCESS);
    (0..50).for_each(|_| queues.iter_mut().for_each(|queue| queue.submit(add(VA, 1))));
    queues.iter_mut().for_each(|queue| (0..50).for_each(|_| _ = queue.wait()));
    mock.control(TlbInvalidate { asid: space.asid, va: VA, len: PAGE_SIZE, ..Default::default() });
    mock.control(Sync::default());
    queues[1].submit(add(VA + PAGE_SIZE, 1));
    let fault_id = mock.next_fault().fault_id;
    mock.control(Cancel { queue: ids[1], fault_id, status: Status::FAULT, ..Default::default() });
    assert_eq!(queues[1].wait().head.status(), Status::FAULT);
    assert_eq!(queues[1].run(Sqe { opcode: Opcode(0x3f), ..add(VA, 1) }).head.status(), Status::BAD_OPCODE);
    // One that stalls for ever, in a queue that ends.
    queues[1].submit(add(VA + PAGE_SIZE, 1));
    mock.next_fault();
    queues[1].destroy();
}

fn slices(events: &[Value]) -> Vec<Slice> {
    let slice = |event: &Value| Slice {
        track: (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap()),
        name: event["name"].as_str().unwrap().to_owned(),
        begin: nanoseconds(&event["ts"]),
        end: nanoseconds(&event["ts"]) + nanoseconds(&event["dur"]),
        args: event["args"].clone(),
    };
    events.iter().filter(|event| event["ph"] == "X").map(slice).collect()
}

#[test]
fn slices_of_a_track_are_nested_or_apart() {
    let events = trace();
    let mut tracks: BTreeMap<_, Vec<Slice>> = BTreeMap::new();
    for slice in slices(&events) {
        tracks.entry(slice.track).or_default().push(slice);
    }
    assert!(tracks.keys().filter(|(process, _)| *process == 2).count() == 2, "a track for each queue");
    for (track, mut slices) in tracks {
        slices.sort_by_key(|slice| (slice.begin, std::cmp::Reverse(slice.end)));
        let mut open: Vec<u64> = vec![];
        for Slice { name, begin, end, .. } in slices {
            open.retain(|&until| until > begin);
            assert!(begin <= end && open.iter().all(|&until| end <= until), "{name} on {track:?}");
            open.push(end);
        }
    }
}

#[test]
fn commands_and_stalls_are_there() {
    let slices = slices(&trace());
    let named = |name: &str| slices.iter().filter(|slice| slice.name == name).collect::<Vec<_>>();
    let bulk = named("FETCH_ADD bulk");
    let [bulk] = bulk[..] else { panic!("{}", bulk.len()) };
    assert_eq!((&bulk.args["tag"], &bulk.args["applied"]), (&77.into(), &5000.into()));
    assert_eq!((&bulk.args["status"], &bulk.args["va"]), (&"SUCCESS".into(), &"0x70000000".into()));
    let commands = named("FETCH_ADD");
    assert_eq!(commands.len(), 102);
    assert_eq!(commands.iter().filter(|command| command.args["status"] == "FAULT").count(), 1);
    assert_eq!(commands.iter().filter(|command| command.args["ended"] == "with its queue").count(), 1);
    let mut ends: Vec<_> = named("fault").iter().map(|fault| fault.args["ended_by"].clone()).collect();
    ends.sort_by_key(Value::to_string);
    assert_eq!(ends, ["CANCEL", "REPLAY", "its queue's end"]);
    let within = |inner: &Slice| {
        let around = |outer: &Slice| outer.begin < inner.begin && inner.end <= outer.end;
        slices.iter().any(|outer| outer.track == inner.track && around(outer))
    };
    assert!(named("fault").into_iter().all(within), "a command stalls between its begin and its end");
    assert_eq!((named("refused").len(), named("SYNC").len()), (1, 1));
    assert!(slices.iter().any(|slice| slice.track.0 == 1 && slice.name.starts_with("queue ")));
}

#[test]
fn instants_and_names_are_there() {
    let events = trace();
    let mut count: HashMap<&str, usize> = HashMap::new();
    events.iter().for_each(|event| *count.entry(event["name"].as_str().unwrap()).or_default() += 1);
    for name in
        ["translated", "invalidate", "TLB_INVALIDATE", "REPLAY", "CANCEL", "CREATE_QUEUE", "thread_name"]
    {
        assert!(count.contains_key(name), "{name}: {count:?}");
    }
    let translated = events.iter().find(|event| event["name"] == "translated").unwrap();
    assert_eq!(translated["args"]["atomic"], true);
    assert_eq!(translated["args"]["bytes"], 4096);
    assert_eq!(events.last().unwrap()["args"]["dropped"], 0);
}

/// The file is opened where it can't be made any more.
#[test]
fn a_full_disk_does_not_stop_the_device() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let mock = Mock::watched(options(), 6, RAM, Request { trace: Some(full), ..Default::default() });
    work(&mock);
}
