//! The `tropism` program: runs nodes and development worlds, and reads and writes what they hold.
//!
//! Arguments are read in [`args`], the nodes to talk to are found in [`target`], each command is carried out in
//! [`commands`], and [`output`] is how answers look. Data go to stdout, words to stderr; the exit status is 0, 1 (refused
//! or not found, with the reason) or 2 (wrong arguments or configuration).

mod args;
mod commands;
mod output;
mod target;
mod world;

use std::process::ExitCode;

use clap::Parser;

/// Requests are made on the threads of clients and freed on the replica's, and answers the other way round.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse(); // ends the process with 2 when they are wrong, with 0 after help and version
    let json = args.command.json();
    match commands::run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}
