//! Which node is asked: the nearest one that is well and serves the scope. Told what happened and when; does nothing itself.
//!
//! Every node has a distance, the shortest of its last few round trips: what delays a single one (a busy machine, a lost
//! packet) only makes it longer. The node that was chosen stays until another one is clearly nearer, so two that are about as
//! far do not take turns. A node is *away* after a call found it gone, or two probes in a row; it is chosen again when two
//! probes in a row were answered. A region that does not serve a scope says which ones do: that is kept for a while, per
//! scope, and the nearest of those is asked.
//!
//! All of this is preference. Where every node is away the nearest is asked all the same, and a call that is refused goes
//! through all nodes before it gives up.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::time::Duration;

use crate::connection::MAX_ENDPOINTS;

/// Round trips remembered of a node: with [`PROBE_INTERVAL`] a distance that grew is known after 20 s.
const ROUND_TRIPS: usize = 4;
/// How often a node is probed: a healed one serves again within [`GOOD_PROBES`] of these, a third of the time that an
/// operator would wait.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The same of a node that was just met, until its distance is known.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
/// Round trips after which it is known.
const KNOWN_AFTER: usize = 2;
/// Nodes probed so often; those farther away, every [`FAR_INTERVAL`]: a large cluster is not asked by every client.
const NEAR_NODES: usize = 8;
const FAR_INTERVAL: Duration = Duration::from_secs(60);
/// Probes in a row that must fail before a node is away: one may be lost.
const BAD_PROBES: u32 = 2;
/// Probes in a row that must be answered before a node that was away is chosen again.
const GOOD_PROBES: u32 = 2;
/// Another node is chosen only if its distance is below this share of the chosen one's, and below it by [`NEARER_BY`].
const NEARER_SHARE: f64 = 0.8;
/// See [`NEARER_SHARE`]: within a region nobody gains by moving.
const NEARER_BY: Duration = Duration::from_millis(1);
/// How long a node is passed over by sessions that it lacked something of: replication catches up within this.
const BEHIND_TIME: Duration = Duration::from_secs(5);
/// How long it is remembered where a scope is served: then the nearest region is asked again, at the price of a refusal.
const ROUTE_TIME: Duration = Duration::from_secs(60);
/// Scopes of which that is remembered at least, twice as many at most: some 1 MiB.
const MAX_ROUTES: usize = 4096;
/// Most regions remembered of one scope: no more serve it.
const MAX_ROUTE_REGIONS: usize = 64;

/// Time since the client began.
pub(crate) type Moment = Duration;

/// Names a node for as long as the client lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeNumber(u32);

/// A node as another one told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Its id.
    pub(crate) id: String,
    /// Its region.
    pub(crate) region: String,
    /// Where clients reach it.
    pub(crate) endpoint: String,
}

/// What is known of the nodes, and of the scopes that are not everywhere.
#[derive(Debug)]
pub(crate) struct Routes {
    /// The order of the endpoints is right as it is: nothing is measured, and who answered last is asked first.
    fixed: bool,
    nodes: BTreeMap<NodeNumber, Known>,
    next: u32,
    /// The node chosen for scopes that are served by it.
    chosen: Option<NodeNumber>,
    /// Where scopes are that the chosen node does not serve: those told lately, and those told before.
    young: HashMap<String, Route>,
    old: HashMap<String, Route>,
}

/// One node.
#[derive(Debug)]
struct Known {
    endpoint: String,
    /// Named by the application; the others were told by nodes.
    seed: bool,
    id: Option<String>,
    region: Option<String>,
    /// It has answered and is who it should be.
    met: bool,
    round_trips: VecDeque<Duration>,
    away: bool,
    /// Probes in a row that were answered, while it is away; that were not, while it is well.
    probes: u32,
    probe_at: Moment,
    /// Sessions pass it over until then.
    behind_until: Moment,
}

/// Where a scope is served.
#[derive(Debug, Clone)]
struct Route {
    regions: Vec<String>,
    until: Moment,
    chosen: Option<NodeNumber>,
}

