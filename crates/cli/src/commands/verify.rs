//! `verify`: whether all members of a scope hold the same, and if not, which keys differ and why.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tropism_client::v1::{
    DigestState, KeyAt, KeyBehind, KeyState, MemberState, RowsState, VerifiedKey, VerifiedMember,
    VerifiedShard, VerifyResult, VerifyScopeResponse,
};
use tropism_crdt::Stamp;
use tropism_wire::limits::MAX_VERIFIED_KEYS;

use crate::args::Verify;
use crate::output::{Failure, Output, now_ms, stamp, table, time};
use crate::target::connect;

/// Shards that are shown although nothing is wrong with them; of more only those with something.
const SHOWN_SHARDS: usize = 8;

/// Ends with an error unless all members are equal.
pub(super) async fn verify(args: &Verify, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let mut whole = client.verify_scope("", &args.scope, 0).await?;
    while let Some(next) = whole.next_shard {
        let node = whole.node.clone(); // the others are compared with it
        add(&mut whole, client.verify_scope(&node, &args.scope, next).await?);
    }
    if out.json {
        out.object(&answer_json(&args.scope, &whole))?;
    } else {
        out.bytes(screen(&args.scope, &whole, now_ms()).as_bytes())?;
    }
    out.flush()?; // before the words on stderr
    if whole.result() == VerifyResult::Equal {
        return Ok(());
    }
    Err(Failure::Failed(summary(&whole)))
}

/// Adds the next shards.
fn add(whole: &mut VerifyScopeResponse, next: VerifyScopeResponse) {
    let gravest = [whole.result, next.result].into_iter().max_by_key(|result| gravity(*result));
    whole.result = gravest.unwrap_or_default();
    whole.shards.extend(next.shards);
    whole.keys.extend(next.keys);
    whole.keys.sort_by_key(|key| key.held.is_empty()); // stable; those that are only behind last
    let surplus = whole.keys.len().saturating_sub(MAX_VERIFIED_KEYS);
    whole.keys.truncate(MAX_VERIFIED_KEYS);
    whole.more_keys += next.more_keys + surplus as u64;
    whole.repaired_keys = next.repaired_keys;
    whole.next_shard = next.next_shard;
}

fn gravity(result: i32) -> u8 {
    match VerifyResult::try_from(result) {
        Ok(VerifyResult::Equal) => 0,
        Ok(VerifyResult::Behind) => 1,
        Ok(VerifyResult::Incomplete) => 2,
        Ok(VerifyResult::Differs) => 3,
        Ok(VerifyResult::Unspecified) | Err(_) => 4, // of a later version: not equal
    }
}

