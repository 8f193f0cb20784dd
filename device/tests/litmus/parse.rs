// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table of spec 10.6 as programs. What can't be read fails the tests: a row that says something new
//! needs something new here.

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) first: Agent,
    pub(crate) second: Agent,
    pub(crate) outcome: Outcome,
    pub(crate) allowed: bool,
}

/// A queue or a CPU thread, and what it does. Words and results have names of one letter.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) queue: bool,
    pub(crate) steps: Vec<Instruction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    Write(char, u64),
    Read(char, char),
    /// Adds one, as often as the row's other agent.
    AddMany(char),
    Add(char),
    Fence,
    /// Several words from this one on.
    Fill(char, u64),
    Wait(char, u64),
    /// The words from the first name on become those from the second.
    Copy(char, char),
    /// One command with two elements.
    BulkSwap([(char, u64); 2]),
    Store(char, u64),
    Load(char, char),
    Barrier,
    SeeCompletion,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of these results.
    Results(Vec<(char, u64)>),
    /// Another value in any of the words from this one on.
    AnyOther(char, u64),
    /// A sum that is not what both have added.
    NotTheSum(char),
}

impl Row {
    /// Whether it needs a page that allows atomics.
    pub(crate) fn has_atomics(&self) -> bool {
        use Instruction::{Add, AddMany, BulkSwap};
        let mut steps = self.first.steps.iter().chain(&self.second.steps);
        steps.any(|step| matches!(step, Add(_) | AddMany(_) | BulkSwap(_)))
    }
}

/// Every row, in order.
pub(crate) fn rows() -> Vec<Row> {
    let spec = include_str!("../../../docs/spec.md");
    let table = spec.lines().skip_while(|line| !line.starts_with("| Litmus |")).skip(2);
    let rows: Vec<Row> = table.take_while(|line| line.starts_with('|')).map(row).collect();
    assert!(!rows.is_empty(), "docs/spec.md has no table of litmus tests");
    rows
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [name, first, second, outcome, verdict] = cells[..] else { panic!("not five cells: {line}") };
    let allowed = match verdict {
        "allowed" => true,
        "forbidden" => false,
        other => panic!("neither allowed nor forbidden: {other}"),
    };
    let name = name.trim_matches('`').to_owned();
    Row { name, first: agent(first), second: agent(second), outcome: self::outcome(outcome), allowed }
}

fn agent(cell: &str) -> Agent {
    let (who, steps) = cell.split_once(": ").expect("an agent and what it does");
    let queue = match who {
        "Q" => true,
        "C" => false,
        other => panic!("neither queue nor CPU: {other}"),
    };
    Agent { queue, steps: steps.split("; ").map(|step| instruction(queue, step)).collect() }
}

fn instruction(queue: bool, text: &str) -> Instruction {
    use Instruction::*;
    if let (true, Some((command, rest))) = (queue, text.split_once(' ')) {
        return match command {
            "WRITE" => pair(rest, Write),
            "READ" => names(rest, Read),
            "WAIT" => pair(rest, Wait),
            "FETCH_ADD" => match rest.split_once("+=1") {
                Some((word, "")) => Add(letter(word)),
                Some((word, ", n times")) => AddMany(letter(word)),
                _ => panic!("unknown addition: {text}"),
            },
            "FILL" => pair(&rest.replace('…', ""), Fill),
            "COPY" => names(&rest.replace('…', ""), Copy),
            "bulk" => bulk_swap(rest),
            _ => panic!("unknown command: {text}"),
        };
    }
    match (queue, text) {
        (true, "FENCE") => Fence,
        (false, "full barrier") => Barrier,
        (false, "sees its completion") => SeeCompletion,
        (false, _) if text.ends_with(|last: char| last.is_ascii_digit()) => pair(text, Store),
        (false, _) => names(text, Load),
        _ => panic!("unknown command: {text}"),
    }
}

fn bulk_swap(text: &str) -> Instruction {
    let elements = text.strip_prefix("SWAP ").and_then(|rest| rest.strip_suffix(" in this order"));
    let elements: Vec<_> = elements.expect("a bulk SWAP").split(", ").map(assignment).collect();
    Instruction::BulkSwap(elements.try_into().expect("two elements"))
}

fn outcome(text: &str) -> Outcome {
    if let Some(word) = text.strip_suffix("≠2n") {
        return Outcome::NotTheSum(letter(word));
    }
    if let Some((word, value)) = text.strip_suffix(" anywhere").and_then(|text| text.split_once('≠')) {
        return Outcome::AnyOther(letter(word), value.parse().expect("a number"));
    }
    Outcome::Results(text.split(", ").map(assignment).collect())
}

fn pair(text: &str, of: impl Fn(char, u64) -> Instruction) -> Instruction {
    let (name, value) = assignment(text);
    of(name, value)
}

fn assignment(text: &str) -> (char, u64) {
    let (name, value) = text.split_once('=').expect("name=value");
    (letter(name), value.parse().expect("a number"))
}

fn names(text: &str, of: impl Fn(char, char) -> Instruction) -> Instruction {
    let (to, from) = text.split_once('=').expect("name=name");
    of(letter(to), letter(from))
}

fn letter(text: &str) -> char {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => letter,
        _ => panic!("not a name of one letter: {text}"),
    }
}
