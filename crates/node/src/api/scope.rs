//! Scopes: `ScopeService`. A scope exists here when one of its shards is described in the store.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout_at;
use tonic::{Request, Response, Status, async_trait};
use tropism_directory::Undecided;
use tropism_placement::{
    Hold, MAX_REGIONS, Mode, PlacementRecord, RULE_EPOCH, RegionName, ScopeName, ShardId, StoredRecord,
};
use tropism_storage::keys::after_prefix;
use tropism_storage::keys::shard_prefix;
use tropism_storage::rows::{Row, ShardRow, ValueRow};
use tropism_storage::{Reads, ShardKey, Space, StoreError, View};
use tropism_wire::limits::{DEFAULT_PAGE_SCOPES, MAX_PAGE_SCOPES};
use tropism_wire::v1::scope_service_server::ScopeService;
use tropism_wire::{Problem, Reason, from_proto, to_proto, v1};

use super::{Api, Call, Inner, dropped, stopping, unreadable};
use crate::directory::DECIDE_TIME;
use crate::driver::{Published, wall_ms};

/// Keys of a scope that are counted: some 50 ms. A scope that has more says this number.
const COUNTED_KEYS: usize = 100_000;

#[async_trait]
impl ScopeService for Api {
    async fn get_scope(
        &self,
        request: Request<v1::GetScopeRequest>,
    ) -> Result<Response<v1::GetScopeResponse>, Status> {
        let (_, v1::GetScopeRequest { name }) = Call::of(request)?;
        let record = self.known_record(&name)?;
        let usage = self.usage(&record).await?;
        let stored = self.handle.published();
        let stored = stored.records.stored(&record.scope.name);
        let scope = Some(to_proto::scope(&record, stored, usage));
        Ok(Response::new(v1::GetScopeResponse { scope }))
    }

    async fn list_scopes(
        &self,
        request: Request<v1::ListScopesRequest>,
    ) -> Result<Response<v1::ListScopesResponse>, Status> {
        let (_, v1::ListScopesRequest { prefix, page_size, page_token }) = Call::of(request)?;
        let page_size = match page_size {
            0 => DEFAULT_PAGE_SCOPES,
            1..=MAX_PAGE_SCOPES => page_size,
            _ => {
                let message = format!("page_size is {page_size}; the limit is {MAX_PAGE_SCOPES}");
                return Err(Problem::invalid_argument(Reason::BadNumber, "page_size", message).into());
            }
        };
        let below = match prefix.as_str() {
            "" => None,
            prefix => Some(from_proto::scope_name("prefix", prefix)?),
        };
        let pages = self.seal.of(&["scopes", &prefix]);
        let behind = match page_token.as_ref() {
            [] => None,
            token => Some(position(pages.open(token).ok()).ok_or_else(|| {
                let message = "page_token is none of this list; send the same prefix";
                Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
            })?),
        };
        let published = self.handle.published();
        let most = page_size as usize;
        let names = tokio::task::spawn_blocking(move || {
            known(published.snapshot.as_ref(), below.as_ref(), behind.as_ref(), most + 1)
        });
        let names = names.await.map_err(|_| stopping())?.map_err(unreadable)?;
        let more = names.len() > most;
        let mut response = v1::ListScopesResponse::default();
        for name in names.into_iter().take(most) {
            if more {
                response.next_page_token = pages.close(name.as_str().as_bytes()); // the last one stays
            }
            response.scopes.extend(self.shown(&name));
        }
        Ok(Response::new(response))
    }

    async fn verify_scope(
        &self,
        request: Request<v1::VerifyScopeRequest>,
    ) -> Result<Response<v1::VerifyScopeResponse>, Status> {
        let (Call { deadline, .. }, request) = Call::of(request)?;
        Ok(Response::new(self.verify(&request, deadline.give_up).await?))
    }

    async fn drop_scope(
        &self,
        request: Request<v1::DropScopeRequest>,
    ) -> Result<Response<v1::DropScopeResponse>, Status> {
        let (call, v1::DropScopeRequest { name, incarnation }) = Call::of(request)?;
        let name = from_proto::scope_name("name", &name)?;
        let held = match self.handle.published().records.record(&name) {
            Some(record) => self.usage(&record).await?.map_or(0, |usage| usage.visible_keys),
            None => 0,
        };
        let dropped = self.change(&name, &call, |record| {
            if record.scope.incarnation != incarnation {
                let message = format!(
                    "scope \"{name}\" is of incarnation {}, not {incarnation}: look at it again",
                    record.scope.incarnation
                );
                return Err(Problem::aborted(Reason::VersionMismatch, message).at("incarnation"));
            }
            Ok((!record.dropped).then(|| record.dropped()))
        });
        let epoch = dropped.await?.epoch();
        Ok(Response::new(v1::DropScopeResponse { epoch, visible_keys: held }))
    }

