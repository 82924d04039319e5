//! Verification of a scope: `ScopeService.VerifyScope`. The replica compares a shard with its other members; here its shards
//! are gone through, as many as there is time for.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tropism_crdt::{NodeId, Origin, Stamp};
use tropism_placement::PlacementRecord;
use tropism_replica::limits::VERIFICATIONS;
use tropism_replica::{
    DigestState, KeyHeld, MemberState, Rows, VerifiedKey, VerifiedMember, VerifiedShard, VerifyCall,
    VerifyError, VerifyResult,
};
use tropism_wire::limits::MAX_VERIFIED_KEYS;
use tropism_wire::{Problem, Reason, v1};

use super::{Inner, not_served, stopping, write};
use crate::traffic::Line;

/// Shards of one call that are compared at once: two calls find room.
const AT_ONCE: usize = VERIFICATIONS / 2;
/// When a node that has no room may have some.
const RETRY: Duration = Duration::from_secs(1);

impl Inner {
    /// Compares the members of a scope, from one of its shards on.
    pub(super) async fn verify(
        &self,
        request: &v1::VerifyScopeRequest,
        give_up: Instant,
    ) -> Result<v1::VerifyScopeResponse, Problem> {
        self.addressed(&request.node)?;
        let record = self.known_record(&request.name)?;
        if !record.members().any(|region| *region == self.region) {
            return Err(not_served(&record.scope.name, &self.region, &record.serving));
        }
        let spread = record.spread;
        let first = u16::try_from(request.first_shard).ok().filter(|first| *first < spread);
        let Some(first) = first else {
            let message = format!(
                "first_shard is {}; scope \"{}\" has {spread} shards, the last is {}",
                request.first_shard,
                record.scope.name,
                spread - 1
            );
            return Err(Problem::invalid_argument(Reason::BadNumber, "first_shard", message));
        };
        let (shards, next) = self.verify_shards(&record, first, give_up).await?;
        Ok(self.told(shards, next, spread))
    }

    /// Compares shard after shard, some at once, until half of the time is over: those that were begun have the other half.
    async fn verify_shards(
        &self,
        record: &PlacementRecord,
        first: u16,
        give_up: Instant,
    ) -> Result<(Vec<VerifiedShard>, Option<u16>), Problem> {
        let now = Instant::now();
        let no_more = now + give_up.saturating_duration_since(now) / 2;
        let deadline_us = self.handle.time().mono_us(give_up.into_std());
        let (mut running, mut shards, mut next) = (JoinSet::new(), Vec::new(), first);
        loop {
            let begin = next < record.spread && running.len() < AT_ONCE;
            if begin && (next == first || Instant::now() < no_more) {
                let (handle, scope) = (self.handle.clone(), record.scope.name.clone());
                let call = VerifyCall { scope, index: next, deadline_us };
                running.spawn(async move { handle.verify(call).await });
                next += 1;
                continue;
            }
            let Some(done) = running.join_next().await else { break };
            let outcome = done.map_err(|_| stopping())?;
            let outcome = outcome.map_err(|error| write::call_refused(&error).unwrap_or_else(stopping))?;
            shards.push(outcome.map_err(|error| self.not_verified(&error, record))?);
        }
        shards.sort_by_key(|shard| shard.index);
        Ok((shards, (next < record.spread).then_some(next)))
    }

    fn not_verified(&self, error: &VerifyError, record: &PlacementRecord) -> Problem {
        match error {
            VerifyError::Busy => {
                let most = VERIFICATIONS as u64;
                Problem::resource_exhausted(Reason::Overloaded, "verifications", most, error.to_string())
                    .retry_after(RETRY)
            }
            VerifyError::NoRule(_) => Problem::not_found(Reason::ScopeNotFound, error.to_string()).at("name"),
            VerifyError::NoShard { .. } => {
                Problem::invalid_argument(Reason::BadNumber, "first_shard", error.to_string())
            }
            VerifyError::NotHeld(scope) => not_served(scope, &self.region, &record.serving),
        }
    }

    /// The answer.
    fn told(&self, shards: Vec<VerifiedShard>, next: Option<u16>, spread: u16) -> v1::VerifyScopeResponse {
        let status = self.handle.published().status.clone();
        let mut response = v1::VerifyScopeResponse {
            result: v1::VerifyResult::Equal.into(),
            next_shard: next.map(u32::from),
            spread: spread.into(),
            node: self.node.as_str().to_owned(),
            region: self.region.as_str().to_owned(),
            repaired_keys: status.links.iter().map(|link| link.counted.keys_repaired).sum(),
            ..v1::VerifyScopeResponse::default()
        };
        let worst = shards.iter().map(VerifiedShard::result).max();
        if let Some(worst) = worst {
            response.result = result(worst).into();
        }
        let mut keys = Vec::new();
        for shard in shards {
            response.shards.push(v1::VerifiedShard {
                index: shard.index.into(),
                result: result(shard.result()).into(),
                members: shard.members.iter().map(|member| self.member(member)).collect(),
            });
            response.more_keys += shard.more_keys;
            keys.extend(shard.keys.into_iter().map(|key| (key.only_behind(), shard.index, key)));
        }
        keys.sort_by_key(|(behind, index, _)| (*behind, *index)); // stable: in order of the keys within
        response.more_keys += keys.len().saturating_sub(MAX_VERIFIED_KEYS) as u64;
        let named = keys.into_iter().take(MAX_VERIFIED_KEYS);
        response.keys = named.map(|(_, index, key)| self.key(index, key)).collect();
        response
    }

