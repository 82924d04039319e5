//! Model check of moves: every order in which stewards, directory, nodes and clients can take their steps, with the product's
//! own rules for what the next record is and what a node may do under the record that it knows.
//!
//! Regions have one or two nodes; a write is acknowledged when every node of the region has it, so a region of two nodes may
//! lose one disk. Views of the record are stale for as long as it takes; two stewards work at once; a steward may crash at any
//! moment (it keeps nothing), a node may stop at any moment (what it told is durable), a disk may be lost. Each mutation
//! leaves one rule out, and then some order of steps must break a property: otherwise the check would see nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use stateright::{Checker, HasDiscoveries, Model, Property};
use tropism_placement::{Held, Membership, Owner, Told, next_membership};

/// A region's number.
type Region = u8;
/// Which writes a node holds, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct Writes(u8);

impl Held for Writes {
    fn includes(&self, other: &Self) -> bool {
        self.0 & other.0 == other.0
    }
}

type Record = Membership<Region>;

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    None,
    /// Leaving regions are retired without asking what they hold.
    NoDrain,
    /// The directory takes whatever is proposed.
    NoCompareAndSet,
    /// A receiver stores what it is sent, whatever its record says.
    StrangerStores,
    /// A copy at a node that has adopted the fence counts for an acknowledgement.
    LeavingAcknowledges,
    /// A learner serves without having caught up.
    NoCatchUp,
}

struct Moves {
    regions: Region,
    nodes_per_region: usize,
    /// Where the scope is to be, one after the other.
    goals: Vec<Vec<Region>>,
    stewards: usize,
    writes: usize,
    disks_lost: u8,
    mutation: Mutation,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    view: Record,
    held: Writes,
    told: Option<Told<Writes>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// The record in the directory, and those before.
    history: Vec<Record>,
    /// Two records for one epoch were committed.
    forked: bool,
    /// How many goals were reached.
    reached: usize,
    /// What each steward is about to propose.
    proposals: [Option<Record>; 2],
    nodes: Vec<Node>,
    /// Writes made, and at which node.
    made: Vec<usize>,
    acknowledged: Writes,
    disks_lost: u8,
    /// What was acknowledged when the last EXPAND was committed.
    acknowledged_at_expand: Writes,
    /// A region began to serve without something that was acknowledged before it was a learner.
    served_early: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    /// A steward reads the directory, as it was at some time, and computes the next record.
    Propose(usize),
    /// Its proposal reaches the directory.
    Commit(usize),
    /// It crashes.
    Forget(usize),
    /// The next goal is set.
    Goal,
    /// A node adopts the record.
    Adopt(usize),
    /// A node tells what it adopted and holds.
    Tell(usize),
    /// A client's write arrives.
    Write(usize),
    /// What one node holds reaches another.
    Send(usize, usize),
    /// The client is told.
    Acknowledge(usize),
    /// A node loses its disk, and is filled from the other node of its region.
    LoseDisk(usize),
}

impl Moves {
    fn region(&self, node: usize) -> Region {
        (node / self.nodes_per_region) as Region
    }

    fn owners(&self, state: &State) -> Vec<Owner<Region, Writes>> {
        let owner = |(i, node): (usize, &Node)| Owner {
            region: self.region(i),
            ended: false,
            told: node.told.clone(),
        };
        state.nodes.iter().enumerate().map(owner).collect()
    }

    fn goal(&self, state: &State) -> &[Region] {
        &self.goals[state.reached.min(self.goals.len() - 1)]
    }

    fn next_record(&self, state: &State) -> Option<Record> {
        let now = state.history.last()?;
        let mut owners = self.owners(state);
        let everything = Writes(u8::MAX);
        let pretend = match self.mutation {
            Mutation::NoDrain => !now.leaving.is_empty(),
            Mutation::NoCatchUp => !now.learners.is_empty(),
            _ => false,
        };
        if pretend {
            for owner in &mut owners {
                owner.told = Some(Told { epoch: now.epoch, held: everything });
            }
        }
        next_membership(now, self.goal(state), 1, &owners).ok()
    }

    /// Deletes what a node must not have by the record that it knows.
    fn obey(&self, node: usize, state: &mut State) {
        let region = self.region(node);
        let node = &mut state.nodes[node];
        if node.view.role(&region).deletes() {
            node.held = Writes::default();
        }
    }

    fn copies(&self, state: &State, write: usize) -> usize {
        state.nodes.iter().filter(|node| node.held.0 >> write & 1 == 1).count()
    }
}

