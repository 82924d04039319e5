//! The seventh act: the users of a scope move to another continent, and the scope after them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Report, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tropism_client::v1::PlacementEventKind;
use tropism_client::{Calls, Error};

use super::figures::{Times, ms, row};
use super::{DEMO_PACE, Site, Tour, broken, entries, farthest};
use crate::output::Failure;

/// The scope that moves; its rule stands in front of those of the regions file.
pub(super) const PLAYERS: &str = "players/world1";
/// How long it is used from where it begins.
const HOME_TIME: Duration = Duration::from_secs(2);
/// Users at once, and how long each waits after an answer.
const USERS: usize = 8;
const USER_PAUSE: Duration = Duration::from_millis(100);
/// How long the scope may take to follow: many times what the pace of the tour makes of half an hour.
const FOLLOW_TIME: Duration = Duration::from_secs(90);
/// How often it is looked where it is.
const LOOK: Duration = Duration::from_millis(200);
/// How long its users go on where it has arrived, to measure.
const THERE_TIME: Duration = Duration::from_secs(2);

/// What a group of users measured.
#[derive(Default)]
struct Used {
    reads: Times,
    writes: Times,
    failed: u64,
}

impl Tour<'_, '_> {
    /// Act 7: a scope follows its users.
    pub(super) async fn follow(&mut self) -> Result<Report, Failure> {
        let site = |name: &str| self.sites.iter().find(|site| site.name == name);
        let [home, abroad] = farthest(self.sites.iter().map(|site| site.name.as_str()), |one, other| {
            site(one).zip(site(other)).map_or(0.0, |(one, other)| self.round_trip(one, other))
        });
        self.screen.act(
            7,
            "Tropism: a scope goes where its users are",
            &format!(
                "{PLAYERS} begins in {home} alone. {USERS} users read and write it there, then from {abroad} only.\n   \
                 Placement's clock is {DEMO_PACE} times as fast here: what takes half an hour takes {} s.",
                30 * 60 / DEMO_PACE
            ),
        )?;
        let site = |name: &str| self.sites.iter().find(|site| site.name == name);
        let (Some(at_home), Some(far)) = (site(&home), site(&abroad)) else {
            return Err(broken("a region of the tour is gone".to_owned()));
        };
        let written = Arc::new(AtomicU64::new(0));
        self.screen.progress(&format!("using it in {home} ..."));
        let before = use_for(at_home, &written, HOME_TIME).await?;

        self.screen.progress(&format!("using it from {abroad} ..."));
        let stop = Arc::new(AtomicBool::new(false));
        let users = users(far, &written, &stop);
        let began = Instant::now();
        let arrived = loop {
            sleep(LOOK).await;
            let scope = far.client.scope(PLAYERS).await?;
            if scope.serving == [abroad.clone()] && scope.goal.is_empty() && scope.leaving.is_empty() {
                break began.elapsed();
            }
            if began.elapsed() > FOLLOW_TIME {
                let seconds = FOLLOW_TIME.as_secs();
                return Err(broken(format!("{PLAYERS} has not followed its users within {seconds} s")));
            }
        };
        stop.store(true, Ordering::Relaxed);
        let away = together(users).await?;
        self.screen.progress(&format!("using it in {abroad} ..."));
        let after = use_for(far, &written, THERE_TIME).await?;

        let failed = before.failed + away.failed + after.failed;
        if failed > 0 {
            return Err(broken(format!("{failed} calls failed while {PLAYERS} moved")));
        }
        let (kept, wanted) =
            (entries(&far.client, PLAYERS, "").await?.len() as u64, written.load(Ordering::Relaxed));
        if kept != wanted {
            return Err(broken(format!("{wanted} writes were acknowledged and {kept} are there")));
        }
        let mut rows = vec![row(["", "read p50", "write p50", "calls", "failed"])];
        for (what, used) in [
            (format!("users in {home}, scope in {home}"), &before),
            (format!("users in {abroad}, scope on its way"), &away),
            (format!("users in {abroad}, scope in {abroad}"), &after),
        ] {
            let calls = used.reads.len() + used.writes.len();
            let cells = [
                &*what,
                &ms(used.reads.percentile(50)),
                &ms(used.writes.percentile(50)),
                &calls.to_string(),
                &used.failed.to_string(),
            ];
            rows.push(row(cells));
        }
        let why = reason(at_home).await?;
        self.screen.table(&rows)?;
        self.screen.note(&format!(
            "It was there after {:.0} s; all {wanted} writes are, too. Why it went, in its steward's words:\n   {why}",
            arrived.as_secs_f64()
        ))?;
        let part = |used: &Used| json!({ "read": used.reads.to_json(), "write": used.writes.to_json() });
        Ok(json!({
            "from": home, "to": abroad, "seconds": arrived.as_secs_f64(), "writes": wanted, "failed": failed,
            "before": part(&before), "on_its_way": part(&away), "after": part(&after), "why": why,
        }))
    }
}

/// Why the scope was sent on its way, in the words of who decided.
async fn reason(steward: &Site) -> Result<String, Failure> {
    let events = steward.client.placement_events(0).await?;
    let decided = events
        .into_iter()
        .rfind(|event| event.kind() == PlacementEventKind::Decided && event.scope == PLAYERS);
    decided.map(|event| event.message).ok_or_else(|| broken("nobody says why the scope moved".to_owned()))
}

async fn use_for(site: &Site, written: &Arc<AtomicU64>, time: Duration) -> Result<Used, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let users = users(site, written, &stop);
    sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    together(users).await
}

fn users(site: &Site, written: &Arc<AtomicU64>, stop: &Arc<AtomicBool>) -> JoinSet<Result<Used, Error>> {
    let mut users = JoinSet::new();
    for _ in 0..USERS {
        users.spawn(user(site.client.new_session(), written.clone(), stop.clone()));
    }
    users
}

/// Writes a new key, reads it back, and waits, again and again.
async fn user(client: Calls, written: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Result<Used, Error> {
    let mut used = Used::default();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("p{:06}", written.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        match client.put_json(PLAYERS, &key, r#"{"x":1,"y":2}"#).await {
            Ok(_) => used.writes.add(start.elapsed()),
            Err(error) => {
                used.failed += 1;
                return Err(error);
            }
        }
        let start = Instant::now();
        let found = client.get(PLAYERS, &key).await?.entry;
        used.reads.add(start.elapsed());
        if found.is_none() {
            used.failed += 1;
        }
        sleep(USER_PAUSE).await;
    }
    Ok(used)
}

async fn together(mut users: JoinSet<Result<Used, Error>>) -> Result<Used, Failure> {
    let mut all = Used::default();
    while let Some(user) = users.join_next().await {
        let user = user.map_err(|error| broken(format!("a user ended: {error}")))??;
        all.reads.extend(&user.reads);
        all.writes.extend(&user.writes);
        all.failed += user.failed;
    }
    Ok(all)
}