/// What a person sees: members, then keys, then what to make of it.
fn screen(scope: &str, whole: &VerifyScopeResponse, now_ms: u64) -> String {
    let quiet = |shard: &&VerifiedShard| shard.result() == VerifyResult::Equal;
    let equal = whole.shards.iter().filter(quiet).count();
    let all = whole.shards.len();
    let shown: Vec<&VerifiedShard> =
        whole.shards.iter().filter(|shard| all <= SHOWN_SHARDS || !quiet(shard)).collect();
    let mut screen = String::new();
    if !shown.is_empty() {
        let head = ["SHARD", "REGION", "NODE", "VECTOR", "KEYS", "ROWS", "DIGEST"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for shard in &shown {
            for (at, member) in shard.members.iter().enumerate() {
                rows.push(member_row(shard.index, member, at == 0));
            }
        }
        screen.push_str(&table(&rows));
    }
    let hidden = all - shown.len();
    if hidden > 0 {
        screen.push_str(&format!("{hidden} of {all} shards are equal at all members and not shown\n"));
    }
    if !whole.keys.is_empty() {
        screen.push('\n');
        let head = ["KEY", "SHARD", "WHY"].map(str::to_owned).to_vec();
        let keys = whole.keys.iter().flat_map(|key| key_rows(key, &whole.node, now_ms));
        screen.push_str(&table(&std::iter::once(head).chain(keys).collect::<Vec<_>>()));
    }
    if whole.more_keys > 0 {
        screen.push_str(&format!("and at least {} more keys\n", whole.more_keys));
    }
    if whole.result() == VerifyResult::Equal {
        let (members, keys) = counts(whole);
        let shards = if all == 1 { String::new() } else { format!(", {equal} shards") };
        screen.push_str(&format!("equal: {scope} has the same {keys} keys at {members} members{shards}\n"));
    }
    screen
}

/// Members, and rows of the node that was asked.
fn counts(whole: &VerifyScopeResponse) -> (usize, u64) {
    let members = whole.shards.iter().map(|shard| shard.members.len()).max().unwrap_or(0);
    let asked = whole.shards.iter().filter_map(|shard| shard.members.first());
    (members, asked.map(|member| member.keys).sum())
}

fn member_row(shard: u32, member: &VerifiedMember, asked: bool) -> Vec<String> {
    let row = |vector: String, [keys, rows, digest]: [String; 3]| {
        vec![shard.to_string(), member.region.clone(), member.node.clone(), vector, keys, rows, digest]
    };
    let nothing = || [String::new(), String::new(), String::new()];
    match member.state() {
        MemberState::Compared | MemberState::TooFarApart => {}
        MemberState::Unreachable => {
            let problem =
                if member.problem.is_empty() { String::new() } else { format!(": {}", member.problem) };
            let since = time(member.unreachable_ms);
            return row(format!("not reachable for {since}{problem}"), nothing());
        }
        MemberState::NoAnswer => {
            return row("not done in time; give it more with --timeout".to_owned(), nothing());
        }
        MemberState::Settling => {
            let words = "not known yet: the shard came as a whole and is being merged";
            return row(words.to_owned(), nothing());
        }
        MemberState::NotHeld => return row("says that it does not hold the shard".to_owned(), nothing()),
        MemberState::Unspecified => return row("unknown".to_owned(), nothing()),
    }
    let vector = match member.missing_changes {
        0 if asked => "asked".to_owned(),
        0 => "equal".to_owned(),
        missing => format!("lacks {}", lacks(missing, member)),
    };
    let rows = match member.rows() {
        _ if member.state() == MemberState::TooFarApart => {
            "not compared: too many changes apart, or the log does not tell".to_owned()
        }
        RowsState::Differ => "differ".to_owned(),
        RowsState::Unspecified => "not compared".to_owned(),
        RowsState::Equal if asked => "-".to_owned(),
        RowsState::Equal if member.left_out_keys > 0 => {
            format!("equal, without {} just written", keys(member.left_out_keys))
        }
        RowsState::Equal => "equal".to_owned(),
    };
    let mut digest = match member.digest() {
        DigestState::Sound => "sound".to_owned(),
        DigestState::Rotted => "not that of the rows: they are not what was written".to_owned(),
        DigestState::NotKnown => "not known yet".to_owned(),
        DigestState::Unspecified => "-".to_owned(),
    };
    if member.unreadable_keys > 0 {
        digest.push_str(&format!("; {} cannot be read", keys(member.unreadable_keys)));
    }
    if member.parked_keys > 0 {
        digest.push_str(&format!("; {} parked", keys(member.parked_keys)));
    }
    row(vector, [member.keys.to_string(), rows, digest])
}

/// `3 changes: 7 to 9 of tokyo-1`.
fn lacks(missing: u64, member: &VerifiedMember) -> String {
    let mut named = 0;
    let mut of: Vec<String> = Vec::new();
    for missing in &member.missing {
        named += missing.last.saturating_sub(missing.first) + 1;
        let (first, last) = (missing.first, missing.last);
        let numbers = if first == last { first.to_string() } else { format!("{first} to {last}") };
        of.push(format!("{numbers} of {}", author(&missing.origin)));
    }
    let more = missing.saturating_sub(named);
    if more > 0 {
        of.push(format!("and {more} more"));
    }
    let changes = if missing == 1 { "1 change".to_owned() } else { format!("{missing} changes") };
    format!("{changes}: {}", of.join(", "))
}

/// The node of an origin: for people its lives are one.
fn author(origin: &str) -> &str {
    origin.split_once('@').map_or(origin, |(node, _)| node)
}

fn keys(count: u64) -> String {
    if count == 1 { "1 key".to_owned() } else { format!("{count} keys") }
}

/// Why a key differs: a line for each thing that is wrong, then one for each member.
fn key_rows(key: &VerifiedKey, asked: &str, now_ms: u64) -> Vec<Vec<String>> {
    let why = why(key, asked);
    let held = key.held.iter().map(|at| format!("  at {}: {}", at.node, held_words(at, now_ms)));
    let behind = key.behind.iter().map(behind_words);
    let lines = why.into_iter().chain(held).chain(behind);
    let name = |first| if first { (key.key.clone(), key.shard.to_string()) } else { Default::default() };
    let rows = lines.enumerate().map(|(at, line)| {
        let (key, shard) = name(at == 0);
        vec![key, shard, line]
    });
    rows.collect()
}

/// What is wrong with a key, in one line.
fn why(key: &VerifiedKey, asked: &str) -> Option<String> {
    let with = |state: KeyState| {
        let nodes = key.held.iter().filter(|at| at.state() == state);
        nodes.map(|at| at.node.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (missing, unreadable, parked) =
        (with(KeyState::Missing), with(KeyState::Unreadable), with(KeyState::Parked));
    let mut why = Vec::new();
    for (nodes, what) in
        [(&missing, "missing at"), (&unreadable, "row cannot be read at"), (&parked, "parked at")]
    {
        if !nodes.is_empty() {
            why.push(format!("{what} {nodes}"));
        }
    }
    let served = |at: &&KeyAt| matches!(at.state(), KeyState::Alive | KeyState::Deleted);
    let ours = key.held.iter().filter(served).find(|at| at.node == asked);
    let others: Vec<&str> = key
        .held
        .iter()
        .filter(served)
        .filter(|at| ours.is_some_and(|ours| !same(ours, at)))
        .map(|at| at.node.as_str())
        .collect();
    if !others.is_empty() {
        why.push(format!("another value at {}", others.join(", ")));
    }
    (!why.is_empty()).then(|| why.join("; "))
}

/// Whether two members hold the same, as far as it is told.
fn same(one: &KeyAt, other: &KeyAt) -> bool {
    let told =
        |at: &KeyAt| (at.state, at.life, at.stamp, at.origin.clone(), at.reason.clone(), at.content.clone());
    told(one) == told(other)
}

fn held_words(at: &KeyAt, now_ms: u64) -> String {
    let stamped = Stamp::from_u64(at.stamp);
    let when =
        || format!("stamp {} ({} ago)", stamp(stamped), time(now_ms.saturating_sub(stamped.unix_ms())));
    let content = || if at.content.is_empty() { String::new() } else { format!(", {}", at.content) };
    let life = if at.life > 0 { format!(", life {}", at.life) } else { String::new() };
    match at.state() {
        KeyState::Missing => "nothing".to_owned(),
        KeyState::Unreadable => at.reason.clone(),
        KeyState::Parked => format!("not served: {}; {}{life}{}", at.reason, when(), content()),
        KeyState::Alive => format!("written by {}, {}{life}{}", author(&at.origin), when(), content()),
        KeyState::Deleted => format!("deleted, {}{life}", when()),
        KeyState::Unspecified => "unknown".to_owned(),
    }
}

fn behind_words(behind: &KeyBehind) -> String {
    format!("behind: change {} of {} not yet applied at {}", behind.seq, author(&behind.origin), behind.node)
}

/// The last line: what is wrong, and what happens about it.
fn summary(whole: &VerifyScopeResponse) -> String {
    let members = || whole.shards.iter().flat_map(|shard| &shard.members);
    let mut silent: Vec<&str> = members()
        .filter(|member| member.state() != MemberState::Compared)
        .map(|member| member.node.as_str())
        .collect();
    silent.sort_unstable();
    silent.dedup();
    let not_compared = match silent.as_slice() {
        [] => String::new(),
        silent => format!("; not compared: {}", silent.join(", ")),
    };
    let behind = members().any(|member| member.missing_changes > 0);
    let differing = whole.keys.iter().filter(|key| !key.held.is_empty()).count() as u64 + whole.more_keys;
    let at_least = if whole.more_keys > 0 { "at least " } else { "" };
    match whole.result() {
        VerifyResult::Differs => {
            let repaired = match whole.repaired_keys {
                0 => String::new(),
                count => format!("; {} has repaired {} since it started", whole.node, keys(count)),
            };
            format!(
                "differs: {at_least}{}{not_compared}. Nothing was changed; members find and repair by themselves what has \
                 another digest (not what is parked), when the sweep has come by{repaired}",
                keys(differing)
            )
        }
        VerifyResult::Incomplete => {
            let behind = if behind { ", and some are behind" } else { "" };
            format!("incomplete: what was compared is equal{behind}{not_compared}")
        }
        VerifyResult::Behind => {
            "behind: some members lack changes, and hold the same otherwise; they come by themselves, `tropism status` \
             shows the links"
                .to_owned()
        }
        VerifyResult::Equal => "equal".to_owned(),
        VerifyResult::Unspecified => "the node answers what this program does not know".to_owned(),
    }
}

fn answer_json(scope: &str, whole: &VerifyScopeResponse) -> Value {
    json!({
        "scope": scope, "result": result(whole.result()), "node": whole.node, "region": whole.region,
        "spread": whole.spread, "repaired_keys": whole.repaired_keys, "more_keys": whole.more_keys,
        "shards": whole.shards.iter().map(shard_json).collect::<Vec<_>>(),
        "keys": whole.keys.iter().map(|key| key_json(key, &whole.node)).collect::<Vec<_>>(),
    })
}

fn shard_json(shard: &VerifiedShard) -> Value {
    let members: Vec<Value> = shard.members.iter().map(member_json).collect();
    json!({ "index": shard.index, "result": result(shard.result()), "members": members })
}

fn member_json(member: &VerifiedMember) -> Value {
    let missing = member.missing.iter().map(|missing| {
        let (origin, region) = (&missing.origin, &missing.region);
        json!({ "origin": origin, "region": region, "first": missing.first, "last": missing.last })
    });
    let unreachable = member.state() == MemberState::Unreachable;
    json!({
        "node": member.node, "region": member.region, "state": member_state(member.state()),
        "problem": (!member.problem.is_empty()).then_some(&member.problem),
        "unreachable_ms": unreachable.then_some(member.unreachable_ms),
        "rows": match member.rows() {
            RowsState::Equal => "equal",
            RowsState::Differ => "differ",
            RowsState::Unspecified => "not_compared",
        },
        "digest": match member.digest() {
            DigestState::Sound => "sound",
            DigestState::Rotted => "rotted",
            DigestState::NotKnown => "not_known",
            DigestState::Unspecified => "not_asked",
        },
        "keys": member.keys, "unreadable_keys": member.unreadable_keys, "parked_keys": member.parked_keys,
        "missing_changes": member.missing_changes, "missing": missing.collect::<Vec<_>>(),
        "left_out_keys": member.left_out_keys,
    })
}

fn key_json(key: &VerifiedKey, asked: &str) -> Value {
    let held: BTreeMap<&str, Value> = key
        .held
        .iter()
        .map(|at| {
            let known = at.stamp > 0;
            let value = json!({
                "state": key_state(at.state()), "life": at.life,
                "stamp": known.then(|| stamp(Stamp::from_u64(at.stamp))),
                "origin": (!at.origin.is_empty()).then_some(&at.origin),
                "reason": (!at.reason.is_empty()).then_some(&at.reason),
                "content": (!at.content.is_empty()).then_some(&at.content),
            });
            (at.node.as_str(), value)
        })
        .collect();
    let behind = key.behind.iter().map(|behind| {
        let (origin, region) = (&behind.origin, &behind.region);
        json!({ "node": behind.node, "origin": origin, "region": region, "seq": behind.seq })
    });
    json!({
        "key": key.key, "shard": key.shard, "why": why(key, asked), "held": held,
        "behind": behind.collect::<Vec<_>>(),
    })
}

fn result(result: VerifyResult) -> &'static str {
    match result {
        VerifyResult::Equal => "equal",
        VerifyResult::Behind => "behind",
        VerifyResult::Incomplete => "incomplete",
        VerifyResult::Differs => "differs",
        VerifyResult::Unspecified => "unknown",
    }
}

fn member_state(state: MemberState) -> &'static str {
    match state {
        MemberState::Compared => "compared",
        MemberState::Unreachable => "unreachable",
        MemberState::NoAnswer => "no_answer",
        MemberState::Settling => "settling",
        MemberState::NotHeld => "not_held",
        MemberState::TooFarApart => "too_far_apart",
        MemberState::Unspecified => "unknown",
    }
}

fn key_state(state: KeyState) -> &'static str {
    match state {
        KeyState::Missing => "missing",
        KeyState::Unreadable => "unreadable",
        KeyState::Parked => "parked",
        KeyState::Alive => "alive",
        KeyState::Deleted => "deleted",
        KeyState::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use tropism_client::v1::MissingChanges;

    use super::*;

    const NOW_MS: u64 = 1_700_000_060_000;

    fn member(node: &str) -> VerifiedMember {
        VerifiedMember {
            node: node.to_owned(),
            region: node.trim_end_matches("-1").to_owned(),
            state: MemberState::Compared.into(),
            rows: RowsState::Equal.into(),
            digest: DigestState::Sound.into(),
            keys: 3,
            ..VerifiedMember::default()
        }
    }

    fn answer(result: VerifyResult, members: Vec<VerifiedMember>) -> VerifyScopeResponse {
        VerifyScopeResponse {
            result: result.into(),
            shards: vec![VerifiedShard { index: 0, result: result.into(), members }],
            spread: 1,
            node: "tokyo-1".to_owned(),
            region: "tokyo".to_owned(),
            ..VerifyScopeResponse::default()
        }
    }

    fn at(node: &str, state: KeyState) -> KeyAt {
        let stamp = Stamp::new(1_700_000_000_000, 2).as_u64();
        let origin = format!("{node}@1-2");
        KeyAt { node: node.to_owned(), state: state.into(), stamp, origin, ..KeyAt::default() }
    }

    #[test]
    fn equal_members_are_one_line_each_and_one_word() {
        let whole = answer(VerifyResult::Equal, vec![member("tokyo-1"), member("dallas-1")]);
        let screen = screen("cache/c", &whole, NOW_MS);
        assert_eq!(
            screen,
            "SHARD  REGION  NODE      VECTOR  KEYS  ROWS   DIGEST\n\
             0      tokyo   tokyo-1   asked   3     -      sound\n\
             0      dallas  dallas-1  equal   3     equal  sound\n\
             equal: cache/c has the same 3 keys at 2 members\n"
        );
    }

    #[test]
    fn what_differs_is_said_with_what_each_member_holds_and_who_was_not_compared() {
        let behind = VerifiedMember {
            missing_changes: 12,
            missing: vec![MissingChanges {
                origin: "tokyo-1@1-2".into(),
                first: 7,
                last: 8,
                ..Default::default()
            }],
            left_out_keys: 1,
            ..member("dallas-1")
        };
        let rotten = VerifiedMember {
            rows: RowsState::Differ.into(),
            digest: DigestState::Rotted.into(),
            unreadable_keys: 1,
            ..member("sydney-1")
        };
        let silent = VerifiedMember {
            state: MemberState::Unreachable.into(),
            unreachable_ms: 64_000,
            ..member("paris-1")
        };
        let mut whole = answer(VerifyResult::Differs, vec![member("tokyo-1"), behind, rotten, silent]);
        let unreadable = KeyAt { reason: "checksum".into(), ..at("sydney-1", KeyState::Unreadable) };
        let other = KeyAt { content: "5 bytes".into(), ..at("sydney-1", KeyState::Alive) };
        let key = |key: &str, held| VerifiedKey { key: key.into(), held, ..VerifiedKey::default() };
        whole.keys = vec![
            key("a", vec![unreadable, at("tokyo-1", KeyState::Alive)]),
            key("b", vec![at("sydney-1", KeyState::Missing), at("tokyo-1", KeyState::Deleted)]),
            key("c", vec![other, at("tokyo-1", KeyState::Alive)]),
            VerifiedKey {
                behind: vec![KeyBehind {
                    node: "dallas-1".into(),
                    origin: "tokyo-1@1-2".into(),
                    seq: 8,
                    ..Default::default()
                }],
                ..key("d", Vec::new())
            },
        ];
        whole.more_keys = 5;
        let shown = screen("cache/c", &whole, NOW_MS);
        for line in [
            "0      dallas  dallas-1  lacks 12 changes: 7 to 8 of tokyo-1, and 10 more  3     equal, without 1 key just \
             written  sound",
            "not reachable for 1m04s",
            "not that of the rows: they are not what was written; 1 key cannot be read\n",
            "a    0      row cannot be read at sydney-1",
            "at sydney-1: checksum",
            "at tokyo-1: written by tokyo-1, stamp 1700000000000.00002 (1m00s ago)",
            "b    0      missing at sydney-1",
            "at tokyo-1: deleted, stamp 1700000000000.00002 (1m00s ago)",
            "c    0      another value at sydney-1",
            "stamp 1700000000000.00002 (1m00s ago), 5 bytes",
            "d    0      behind: change 8 of tokyo-1 not yet applied at dallas-1",
            "and at least 5 more keys",
        ] {
            assert!(shown.contains(line), "{line}\n{shown}");
        }
        let summary = summary(&whole);
        assert!(summary.starts_with("differs: at least 8 keys; not compared: paris-1."), "{summary}");
    }

    #[test]
    fn of_many_shards_only_those_with_something_are_shown() {
        let mut whole = answer(VerifyResult::Behind, vec![member("tokyo-1"), member("dallas-1")]);
        let quiet = VerifiedShard { result: VerifyResult::Equal.into(), ..whole.shards[0].clone() };
        let next = VerifyScopeResponse {
            shards: (1..30).map(|index| VerifiedShard { index, ..quiet.clone() }).collect(),
            next_shard: Some(30),
            ..answer(VerifyResult::Equal, Vec::new())
        };
        add(&mut whole, next);
        assert_eq!(
            (whole.result(), whole.shards.len(), whole.next_shard),
            (VerifyResult::Behind, 30, Some(30))
        );
        let shown = screen("cache/c", &whole, NOW_MS);
        assert!(shown.contains("29 of 30 shards are equal at all members and not shown"), "{shown}");
        assert_eq!(shown.lines().count(), 4, "{shown}");
    }
}
