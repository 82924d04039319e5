//! `history`: the versions of a key.

use serde_json::{Value, json};
use tropism_client::v1::{CounterShare, GetHistoryRequest, GetHistoryResponse, KeyChange, Kind};
use tropism_crdt::Stamp;
use tropism_wire::limits::MAX_PAGE_HISTORY;

use crate::args::{History, Place};
use crate::output::{Failure, Output, hex, moment_to_second, now_ms, say, size, stamp, table, time};
use crate::target::connect;

/// `history`: page after page, as one list.
pub(super) async fn history(args: &History, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let Place { scope, key } = &args.place;
    let mut request =
        GetHistoryRequest { scope: scope.clone(), key: key.clone(), ..GetHistoryRequest::default() };
    let (mut told, mut rows) = (0_u64, Vec::new());
    let last = loop {
        let left = args.limit - told; // the loop ends at the limit
        request.page_size = u32::try_from(left).unwrap_or(u32::MAX).min(MAX_PAGE_HISTORY);
        let page = client.history(request.clone()).await?;
        told += page.changes.len() as u64;
        for change in &page.changes {
            if out.json {
                out.object(&change_json(change, page.kind()))?;
            } else {
                rows.push(line(change, page.kind()));
            }
        }
        if page.next_page_token.is_empty() || told >= args.limit {
            break page;
        }
        request.page_token.clone_from(&page.next_page_token);
    };
    if out.json {
        for share in &last.shares {
            out.object(&share_json(share))?;
        }
    } else {
        if !rows.is_empty() {
            rows.insert(
                0,
                ["WHEN", "AGO", "REGION", "NODE", "WHAT", "SIZE", "VERSION"].map(str::to_owned).to_vec(),
            );
            out.bytes(table(&rows).as_bytes())?;
        }
        if !last.shares.is_empty() {
            let head = ["REGION", "NODE", "ADDED", "AUTHOR"].map(str::to_owned).to_vec();
            let share = |share: &CounterShare| {
                vec![known(&share.region), share.node.clone(), share.added.clone(), share.origin.clone()]
            };
            let rows: Vec<Vec<String>> = std::iter::once(head).chain(last.shares.iter().map(share)).collect();
            out.bytes(table(&rows).as_bytes())?;
        }
    }
    out.flush()?; // before the words on stderr
    if !out.json {
        say(&summary(&last, told));
    }
    Ok(())
}

/// What is known, and what is not.
fn summary(page: &GetHistoryResponse, told: u64) -> String {
    let mut words = match page.kind() {
        Kind::Document => {
            let all = page.total_changes;
            format!("{told} of {all} changes, {} stored", size(page.history_bytes))
        }
        Kind::Register => "a register keeps only its last write".to_owned(),
        Kind::Counter => format!(
            "a counter keeps what each author added, not when; last added to at {}",
            moment_to_second(Stamp::from_u64(page.last_stamp).unix_ms())
        ),
        Kind::Unspecified => String::new(),
    };
    match page.life {
        0 => {}
        1 => words.push_str("; the key was created anew once, and of before nothing is known"),
        lives => words
            .push_str(&format!("; the key was created anew {lives} times, and of before nothing is known")),
    }
    if !page.visible {
        words.push_str("; not visible now");
    }
    words
}

fn known(region: &str) -> String {
    if region.is_empty() { "not known".to_owned() } else { region.to_owned() }
}

fn line(change: &KeyChange, kind: Kind) -> Vec<String> {
    let what = match (kind, change.on.len()) {
        (Kind::Document, 0) => format!("created, {} edits", change.operations),
        (Kind::Document, 1) => format!("{} edits", change.operations),
        (Kind::Document, writers) => format!("{} edits, on {writers} versions", change.operations),
        _ => "written".to_owned(),
    };
    vec![
        moment_to_second(change.time_ms),
        time(now_ms().saturating_sub(change.time_ms)),
        known(&change.region),
        change.node.clone(),
        what.replace("1 edits", "1 edit"),
        size(change.bytes),
        hex(&change.version),
    ]
}

fn change_json(change: &KeyChange, kind: Kind) -> Value {
    json!({
        "version": hex(&change.version),
        "time_ms": change.time_ms,
        "stamp": (change.stamp != 0).then(|| stamp(Stamp::from_u64(change.stamp))),
        "region": change.region,
        "node": change.node,
        "origin": change.origin,
        "operations": change.operations,
        "bytes": change.bytes,
        "on": change.on.iter().map(|version| hex(version)).collect::<Vec<String>>(),
        "newest": change.newest,
        "kind": kind_name(kind),
    })
}

fn share_json(share: &CounterShare) -> Value {
    json!({ "region": share.region, "node": share.node, "origin": share.origin, "added": share.added })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Document => "document",
        Kind::Register => "register",
        Kind::Counter => "counter",
        Kind::Unspecified => "not known",
    }
}