/// What the application sees of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Where it is dialled.
    pub endpoint: String,
    /// Its id; none before it answered.
    pub id: Option<String>,
    /// Its region; none before it answered.
    pub region: Option<String>,
    /// The shortest of its last round trips; none before one was measured.
    pub round_trip: Option<Duration>,
    /// It does not answer, or says that it does not serve.
    pub away: bool,
    /// It is the one that is asked where nothing speaks against it.
    pub chosen: bool,
}

impl Routes {
    pub(crate) fn new(seeds: impl IntoIterator<Item = String>, fixed: bool) -> Self {
        let mut routes = Self {
            fixed,
            nodes: BTreeMap::new(),
            next: 0,
            chosen: None,
            young: HashMap::new(),
            old: HashMap::new(),
        };
        for endpoint in seeds {
            routes.add(endpoint, true);
        }
        routes.chosen = routes.nodes.keys().next().copied();
        routes
    }

    fn add(&mut self, endpoint: String, seed: bool) -> NodeNumber {
        let number = NodeNumber(self.next);
        self.next += 1;
        let known = Known {
            endpoint,
            seed,
            id: None,
            region: None,
            met: false,
            round_trips: VecDeque::new(),
            away: false,
            probes: 0,
            probe_at: Moment::ZERO,
            behind_until: Moment::ZERO,
        };
        self.nodes.insert(number, known);
        number
    }

