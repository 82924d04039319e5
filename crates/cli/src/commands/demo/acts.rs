//! The first five acts: near reads and writes, how fast news travel, merging, a cut, a crash.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value as Report, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tropism_client::v1::{PatchOperation, patch_operation::Action};
use tropism_client::{Calls, Error, Happening, Patch, PutOptions, Value, WatchTarget};

use super::figures::{Times, milliseconds, ms, row};
use super::{Tour, broken, entries};
use crate::output::{Failure, one_line, size};
use crate::world::control::{
    LinkAction, LinkRequest, NodeAction, NodeRequest, change_link, change_node, links,
};

const CARTS: &str = "shop/carts";
const VISITS: &str = "stats/visits";
const PAGES: &str = "cache/pages";

/// Reads and writes of the first act in each region.
const READS: usize = 200;
const WRITES: usize = 50;
/// Writes of the second act in each region.
const NEWS: usize = 10;
/// How long news may take to be seen: many times the longest half round trip.
const NEWS_TIME: Duration = Duration::from_secs(10);
/// Readiness of watches waits for this at most.
const NEWS_QUEUE: usize = 64;
/// How long all write before the cut, to compare; how long the cut lasts; and the pause between one writer's writes meanwhile: some 250 a region.
const WHOLE_TIME: Duration = Duration::from_secs(2);
const CUT_TIME: Duration = Duration::from_secs(4);
const CUT_PAUSE: Duration = Duration::from_millis(15);
/// Keys that each region writes during the cut.
const CUT_KEYS: usize = 20;
/// Writers at once of the node that is killed.
const WRITERS: usize = 4;
/// How long they write before the kill, until the start, and after it.
const BEFORE_KILL: Duration = Duration::from_millis(700);
const AWAY: Duration = Duration::from_millis(500);
const AFTER_START: Duration = Duration::from_millis(500);

/// A document of some 200 bytes.
fn cart(n: usize) -> String {
    let note = "x".repeat(120);
    format!("{{\"items\":[{{\"n\":{n},\"sku\":\"green-tea\"}}],\"note\":\"{note}\",\"owner\":\"alice\"}}")
}

impl Tour<'_, '_> {
    /// Act 1: what a read and a write cost in each region.
    pub(super) async fn latency(&mut self) -> Result<Report, Failure> {
        self.screen.act(
            1,
            "Near: every region reads and writes its own copy",
            &format!(
                "{READS} reads and {WRITES} durable writes of a 200 B document in each region, one by one."
            ),
        )?;
        let mut rows =
            vec![row(["in", "read p50", "p99", "write p50", "p99", "one far database would cost"])];
        let mut report = Vec::new();
        for site in &self.sites {
            self.screen.progress(&format!("reading and writing in {} ...", site.name));
            let key = format!("near-{}", site.name);
            let (mut reads, mut writes) = (Times::default(), Times::default());
            site.client.put_json(CARTS, &key, cart(0)).await?;
            for n in 1..=WRITES {
                let start = Instant::now();
                site.client.put_json(CARTS, &key, cart(n)).await?;
                writes.add(start.elapsed());
            }
            for _ in 0..READS {
                let start = Instant::now();
                let found = site.client.get(CARTS, &key).await?.entry;
                reads.add(start.elapsed());
                if found.and_then(|entry| entry.value) != Some(Value::Document(cart(WRITES).into())) {
                    return Err(broken(format!("{} does not read what it wrote", site.name)));
                }
            }
            let mut far: Vec<(&str, f64)> = self
                .sites
                .iter()
                .filter(|other| other.name != site.name)
                .map(|other| (other.name.as_str(), self.round_trip(site, other)))
                .collect();
            far.sort_by(|(_, one), (_, other)| one.total_cmp(other));
            // Nearest and farthest: a line has room for two.
            let told: Vec<String> = [far.first(), far.last()]
                .into_iter()
                .flatten()
                .map(|(name, rtt)| format!("{} in {name}", ms(*rtt)))
                .collect();
            rows.push(row([
                &site.name,
                &ms(reads.percentile(50)),
                &ms(reads.percentile(99)),
                &ms(writes.percentile(50)),
                &ms(writes.percentile(99)),
                &told.join(", "),
            ]));
            let far: BTreeMap<&str, f64> = far.into_iter().collect();
            report.push(json!({
                "region": site.name, "read": reads.to_json(), "write": writes.to_json(), "round_trip_ms": far,
            }));
        }
        self.screen.table(&rows)?;
        Ok(json!(report))
    }

