//! `parked`: what a node cannot show, and what is done about it.

use serde_json::{Value, json};
use tropism_client::v1::{
    DropParkedResponse, GetParkedResponse, KeptChange, ListParkedRequest, ParkedKey, ParkedState,
    RetryParkedResponse,
};
use tropism_client::{Calls, Error, Reason};
use tropism_crdt::Stamp;
use tropism_wire::limits::MAX_PAGE_PARKED;

use crate::args::{AtNode, Parked, ParkedAction, ParkedDrop, ParkedList, ParkedRetry, ParkedShow};
use crate::output::{Failure, Output, now_ms, say, size, stamp, table, time};
use crate::target::{Target, named_targets, one_target};

pub(super) async fn parked(args: Parked, out: &mut Output) -> Result<(), Failure> {
    match args.action {
        ParkedAction::List(args) => list(args, out).await,
        ParkedAction::Show(args) => show(&args, out).await,
        ParkedAction::Retry(args) => retry(args, out).await,
        ParkedAction::Drop(args) => drop_it(&args, out).await,
    }
}

/// A client of one node.
fn client(target: &Target, at: &AtNode) -> Result<Calls, Failure> {
    Ok(Calls::in_order(vec![target.endpoint.clone()])?.with_timeout(at.connection.timeout))
}