    async fn create_scope(
        &self,
        request: Request<v1::CreateScopeRequest>,
    ) -> Result<Response<v1::CreateScopeResponse>, Status> {
        let (call, v1::CreateScopeRequest { name }) = Call::of(request)?;
        let name = from_proto::scope_name("name", &name)?;
        let created = self.change(&name, &call, |record| {
            if !record.dropped {
                return Ok(None);
            }
            let rule = self.rules.find(&name).ok_or_else(|| no_rule(&name))?;
            let implied = PlacementRecord::implied(RULE_EPOCH, rule, &name);
            Ok(Some(record.created_again(&implied, &self.region)))
        });
        created.await?;
        Ok(Response::new(v1::CreateScopeResponse { scope: self.shown(&name) }))
    }

    async fn move_scope(
        &self,
        request: Request<v1::MoveScopeRequest>,
    ) -> Result<Response<v1::MoveScopeResponse>, Status> {
        let (call, v1::MoveScopeRequest { name, regions, stay }) = Call::of(request)?;
        let name = from_proto::scope_name("name", &name)?;
        let goal = self.goal(&name, &regions, stay)?;
        let moved = self.change(&name, &call, |record| {
            if record.dropped {
                return Err(dropped(&name).at("name"));
            }
            let there = record.members.is_stable() && Some(&record.members.serving) == goal.as_ref();
            let as_wished = record.goal == goal && (goal.is_some() || record.members.is_stable());
            let needless = as_wished || there && record.goal.is_none();
            Ok((!needless).then(|| record.bound_for(goal.clone())))
        });
        moved.await?;
        Ok(Response::new(v1::MoveScopeResponse { scope: self.shown(&name) }))
    }

    async fn hold_scope(
        &self,
        request: Request<v1::HoldScopeRequest>,
    ) -> Result<Response<v1::HoldScopeResponse>, Status> {
        let (call, request) = Call::of(request)?;
        let name = from_proto::scope_name("name", &request.name)?;
        let hold = match request.hold() {
            v1::ScopeHold::Free => Hold::Free,
            v1::ScopeHold::Pinned => Hold::Pinned,
            v1::ScopeHold::Frozen => Hold::Frozen,
            v1::ScopeHold::Unspecified => {
                let message = "hold says nothing: SCOPE_HOLD_FREE, _PINNED or _FROZEN";
                return Err(Problem::invalid_argument(Reason::MissingField, "hold", message).into());
            }
        };
        let held = self.change(&name, &call, |record| {
            if record.dropped {
                return Err(dropped(&name).at("name"));
            }
            Ok((record.hold != hold).then(|| record.held(hold)))
        });
        held.await?;
        Ok(Response::new(v1::HoldScopeResponse { scope: self.shown(&name) }))
    }
}

impl Inner {
    /// The record of the scope of a request's name.
    pub(super) fn known_record(&self, name: &str) -> Result<PlacementRecord, Problem> {
        let name = from_proto::scope_name("name", name)?;
        let published = self.handle.published();
        let dropped = published.records.stored(&name).is_some_and(|stored| stored.dropped);
        published.records.record(&name).ok_or_else(|| match dropped {
            true => dropped_scope(&name),
            false => no_rule(&name),
        })
    }

    /// A scope as a client sees it.
    fn shown(&self, name: &ScopeName) -> Option<v1::Scope> {
        let records = &self.handle.published().records;
        records.record(name).map(|record| to_proto::scope(&record, records.stored(name), None))
    }

    /// What is held of a scope.
    async fn usage(&self, record: &PlacementRecord) -> Result<Option<v1::ScopeUsage>, Problem> {
        let published = self.handle.published();
        let shards: Vec<ShardId> =
            (0..record.spread).map(|index| ShardId::of(&record.scope, index)).collect();
        let usage = tokio::task::spawn_blocking(move || usage(published.snapshot.as_ref(), &shards));
        usage.await.map_err(|_| stopping())?.map_err(unreadable)
    }