    /// Act 2: when the other regions see a write.
    pub(super) async fn propagation(&mut self) -> Result<Report, Failure> {
        self.screen.act(
            2,
            "News: when the other regions see a write",
            &format!(
                "{NEWS} writes in each region; the others watch. Counted from the call, not from its answer."
            ),
        )?;
        self.screen.progress("waiting for the links ...");
        self.linked().await?;
        let mut rows = vec![row(["written in", "seen in", "half round trip", "seen after p50", "slowest"])];
        let mut report = Vec::new();
        for (from, site) in self.sites.iter().enumerate() {
            self.screen.progress(&format!("writing in {} and watching elsewhere ...", site.name));
            let key = format!("news-{}", site.name);
            let (seen, mut sightings) = mpsc::channel(NEWS_QUEUE);
            let mut watchers = JoinSet::new();
            for (at, other) in self.sites.iter().enumerate().filter(|(at, _)| *at != from) {
                watchers.spawn(sight(other.client.new_session(), key.clone(), at, seen.clone()));
            }
            drop(seen);
            for _ in 0..watchers.len() {
                sighting(&mut sightings).await?; // each says first that it watches
            }
            let mut times: BTreeMap<usize, Times> = BTreeMap::new();
            for n in 0..NEWS {
                let content = Bytes::from(format!("page {n} of {}", site.name));
                let start = Instant::now();
                site.client.put_register(PAGES, &key, content.clone(), "text/plain").await?;
                for _ in 0..watchers.len() {
                    let (at, shown, moment) = sighting(&mut sightings).await?;
                    if shown != content {
                        return Err(broken(format!(
                            "{} saw another value than the one written",
                            self.sites[at].name
                        )));
                    }
                    times.entry(at).or_default().add(moment.duration_since(start));
                }
            }
            for (at, times) in times {
                let other = &self.sites[at];
                let half = self.round_trip(site, other) / 2.0;
                rows.push(row([
                    &site.name,
                    &other.name,
                    &ms(half),
                    &ms(times.percentile(50)),
                    &ms(times.percentile(100)),
                ]));
                report.push(json!({
                    "from": site.name, "to": other.name, "half_round_trip_ms": half, "seen": times.to_json(),
                }));
            }
        }
        self.screen.table(&rows)?;
        Ok(json!(report))
    }

