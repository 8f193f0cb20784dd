// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask`: builds, boots and tests svmx. This file has the arguments and nothing that happens.

mod artifacts;
mod batch;
mod cache;
mod checkout;
mod commands;
mod failure;
mod kernel;
mod options;
mod prepare;
mod process;
mod progress;
mod report;
mod scenario;
mod toolchain;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use commands::{bench, doctor, fuzz, run, setup, shell, test};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Builds, boots and tests svmx
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots a guest with its devices and runs scenarios; without a name, the demonstration
    Run(run::Options),
    /// Runs every test, cheapest first
    Test(test::Options),
    /// Measures the device, each figure next to what it is compared with
    Bench(bench::Options),
    /// Plays arbitrary inputs against the device; needs a nightly compiler and cargo-fuzz
    Fuzz(fuzz::Options),
    /// Makes toolchain, kernel and programs ahead of their first use
    Setup(setup::Options),
    /// Says what is here, what is missing, and what to type
    Doctor,
    /// Boots a guest with its devices and a shell on this terminal
    Shell(options::VmOptions),
    /// Runs the KVM probe in this process
    #[command(name = vm::probe::COMMAND, hide = true)]
    KvmProbe,
}

async fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(options) => run::run(options).await,
        Command::Test(options) => test::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Fuzz(options) => fuzz::run(options).await,
        Command::Setup(options) => setup::run(options).await,
        Command::Doctor => doctor::run().await,
        Command::Shell(options) => shell::run(options).await,
        Command::KvmProbe => unreachable!("main runs it without a runtime"),
    }
}

/// The number of the first signal that asks us to end. Whatever runs then is dropped, and by that ended.
async fn asked_to_end() -> Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
        _ = hangup.recv() => SignalKind::hangup(),
    }
    .as_raw_value())
}

/// On this one thread, as a child's parent-death signal is about the thread that started it.
#[tokio::main(flavor = "current_thread")]
async fn supervise(command: Command) -> Result<()> {
    tokio::select! {
        result = execute(command) => result,
        signal = asked_to_end() => Err(failure::Interrupted(signal?).into()),
    }
}

fn main() -> ExitCode {
    let command = match Arguments::try_parse() {
        Ok(arguments) => arguments.command,
        Err(error) => return failure::usage(&error).into(),
    };
    if matches!(command, Command::KvmProbe) {
        return vm::probe::run_here().into();
    }
    match supervise(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error).into(),
    }
}
