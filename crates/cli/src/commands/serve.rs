//! `serve` runs a node; `config` prints and checks what it starts from.

use std::io;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tropism_node::config::{Engine as NodeEngine, NodeConfig};
use tropism_node::server::{self, Start};
use tropism_node::telemetry::log;

use super::{name, runtime};
use crate::args::{Config, ConfigAction, Engine, Serve, VERSION};
use crate::output::{Failure, Output, say};
use crate::world::StopSignals;
use crate::world::process::end_with_parent;

/// `serve`: until it is told to stop, or finds that it must not go on.
pub(super) fn serve(args: Serve) -> Result<(), Failure> {
    let mut checked = NodeConfig::check(&args.config).map_err(|errors| Failure::Usage(errors.to_string()))?;
    if let Some(engine) = args.engine {
        checked.config.node.engine = match engine {
            Engine::Disk => NodeEngine::Disk,
            Engine::Memory => NodeEngine::Memory,
        };
    }
    log::init(&checked.config.telemetry);
    if args.end_with_stdin {
        end_with_parent().map_err(cannot_start)?;
    }
    let (stop, stopped) = watch::channel(false);
    let (ready, caught) = std::sync::mpsc::channel();
    let signals = runtime(&mut Builder::new_current_thread())?;
    let waiting = move || {
        signals.block_on(async {
            let catching = StopSignals::catch();
            let failure = catching.as_ref().err().map(ToString::to_string);
            let _ = ready.send(failure); // the other side waits for it
            if let Ok(mut signals) = catching {
                signals.next().await;
                let _ = stop.send(true); // a node that has ended needs no stop
            }
        });
    };
    thread::Builder::new().name("signals".to_owned()).spawn(waiting).map_err(cannot_start)?;
    if let Ok(Some(failure)) = caught.recv() {
        return Err(Failure::Failed(failure));
    }
    let start = Start { version: VERSION.to_owned(), accept_loss: args.accept_loss };
    server::run(checked, start, stopped).map_err(|error| Failure::Failed(error.to_string()))
}

fn cannot_start(error: io::Error) -> Failure {
    Failure::Failed(format!("a thread cannot start: {error}"))
}

/// `config example` and `config check`.
pub(super) fn config(args: Config, out: &mut Output) -> Result<(), Failure> {
    match args.action {
        ConfigAction::Example { markdown: true } => out.bytes(NodeConfig::documentation().as_bytes()),
        ConfigAction::Example { markdown: false } => out.bytes(NodeConfig::example().as_bytes()),
        ConfigAction::Check { file } => {
            NodeConfig::check(&file).map_err(|errors| Failure::Usage(errors.to_string()))?;
            say(&format!("{} is good", name(&file)));
            Ok(())
        }
    }
}