    /// Act 3: two regions edit one document at the same moment.
    pub(super) async fn merge(&mut self) -> Result<Report, Failure> {
        let (one, other) = (self.sites[0].name.clone(), self.sites[1].name.clone());
        self.screen.act(
            3,
            "Together: two regions edit one document at once",
            &format!("{one} and {other} each patch the cart before either has seen the other's edit."),
        )?;
        let key = "alice";
        let before = "{\"items\":[{\"n\":2,\"sku\":\"tea\"}],\"note\":\"\",\"tags\":[]}";
        self.sites[0].client.put_json(CARTS, key, before).await?;
        self.equal(CARTS, key).await?;
        let edit = |path: &str, action| PatchOperation { path: path.to_owned(), action: Some(action) };
        let json = |text: &'static str| Bytes::from_static(text.as_bytes());
        let edits = [
            vec![
                edit("/items/0/n", Action::Increment(1)),
                edit("/note", Action::Set(json("\"gift\""))),
                edit("/tags", Action::Append(json("\"urgent\""))),
            ],
            vec![
                edit("/items/0/n", Action::Increment(2)),
                edit("/city", Action::Set(json("\"Bonn\""))),
                edit("/tags", Action::Append(json("\"heavy\""))),
            ],
        ];
        let [first, second] = edits.map(Patch::Operations).map(|patch| (patch, PutOptions::default()));
        let start = Instant::now();
        let (one_done, other_done) = tokio::join!(
            self.sites[0].client.patch(CARTS, key, first.0, first.1),
            self.sites[1].client.patch(CARTS, key, second.0, second.1),
        );
        let (one_version, other_version) = (one_done?.version, other_done?.version);
        let acknowledged = start.elapsed();
        if one_version == other_version {
            return Err(broken("the two edits were not made at once".to_owned()));
        }
        let entries = self.equal(CARTS, key).await?;
        let equal = start.elapsed();
        let Some(Value::Document(shown)) = entries.first().and_then(|entry| entry.value.clone()) else {
            return Err(broken(format!("{CARTS} {key} is gone")));
        };
        let value: Report = serde_json::from_slice(&shown)
            .map_err(|error| broken(format!("{CARTS} {key} is no JSON: {error}")))?;
        let tags = value["tags"].as_array().cloned().unwrap_or_default();
        let kept = value["items"][0]["n"] == 5
            && value["note"] == "gift"
            && value["city"] == "Bonn"
            && tags.len() == 2
            && tags.contains(&json!("urgent"))
            && tags.contains(&json!("heavy"));
        let text = String::from_utf8_lossy(&shown).into_owned();
        if !kept {
            return Err(broken(format!("an edit is missing in {text}")));
        }
        let mut rows = vec![
            row(["before", before]),
            row([&one, "inc /items/0/n 1   set /note \"gift\"   append /tags \"urgent\""]),
            row([&other, "inc /items/0/n 2   set /city \"Bonn\"   append /tags \"heavy\""]),
        ];
        rows.push(row(["now", &text]));
        self.screen.table(&rows)?;
        self.screen.note(&format!(
            "Both acknowledged within {}; the same bytes in all {} regions after {}. No edit was lost.",
            ms(milliseconds(acknowledged)),
            self.sites.len(),
            ms(milliseconds(equal)),
        ))?;
        Ok(json!({
            "value": value, "acknowledged_ms": milliseconds(acknowledged), "equal_ms": milliseconds(equal),
        }))
    }