    /// Where a scope shall go by a request; none: it stays.
    fn goal(
        &self,
        name: &ScopeName,
        regions: &[String],
        stay: bool,
    ) -> Result<Option<Vec<RegionName>>, Problem> {
        let bad = |message: String| Problem::invalid_argument(Reason::BadRegions, "regions", message);
        if stay && regions.is_empty() {
            return Ok(None);
        }
        if stay {
            return Err(bad("regions are named of a scope that shall stay where it is".into()));
        }
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(bad(format!(
                "regions has {} names; a scope is in 1 to {MAX_REGIONS}",
                regions.len()
            )));
        }
        let mut goal: Vec<RegionName> = Vec::new();
        for (index, region) in regions.iter().enumerate() {
            let known = self.regions.regions().iter().find(|known| known.name.as_str() == *region);
            let Some(known) = known else {
                let message =
                    format!("regions[{index}]: there is no region {}", tropism_wire::error::echo(region));
                return Err(Problem::not_found(Reason::RegionNotFound, message).at("regions"));
            };
            if goal.contains(&known.name) {
                return Err(bad(format!("regions[{index}]: {region} is named twice")));
            }
            goal.push(known.name.clone());
        }
        let rule = self.rules.find(name).ok_or_else(|| no_rule(name))?;
        let refused =
            |message: String| Problem::failed_precondition(Reason::PlacementRefused, message).at("regions");
        let placing = &rule.placing;
        if let Some(region) = goal.iter().find(|region| !placing.allowed.contains(region)) {
            let allowed: Vec<&str> = placing.allowed.iter().map(RegionName::as_str).collect();
            return Err(refused(format!(
                "rule {} allows scope \"{name}\" in {} only, not in {region}",
                rule.name,
                allowed.join(", ")
            )));
        }
        if let Some(region) = placing.pins.iter().find(|region| !goal.contains(region)) {
            return Err(refused(format!("rule {} pins scope \"{name}\" to region {region}", rule.name)));
        }
        if placing.mode != Mode::Fixed && goal.len() < placing.min_regions {
            return Err(refused(format!(
                "rule {} holds scope \"{name}\" in {} regions at least; {} were named",
                rule.name,
                placing.min_regions,
                goal.len()
            )));
        }
        if placing.mode != Mode::Fixed && goal.len() > placing.max_regions {
            return Err(refused(format!(
                "rule {} holds scope \"{name}\" in {} regions at most; {} were named",
                rule.name,
                placing.max_regions,
                goal.len()
            )));
        }
        Ok(Some(goal))
    }

    /// Has the directory change a scope's record. `next` makes the record that shall follow, or none where it is as it
    /// shall be; it is asked again when another change came first. Returns when this node follows it, if that is in time.
    async fn change(
        &self,
        name: &ScopeName,
        call: &Call,
        next: impl Fn(&StoredRecord) -> Result<Option<StoredRecord>, Problem>,
    ) -> Result<StoredRecord, Problem> {
        let give_up = call.deadline.give_up;
        loop {
            let published = self.handle.published();
            let record = match published.records.stored(name) {
                Some(record) => record.clone(),
                None => {
                    let rule = self.rules.find(name).ok_or_else(|| no_rule(name))?;
                    StoredRecord::of(&PlacementRecord::implied(RULE_EPOCH, rule, name))
                }
            };
            let Some(next) = next(&record)? else { return Ok(record) };
            let left = give_up.saturating_duration_since(tokio::time::Instant::now()).min(DECIDE_TIME);
            let unavailable = |message: String| {
                Problem::unavailable(Reason::DirectoryUnavailable, Duration::from_secs(1), message)
            };
            match self.directory.decide(next.clone(), left).await {
                Ok(_) => {
                    self.follows(name, next.epoch(), give_up).await;
                    return Ok(next);
                }
                Err(Undecided::Late { epoch }) => {
                    if epoch <= record.epoch() || !self.follows(name, epoch, give_up).await {
                        return Err(unavailable(format!(
                            "the record of scope \"{name}\" has changed elsewhere (epoch {epoch}) and this node has not \
                             heard of it yet; nothing was changed by this call"
                        )));
                    }
                }
                Err(Undecided::Refused(problem)) => {
                    return Err(Problem::failed_precondition(Reason::PlacementRefused, problem).at("name"));
                }
                Err(Undecided::Elsewhere { .. } | Undecided::NotFounded) => {
                    let view = self.directory.view();
                    let why = view.waiting().unwrap_or("no majority of its voters can be reached from here");
                    return Err(unavailable(format!(
                        "the directory cannot decide now: {why}; nothing was changed"
                    )));
                }
                Err(undecided @ (Undecided::Unknown | Undecided::Stopped(_))) => {
                    let message = format!("{undecided}; ask again: the same change is made once");
                    return Err(Problem::unavailable(
                        Reason::OutcomeUnknown,
                        Duration::from_secs(1),
                        message,
                    ));
                }
            }
        }
    }

    /// Whether this node follows a scope's record of this epoch, or a later one, in time.
    async fn follows(&self, name: &ScopeName, epoch: u64, give_up: tokio::time::Instant) -> bool {
        let mut commits = self.handle.commits();
        loop {
            commits.borrow_and_update(); // before looking: what comes after is not missed
            if self.handle.published().records.epoch(name) >= epoch {
                return true;
            }
            if !matches!(timeout_at(give_up, commits.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }
}

fn no_rule(name: &ScopeName) -> Problem {
    let message = format!("no policy rule matches scope \"{name}\"");
    Problem::not_found(Reason::ScopeNotFound, message).at("name")
}

fn dropped_scope(name: &ScopeName) -> Problem {
    let message = format!("scope \"{name}\" was dropped; CreateScope creates it anew");
    Problem::not_found(Reason::ScopeNotFound, message).at("name")
}

fn position(body: Option<&[u8]>) -> Option<ScopeName> {
    ScopeName::new(std::str::from_utf8(body?).ok()?).ok()
}

/// Bytes that a scope takes here, counted over its first [`COUNTED_KEYS`].
pub(crate) fn scope_bytes(published: &Published, record: &PlacementRecord) -> Result<u64, StoreError> {
    let shards: Vec<ShardId> = (0..record.spread).map(|index| ShardId::of(&record.scope, index)).collect();
    Ok(usage(published.snapshot.as_ref(), &shards)?.map_or(0, |usage| usage.stored_bytes))
}

/// What is held of a scope; none when nothing was ever written here.
fn usage(snapshot: &dyn View, shards: &[ShardId]) -> Result<Option<v1::ScopeUsage>, StoreError> {
    let now_ms = wall_ms();
    let mut usage = v1::ScopeUsage::default();
    let (mut known, mut left) = (false, COUNTED_KEYS);
    for shard in shards {
        known |= snapshot.shard(*shard)?.is_some();
        let prefix = shard_prefix(shard);
        for row in snapshot.scan(Space::Values, &prefix, &after_prefix(&prefix)).take(left) {
            let (key, value) = row?;
            left -= 1;
            usage.stored_bytes += (key.len() - prefix.len() + value.len()) as u64;
            match ValueRow::decode(&value) {
                Ok(row) if row.parked.is_some() => usage.parked_keys += 1,
                Ok(row) if row.cell.visible(now_ms) => usage.visible_keys += 1,
                Ok(row) if !row.cell.alive() => usage.stubs += 1,
                Ok(_) => {} // expired
                Err(_) => usage.parked_keys += 1,
            }
        }
    }
    Ok(known.then_some(usage))
}

/// The first scopes by name behind a position. Shards are stored by hash, so all descriptions are read, and only as many
/// names kept as are wanted.
fn known(
    snapshot: &dyn View,
    below: Option<&ScopeName>,
    behind: Option<&ScopeName>,
    most: usize,
) -> Result<BTreeSet<ScopeName>, StoreError> {
    let mut names = BTreeSet::new();
    for row in snapshot.scan(Space::Shards, &[0], &[0xff; 3]) {
        let (key, value) = row?;
        if !matches!(ShardKey::decode(&key), Ok(ShardKey::Description(_))) {
            continue;
        }
        let row = ShardRow::decode(&value)
            .map_err(|problem| StoreError::Damaged { space: Space::Shards.name(), problem })?;
        let name = row.scope.name;
        let wanted = below.is_none_or(|below| name.starts_with(below))
            && behind.is_none_or(|behind| name > *behind)
            && (names.len() < most || names.last().is_some_and(|last| name < *last));
        if wanted {
            names.insert(name);
            if names.len() > most {
                names.pop_last();
            }
        }
    }
    Ok(names)
}