impl Model for Moves {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Record { epoch: 0, serving: vec![0], learners: vec![], leaving: vec![] };
        let node = Node { view: first.clone(), held: Writes::default(), told: None };
        vec![State {
            history: vec![first],
            forked: false,
            reached: 0,
            proposals: [None, None],
            nodes: vec![node; usize::from(self.regions) * self.nodes_per_region],
            made: vec![],
            acknowledged: Writes::default(),
            disks_lost: 0,
            acknowledged_at_expand: Writes::default(),
            served_early: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let now = state.history.last().unwrap();
        if let Some(next) = self.next_record(state) {
            // Stewards are alike: the first that is free proposes.
            let busy = state.proposals.iter().flatten().count();
            if busy < self.stewards
                && let Some(free) = state.proposals.iter().position(Option::is_none)
            {
                actions.push(Action::Propose(free));
            }
            debug_assert_eq!(next.epoch, now.epoch + 1);
        }
        let sorted = |list: &[Region]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        if now.is_stable()
            && sorted(&now.serving) == sorted(self.goal(state))
            && state.reached + 1 < self.goals.len()
        {
            actions.push(Action::Goal);
        }
        for (steward, proposal) in state.proposals.iter().enumerate() {
            if proposal.is_some() {
                actions.push(Action::Commit(steward));
                actions.push(Action::Forget(steward));
            }
        }
        for (i, node) in state.nodes.iter().enumerate() {
            let region = self.region(i);
            if node.view.epoch < now.epoch {
                actions.push(Action::Adopt(i));
            }
            let told = Told { epoch: node.view.epoch, held: node.held };
            if node.told.as_ref() != Some(&told) {
                actions.push(Action::Tell(i));
            }
            if state.made.len() < self.writes && node.view.role(&region).serves() {
                actions.push(Action::Write(i));
            }
            for (j, other) in state.nodes.iter().enumerate() {
                let to = self.region(j);
                let taken = other.view.role(&to).stores() || self.mutation == Mutation::StrangerStores;
                if i != j && node.view.role(&to).stores() && taken && !other.held.includes(&node.held) {
                    actions.push(Action::Send(i, j));
                }
            }
            if state.disks_lost < self.disks_lost {
                actions.push(Action::LoseDisk(i));
            }
        }
        for (write, at) in state.made.iter().enumerate() {
            if state.acknowledged.0 >> write & 1 == 1 {
                continue;
            }
            let region = self.region(*at);
            let has = |(_, node): (usize, &Node)| {
                let role = node.view.role(&region);
                node.held.0 >> write & 1 == 1
                    && (role.acknowledges()
                        || (self.mutation == Mutation::LeavingAcknowledges && role.stores()))
            };
            let mut nodes = state.nodes.iter().enumerate().filter(|(i, _)| self.region(*i) == region);
            if nodes.all(has) {
                actions.push(Action::Acknowledge(write));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Propose(steward) => next.proposals[steward] = Some(self.next_record(state)?),
            Action::Forget(steward) => next.proposals[steward] = None,
            Action::Goal => next.reached += 1,
            Action::Commit(steward) => {
                let record = next.proposals[steward].take()?;
                let expected = state.history.last()?.epoch + 1;
                if record.epoch == expected {
                    let now = state.history.last()?;
                    let early = |(i, node): (usize, &Node)| {
                        let region = self.region(i);
                        now.learners.contains(&region)
                            && record.serving.contains(&region)
                            && !node.held.includes(&state.acknowledged_at_expand)
                    };
                    next.served_early |= state.disks_lost == 0 && state.nodes.iter().enumerate().any(early);
                    if !record.learners.is_empty() {
                        next.acknowledged_at_expand = state.acknowledged;
                    }
                    next.history.push(record);
                } else if self.mutation == Mutation::NoCompareAndSet {
                    next.forked = !state.history.contains(&record);
                    next.history.push(record);
                }
            }
            Action::Adopt(node) => {
                let newest = state.history.last()?;
                next.nodes[node].view.adopt(newest);
                self.obey(node, &mut next);
            }
            Action::Tell(node) => {
                let node = &mut next.nodes[node];
                node.told = Some(Told { epoch: node.view.epoch, held: node.held });
            }
            Action::Write(node) => {
                next.nodes[node].held.0 |= 1 << state.made.len();
                next.made.push(node);
            }
            Action::Send(from, to) => next.nodes[to].held.0 |= state.nodes[from].held.0,
            Action::Acknowledge(write) => next.acknowledged.0 |= 1 << write,
            Action::LoseDisk(node) => {
                // A new store is filled before it is served, from whom its region has left, and it asks the directory.
                let record = state.history.last()?;
                next.nodes[node] = Node { view: record.clone(), held: Writes::default(), told: None };
                next.disks_lost += 1;
            }
        }
        next.proposals.sort_unstable();
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // I1, with I5 and I7's bound: as many copies as acknowledged, less the disks lost.
            Property::always("what was acknowledged is held", |model: &Moves, state: &State| {
                let needed = model.nodes_per_region.saturating_sub(usize::from(state.disks_lost));
                (0..model.writes)
                    .filter(|write| state.acknowledged.0 >> write & 1 == 1)
                    .all(|write| model.copies(state, write) >= needed)
            }),
            // I2.
            Property::always("some region serves", |_, state: &State| {
                state.history.last().is_some_and(|record| !record.serving.is_empty())
            }),
            // I3.
            Property::always("one record for an epoch", |_, state: &State| !state.forked),
            // I4: nobody serves before it has adopted that it learns, and caught up with what was told.
            Property::always("nobody serves unprepared", |_, state: &State| !state.served_early),
            // Residency: by the record that a node knows.
            Property::always("a stranger holds nothing", |model: &Moves, state: &State| {
                let strange = |(i, node): (usize, &Node)| {
                    node.view.role(&model.region(i)).deletes() && node.held != Writes::default()
                };
                !state.nodes.iter().enumerate().any(strange)
            }),
            // I6, and that the check is not about nothing.
            Property::sometimes(
                "all moves end with all writes held where they go",
                |model: &Moves, state: &State| {
                    let all = Writes((1 << model.writes) - 1);
                    let now = state.history.last().unwrap();
                    let last = model.goals.last().unwrap();
                    state.reached + 1 == model.goals.len()
                        && now.is_stable()
                        && now.serving == *last
                        && state.acknowledged == all
                        && state
                            .nodes
                            .iter()
                            .enumerate()
                            .all(|(i, node)| !last.contains(&model.region(i)) || node.held == all)
                },
            ),
        ]
    }
}

/// Looks at everything; or, to find that `wanted` is broken, no further than that.
fn check(model: Moves, wanted: Option<&'static str>) -> (Vec<&'static str>, usize) {
    let mut checker = model.checker().threads(2);
    if let Some(wanted) = wanted {
        checker = checker.finish_when(HasDiscoveries::AllOf([wanted].into()));
    }
    let checker = checker.spawn_bfs().join();
    let broken = checker.discoveries().into_keys().filter(|name| *name != REACHED).collect();
    if checker.model().mutation == Mutation::None {
        assert!(checker.discovery(REACHED).is_some(), "no order of steps ends the moves");
    }
    (broken, checker.unique_state_count())
}

const REACHED: &str = "all moves end with all writes held where they go";

/// One node a region: there and on, two writes.
fn ones(mutation: Mutation) -> Moves {
    Moves {
        regions: 3,
        nodes_per_region: 1,
        goals: vec![vec![1], vec![2]],
        stewards: 1,
        writes: 2,
        disks_lost: 0,
        mutation,
    }
}

/// One node a region: there and back, two writes.
fn back(mutation: Mutation) -> Moves {
    Moves { regions: 2, goals: vec![vec![1], vec![0]], stewards: 2, ..ones(mutation) }
}

/// Two nodes a region, a disk is lost.
fn twos(mutation: Mutation) -> Moves {
    Moves {
        regions: 2,
        nodes_per_region: 2,
        goals: vec![vec![1]],
        stewards: 1,
        writes: 1,
        disks_lost: 1,
        mutation,
    }
}

#[test]
fn moves_between_regions_of_one_node_lose_nothing() {
    for model in [ones, back] {
        let (broken, states) = check(model(Mutation::None), None);
        assert!(broken.is_empty(), "{broken:?}");
        println!("{states} states");
    }
}

#[test]
fn moves_between_regions_of_two_nodes_lose_nothing_when_a_disk_is_lost() {
    let (broken, states) = check(twos(Mutation::None), None);
    assert!(broken.is_empty(), "{broken:?}");
    println!("{states} states");
}

#[test]
fn every_rule_left_out_is_seen() {
    let held = "what was acknowledged is held";
    for (model, wanted) in [
        (back(Mutation::NoDrain), held),
        (back(Mutation::NoCompareAndSet), "one record for an epoch"),
        (back(Mutation::StrangerStores), "a stranger holds nothing"),
        (back(Mutation::NoCatchUp), "nobody serves unprepared"),
        (twos(Mutation::LeavingAcknowledges), held),
    ] {
        let mutation = model.mutation;
        let (broken, states) = check(model, Some(wanted));
        println!("{mutation:?}: {states} states, {broken:?}");
        assert!(broken.contains(&wanted), "{mutation:?}: {broken:?}");
    }
}
