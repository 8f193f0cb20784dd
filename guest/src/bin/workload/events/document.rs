// SPDX-License-Identifier: Apache-2.0 OR MIT

//! docs/events.md has a row for each event and says of each cell what the table of the code says.

use super::table::{Event, Fate, Memory, Shape, State, events};

/// The table as it stands in the document.
fn table() -> String {
    let states = State::ALL.map(State::name).join(" | ");
    let mut text = format!("| Event | In the kernel | Memory | {states} |\n|---|---|---|");
    text += &"---|".repeat(State::ALL.len());
    for event in events() {
        let shapes = event.shapes.iter().map(|shape| shape.name()).collect::<Vec<_>>().join(", ");
        let cells = State::ALL.map(|state| cell(event, state)).join(" | ");
        text += &format!("\n| `{}` | {} | {shapes} | {cells} |", event.name, event.kernel);
    }
    text
}

/// What is expected in a state.
fn cell(event: &Event, state: State) -> String {
    if let Some(reason) = event.absent(state) {
        return format!("not tried: {reason}");
    }
    if super::scene::missing(state).is_some() {
        return "missing".to_owned();
    }
    let memory = event.memory(state);
    let rest = if state.is_hammered() { end(event, memory) } else { fate(event, state) };
    format!("{}{rest}", name(memory))
}

fn name(memory: Memory) -> &'static str {
    match memory {
        Memory::Kept => "kept",
        Memory::Moved => "moved",
        Memory::MovedLeavingZeros => "moved, zeros left",
        Memory::Zeroed => "zeros",
        Memory::Replaced => "replaced",
        Memory::Gone => "gone",
        Memory::TailGone => "tail gone",
        Memory::ReadOnly => "read-only",
        Memory::NoAccess => "no access",
        Memory::Guarded => "guarded",
        Memory::Ended { signal: None } => "ended",
        Memory::Ended { signal: Some(_) } => "killed",
    }
}

/// How the device's commands go on.
fn end(event: &Event, memory: Memory) -> String {
    let end = |shape: &Shape| memory.stops(*shape).and_then(|status| status.name());
    let ends: Vec<_> = event.shapes.iter().map(end).collect();
    match (memory, ends.iter().flatten().next(), event.between) {
        (Memory::Ended { .. }, ..) => String::new(),
        (_, Some(status), _) if ends.iter().all(Option::is_some) => format!(", {status}"),
        (_, Some(status), _) => format!(", {status} (page: goes on)"),
        (_, None, Some(status)) => format!(", goes on or {}", status.name().unwrap_or_default()),
        (_, None, None) => ", goes on".to_owned(),
    }
}

/// What becomes of the device's entries.
fn fate(event: &Event, state: State) -> String {
    if matches!(event.memory(state), Memory::Ended { .. }) {
        return String::new();
    }
    let word = |shape| match event.fate(shape, state) {
        None => "",
        Some(Fate::Taken) => "taken",
        Some(Fate::Tail) => "taken in the tail",
        Some(Fate::Stays) => "stays",
        Some(Fate::GivenUp) => "given up",
        Some(Fate::Perhaps) => "taken or stays",
    };
    let words: Vec<_> = event.shapes.iter().map(|shape| (*shape, word(*shape))).collect();
    match words.as_slice() {
        [(_, ""), ..] => String::new(),
        [.., (_, small), (Shape::Huge, huge)] if small != huge => format!(", {small} (huge: {huge})"),
        [(_, word), ..] => format!(", {word}"),
        [] => String::new(),
    }
}

#[test]
fn the_document_has_the_table() {
    let document = include_str!("../../../../../docs/events.md");
    let rows = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    let (expected, found) = (rows(&table()), rows(document));
    for row in &expected {
        assert!(
            found.contains(row),
            "docs/events.md lacks this row; the whole table is\n\n{}\n\n{row}",
            table()
        );
    }
    let matrix = found.iter().filter(|row| row.starts_with("| `")).count();
    assert_eq!(matrix, events().count(), "docs/events.md has rows of no event");
    assert!(document.contains(&format!("{} cells", super::table::CELLS)));
}