    /// Act 4: a region is cut off, everybody writes on, and the links come back.
    pub(super) async fn cut(&mut self) -> Result<Report, Failure> {
        let island = self.sites[ISLAND].name.clone();
        self.screen.act(
            4,
            &format!("Apart: {island} is cut off, and nobody stops"),
            &format!(
                "Every region writes documents and one counter: {} s with all links whole, then {} s while\n   \
                 all links of {island} swallow everything.",
                WHOLE_TIME.as_secs(),
                CUT_TIME.as_secs()
            ),
        )?;
        self.screen.progress("all regions write ...");
        let whole = self.write_everywhere("whole", WHOLE_TIME).await?;
        let increments = |sides: &[Side]| sides.iter().map(|side| side.increments).sum::<usize>();
        let sum_before = Value::Counter(increments(&whole) as i64);
        self.equal(VISITS, "home").await?; // what differs at the end of the cut, the cut has made

        self.change_links(&island, LinkAction::Cut).await?;
        self.screen.progress(&format!("{island} is cut off; all regions write ..."));
        let sides = self.write_everywhere("apart", CUT_TIME).await?;
        let mut shown_apart = Vec::new();
        let mut staleness = 0;
        for (at, site) in self.sites.iter().enumerate() {
            let found = site.client.get(VISITS, "home").await?;
            if at == ISLAND {
                staleness = found.answered.staleness_ms;
            }
            shown_apart.push(found.entry.and_then(|entry| entry.value));
        }

        let carried = self.bytes_carried(&island).await?;
        self.screen.progress("the links are healed; catching up ...");
        let healed = Instant::now();
        self.change_links(&island, LinkAction::Heal).await?;
        let counters = self.equal(VISITS, "home").await?;
        let documents = self.equal(CARTS, "apart-").await?;
        let caught_up = healed.elapsed();
        let cost = self.bytes_carried(&island).await?.saturating_sub(carried);

        let increments = increments(&whole) + increments(&sides);
        let sum = counters.first().and_then(|entry| entry.value.clone());
        if sum != Some(Value::Counter(increments as i64)) {
            return Err(broken(format!(
                "{increments} increments were acknowledged, the counter shows {sum:?}"
            )));
        }
        for (key, value) in sides.iter().flat_map(|side| &side.last) {
            let found =
                documents.iter().find(|entry| entry.key == *key).and_then(|entry| entry.value.clone());
            if found != Some(Value::Document(value.clone().into())) {
                return Err(broken(format!("the last acknowledged write of {CARTS} {key} is lost")));
            }
        }
        let island_alone = i64::try_from(sides[ISLAND].increments).ok().map(|own| match sum_before {
            Value::Counter(before) => Value::Counter(before + own),
            other => other,
        });
        if shown_apart[ISLAND] != island_alone {
            return Err(broken(format!(
                "{island}, cut off, should have shown only its own increments, and showed {:?}",
                shown_apart[ISLAND]
            )));
        }
        let mut rows =
            vec![row(["in", "whole: writes", "p50", "p99", "cut: writes", "p50", "p99", "counter"])];
        for ((whole, side), shown) in whole.iter().zip(&sides).zip(&shown_apart) {
            rows.push(row([
                &self.sites[side.at].name,
                &whole.times.len().to_string(),
                &ms(whole.times.percentile(50)),
                &ms(whole.times.percentile(99)),
                &side.times.len().to_string(),
                &ms(side.times.percentile(50)),
                &ms(side.times.percentile(99)),
                &shown.as_ref().map(one_line).unwrap_or_default(),
            ]));
        }
        self.screen.table(&rows)?;
        let writes: usize = sides.iter().map(|side| side.times.len()).sum();
        self.screen.note(&format!(
            "At the end of the cut {island} counted only what it had seen, and said that its view was {:.1} s old.\n   \
             Healed: equal everywhere after {}, the counter {increments}, as acknowledged.\n   \
             The catch-up took {} on the links of {island}, for {writes} writes.",
            staleness as f64 / 1e3,
            ms(milliseconds(caught_up)),
            size(cost),
        ))?;
        let sides: Vec<Report> = whole
            .iter()
            .zip(&sides)
            .map(|(whole, side)| {
                let region = &self.sites[side.at].name;
                json!({ "region": region, "whole": whole.times.to_json(), "cut": side.times.to_json() })
            })
            .collect();
        Ok(json!({
            "cut": island, "seconds": CUT_TIME.as_secs(), "sides": sides, "staleness_ms": staleness,
            "equal_ms": milliseconds(caught_up), "peer_bytes": cost, "counter": increments,
        }))
    }