    /// All nodes and where they are dialled.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (NodeNumber, &str)> {
        self.nodes.iter().map(|(number, known)| (*number, known.endpoint.as_str()))
    }

    /// Whether nodes are measured and learned of.
    pub(crate) fn measures(&self) -> bool {
        !self.fixed
    }

    /// Whom to ask about this scope, the best first: all nodes that may answer. `session`: it carries a token.
    pub(crate) fn plan(&mut self, scope: Option<&str>, session: bool, now: Moment) -> Vec<NodeNumber> {
        if self.fixed {
            let from = self.chosen;
            let (before, behind): (Vec<_>, Vec<_>) =
                self.nodes.keys().copied().partition(|number| Some(*number) < from);
            return behind.into_iter().chain(before).collect();
        }
        let route = scope.and_then(|scope| self.route(scope, now));
        let class = |known: &Known| {
            let elsewhere = route.as_ref().is_some_and(|route| {
                known.region.as_ref().is_none_or(|region| !route.regions.contains(region))
            });
            (elsewhere, known.away)
        };
        let mut plan: Vec<(NodeNumber, &Known)> = self
            .nodes
            .iter()
            .filter(|(_, known)| known.met || known.seed)
            .map(|(number, known)| (*number, known))
            .collect();
        plan.sort_by(|(_, one), (_, other)| {
            class(one).cmp(&class(other)).then(by_distance(one.distance(), other.distance()))
        });
        // The chosen one stays in front of those of its class that are not clearly nearer.
        let chosen = route.as_ref().map_or(self.chosen, |route| route.chosen);
        let best = plan.first().map(|(_, known)| (class(known), known.distance()));
        let at = plan.iter().position(|(number, _)| Some(*number) == chosen);
        if let (Some((best_class, nearest)), Some(at)) = (best, at)
            && class(plan[at].1) == best_class
            && !clearly_nearer(nearest, plan[at].1.distance())
        {
            let stays = plan.remove(at);
            plan.insert(0, stays);
        }
        let first = plan.first().map(|(number, _)| *number);
        if session {
            // For this call only, and among nodes that are as good otherwise.
            plan.sort_by_key(|(_, known)| (class(known), known.behind_until > now)); // stable
        }
        let plan = plan.into_iter().map(|(number, _)| number).collect();
        match (scope.and_then(|scope| self.young.get_mut(scope)), route) {
            (Some(kept), Some(_)) => kept.chosen = first,
            _ => self.chosen = first,
        }
        plan
    }

    /// Where a scope is served, if that is remembered; it is among the young ones then.
    fn route(&mut self, scope: &str, now: Moment) -> Option<Route> {
        if let Some(route) = self.old.remove(scope) {
            self.keep(scope.to_owned(), route);
        }
        let route = self.young.get(scope)?;
        if route.until <= now {
            self.young.remove(scope);
            return None;
        }
        Some(route.clone())
    }

    fn keep(&mut self, scope: String, route: Route) {
        if self.young.len() >= MAX_ROUTES && !self.young.contains_key(&scope) {
            self.old = mem::take(&mut self.young); // what nobody asked for since the last time is forgotten
        }
        self.young.insert(scope, route);
    }

    /// A node does not serve a scope; these regions do. Whether any of their nodes is known.
    pub(crate) fn served_in(&mut self, scope: &str, regions: Vec<String>, now: Moment) -> bool {
        let mut regions = regions;
        regions.truncate(MAX_ROUTE_REGIONS);
        let known = self.nodes.values().any(|known| {
            (known.met || known.seed) && known.region.as_ref().is_some_and(|region| regions.contains(region))
        });
        self.old.remove(scope);
        self.keep(scope.to_owned(), Route { regions, until: now + ROUTE_TIME, chosen: None });
        known
    }

    /// A node answered a call.
    pub(crate) fn answered(&mut self, number: NodeNumber) {
        if self.fixed {
            self.chosen = Some(number);
        }
    }

    /// The first node that answered of all that were asked at the beginning.
    pub(crate) fn answered_first(&mut self, number: NodeNumber) {
        self.chosen = Some(number);
    }

    /// A call found a node gone, or not serving.
    pub(crate) fn gone(&mut self, number: NodeNumber, now: Moment) {
        if let Some(known) = self.nodes.get_mut(&number) {
            known.leave(now);
        }
    }

    /// A node lacks what a session has seen.
    pub(crate) fn behind(&mut self, number: NodeNumber, now: Moment) {
        if let Some(known) = self.nodes.get_mut(&number) {
            known.behind_until = now + BEHIND_TIME;
        }
    }

    /// A node said who it is. Whether it is who it should be: one that is not is not asked.
    pub(crate) fn met(&mut self, number: NodeNumber, id: &str, region: &str) -> bool {
        let Some(known) = self.nodes.get_mut(&number) else { return false };
        if !known.seed && known.id.as_deref() != Some(id) {
            return false; // another cluster's, or another node took its address
        }
        known.id = Some(id.to_owned());
        known.region = Some(region.to_owned());
        known.met = true;
        true
    }

    /// Whether a node has said who it is.
    pub(crate) fn is_met(&self, number: NodeNumber) -> bool {
        self.nodes.get(&number).is_some_and(|known| known.met)
    }

    /// A node told of others; `all`: those that it does not name are no more. A node that answers keeps the address by which
    /// it was found: that is known to lead there from here. At most [`MAX_ENDPOINTS`] are kept.
    pub(crate) fn told(&mut self, nodes: &[Told], all: bool) {
        let named = |known: &Known| nodes.iter().any(|told| known.id.as_ref() == Some(&told.id));
        let seeds = self.nodes.values().filter(|known| known.seed && !known.away);
        let reached: Vec<String> = seeds.filter_map(|known| known.id.clone()).collect();
        self.nodes.retain(|_, known| {
            let reached = known.id.as_ref().is_some_and(|id| reached.contains(id));
            known.seed || (!reached && (named(known) || !all))
        });
        for Told { id, region, endpoint } in nodes {
            let there = self
                .nodes
                .values()
                .any(|known| known.endpoint == *endpoint || (known.id.as_ref() == Some(id) && !known.away));
            if endpoint.is_empty() || there || self.nodes.len() >= MAX_ENDPOINTS {
                continue;
            }
            let number = self.add(endpoint.clone(), false);
            if let Some(known) = self.nodes.get_mut(&number) {
                (known.id, known.region) = (Some(id.clone()), Some(region.clone()));
            }
        }
    }

    /// The nodes to probe now. `jitter` of about 1 spreads the clients of a cluster.
    pub(crate) fn due(&mut self, now: Moment, jitter: f64) -> Vec<NodeNumber> {
        if self.fixed {
            return Vec::new();
        }
        let mut nearest: Vec<(NodeNumber, Option<Duration>)> =
            self.nodes.iter().map(|(number, known)| (*number, known.distance())).collect();
        nearest.sort_by(|(_, one), (_, other)| by_distance(*one, *other));
        let near: Vec<NodeNumber> = nearest.into_iter().take(NEAR_NODES).map(|(number, _)| number).collect();
        let chosen = self.chosen;
        let mut due = Vec::new();
        for (number, known) in self.nodes.iter_mut().filter(|(_, known)| known.probe_at <= now) {
            due.push(*number);
            let interval = if known.round_trips.len() < KNOWN_AFTER && !known.away && known.probes == 0 {
                FIRST_INTERVAL
            } else if near.contains(number) || Some(*number) == chosen {
                PROBE_INTERVAL
            } else {
                FAR_INTERVAL
            };
            known.probe_at = now + interval.mul_f64(jitter);
        }
        due
    }

    /// When [`Self::due`] has something to say.
    pub(crate) fn next_due(&self) -> Moment {
        self.nodes.values().map(|known| known.probe_at).min().unwrap_or(Moment::MAX)
    }

    /// A probe was answered after this time.
    pub(crate) fn probed(&mut self, number: NodeNumber, round_trip: Duration) {
        let Some(known) = self.nodes.get_mut(&number) else { return };
        if known.round_trips.len() >= ROUND_TRIPS {
            known.round_trips.pop_front();
        }
        known.round_trips.push_back(round_trip);
        if !known.away {
            known.probes = 0;
            return;
        }
        known.probes += 1;
        if known.probes >= GOOD_PROBES {
            (known.away, known.probes) = (false, 0);
        }
    }

    /// A probe was not answered, or said that the node does not serve.
    pub(crate) fn probe_failed(&mut self, number: NodeNumber, now: Moment) {
        let Some(known) = self.nodes.get_mut(&number) else { return };
        if known.away {
            known.probes = 0;
            return;
        }
        known.probes += 1;
        if known.probes >= BAD_PROBES {
            known.leave(now);
        }
    }

    /// The region that the application is in, as far as distances tell, if a node is in another: there a call has to say where
    /// it comes from, or the scope would be drawn to that node instead of to its users.
    pub(crate) fn home_of(&self, number: NodeNumber) -> Option<&str> {
        let measured =
            self.nodes.values().filter_map(|known| Some((known.distance()?, known.region.as_deref()?)));
        let (_, home) = measured.min()?;
        let there = self.nodes.get(&number)?.region.as_deref();
        (there != Some(home)).then_some(home)
    }

    /// What is known of every node.
    pub(crate) fn view(&self) -> Vec<NodeView> {
        let view = |(number, known): (&NodeNumber, &Known)| NodeView {
            endpoint: known.endpoint.clone(),
            id: known.id.clone(),
            region: known.region.clone(),
            round_trip: known.distance(),
            away: known.away,
            chosen: self.chosen == Some(*number),
        };
        self.nodes.iter().map(view).collect()
    }
}