    fn member(&self, member: &VerifiedMember) -> v1::VerifiedMember {
        let state = match member.state {
            MemberState::Compared => v1::MemberState::Compared,
            MemberState::Unreachable { .. } => v1::MemberState::Unreachable,
            MemberState::NoAnswer => v1::MemberState::NoAnswer,
            MemberState::Settling => v1::MemberState::Settling,
            MemberState::NotHeld => v1::MemberState::NotHeld,
            MemberState::TooFarApart => v1::MemberState::TooFarApart,
        };
        let rows = match member.rows {
            Rows::NotCompared => v1::RowsState::Unspecified,
            Rows::Equal => v1::RowsState::Equal,
            Rows::Differ => v1::RowsState::Differ,
        };
        let digest = match member.digest {
            DigestState::NotAsked => v1::DigestState::Unspecified,
            DigestState::NotKnown => v1::DigestState::NotKnown,
            DigestState::Sound => v1::DigestState::Sound,
            DigestState::Rotted => v1::DigestState::Rotted,
        };
        let (unreachable_ms, problem) = match member.state {
            MemberState::Unreachable { for_us } => {
                let refusal = self.traffic.line(&member.node).and_then(Line::refusal);
                (for_us / 1_000, refusal.map(|refusal| refusal.reason).unwrap_or_default())
            }
            _ => (0, String::new()),
        };
        let missing = member.lacks.origins.iter().map(|(origin, first, last)| v1::MissingChanges {
            origin: origin.to_string(),
            region: self.home(&origin.node),
            first: *first,
            last: *last,
        });
        v1::VerifiedMember {
            node: member.node.as_str().to_owned(),
            region: member.region.as_str().to_owned(),
            state: state.into(),
            problem,
            unreachable_ms,
            rows: rows.into(),
            digest: digest.into(),
            keys: member.keys,
            unreadable_keys: member.unreadable,
            parked_keys: member.parked,
            missing_changes: member.lacks.changes,
            missing: missing.collect(),
            left_out_keys: member.left_out,
        }
    }

    fn key(&self, index: u16, key: VerifiedKey) -> v1::VerifiedKey {
        let VerifiedKey { key, held, behind } = key;
        let behind = behind.into_iter().map(|(node, origin, seq)| v1::KeyBehind {
            node: node.as_str().to_owned(),
            origin: origin.to_string(),
            region: self.home(&origin.node),
            seq,
        });
        v1::VerifiedKey {
            key,
            shard: index.into(),
            held: held.into_iter().map(|(node, held)| key_at(node, held)).collect(),
            behind: behind.collect(),
        }
    }

    /// The region of a node; empty when it is not known here.
    fn home(&self, node: &NodeId) -> String {
        self.homes.get(node).map(|region| region.as_str().to_owned()).unwrap_or_default()
    }
}

fn result(result: VerifyResult) -> v1::VerifyResult {
    match result {
        VerifyResult::Equal => v1::VerifyResult::Equal,
        VerifyResult::Behind => v1::VerifyResult::Behind,
        VerifyResult::Incomplete => v1::VerifyResult::Incomplete,
        VerifyResult::Differs => v1::VerifyResult::Differs,
    }
}

fn key_at(node: NodeId, held: KeyHeld) -> v1::KeyAt {
    let at = v1::KeyAt { node: node.as_str().to_owned(), ..v1::KeyAt::default() };
    match held {
        KeyHeld::Nothing => v1::KeyAt { state: v1::KeyState::Missing.into(), ..at },
        KeyHeld::Unreadable { reason } => v1::KeyAt { state: v1::KeyState::Unreadable.into(), reason, ..at },
        KeyHeld::State { life, written, deleted_at, alive, parked, content } => {
            let by: Option<(Stamp, Option<Origin>)> = match (alive, written) {
                (true, Some((stamp, origin))) => Some((stamp, Some(origin))),
                _ => deleted_at.map(|stamp| (stamp, None)),
            };
            let state = match alive {
                _ if !parked.is_empty() => v1::KeyState::Parked,
                true => v1::KeyState::Alive,
                false => v1::KeyState::Deleted,
            };
            v1::KeyAt {
                state: state.into(),
                life,
                stamp: by.map_or(0, |(stamp, _)| stamp.as_u64()),
                origin: by
                    .and_then(|(_, origin)| origin)
                    .map(|origin| origin.to_string())
                    .unwrap_or_default(),
                reason: parked,
                content,
                ..at
            }
        }
    }
}