    /// Act 5: a node is killed while it writes.
    pub(super) async fn kill(&mut self) -> Result<Report, Failure> {
        let site = &self.sites[1];
        let (node, region) = (site.node.clone(), site.name.clone());
        self.screen.act(
            5,
            &format!("Crash: kill -9 of {node} in mid-write"),
            &format!(
                "{WRITERS} writers put orders in {region} without a pause and never stop for the crash."
            ),
        )?;
        self.screen.progress(&format!("{WRITERS} writers at {node} ..."));
        let go_on = Arc::new(AtomicBool::new(true));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write_orders(site.client.new_session(), writer, go_on.clone()));
        }
        sleep(BEFORE_KILL).await;
        let killed = Instant::now();
        change_node(self.control(), NodeRequest { action: NodeAction::Kill, id: node.clone() }).await?;
        self.screen.progress(&format!("{node} is dead ..."));
        sleep(AWAY).await;
        let ordered = Instant::now();
        change_node(self.control(), NodeRequest { action: NodeAction::Start, id: node.clone() }).await?;
        let serving = Instant::now();
        self.screen.progress(&format!("{node} serves again ..."));
        sleep(AFTER_START).await;
        go_on.store(false, Ordering::Relaxed);
        let mut acknowledged: Vec<Order> = Vec::new();
        while let Some(written) = writers.join_next().await {
            acknowledged
                .extend(written.map_err(|error| Failure::Failed(format!("a writer ended: {error}")))??);
        }
        // Between its death and the order to start, which is long, nothing can be acknowledged.
        let before = acknowledged.iter().filter(|order| order.at < ordered).count();
        let after = acknowledged.iter().filter(|order| order.began >= ordered).count();
        let through = acknowledged.len() - before - after;
        let replayed = acknowledged.iter().filter(|order| order.replayed).count();
        let here = entries(&self.sites[1].client, CARTS, "order-").await?;
        let lost = |shown: &[tropism_client::Entry]| {
            let shown: BTreeMap<&str, Option<&Value>> =
                shown.iter().map(|entry| (entry.key.as_str(), entry.value.as_ref())).collect();
            acknowledged
                .iter()
                .filter(|order| {
                    shown.get(order.key.as_str()).copied().flatten()
                        != Some(&Value::Document(order.value.clone().into()))
                })
                .count()
        };
        let lost_here = lost(&here);
        if lost_here > 0 {
            return Err(broken(format!("{node} lost {lost_here} acknowledged writes in the crash")));
        }
        let lost_elsewhere = lost(&self.equal(CARTS, "order-").await?);
        if lost_elsewhere > 0 {
            return Err(broken(format!("{lost_elsewhere} acknowledged writes did not reach every region")));
        }
        let away = serving.duration_since(killed);
        let rows = [
            row(["acknowledged before it died", &before.to_string()]),
            row(["waiting through the outage, then acknowledged", &through.to_string()]),
            row(["   of these on disk already when it died", &replayed.to_string()]),
            row(["begun and acknowledged after the start", &after.to_string()]),
            row(["acknowledged in all", &acknowledged.len().to_string()]),
            row(["of all, lost there or in another region", &(lost_here + lost_elsewhere).to_string()]),
        ];
        self.screen.table(&rows)?;
        self.screen.note(&format!(
            "{node} was away for {}, {} of it from the order to start until it served.",
            ms(milliseconds(away)),
            ms(milliseconds(serving.duration_since(ordered))),
        ))?;
        Ok(json!({
            "node": node, "acknowledged_before": before, "waiting": through, "replayed": replayed,
            "acknowledged_after": after, "acknowledged": acknowledged.len(), "lost": lost_here + lost_elsewhere, "away_ms": milliseconds(away),
        }))
    }

    /// Lets every region write for a time, all at once.
    async fn write_everywhere(&self, prefix: &'static str, time: Duration) -> Result<Vec<Side>, Failure> {
        let mut writers = JoinSet::new();
        for (at, site) in self.sites.iter().enumerate() {
            writers.spawn(write_apart(
                site.client.new_session(),
                format!("{prefix}-{}", site.name),
                at,
                time,
            ));
        }
        let mut sides = Vec::new();
        while let Some(side) = writers.join_next().await {
            sides.push(side.map_err(|error| Failure::Failed(format!("a writer ended: {error}")))??);
        }
        sides.sort_by_key(|side| side.at);
        Ok(sides)
    }

    /// Cuts or heals all links of a region.
    async fn change_links(&self, region: &str, action: LinkAction) -> Result<(), Failure> {
        for other in self.sites.iter().filter(|site| site.name != region) {
            let (a, b) = (region.to_owned(), other.name.clone());
            let request =
                LinkRequest { action, a, b, one_way: false, extra_ms: None, bytes_per_second: None };
            change_link(self.control(), request).await?;
        }
        Ok(())
    }

    /// Bytes between nodes that the links of a region have carried.
    async fn bytes_carried(&self, region: &str) -> Result<u64, Failure> {
        let links = links(self.control()).await?;
        Ok(links
            .iter()
            .filter(|link| link.from == region || link.to == region)
            .map(|link| link.peer_bytes)
            .sum())
    }
}

