//! Whole stores that are not to be served: of another node, of another cluster, of a newer program.

use std::path::Path;

use tempfile::tempdir;
use tropism_crdt::NodeId;
use tropism_disk::open;
use tropism_placement::{RegionName, Regions};
use tropism_replica::{BootError, DigestKey, Identity, Now, Replica, limits};
use tropism_storage::rows::{Header, STORE_FORMAT};
use tropism_storage::{NodeKey, Space, Store};

use crate::support::content::options;

const REGIONS: &str = "region = [{ name = \"a\", place = \"A\" }]\n[[rule]]\nname = \"all\"\npattern = \"**\"\n\
                       kind = \"register\"\n";

fn identity(cluster: &str, node: &str) -> Identity {
    Identity {
        cluster: cluster.into(),
        node: NodeId::new(node).unwrap(),
        region: RegionName::new("a").unwrap(),
        boot_random: 1,
        new_store_id: 1,
        opening: tropism_replica::Opening { accept_loss: true, ..Default::default() },
        peers: vec![],
        rules: Regions::parse("test", REGIONS).unwrap().rules().clone(),
        directory: false,
        cache_bytes: 1 << 20,
        log_keep_ms: 600_000,
        digest_key: DigestKey::default(),
        part_bytes: limits::FRAME_BYTES,
        settle_keys: limits::SETTLE_KEYS,
        log_cap_ms: u64::MAX,
        log_cap_bytes: u64::MAX,
        log_keep_bytes: 1 << 20,
    }
}

/// A start of a node on a directory, until it would serve; says at which commit the store is.
fn start(dir: &Path, identity: Identity) -> (Result<(), BootError>, u64) {
    let (engine, _witness) = open(dir, &options()).unwrap();
    let mut store = Store::open(Box::new(engine)).unwrap();
    let booted = Replica::boot(Now { mono_us: 1_000_000, wall_ms: 1_000 }, &mut store, identity).map(drop);
    if booted.is_ok() {
        store.commit(1_000).unwrap();
        store.sync().unwrap();
    }
    (booted, store.head().commit)
}

#[test]
fn a_store_of_another_node_or_cluster_is_told_with_both_names_and_left_alone() {
    let dir = tempdir().unwrap();
    let (booted, commit) = start(dir.path(), identity("east", "a-1"));
    assert_eq!(booted, Ok(()));
    for (cluster, node) in [("east", "a-2"), ("west", "a-1")] {
        let (refused, found) = start(dir.path(), identity(cluster, node));
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, BootError::OtherNode { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("node a-1 of cluster \"east\""), "{text}");
        assert!(text.contains(&format!("{node} of {cluster:?}")), "{text}");
        assert_eq!(found, commit, "nothing was written");
    }
    assert_eq!(start(dir.path(), identity("east", "a-1")).0, Ok(()));
}

#[test]
fn a_store_that_is_newer_than_the_program_is_told_with_its_format_and_left_alone() {
    let dir = tempdir().unwrap();
    assert_eq!(start(dir.path(), identity("east", "a-1")).0, Ok(()));
    let commit = {
        let (engine, _witness) = open(dir.path(), &options()).unwrap();
        let mut store = Store::open(Box::new(engine)).unwrap();
        let (format, node) = (STORE_FORMAT + 1, NodeId::new("a-1").unwrap());
        let header = Header { format, cluster: "east".into(), node, store_id: 1 };
        store.put_row(Space::Node, NodeKey::Header.encode(), &header);
        store.commit(1_000).unwrap().unwrap()
    };
    let (refused, found) = start(dir.path(), identity("east", "a-1"));
    let refused = refused.unwrap_err();
    assert_eq!(refused, BootError::Format { found: STORE_FORMAT + 1 });
    assert!(refused.to_string().contains(&format!("format {}", STORE_FORMAT + 1)), "{refused}");
    assert_eq!(found, commit, "nothing was written");
}