impl Known {
    fn distance(&self) -> Option<Duration> {
        self.round_trips.iter().min().copied()
    }

    fn leave(&mut self, now: Moment) {
        (self.away, self.probes) = (true, 0);
        self.probe_at = self.probe_at.min(now + PROBE_INTERVAL);
    }
}

/// The nearer first, those whose distance is not known last.
fn by_distance(one: Option<Duration>, other: Option<Duration>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(&other),
        (one, other) => other.is_some().cmp(&one.is_some()),
    }
}

/// Whether it is worth leaving the chosen node. One whose distance is not known yet is given the time to be measured.
fn clearly_nearer(other: Option<Duration>, chosen: Option<Duration>) -> bool {
    let (Some(other), Some(chosen)) = (other, chosen) else { return false };
    other + NEARER_BY <= chosen && other <= chosen.mul_f64(NEARER_SHARE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// Seeds by name, each a node of the region of its name, at these distances.
    fn world<const N: usize>(nodes: [(&str, f64); N]) -> (Routes, [NodeNumber; N]) {
        let mut routes = Routes::new(nodes.iter().map(|(name, _)| (*name).to_owned()), false);
        let numbers = std::array::from_fn(|index| NodeNumber(index as u32));
        for (number, (name, distance)) in numbers.iter().zip(nodes) {
            assert!(routes.met(*number, &format!("{name}-1"), name));
            routes.probed(*number, ms(distance));
        }
        (routes, numbers)
    }

    fn first(routes: &mut Routes) -> NodeNumber {
        routes.plan(None, false, S)[0]
    }

    #[test]
    fn the_nearest_comes_first_and_the_others_by_their_distance() {
        let (mut routes, [far, near, middle]) = world([("far", 150.0), ("near", 2.0), ("middle", 60.0)]);
        assert_eq!(routes.plan(None, false, S), [near, middle, far]);
    }

    #[test]
    fn a_call_that_goes_to_another_region_says_which_one_it_comes_from() {
        let (mut routes, [far, near]) = world([("far", 150.0), ("near", 2.0)]);
        assert_eq!((routes.home_of(far), routes.home_of(near)), (Some("near"), None));
        routes.gone(near, S);
        assert_eq!(routes.home_of(far), Some("near"), "who is at home does not move when its node is away");
        assert_eq!(
            Routes::new(["a".to_owned()], false).home_of(NodeNumber(0)),
            None,
            "nothing is measured yet"
        );
    }

    #[test]
    fn a_node_without_distance_stays_chosen_until_it_is_measured() {
        let mut routes = Routes::new(["a".to_owned(), "b".to_owned()], false);
        let [a, b] = [NodeNumber(0), NodeNumber(1)];
        routes.answered_first(b);
        routes.met(a, "a-1", "a");
        routes.probed(a, ms(90.0));
        assert_eq!(first(&mut routes), b);
        routes.met(b, "b-1", "b");
        routes.probed(b, ms(300.0));
        assert_eq!(first(&mut routes), a);
    }

    #[test]
    fn the_chosen_node_stays_until_another_is_clearly_nearer() {
        let (mut routes, [one, other]) = world([("one", 20.0), ("other", 25.0)]);
        assert_eq!(first(&mut routes), one);
        for nearer in [19.0, 17.0, 16.1] {
            routes.probed(other, ms(nearer));
            assert_eq!(first(&mut routes), one, "{nearer} ms is not worth it");
        }
        routes.probed(other, ms(15.9));
        assert_eq!(first(&mut routes), other, "a fifth nearer is");
        // And back only when the same is true the other way.
        routes.probed(one, ms(15.0));
        assert_eq!(first(&mut routes), other);
        // Half of nearly nothing is nothing.
        let (mut routes, [one, other]) = world([("one", 0.9), ("other", 1.0)]);
        assert_eq!(first(&mut routes), one);
        routes.probed(other, ms(0.1));
        assert_eq!(first(&mut routes), one);
    }

    #[test]
    fn one_slow_round_trip_says_nothing_and_four_do() {
        let (mut routes, [near, far]) = world([("near", 10.0), ("far", 40.0)]);
        for _ in 0..3 {
            routes.probed(near, ms(500.0));
            assert_eq!(first(&mut routes), near);
        }
        routes.probed(near, ms(500.0));
        assert_eq!(first(&mut routes), far);
    }

    #[test]
    fn a_node_that_is_gone_is_passed_over_until_two_probes_in_a_row_are_answered() {
        let (mut routes, [near, far]) = world([("near", 1.0), ("far", 100.0)]);
        routes.gone(near, S);
        assert_eq!(routes.plan(None, false, S), [far, near], "it is asked when the other fails, too");
        routes.probed(near, ms(1.0));
        routes.probe_failed(near, S);
        routes.probed(near, ms(1.0));
        assert_eq!(first(&mut routes), far, "one answer is not enough");
        routes.probed(near, ms(1.0));
        assert_eq!(first(&mut routes), near);
        routes.probe_failed(near, S);
        assert_eq!(first(&mut routes), near, "one lost probe is not either");
        routes.probe_failed(near, S);
        assert_eq!(first(&mut routes), far);
    }

    #[test]
    fn a_node_that_is_gone_is_probed_often_enough_to_be_back_within_half_a_minute() {
        let (mut routes, [near, _far]) = world([("near", 1.0), ("far", 100.0)]);
        let mut now = S;
        routes.due(now, 1.2);
        routes.gone(near, now);
        let healed = now;
        let mut good = 0;
        while good < 2 {
            now = routes.next_due();
            let due = routes.due(now, 1.2);
            if due.contains(&near) {
                routes.probed(near, ms(1.0));
                good += 1;
            }
        }
        assert_eq!(first(&mut routes), near);
        assert!(now - healed <= Duration::from_secs(20), "{now:?}");
    }

    #[test]
    fn where_all_are_away_the_nearest_is_asked_all_the_same() {
        let (mut routes, [near, far]) = world([("near", 1.0), ("far", 100.0)]);
        routes.gone(near, S);
        routes.gone(far, S);
        assert_eq!(routes.plan(None, false, S), [near, far]);
    }

    #[test]
    fn a_session_passes_over_a_node_that_lacks_something_and_nobody_else_does() {
        let (mut routes, [near, far]) = world([("near", 1.0), ("far", 100.0)]);
        routes.behind(near, S);
        assert_eq!(routes.plan(None, true, S), [far, near]);
        assert_eq!(routes.plan(None, false, S), [near, far]);
        assert_eq!(routes.plan(None, true, S + BEHIND_TIME), [near, far]);
    }

    #[test]
    fn a_scope_is_asked_for_where_it_is_and_the_nearest_is_asked_again_after_a_minute() {
        let (mut routes, [near, middle, far]) = world([("near", 1.0), ("middle", 50.0), ("far", 100.0)]);
        assert!(routes.served_in("shop/carts", vec!["far".to_owned(), "middle".to_owned()], S));
        assert_eq!(routes.plan(Some("shop/carts"), false, S), [middle, far, near]);
        assert_eq!(routes.plan(Some("shop/others"), false, S), [near, middle, far]);
        assert_eq!(first(&mut routes), near, "one scope does not lead the others astray");
        // It moves, and is in one region only.
        assert!(routes.served_in("shop/carts", vec!["far".to_owned()], S * 2));
        assert_eq!(routes.plan(Some("shop/carts"), false, S * 2)[0], far);
        assert_eq!(routes.plan(Some("shop/carts"), false, S * 2 + ROUTE_TIME)[0], near);
        assert!(!routes.served_in("shop/carts", vec!["nowhere".to_owned()], S * 3));
    }

    #[test]
    fn the_node_chosen_for_a_scope_stays_like_any_other() {
        let (mut routes, [_near, one, other]) = world([("near", 1.0), ("one", 50.0), ("other", 55.0)]);
        routes.served_in("s", vec!["one".to_owned(), "other".to_owned()], S);
        assert_eq!(routes.plan(Some("s"), false, S)[0], one);
        routes.probed(other, ms(45.0));
        assert_eq!(routes.plan(Some("s"), false, S)[0], one);
        routes.gone(one, S);
        assert_eq!(routes.plan(Some("s"), false, S)[0], other);
    }

    #[test]
    fn of_a_million_scopes_those_asked_for_lately_are_remembered() {
        let (mut routes, [near, far]) = world([("near", 1.0), ("far", 100.0)]);
        routes.served_in("kept", vec!["far".to_owned()], S);
        for number in 0..10 * MAX_ROUTES {
            routes.served_in(&format!("s{number}"), vec!["far".to_owned()], S);
            if number % 1000 == 0 {
                assert_eq!(routes.plan(Some("kept"), false, S)[0], far);
            }
            assert!(routes.young.len() + routes.old.len() <= 2 * MAX_ROUTES);
        }
        assert_eq!(routes.plan(Some("kept"), false, S)[0], far);
        assert_eq!(routes.plan(Some("s0"), false, S)[0], near, "forgotten");
    }

    fn told(id: &str, endpoint: &str) -> Told {
        let region = id.split('-').next().unwrap().to_owned();
        Told { id: id.to_owned(), region, endpoint: endpoint.to_owned() }
    }

    #[test]
    fn a_node_that_was_told_is_asked_once_it_has_said_that_it_is_that_one() {
        let (mut routes, [far]) = world([("far", 100.0)]);
        routes.told(
            &[told("far-1", "http://inside:1"), told("near-1", "http://near:1"), told("no-1", "")],
            false,
        );
        assert_eq!(routes.endpoints().map(|(_, at)| at).collect::<Vec<_>>(), ["far", "http://near:1"]);
        let near = NodeNumber(1);
        assert_eq!(routes.due(Moment::ZERO, 1.0), [far, near]);
        assert!(!routes.met(near, "dallas-1", "dallas"), "another cluster's node");
        assert_eq!(routes.plan(None, false, S), [far]);
        assert!(routes.met(near, "near-1", "near"));
        routes.probed(near, ms(1.0));
        assert_eq!(routes.plan(None, false, S), [near, far]);
    }

    #[test]
    fn nodes_that_are_no_more_are_forgotten_and_seeds_are_not() {
        let (mut routes, [_seed]) = world([("seed", 1.0)]);
        routes.told(&[told("a-1", "http://a:1"), told("b-1", "http://b:1")], false);
        routes.told(&[told("b-1", "http://b:1")], false);
        assert_eq!(routes.nodes.len(), 3, "one node's word about some is not about all");
        routes.told(&[told("b-1", "http://b:1")], true);
        assert_eq!(routes.endpoints().map(|(_, at)| at).collect::<Vec<_>>(), ["seed", "http://b:1"]);
        let many: Vec<Told> =
            (0..1000).map(|n| told(&format!("n{n}-1"), &format!("http://n{n}:1"))).collect();
        routes.told(&many, true);
        assert_eq!(routes.nodes.len(), MAX_ENDPOINTS);
    }

    #[test]
    fn of_many_nodes_the_near_ones_are_probed_and_the_others_seldom() {
        let mut routes = Routes::new((0..100).map(|n| format!("n{n}")), false);
        for n in 0..100 {
            let number = NodeNumber(n);
            routes.met(number, &format!("n{n}-1"), "r");
            for _ in 0..KNOWN_AFTER {
                routes.probed(number, ms(f64::from(n)));
            }
        }
        let mut probes = BTreeMap::new();
        let mut now = Moment::ZERO;
        while now < Duration::from_secs(600) {
            for number in routes.due(now, 1.0) {
                *probes.entry(number).or_insert(0) += 1;
            }
            now = routes.next_due();
        }
        assert_eq!((probes[&NodeNumber(0)], probes[&NodeNumber(50)]), (120, 10));
    }

    #[test]
    fn a_fixed_order_stays_and_goes_on_behind_the_one_that_answered() {
        let mut routes = Routes::new(["a", "b", "c"].map(str::to_owned), true);
        let [a, b, c] = [0, 1, 2].map(NodeNumber);
        assert_eq!(routes.plan(None, false, S), [a, b, c]);
        routes.answered(b);
        routes.gone(b, S);
        assert_eq!(routes.plan(None, false, S), [b, c, a]);
        assert_eq!(routes.due(S, 1.0), []);
    }
}
