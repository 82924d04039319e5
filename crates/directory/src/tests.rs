#![allow(clippy::unwrap_used, reason = "tests")]
//! Voters in one process, over a network that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tropism_placement::{Hold, Kind, Membership, RULE_EPOCH, RegionName, ScopeId, ScopeName, StoredRecord};

use super::{Asking, Group, Network, Rpc, Undecided, Unreachable};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Wires {
    groups: Mutex<BTreeMap<String, Group>>,
    cut: Mutex<BTreeSet<String>>,
}

/// A node's end of the wires.
struct End {
    node: String,
    wires: Arc<Wires>,
}

impl Network for End {
    fn ask(&self, node: &str, voter: u64, rpc: Rpc, body: Vec<u8>, patience: Duration) -> Asking<'_> {
        let node = node.to_owned();
        Box::pin(async move {
            let cut = {
                let cut = self.wires.cut.lock().unwrap();
                cut.contains(&node) || cut.contains(&self.node)
            };
            if cut {
                sleep(patience).await; // swallowed
                return Err(Unreachable("no answer".into()));
            }
            let group = self.wires.groups.lock().unwrap().get(&node).cloned();
            group.ok_or_else(|| Unreachable("refused".into()))?.answer(voter, rpc, &body).await
        })
    }
}

struct World {
    dir: TempDir,
    wires: Arc<Wires>,
}