/// One line for each parked key, node by node.
async fn list(args: ParkedList, out: &mut Output) -> Result<(), Failure> {
    let targets = named_targets(&args.at)?;
    let (mut rows, mut silent) = (Vec::new(), Vec::new());
    for target in &targets {
        let client = client(target, &args.at)?;
        let mut pages = Pages::new(args.scope.as_deref(), args.every_key);
        loop {
            let page = match pages.next(&client).await {
                Ok(page) => page,
                // Of several nodes the others still answer.
                Err(error) if targets.len() > 1 => {
                    silent.push((target, error));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let Some((node, keys)) = page else { break };
            for key in keys {
                if out.json {
                    out.object(&key_json(&key, &node))?;
                } else {
                    rows.push(line(&key, &node));
                }
            }
        }
    }
    if !rows.is_empty() {
        let head = ["NODE", "SCOPE", "KEY", "STATE", "LIFE", "KEPT", "BYTES", "FOR", "REASON"];
        rows.insert(0, head.map(str::to_owned).to_vec());
        out.bytes(table(&rows).as_bytes())?;
    } else if silent.is_empty() && !out.json {
        say("no parked keys");
    }
    out.flush()?; // before the words on stderr
    let (unanswered, asked) = (silent.len(), targets.len());
    for (target, error) in &silent {
        say(&format!("{}: {error}", target.name.as_ref().map_or(&*target.endpoint, |(_, id)| id)));
    }
    if unanswered > 0 {
        return Err(Failure::Failed(format!("{unanswered} of {asked} nodes did not answer")));
    }
    Ok(())
}

/// The pages of a list, one after the other.
struct Pages {
    request: Option<ListParkedRequest>,
}

impl Pages {
    fn new(scope: Option<&str>, every_key: bool) -> Self {
        let scope = scope.unwrap_or_default().to_owned();
        let request =
            ListParkedRequest { scope, every_key, page_size: MAX_PAGE_PARKED, ..Default::default() };
        Self { request: Some(request) }
    }

    /// The node that answered and its keys; `None` behind the last page.
    async fn next(&mut self, client: &Calls) -> Result<Option<(String, Vec<ParkedKey>)>, Error> {
        let Some(request) = self.request.take() else { return Ok(None) };
        let page = client.parked(&request).await?;
        if !page.next_page_token.is_empty() {
            // The rest is of the same node.
            let node = page.node.clone();
            self.request = Some(ListParkedRequest { node, page_token: page.next_page_token, ..request });
        }
        Ok(Some((page.node, page.keys)))
    }
}

async fn show(args: &ParkedShow, out: &mut Output) -> Result<(), Failure> {
    let client = client(&one_target(&args.at)?, &args.at)?;
    let shown = client.show_parked("", &args.place.scope, &args.place.key).await?;
    print(&shown, out)
}

fn print(shown: &GetParkedResponse, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        let mut object = key_json(&shown.parked.clone().unwrap_or_default(), &shown.node);
        object["region"] = json!(shown.region);
        object["history_problem"] = json!(shown.history_problem);
        object["changes"] = shown.changes.iter().map(change_json).collect();
        return out.object(&object);
    }
    let Some(key) = &shown.parked else { return out.line("nothing is kept of it any more") };
    let life = key.life.map_or_else(|| "not known".to_owned(), |life| life.to_string());
    let rows = [
        ("key", format!("{} {}", key.scope, key.key)),
        ("node", format!("{} in {}", shown.node, shown.region)),
        ("state", state_words(key.state()).to_owned()),
        ("life", life),
        ("reason", key.reason.clone()),
        ("history", shown.history_problem.clone()),
        ("kept", format!("{}, {}", changes(key.kept_changes), size(key.kept_bytes))),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    out.bytes(table(&rows).as_bytes())?;
    if shown.changes.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.bytes(change_table(&shown.changes, "APPLIED NOW").as_bytes())?;
    let more = key.kept_changes.saturating_sub(shown.changes.len() as u64);
    if more > 0 {
        out.line(format!("and {} more", changes(more)))?;
    }
    Ok(())
}

/// One key, or every parked key of a scope; fails when something is left.
async fn retry(args: ParkedRetry, out: &mut Output) -> Result<(), Failure> {
    let client = client(&one_target(&args.at)?, &args.at)?;
    let Some(key) = &args.key else { return retry_scope(&client, &args.scope, out).await };
    let tried = client.retry_parked("", &args.scope, key).await?;
    print_retry(&tried, &args.scope, key, out)?;
    out.flush()?; // before the words on stderr
    let left = tried.left.is_some() || !tried.complete;
    if left { Err(Failure::Failed(format!("{key} is not served as it should be"))) } else { Ok(()) }
}

async fn retry_scope(client: &Calls, scope: &str, out: &mut Output) -> Result<(), Failure> {
    let mut pages = Pages::new(Some(scope), false);
    let (mut keys, mut left) = (0_u64, 0_u64);
    while let Some((node, page)) = pages.next(client).await? {
        for ParkedKey { key, .. } in page {
            keys += 1;
            match client.retry_parked(&node, scope, &key).await {
                Ok(tried) => {
                    left += u64::from(tried.left.is_some() || !tried.complete);
                    print_retry(&tried, scope, &key, out)?;
                }
                // It was mended meanwhile.
                Err(error) if error.reason() == Some(Reason::NotParked) => {}
                Err(error) if error.reason() == Some(Reason::RowDamaged) => {
                    left += 1;
                    let Some(problem) = error.problem() else { continue };
                    if out.json {
                        out.object(&json!({
                            "scope": scope, "key": key, "node": node, "served": false,
                            "reason": problem.reason().as_str(), "message": problem.message(),
                        }))?;
                    } else {
                        out.line(format!("{key}: {}", problem.message()))?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    if keys == 0 && !out.json {
        say(&format!("no parked keys in scope {scope}"));
    }
    out.flush()?; // before the words on stderr
    if left > 0 {
        return Err(Failure::Failed(format!(
            "{left} of {keys} parked keys are not served as they should be"
        )));
    }
    Ok(())
}

fn print_retry(tried: &RetryParkedResponse, scope: &str, key: &str, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        return out.object(&json!({
            "scope": scope, "key": key, "node": tried.node, "region": tried.region,
            "applied_changes": tried.applied_changes, "failed_changes": tried.failed_changes,
            "served": tried.served, "complete": tried.complete,
            "left": tried.left.as_ref().map(|left| key_json(left, &tried.node)),
        }));
    }
    let applied = changes(tried.applied_changes);
    let node = &tried.node;
    let end = match &tried.left {
        None => "nothing is left; the key is served".to_owned(),
        Some(left) => {
            let served = if tried.served { "served without them" } else { "still parked" };
            let reason = if left.reason.is_empty() { String::new() } else { format!(": {}", left.reason) };
            format!("{} left, {served}{reason}", changes(left.kept_changes))
        }
    };
    let more = if tried.complete { "" } else { "; there was no time for all, repeat it" };
    out.line(format!("{key} on {node}: {applied} applied, {end}{more}"))
}

/// Shows what goes and, when that is confirmed, drops it.
async fn drop_it(args: &ParkedDrop, out: &mut Output) -> Result<(), Failure> {
    let client = client(&one_target(&args.at)?, &args.at)?;
    let (scope, key) = (&args.place.scope, &args.place.key);
    let shown = client.show_parked("", scope, key).await?;
    let (node, region) = (&shown.node, &shown.region);
    if !args.yes {
        print(&shown, out)?;
        out.flush()?; // before the words on stderr
        let good = shown.changes.iter().filter(|change| change.problem.is_empty()).count() as u64;
        let hint = match good {
            0 => String::new(),
            _ => format!("{} would apply now, so `tropism parked retry` first; ", changes(good)),
        };
        let damaged = shown.parked.as_ref().is_some_and(|key| key.state() == ParkedState::RowDamaged);
        let row = if damaged { ", and the row," } else { "" };
        return Err(Failure::Usage(format!(
            "nothing was dropped; {hint}--yes drops all of this{row} on {node}, for good"
        )));
    }
    let gone = client.drop_parked(node, scope, key).await?;
    if out.json {
        return out.object(&dropped_json(&gone, scope, key));
    }
    let row = if gone.row_removed { " and the row that could not be read" } else { "" };
    let what = format!("{}, {}{row}", changes(gone.dropped_changes), size(gone.dropped_bytes));
    out.line(format!("dropped on {node} in {region} of {scope} {key}: {what}"))?;
    if !gone.changes.is_empty() {
        out.bytes(change_table(&gone.changes, "").as_bytes())?;
    }
    let more = gone.dropped_changes.saturating_sub(gone.changes.len() as u64);
    if more > 0 {
        out.line(format!("and {} more", changes(more)))?;
    }
    out.flush()?; // before the words on stderr
    if gone.complete {
        return Ok(());
    }
    Err(Failure::Failed("there was no time to drop everything; repeat it".to_owned()))
}

fn line(key: &ParkedKey, node: &str) -> Vec<String> {
    vec![
        node.to_owned(),
        key.scope.clone(),
        key.key.clone(),
        state(key.state()).to_owned(),
        key.life.map_or_else(|| "?".to_owned(), |life| life.to_string()),
        key.kept_changes.to_string(),
        size(key.kept_bytes),
        age(key.since_ms),
        key.reason.clone(),
    ]
}

fn change_table(kept: &[KeptChange], last: &str) -> String {
    let head = ["ORIGIN", "SEQ", "STAMP", "LIFE", "BYTES", "KEPT FOR", last];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for change in kept {
        let known = !change.origin.is_empty();
        let of = |text: String| if known { text } else { "?".to_owned() };
        rows.push(vec![
            of(change.origin.clone()),
            of(change.seq.to_string()),
            of(stamp(Stamp::from_u64(change.stamp))),
            change.life.map_or_else(|| "?".to_owned(), |life| life.to_string()),
            size(change.bytes),
            age(change.since_ms),
            match &*change.problem {
                _ if last.is_empty() => String::new(),
                "" => "applies".to_owned(),
                problem => problem.to_owned(),
            },
        ]);
    }
    table(&rows)
}

fn changes(count: u64) -> String {
    if count == 1 { "1 change".to_owned() } else { format!("{count} changes") }
}

/// How long ago by this machine's clock; a node whose clock is ahead has it now.
fn age(since_ms: u64) -> String {
    if since_ms == 0 { "?".to_owned() } else { time(now_ms().saturating_sub(since_ms)) }
}

fn state(state: ParkedState) -> &'static str {
    match state {
        ParkedState::Unspecified => "unknown",
        ParkedState::ChangesRefused => "changes_refused",
        ParkedState::RowDamaged => "row_damaged",
        ParkedState::LeftOver => "left_over",
    }
}

fn state_words(of: ParkedState) -> &'static str {
    match of {
        ParkedState::ChangesRefused => "not served: changes could not be applied",
        ParkedState::RowDamaged => "not served: its row cannot be read",
        ParkedState::LeftOver => "served, without changes that came while its row could not be read",
        ParkedState::Unspecified => state(of),
    }
}

fn key_json(key: &ParkedKey, node: &str) -> Value {
    json!({
        "node": node, "scope": key.scope, "key": key.key, "state": state(key.state()), "life": key.life,
        "reason": key.reason, "kept_changes": key.kept_changes, "kept_bytes": key.kept_bytes,
        "since_ms": (key.since_ms > 0).then_some(key.since_ms),
    })
}

fn change_json(change: &KeptChange) -> Value {
    let known = !change.origin.is_empty();
    json!({
        "origin": known.then_some(&change.origin), "seq": known.then_some(change.seq),
        "stamp": known.then(|| stamp(Stamp::from_u64(change.stamp))), "life": change.life, "bytes": change.bytes,
        "since_ms": (change.since_ms > 0).then_some(change.since_ms),
        "problem": (!change.problem.is_empty()).then_some(&change.problem),
    })
}

fn dropped_json(gone: &DropParkedResponse, scope: &str, key: &str) -> Value {
    json!({
        "scope": scope, "key": key, "node": gone.node, "region": gone.region,
        "dropped_changes": gone.dropped_changes, "dropped_bytes": gone.dropped_bytes,
        "row_removed": gone.row_removed, "complete": gone.complete,
        "changes": gone.changes.iter().map(change_json).collect::<Vec<Value>>(),
    })
}
