// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Takes the figures of the device that need no guest, each next to what it is compared with in the same
//! run. `cargo xtask bench` is the usual way to call it; one figure alone, quickly:
//!
//! ```console
//! $ cargo bench --package svmx-device --bench figures -- random --rounds 5
//! ```
//!
//! Sides take turns (see [`measure::sample`]); a figure is the median of its rounds, and the quartiles stand
//! beside it. Where there is more than one CPU, these are bound to one: the first two engines of a device in
//! this process, native loops, threads that poll for a completion, and in figures of trapped accesses both the
//! client and the other process ([`measure::cpu::Places`]). Threads that sleep meanwhile are not: who submitted
//! a bulk command, a device's control thread, the idle device of the last figures. It measures and judges
//! nothing: a missed aim is no failure, a lost update is one.

mod arena;
mod bulk;
mod commands;
mod copy;
mod engines;
mod instruments;
mod native;
mod process;
mod ring;
mod transport;
mod used;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use measure::{Row, show, table};

/// Takes the device's figures
#[derive(Debug, Parser)]
struct Arguments {
    /// Takes only figures that have this in their name (`cargo xtask bench --list`)
    filter: Option<String>,
    /// Writes a line of JSON for each row instead of text
    #[arg(long)]
    json: bool,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Serves the transport's figure on this socket
    #[arg(long, hide = true)]
    foreign_server: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// Takes a figure's rows.
type Take = fn(name: &str, rounds: usize) -> Vec<Row>;

fn take(name: &str) -> Option<Take> {
    Some(match name {
        "random" => bulk::random,
        "cache" => bulk::cache,
        "coherent" => bulk::coherent,
        "engines" => engines::scaling,
        "copy" => copy::rates,
        "ring" => commands::rate,
        "doorbell" => commands::latency,
        "transport" => transport::latency,
        "check" => instruments::check,
        "trace" => instruments::trace,
        "fault" => commands::fault,
        "idle-cpu" => process::idle_cpu,
        "idle-memory" => process::idle_memory,
        _ => return None,
    })
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    if let Some(socket) = arguments.foreign_server {
        return transport::serve_foreign(&socket);
    }
    let names = table::matching(arguments.filter.as_deref());
    if names.is_empty() {
        return refuse(&format!("no figure has {:?} in its name", arguments.filter.unwrap_or_default()));
    }
    if cfg!(debug_assertions) {
        return refuse("built without optimization, figures would mean nothing: use `cargo bench`");
    }
    if !arguments.json {
        println!("{}", show::header());
    }
    for name in names {
        let rows = take(name).expect("the table names what can be taken")(name, arguments.rounds.into());
        for (at, row) in rows.iter().enumerate() {
            let text = || show::lines(row, at.checked_sub(1).and_then(|before| rows.get(before)));
            println!("{}", if arguments.json { serde_json::json!(row).to_string() } else { text() });
        }
    }
    ExitCode::SUCCESS
}

/// One line and exit code 2.
fn refuse(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(2)
}
