// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT

//! include/svmx.h against the Rust definitions: every structure of the interface with every field in order, and
//! every constant. What one side has and the other has not is a failure. That it compiles is shown by
//! guest/c/, which `cargo xtask` builds; that compilers agree by [`layout`], where there are any.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use svmx_abi::{doorbell, hist, pci, queue, status::Status, uapi};

const HEADER: &str = include_str!("../include/svmx.h");
const UAPI: &str = include_str!("../src/uapi.rs");
const QUEUE: &str = include_str!("../src/queue.rs");

/// Fields by structure: name and C type.
type Structures = BTreeMap<String, Vec<(String, String)>>;

/// The structures of C that stand for those of Rust in `source`.
fn of_rust(source: &str) -> Structures {
    let mut found = Structures::new();
    for part in source.split("#[repr(C").skip(1) {
        let (head, body) = part.split_once(" {\n").expect("a structure has a body");
        let name = head.rsplit(' ').next().expect("it has a name");
        let body = body.split_once("\n}").expect("it ends").0;
        let lines = body.lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let fields =
            lines.map(|line| line.trim_end_matches(',').split_once(": ").expect("a field has a type"));
        found.insert(c_name(name), fields.map(|(name, ty)| c_field(name, ty)).collect());
    }
    found
}

/// `QueueCreate` is `svmx_queue_create`.
fn c_name(name: &str) -> String {
    let mut text = "svmx".to_owned();
    for letter in name.chars() {
        if letter.is_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn c_field(name: &str, ty: &str) -> (String, String) {
    let ty = match ty {
        "u8" | "Opcode" | "WidthLog2" => "__u8",
        "u16" | "SqeFlags" => "__u16",
        "u32" | "Policy" => "__u32",
        "i32" => "__s32",
        "u64" | "CqeHead" => "__u64",
        "i64" => "__s64",
        "Histogram" => return (format!("{name}[SVMX_HIST_BUCKETS]"), "__u64".into()),
        other => panic!("{name}: what is {other} in C?"),
    };
    (name.to_owned(), ty.to_owned())
}

fn of_c() -> Structures {
    let mut found = Structures::new();
    for part in HEADER.split("\nstruct ").skip(1) {
        let (name, body) = part.split_once(" {\n").expect("a structure has a body");
        let body = body.split_once("\n};").expect("it ends").0;
        let declarations = body.lines().map(|line| line.split_once(';').expect("a field a line").0.trim());
        let fields = declarations.map(|text| text.split_once(' ').expect("a field has a type"));
        found.insert(name.into(), fields.map(|(ty, name)| (name.into(), ty.into())).collect());
    }
    found
}

#[test]
fn structures_have_the_same_fields_in_the_same_order() {
    let mut rust = of_rust(UAPI);
    rust.extend(of_rust(QUEUE));
    let c = of_c();
    assert_eq!(rust.keys().collect::<Vec<_>>(), c.keys().collect::<Vec<_>>());
    for (name, fields) in &rust {
        assert_eq!(fields, &c[name], "{name}");
    }
}

/// `#define`s with a value, as they are written.
fn defines() -> BTreeMap<String, String> {
    let lines = HEADER.lines().filter_map(|line| line.strip_prefix("#define SVMX_"));
    let pairs = lines.map(|line| line.split_once(char::is_whitespace).expect("it has a value"));
    pairs.map(|(name, value)| (format!("SVMX_{name}"), value.trim().to_owned())).collect()
}

fn number(text: &str) -> Option<u64> {
    if let Some(inner) = text.strip_prefix("(1 << ") {
        return inner.trim_end_matches(')').parse().ok().map(|bit: u32| 1 << bit);
    }
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Every constant that C should have, by its name there.
fn constants() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut add = |prefix: &str, name: &str, value: u64| {
        assert_eq!(all.insert(format!("SVMX_{prefix}{name}"), value), None, "{prefix}{name} twice");
    };
    queue::Opcode::ALL.iter().for_each(|(name, opcode)| add("OP_", name, opcode.0.into()));
    queue::SqeFlags::ALL.iter().for_each(|(name, flag)| add("SQE_", name, flag.0.into()));
    uapi::Policy::ALL.iter().for_each(|(name, policy)| add("POLICY_", name, policy.0.into()));
    Status::ALL.iter().for_each(|(name, status, _)| add("STATUS_", name, status.0.into()));
    for condition in queue::Condition::ALL {
        add("COND_", &format!("{condition:?}").to_uppercase(), condition as u64);
    }
    for (name, width) in [
        ("W8", queue::WidthLog2::W8),
        ("W32", queue::WidthLog2::W32),
        ("W64", queue::WidthLog2::W64),
        ("W128", queue::WidthLog2::W128),
    ] {
        add("", name, width.0.into());
    }
    for (name, offset) in [
        ("SQ_TAIL", doorbell::queue::SQ_TAIL),
        ("CQ_HEAD", doorbell::queue::CQ_HEAD),
        ("NEED_KICK", doorbell::queue::NEED_KICK),
        ("CQ_ARM", doorbell::queue::CQ_ARM),
    ] {
        add("DOORBELL_", name, offset);
    }
    add("", "PAGE_SIZE", pci::PAGE_SIZE);
    add("", "MAX_ACQUIRE_PAGES", uapi::MAX_ACQUIRE_PAGES);
    add("", "MAX_POLICIES", uapi::MAX_POLICIES as u64);
    add("", "HIST_BUCKETS", hist::BUCKETS as u64);
    add("", "IOC_TYPE", uapi::IOC_TYPE.into());
    add("", "INFO_PROTECTION_OFF", uapi::INFO_PROTECTION_OFF.into());
    all
}

#[test]
fn constants_have_the_same_values() {
    let mut written = defines();
    for (name, value) in constants() {
        let text = written.remove(&name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(number(&text), Some(value), "{name} is {text}");
    }
    assert_eq!(written.remove("SVMX_WAIT_FOREVER").as_deref(), Some("(~(__u64)0)"));
    // What is left are ioctls: each constant of Rust, with its number and its structure.
    let names = UAPI
        .lines()
        .filter_map(|line| line.strip_prefix("pub const IOC_"))
        .filter(|line| line.contains("iowr"));
    for line in names {
        let (name, rest) = line.split_once(':').expect("it has a type");
        let (structure, number) =
            rest.split_once("iowr::<").and_then(|(_, rest)| rest.split_once(">(")).unwrap();
        let number = number.trim_end_matches(");");
        let expected = format!("_IOWR(SVMX_IOC_TYPE, {number}, struct {})", c_name(structure));
        assert_eq!(written.remove(&format!("SVMX_IOC_{name}")), Some(expected), "{name}");
    }
    assert_eq!(written, BTreeMap::new(), "Rust has none of these");
    assert_eq!(queue::WAIT_FOREVER, !0);
}

/// C that compiles only if sizes, offsets and values are those of Rust.
fn layout() -> String {
    let mut text = "#include <stddef.h>\n#include \"svmx.h\"\n".to_owned();
    text += "#ifdef __cplusplus\n#define _Static_assert static_assert\n#endif\n";
    let mut assert = |condition: String| text += &format!("_Static_assert({condition}, \"\");\n");
    constants().iter().for_each(|(name, value)| assert(format!("{name} == {value}")));
    let ioctls = [
        "INFO",
        "QUEUE_CREATE",
        "QUEUE_DESTROY",
        "KICK",
        "WAIT",
        "STATS",
        "ACQUIRE_EXCLUSIVE",
        "RELEASE",
        "POLICY",
    ];
    assert_eq!(ioctls.len(), uapi::IOCTLS.len());
    ioctls
        .iter()
        .zip(uapi::IOCTLS)
        .for_each(|(name, number)| assert(format!("SVMX_IOC_{name} == {number}u")));
    for (structure, size) in [
        ("info", size_of::<uapi::Info>()),
        ("queue_create", size_of::<uapi::QueueCreate>()),
        ("queue_destroy", size_of::<uapi::QueueDestroy>()),
        ("kick", size_of::<uapi::Kick>()),
        ("wait", size_of::<uapi::Wait>()),
        ("stats", size_of::<uapi::Stats>()),
        ("acquire", size_of::<uapi::Acquire>()),
        ("release", size_of::<uapi::Release>()),
        ("set_policy", size_of::<uapi::SetPolicy>()),
        ("sqe", size_of::<queue::Sqe>()),
        ("cqe", size_of::<queue::Cqe>()),
    ] {
        assert(format!("sizeof(struct svmx_{structure}) == {size}"));
    }
    // No structure of Rust has bytes that are not fields: an offset is the size of what comes before.
    for (structure, fields) in of_c() {
        let mut offset = 0;
        for (name, ty) in fields {
            let (name, count) = match name.split_once('[') {
                Some((name, _)) => (name.to_owned(), hist::BUCKETS),
                None => (name, 1),
            };
            assert(format!("offsetof(struct {structure}, {name}) == {offset}"));
            offset += count * ty.trim_start_matches(['_', 'u', 's']).parse::<usize>().unwrap() / 8;
        }
    }
    text
}

/// Skipped where there is no compiler: `cargo xtask` has one for C, and compiles guest/c/ with the same header.
#[test]
fn compilers_agree_about_layout_and_values() {
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/include");
    let program = layout();
    for (compiler, language, standard) in [("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++11")] {
        let mut command = Command::new(compiler);
        command.args([
            standard,
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            include,
            "-x",
            language,
            "-",
        ]);
        let Ok(mut compiling) = command.stdin(Stdio::piped()).spawn() else { continue };
        let mut input = compiling.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, program.as_bytes()).unwrap();
        drop(input);
        assert!(compiling.wait().unwrap().success(), "{compiler}");
    }
}
