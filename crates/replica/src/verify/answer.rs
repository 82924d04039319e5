//! What the node that was asked answers: members, keys that differ and what is held of them.

use std::collections::BTreeMap;

use tropism_crdt::{NodeId, Origin};
use tropism_placement::RegionName;
use tropism_storage::{ShardRow, Store};

use super::asker::{Own, Side, Verification};
use super::messages::{Verify, VerifyAsk};
use super::report::{
    DigestState, KeyHeld, Lacks, MemberState, Rows, VerifiedKey, VerifiedMember, VerifiedShard,
};
use super::scan::{RowsSeen, held};
use crate::frame::FrameBody;
use crate::limits::VERIFIED_KEYS;
use crate::replica::{Now, Output, Replica, ReplicaError};

impl Replica {
    /// Answers with what is known.
    pub(super) fn finish(
        &mut self,
        now: Now,
        store: &Store,
        verification: Verification,
    ) -> Result<(), ReplicaError> {
        let Verification { ticket, row, shard, own, sides, .. } = verification;
        let (vector, _) = self.shards.state(store, shard)?;
        let (node, region) = (self.identity.node, self.identity.region.clone());
        let mut keys: BTreeMap<String, VerifiedKey> = BTreeMap::new();
        let of = |keys: &mut BTreeMap<String, VerifiedKey>, key: &str, at: NodeId, held: KeyHeld| {
            let entry = keys.entry(key.to_owned()).or_insert_with(|| VerifiedKey::new(key.to_owned()));
            entry.held.insert(at, held);
        };
        let mut members = Vec::new();
        let seen = own.as_ref().and_then(Own::seen);
        let mut me = member(node, region);
        me.state = match (&own, seen) {
            (None, _) => MemberState::Settling,
            (Some(_), None) => MemberState::NoAnswer,
            (Some(_), Some(_)) => MemberState::Compared,
        };
        if let (Some(own), Some(seen)) = (&own, seen) {
            me.tells(own.digest, seen);
            me.rows = Rows::Equal;
            for (key, held) in &seen.not_served {
                of(&mut keys, key, node, held.clone());
            }
        }
        let mut all = vector.clone();
        let mut more = seen.map_or(0, unnamed);
        for side in &sides {
            if !side.is_done() {
                self.end(&row, side);
            }
            let mut member = member(side.node, side.region.clone());
            member.state = match side.state {
                MemberState::Unreachable { .. } => {
                    let since = self.links.get(&side.node).map_or(0, |link| link.status(now).since_us);
                    MemberState::Unreachable { for_us: now.mono_us.saturating_sub(since) }
                }
                state => state,
            };
            let (Some(own), Some(theirs)) = (&own, &side.theirs) else {
                members.push(member);
                continue;
            };
            member.tells(theirs.digest, &theirs.seen);
            member.rows = side.rows;
            member.lacks = Lacks::between(&theirs.vector, &own.vector);
            member.left_out = side.left_out().count() as u64;
            for (origin, seq) in theirs.vector.iter() {
                all.raise(*origin, seq);
            }
            for (key, (ours, theirs)) in &side.differ {
                of(&mut keys, key, node, ours.clone());
                of(&mut keys, key, side.node, theirs.clone());
            }
            for (key, theirs) in &theirs.seen.not_served {
                for (key, ours) in held(&*own.view.0, shard, std::iter::once(key))? {
                    of(&mut keys, &key, node, ours);
                }
                of(&mut keys, key, side.node, theirs.clone());
            }
            let mut lags = |key: &String, at: NodeId, (origin, seq): (Origin, u64)| {
                let entry = keys.entry(key.clone()).or_insert_with(|| VerifiedKey::new(key.clone()));
                entry.behind.push((at, origin, seq));
            };
            for (key, change) in &side.short_of {
                lags(key, side.node, *change);
            }
            for (key, (origin, seq)) in theirs.beyond.iter().flatten() {
                if !vector.includes(origin, *seq) {
                    lags(key, node, (*origin, *seq));
                }
            }
            more = more.max(unnamed(&theirs.seen)).max(side.more);
            members.push(member);
        }
        me.lacks = Lacks::between(&vector, &all);
        members.insert(0, me);
        let (behind, mut named): (Vec<_>, Vec<_>) = keys.into_values().partition(VerifiedKey::only_behind);
        named.extend(behind);
        more += named.len().saturating_sub(VERIFIED_KEYS) as u64;
        named.truncate(VERIFIED_KEYS);
        let verified = VerifiedShard { shard, index: row.index, members, keys: named, more_keys: more };
        self.outputs.push_back(Output::Verified { ticket, outcome: Ok(verified) });
        Ok(())
    }

    /// Lets a member let go of its snapshot.
    pub(super) fn end(&mut self, row: &ShardRow, side: &Side) {
        let (id, step) = (side.id, side.step.saturating_add(1));
        let end = Verify { row: row.clone(), id, step, ask: VerifyAsk::End };
        self.send(side.node, FrameBody::Verify(end));
    }
}

/// Keys that cannot be served and are not named.
fn unnamed(seen: &RowsSeen) -> u64 {
    seen.unreadable.saturating_add(seen.parked).saturating_sub(seen.not_served.len() as u64)
}

/// A member of which nothing is known.
fn member(node: NodeId, region: RegionName) -> VerifiedMember {
    VerifiedMember {
        node,
        region,
        state: MemberState::NoAnswer,
        rows: Rows::NotCompared,
        digest: DigestState::NotAsked,
        keys: 0,
        unreadable: 0,
        parked: 0,
        lacks: Lacks::default(),
        left_out: 0,
    }
}

impl VerifiedMember {
    fn tells(&mut self, digest: Option<u128>, seen: &RowsSeen) {
        self.digest = match digest {
            None => DigestState::NotKnown,
            Some(digest) if digest == seen.sum => DigestState::Sound,
            Some(_) => DigestState::Rotted,
        };
        (self.keys, self.unreadable, self.parked) = (seen.keys, seen.unreadable, seen.parked);
    }
}
