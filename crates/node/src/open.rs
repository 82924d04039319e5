//! Opening the store a node starts with: the one that is there, or an empty one in the place of one that must not be served.
//!
//! A node with peers heals by itself: a store that is damaged, short, or of which nobody can say whether it is whole is set
//! aside with the reason, and peers fill the new one before it is served. A node without peers never does that: its store is
//! all there is, so it stops and says what is wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use tropism_disk::{Aside, DiskEngine, DiskOptions, Witness, is_suspect, last_aside, set_aside};
use tropism_replica::{BootError, Opening, SetAside};
use tropism_storage::{Engine as StorageEngine, MemoryEngine, StoreError};

use crate::config::{Engine, NodeConfig};
use crate::driver::{Failure, Handle, Witnessed, wall_ms};
use crate::server::{KeptWitness, ServeError};

/// Stores that are set aside before the node gives up: a disk that damages each of them will damage the next.
const SET_ASIDE_PER_RUN: usize = 3;
/// A turn that leaves nothing to commit is published with the next status, a tenth of a second later at most.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(250);
/// Times that a store set aside is read: each time what depended on later changes of it finds them.
const SALVAGE_PASSES: usize = 8;

/// A store that is open, and how it came to be.
pub(crate) struct Opened {
    pub(crate) engine: Box<dyn StorageEngine>,
    pub(crate) witness: Option<Box<dyn Witnessed>>,
    pub(crate) opening: Opening,
    /// What can be read of the store that was set aside.
    pub(crate) aside: Option<(Aside, DiskEngine)>,
}

/// Why the store must not be served, when that is a matter of the store and not of the system around it.
pub(crate) fn unfit(error: &ServeError) -> Option<String> {
    use tropism_disk::OpenError;
    match error {
        ServeError::Open(OpenError::Damaged { reason, .. }) => Some(format!("damaged: {reason}")),
        ServeError::Open(OpenError::Short { store, witness, .. }) => {
            Some(format!("short: it ends at commit {store}, and commit {witness} was reached"))
        }
        ServeError::Open(OpenError::WitnessLost { store, .. }) => {
            Some(format!("without a witness: nothing says whether commit {store} is its last"))
        }
        ServeError::Boot(BootError::Store(error @ StoreError::Damaged { .. }))
        | ServeError::Store(error @ StoreError::Damaged { .. })
        | ServeError::Failed(Failure::Store(error @ StoreError::Damaged { .. })) => {
            Some(format!("damaged: {error}"))
        }
        ServeError::Failed(Failure::Short(reason)) => Some(format!("short: {reason}")),
        _ => None,
    }
}

/// Runs a node, again with an empty store when it finds that its own must not be served.
pub(crate) fn healing(
    config: &NodeConfig,
    mut accept_loss: bool,
    mut run: impl FnMut(Opened) -> Result<(), ServeError>,
) -> Result<(), ServeError> {
    let mut set_asides = 0;
    let mut read_through = false;
    loop {
        let outcome = open(config, accept_loss).and_then(&mut run);
        let Err(error) = outcome else { return Ok(()) };
        let unread = matches!(error, ServeError::Failed(Failure::Store(StoreError::Engine(_))));
        if unread && !read_through && is_suspect(&config.node.data_dir) {
            error!(%error, "every table is read before the store is served again");
            read_through = true;
            continue;
        }
        let heals = config.node.engine == Engine::Disk && !config.peers.is_empty();
        let Some(reason) = unfit(&error).filter(|_| heals && set_asides < SET_ASIDE_PER_RUN) else {
            return Err(error);
        };
        set_asides += 1;
        accept_loss = false; // that was about the store which was there
        error!(%error, "the store is set aside, and peers fill an empty one");
        let aside = set_aside(&config.node.data_dir, wall_ms(), &reason)?;
        warn!(directory = ?aside.dir, reason, "what could not be served is kept there");
    }
}

fn open(config: &NodeConfig, accept_loss: bool) -> Result<Opened, ServeError> {
    let dir = &config.node.data_dir;
    if config.node.engine == Engine::Memory {
        warn!("memory engine: nothing survives this process");
        let opening = Opening { accept_loss, ..Opening::default() };
        return Ok(Opened { engine: Box::new(MemoryEngine::new()), witness: None, opening, aside: None });
    }
    let options =
        DiskOptions { block_cache_bytes: config.limits.block_cache_bytes, ..DiskOptions::default() };
    let (engine, witness) = open_disk(dir, &options)?;
    let aside = last_aside(dir)?;
    let opening = Opening {
        set_aside: aside.as_ref().map(|aside| aside.reason.clone()),
        accept_loss,
        ..Opening::default()
    };
    let aside = aside.and_then(|aside| Some((aside.clone(), aside.open(&options)?)));
    let opening = Opening { salvage: aside.is_some(), ..opening };
    let witness: Box<dyn Witnessed> = Box::new(KeptWitness { witness, synced: Instant::now() });
    Ok(Opened { engine: Box::new(engine), witness: Some(witness), opening, aside })
}

fn open_disk(dir: &Path, options: &DiskOptions) -> Result<(DiskEngine, Witness), ServeError> {
    let (engine, witness) = tropism_disk::open(dir, options)?;
    if engine.cut_bytes() > 0 {
        warn!(bytes = engine.cut_bytes(), "a torn tail that was never acknowledged was set aside");
    }
    Ok((engine, witness))
}

/// Takes over what can be read of a store that was set aside, once peers have given what they have. Ends with the rebuild, or
/// with the node.
pub(crate) async fn salvage(handle: Handle, (aside, engine): (Aside, DiskEngine)) {
    let mut commits = handle.commits();
    loop {
        match &handle.published().rebuild {
            None => return noted(&aside),
            Some(rebuild) if rebuild.salvages => break,
            Some(_) => {}
        }
        if commits.changed().await.is_err() {
            return;
        }
    }
    info!(directory = ?aside.dir, "taking over what can be read of the store that was set aside");
    for _ in 0..SALVAGE_PASSES {
        let before = handle.published();
        let mut rows = SetAside::new(engine.snapshot());
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let batch = rows.next_batch();
                (rows, batch)
            });
            let Ok((back, batch)) = read.await else { return };
            rows = back;
            if batch.is_empty() {
                break;
            }
            handle.salvage(batch).await;
        }
        tokio::time::sleep(PUBLISHED_WITHIN).await;
        let after = handle.published();
        let (Some(was), Some(is)) = (&before.rebuild, &after.rebuild) else { break };
        let no_room = after.status.times_full.pending > before.status.times_full.pending;
        if !no_room || is.salvaged.taken == was.salvaged.taken {
            break;
        }
    }
    handle.salvage(Vec::new()).await;
    while handle.published().rebuild.is_some() {
        if commits.changed().await.is_err() {
            return;
        }
    }
    noted(&aside);
}

fn noted(aside: &Aside) {
    if let Err(error) = aside.salvaged() {
        warn!(%error, "that a store set aside was read could not be noted: it is read again after the next loss");
    }
}