/// The region that is cut off: the third, so that the first two go on seeing each other.
const ISLAND: usize = super::MIN_REGIONS - 1;

/// Which region saw what, and when.
type Sighting = Result<(usize, Bytes, Instant), Error>;

/// Tells every value of a key as it is seen; first nothing, once the watch stands.
async fn sight(client: Calls, key: String, at: usize, seen: mpsc::Sender<Sighting>) {
    let mut watch = client.watch(PAGES, WatchTarget::Key(key), true, None);
    loop {
        let message = match watch.next().await {
            Ok(message) => message,
            Err(error) => {
                let _ = seen.send(Err(error)).await; // nobody is left to tell when the act has ended
                return;
            }
        };
        for event in message.events {
            let content = match (event.happening, event.entry.and_then(|entry| entry.value)) {
                (Happening::Current, _) => Bytes::new(),
                (Happening::Put, Some(Value::Register(register))) => register.content,
                _ => continue,
            };
            if seen.send(Ok((at, content, Instant::now()))).await.is_err() {
                return;
            }
        }
    }
}

async fn sighting(sightings: &mut mpsc::Receiver<Sighting>) -> Result<(usize, Bytes, Instant), Failure> {
    match timeout(NEWS_TIME, sightings.recv()).await {
        Ok(Some(sighting)) => Ok(sighting?),
        _ => Err(broken(format!("a write was not seen in another region within {} s", NEWS_TIME.as_secs()))),
    }
}

/// What one region wrote in the time.
struct Side {
    at: usize,
    times: Times,
    increments: usize,
    /// Per document the last acknowledged value.
    last: BTreeMap<String, String>,
}

/// Writes for a time: a counter that all share, and documents of its own.
async fn write_apart(client: Calls, prefix: String, at: usize, time: Duration) -> Result<Side, Failure> {
    let mut side = Side { at, times: Times::default(), increments: 0, last: BTreeMap::new() };
    let began = Instant::now();
    while began.elapsed() < time {
        let start = Instant::now();
        if side.times.len().is_multiple_of(2) {
            client.increment(VISITS, "home", 1, None).await?;
            side.increments += 1;
        } else {
            let key = format!("{prefix}-{}", side.increments % CUT_KEYS);
            let value = cart(side.increments);
            client.put_json(CARTS, &key, value.clone()).await?;
            side.last.insert(key, value);
        }
        side.times.add(start.elapsed());
        sleep(CUT_PAUSE).await;
    }
    Ok(side)
}

/// An acknowledged write.
struct Order {
    key: String,
    value: String,
    began: Instant,
    at: Instant,
    /// An earlier attempt of the call had done it.
    replayed: bool,
}

/// Puts one order after the other; a call that the crash meets is repeated by the client until it is answered.
async fn write_orders(client: Calls, writer: usize, go_on: Arc<AtomicBool>) -> Result<Vec<Order>, Failure> {
    let mut acknowledged = Vec::new();
    while go_on.load(Ordering::Relaxed) {
        let key = format!("order-{writer}-{:05}", acknowledged.len());
        let (value, began) = (cart(acknowledged.len()), Instant::now());
        let replayed = client.put_json(CARTS, &key, value.clone()).await?.replayed;
        acknowledged.push(Order { key, value, began, at: Instant::now(), replayed });
    }
    Ok(acknowledged)
}
