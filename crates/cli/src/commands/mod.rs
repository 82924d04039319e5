//! What each command does.

mod conflicts;
mod demo;
mod dev;
mod history;
mod keys;
mod load;
mod parked;
pub(crate) mod patch;
mod placement;
mod range;
mod scope;
mod serve;
mod status;
mod telemetry;
mod top;
mod trace;
mod verify;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use clap::CommandFactory;
use tokio::runtime::{Builder, Runtime};
use tropism_crdt::json::MAX_JSON_BYTES;

use crate::args::{Args, Command, Completions};
use crate::output::{Failure, Output};

/// Largest file or text taken as one value or patch, in bytes: the most that nodes take.
const MAX_VALUE_BYTES: usize = MAX_JSON_BYTES;

/// Carries out a command.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    let mut out = Output::stdout(command.json());
    match command {
        Command::Put(args) => wait(keys::put(args, &mut out)),
        Command::Get(args) => wait(keys::get(&args, &mut out)),
        Command::History(args) => wait(history::history(&args, &mut out)),
        Command::Conflicts(args) => wait(conflicts::conflicts(args, &mut out)),
        Command::Patch(args) => wait(patch::patch(args, &mut out)),
        Command::Incr(args) => wait(keys::incr(&args, &mut out)),
        Command::Delete(args) => wait(keys::delete(args, &mut out)),
        Command::Expire(args) => wait(keys::expire(&args, &mut out)),
        Command::Ttl(args) => wait(keys::ttl(&args, &mut out)),
        Command::Scan(args) => wait(range::scan(args, &mut out)),
        Command::Watch(args) => wait(range::watch(args, &mut out)),
        Command::Load(args) => wait(load::load(&args, &mut out)),
        Command::Stamp(args) => wait(keys::stamp(&args, &mut out)),
        Command::Status(args) => wait(status::status(&args, &mut out)),
        Command::Top(args) => wait(top::top(&args, &mut out)),
        Command::Telemetry(args) => wait(telemetry::telemetry(args, &mut out)),
        Command::Parked(args) => wait(parked::parked(args, &mut out)),
        Command::Scopes(args) => wait(scope::scopes(args, &mut out)),
        Command::Scope(args) => wait(scope::scope(args, &mut out)),
        Command::Placement(args) => wait(placement::placement(args, &mut out)),
        Command::TraceWrite(args) => wait(trace::trace_write(&args, &mut out)),
        Command::Verify(args) => wait(verify::verify(&args, &mut out)),
        Command::Dev(args) => dev::dev(args, &mut out),
        Command::Demo(args) => demo::demo(args, &mut out),
        Command::Serve(args) => serve::serve(args),
        Command::Config(args) => serve::config(args, &mut out),
        Command::Completions(args) => completions(&args, &mut out),
    }?;
    out.flush()
}

/// Waits for a command that talks to nodes; one thread is enough for it.
fn wait(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime(&mut Builder::new_current_thread())?.block_on(command)
}

fn runtime(builder: &mut Builder) -> Result<Runtime, Failure> {
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime cannot start: {error}")))
}

fn completions(args: &Completions, out: &mut Output) -> Result<(), Failure> {
    // Into memory first: writing to a closed pipe would end in a panic there.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "tropism", &mut script);
    out.bytes(&script)
}

/// The content of a file, `-` being stdin, if it can be one value.
fn read_value(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_VALUE_BYTES as u64 + 1;
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(path, &error))?;
    if bytes.len() > MAX_VALUE_BYTES {
        let name = name(path);
        return Err(Failure::Failed(format!(
            "{name} has more than {MAX_VALUE_BYTES} bytes, the limit of a value"
        )));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{} cannot be read: {error}", name(path)))
}

/// A file's name in messages.
fn name(path: &Path) -> String {
    if path == Path::new("-") {
        "stdin".to_owned()
    } else {
        path.to_string_lossy().escape_debug().to_string()
    }
}