impl World {
    async fn start(nodes: &[&str]) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), wires: Arc::default() };
        for node in nodes {
            world.open(node).await;
        }
        world
    }

    fn path(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    async fn open(&self, node: &str) -> Group {
        let end = End { node: node.to_owned(), wires: self.wires.clone() };
        let group = Group::open(&self.path(node), Arc::new(end)).await.unwrap();
        self.wires.groups.lock().unwrap().insert(node.to_owned(), group.clone());
        group
    }

    async fn stop(&self, node: &str) {
        let group = self.wires.groups.lock().unwrap().remove(node).unwrap();
        group.stop().await;
    }

    fn group(&self, node: &str) -> Group {
        self.wires.groups.lock().unwrap()[node].clone()
    }

    fn cut(&self, node: &str, cut: bool) {
        let mut cuts = self.wires.cut.lock().unwrap();
        if cut {
            cuts.insert(node.to_owned())
        } else {
            cuts.remove(node)
        };
    }

    /// The first of these that leads with all others in reach.
    async fn leader(&self, among: &[&str]) -> String {
        timeout(PATIENCE, async {
            loop {
                for node in among {
                    if self.group(node).confirm(Duration::from_secs(2)).await.is_ok() {
                        return (*node).to_owned();
                    }
                }
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap()
    }

    async fn found(&self, nodes: &[&str], copies: Vec<StoredRecord>) -> Group {
        let ids = nodes.iter().map(|node| (self.group(node).standing().id, (*node).to_owned())).collect();
        self.group(nodes[0]).initialize(ids).await.unwrap();
        let leader = self.group(&self.leader(nodes).await);
        leader.found(7, copies, PATIENCE).await.unwrap();
        leader
    }
}

fn record(scope: &str) -> StoredRecord {
    StoredRecord {
        scope: ScopeId { name: ScopeName::new(scope).unwrap(), incarnation: 0 },
        rule: "all".into(),
        kind: Kind::Register,
        spread: 1,
        members: Membership {
            epoch: RULE_EPOCH,
            serving: vec![RegionName::new("a").unwrap()],
            learners: Vec::new(),
            leaving: Vec::new(),
        },
        goal: None,
        hold: Hold::Free,
        dropped: false,
    }
}

async fn knows(group: &Group, revision: u64) -> Vec<StoredRecord> {
    let mut turns = group.turns();
    timeout(PATIENCE, async {
        loop {
            turns.borrow_and_update();
            if let Some(feed) = group.since(0, 0, 100)
                && feed.revision >= revision
            {
                return feed.records;
            }
            turns.changed().await.unwrap();
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn voters_decide_alike_and_remember_it() {
    let nodes = ["a", "b", "c"];
    let world = World::start(&nodes).await;
    assert!(nodes.iter().all(|node| world.group(node).standing().fresh));
    let leader = world.found(&nodes, Vec::new()).await;
    let pinned = record("x").held(Hold::Pinned);
    assert_eq!(leader.decide(pinned.clone(), PATIENCE).await, Ok(1));
    assert_eq!(leader.decide(pinned.clone(), PATIENCE).await, Ok(1), "once more is no conflict");
    let late = leader.decide(record("x").held(Hold::Frozen), PATIENCE).await;
    assert_eq!(late, Err(Undecided::Late { epoch: RULE_EPOCH + 1 }));
    assert_eq!(leader.decide(record("y").dropped(), PATIENCE).await, Ok(2));
    for node in nodes {
        let records = knows(&world.group(node), 2).await;
        assert_eq!(records, [pinned.clone(), record("y").dropped()], "{node}");
        world.stop(node).await;
    }
    drop(leader);
    for node in nodes {
        let group = world.open(node).await;
        assert_eq!(group.since(7, 1, 100).unwrap().records, [record("y").dropped()], "{node} remembers");
        let part = group.since(7, 0, 1).unwrap();
        assert_eq!((part.revision, part.records), (1, vec![pinned.clone()]), "page by page");
        assert_eq!(
            group.since(8, 2, 100).unwrap().records.len(),
            2,
            "another directory is told from the beginning"
        );
    }
    let leader = world.group(&world.leader(&nodes).await);
    assert_eq!(leader.decide(record("z").dropped(), PATIENCE).await, Ok(3));
    assert!(!leader.standing().fresh && leader.standing().founded);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_says_that_it_does_not_know_and_the_others_go_on() {
    let nodes = ["a", "b", "c"];
    let world = World::start(&nodes).await;
    world.found(&nodes, Vec::new()).await;
    let old = world.leader(&nodes).await;
    world.cut(&old, true);
    let short = Duration::from_millis(300);
    let proposed = record("x").held(Hold::Frozen);
    assert_eq!(world.group(&old).decide(proposed, short).await, Err(Undecided::Unknown));
    assert!(world.group(&old).confirm(short).await.is_err());
    let others: Vec<&str> = nodes.into_iter().filter(|node| *node != old).collect();
    let new = world.leader(&others).await;
    let pinned = record("x").held(Hold::Pinned);
    let revision = world.group(&new).decide(pinned.clone(), PATIENCE).await.unwrap();
    world.cut(&old, false);
    assert_eq!(knows(&world.group(&old), revision).await, [pinned], "what was never decided is forgotten");
}

#[tokio::test]
async fn a_voter_that_lost_its_store_is_another_one_and_is_let_in_by_the_others() {
    let nodes = ["a", "b", "c"];
    let world = World::start(&nodes).await;
    let leader = world.found(&nodes, Vec::new()).await;
    leader.decide(record("x").dropped(), PATIENCE).await.unwrap();
    let lost =
        nodes.into_iter().find(|node| world.group(node).standing().id != leader.standing().id).unwrap();
    let old = world.group(lost).standing().id;
    world.stop(lost).await;
    std::fs::remove_dir_all(world.path(lost)).unwrap();
    let group = world.open(lost).await;
    let id = group.standing().id;
    assert!(id != old && group.standing().fresh);
    sleep(Duration::from_secs(5)).await; // longer than an election: it does not stand, and nobody takes it for the old one
    assert!(group.standing().fresh);
    let others: Vec<&str> = nodes.into_iter().filter(|node| *node != lost).collect();
    let leader = world.group(&world.leader(&others).await);
    leader.admit(id, lost, PATIENCE).await.unwrap();
    let voters = leader.standing().voters;
    assert_eq!((voters.len(), voters.get(&id).map(String::as_str), voters.get(&old)), (3, Some(lost), None));
    assert_eq!(knows(&group, 1).await, [record("x").dropped()]);
    // It counts: with it the group outlives another one.
    let gone =
        others.into_iter().find(|node| world.group(node).standing().id != leader.standing().id).unwrap();
    world.stop(gone).await;
    assert_eq!(leader.decide(record("y").dropped(), PATIENCE).await, Ok(2));
}

#[tokio::test]
async fn a_new_directory_begins_with_the_newest_copies_and_nothing_is_decided_before() {
    let world = World::start(&["a"]).await;
    let ids = BTreeMap::from([(world.group("a").standing().id, "a".to_owned())]);
    world.group("a").initialize(ids.clone()).await.unwrap();
    world.group("a").initialize(ids).await.unwrap();
    let leader = world.group(&world.leader(&["a"]).await);
    assert_eq!(leader.decide(record("x").dropped(), PATIENCE).await, Err(Undecided::NotFounded));
    assert_eq!(leader.since(0, 0, 1), None);
    let old = record("x").held(Hold::Pinned);
    let newer = old.held(Hold::Free);
    leader.found(7, vec![newer.clone(), old, record("y").dropped()], PATIENCE).await.unwrap();
    leader.found(8, vec![record("z").dropped()], PATIENCE).await.unwrap();
    let feed = leader.since(0, 0, 100).unwrap();
    assert_eq!((feed.directory, feed.records), (7, vec![newer, record("y").dropped()]));
}

#[tokio::test]
async fn a_voter_that_comes_late_gets_a_snapshot() {
    let nodes = ["a", "b", "c"];
    let world = World::start(&nodes).await;
    let leader = world.found(&nodes, Vec::new()).await;
    let late =
        nodes.into_iter().find(|node| world.group(node).standing().id != leader.standing().id).unwrap();
    world.stop(late).await;
    let mut last = record("x");
    for _ in 0..2_200 {
        last = last.held(Hold::Pinned);
        leader.decide(last.clone(), PATIENCE).await.unwrap();
    }
    assert_eq!(knows(&world.open(late).await, 2_200).await, [last]);
}

#[tokio::test]
async fn what_no_voter_says_is_refused() {
    let world = World::start(&["a"]).await;
    let group = world.group("a");
    for rpc in [Rpc::Append, Rpc::Vote, Rpc::Snapshot] {
        group.answer(group.standing().id, rpc, b"{\"term\":").await.unwrap_err();
    }
    // A vote for the best of candidates, asked of the voter that was here before.
    let vote = br#"{"vote":{"leader_id":{"term":9,"node_id":3},"committed":false},"last_log_id":null}"#;
    let gone = group.answer(group.standing().id ^ 1, Rpc::Vote, vote).await.unwrap_err();
    assert_eq!(gone.0, "the voter that is asked is gone with its store");
    group.answer(group.standing().id, Rpc::Vote, vote).await.unwrap();
}
