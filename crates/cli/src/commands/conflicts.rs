//! `conflicts`: the values that a merge hid, and taking one of them.

use bytes::Bytes;
use serde_json::{Value as Json, json};
use tropism_client::v1::patch_operation::Action;
use tropism_client::v1::{
    Conflict, ConflictRule, ConflictValue, ListConflictsRequest, ListConflictsResponse, PatchOperation,
    conflict_value::Value,
};
use tropism_client::{Calls, Patch, Precondition, PutOptions, Register, Value as Put};
use tropism_crdt::Stamp;
use tropism_wire::limits::MAX_PAGE_CONFLICTS;

use super::keys::tell;
use crate::args::Conflicts;
use crate::output::{Failure, Output, hex, moment_to_second, one_line, say, size, stamp, table};
use crate::target::connect;

/// Characters of a value in the table.
const SHOWN_CHARACTERS: usize = 40;

/// `conflicts`: lists them, or decides one.
pub(super) async fn conflicts(args: Conflicts, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?.with_durability(args.safety.durability);
    match (&args.take, &args.keep) {
        (Some(id), _) => decide(&args, &client, id, true, out).await,
        (None, Some(id)) => decide(&args, &client, id, false, out).await,
        (None, None) => list(&args, &client, out).await,
    }
}

/// The pages of a list, one after the other.
struct Pages<'c> {
    client: &'c Calls,
    request: Option<ListConflictsRequest>,
}

impl<'c> Pages<'c> {
    fn new(client: &'c Calls, scope: &str, key: Option<&str>) -> Self {
        let request = ListConflictsRequest {
            scope: scope.to_owned(),
            key: key.unwrap_or_default().to_owned(),
            page_size: MAX_PAGE_CONFLICTS,
            ..ListConflictsRequest::default()
        };
        Self { client, request: Some(request) }
    }

    async fn next(&mut self) -> Result<Option<ListConflictsResponse>, Failure> {
        let Some(request) = self.request.take() else { return Ok(None) };
        let page = self.client.conflicts(request.clone()).await?;
        if !page.next_page_token.is_empty() {
            self.request = Some(ListConflictsRequest { page_token: page.next_page_token.clone(), ..request });
        }
        Ok(Some(page))
    }
}

async fn list(args: &Conflicts, client: &Calls, out: &mut Output) -> Result<(), Failure> {
    let mut pages = Pages::new(client, &args.scope, args.key.as_deref());
    let mut rows = Vec::new();
    let (mut keys, mut unreadable, mut forgotten, mut crowded) = (0, 0, 0, 0);
    while let Some(page) = pages.next().await? {
        keys += page.keys;
        unreadable += page.unreadable_keys;
        forgotten += page.forgotten_keys;
        crowded += page.crowded_keys;
        for conflict in &page.conflicts {
            if out.json {
                out.object(&conflict_json(conflict))?;
            } else {
                rows.push(line(conflict));
            }
        }
    }
    let found = rows.len();
    if found > 0 {
        let head = ["ID", "KEY", "PATH", "SHOWN", "FROM", "WHEN", "HIDDEN", "FROM", "WHEN"];
        rows.insert(0, head.map(str::to_owned).to_vec());
        out.bytes(table(&rows).as_bytes())?;
    }
    out.flush()?; // before the words on stderr
    if !out.json {
        say(&format!("{found} {} in {keys} {}", plural(found as u64, "conflict"), plural(keys, "key")));
    }
    if unreadable > 0 {
        say(&format!("{unreadable} keys cannot be read at this node; `tropism parked list` says why"));
    }
    if forgotten > 0 {
        say(&format!("{forgotten} keys were written apart, too long ago to tell whether a value lost"));
    }
    if crowded > 0 {
        say(&format!("{crowded} keys have more than {MAX_PAGE_CONFLICTS} conflicts; the rest is not listed"));
    }
    Ok(())
}

/// Writes the hidden value, or the shown one, where both are: a write that has seen both.
async fn decide(
    args: &Conflicts,
    client: &Calls,
    id: &str,
    take: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let scope = &args.scope;
    let none = || {
        Failure::Failed(format!(
            "{scope} has no conflict {id} (any more); `tropism conflicts {scope}` lists them"
        ))
    };
    let mut pages = Pages::new(client, scope, args.key.as_deref());
    let found = loop {
        let page = pages.next().await?.ok_or_else(none)?;
        if let Some(conflict) = page.conflicts.into_iter().find(|conflict| conflict.id == id) {
            break conflict;
        }
    };
    // Alone, there is room for larger values.
    let mut alone = Pages::new(client, scope, Some(&found.key));
    let page = alone.next().await?.ok_or_else(none)?;
    let conflict = page.conflicts.into_iter().find(|conflict| conflict.id == id).ok_or_else(none)?;
    let chosen = if take { &conflict.hidden } else { &conflict.shown };
    let chosen = chosen.clone().unwrap_or_default();
    let options =
        PutOptions { precondition: Precondition::Version(conflict.version.clone()), ..PutOptions::default() };
    let done = match chosen.value {
        Some(Value::Json(value)) => {
            let place = |action| PatchOperation { path: conflict.path.clone(), action: Some(action) };
            // First away with both: what is set over an object is written into it, and the other one stays beside it.
            let value = if conflict.in_list { Action::Insert(value) } else { Action::Set(value) };
            let operations = vec![place(Action::Remove(true)), place(value)];
            client.patch(scope, &conflict.key, Patch::Operations(operations), options).await?
        }
        Some(Value::Register(register)) => {
            let register = Register { content: register.content, content_type: register.content_type };
            client.put(scope, &conflict.key, Put::Register(register), options).await?
        }
        None => {
            let bytes = chosen.bytes;
            return Err(Failure::Failed(format!(
                "the value has {bytes} bytes, more than can be listed; write it anew"
            )));
        }
    };
    tell(&done, args.safety.show_version, out)
}

fn line(conflict: &Conflict) -> Vec<String> {
    let (shown, hidden) =
        (conflict.shown.clone().unwrap_or_default(), conflict.hidden.clone().unwrap_or_default());
    let from = |value: &ConflictValue| {
        if value.region.is_empty() { value.node.clone() } else { value.region.clone() }
    };
    let path = if conflict.path.is_empty() { "-".to_owned() } else { conflict.path.clone() };
    vec![
        conflict.id.clone(),
        conflict.key.clone(),
        path,
        short(&shown),
        from(&shown),
        moment_to_second(shown.time_ms),
        short(&hidden),
        from(&hidden),
        moment_to_second(hidden.time_ms),
    ]
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { what.to_owned() } else { format!("{what}s") }
}

/// The beginning of a value.
fn short(value: &ConflictValue) -> String {
    let text = match &value.value {
        None => return format!("({})", size(value.bytes)),
        Some(Value::Json(json)) => String::from_utf8_lossy(json).into_owned(),
        Some(Value::Register(register)) => one_line(&Put::Register(Register {
            content: register.content.clone(),
            content_type: register.content_type.clone(),
        })),
    };
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        None => text,
        Some((at, _)) => format!("{}...", &text[..at]),
    }
}

fn conflict_json(conflict: &Conflict) -> Json {
    let rule = match conflict.rule() {
        ConflictRule::Operation => "operation",
        ConflictRule::Stamp => "stamp",
        ConflictRule::Unspecified => "not known",
    };
    json!({
        "id": conflict.id,
        "key": conflict.key,
        "path": conflict.path,
        "in_list": conflict.in_list,
        "rule": rule,
        "shown": conflict.shown.as_ref().map(value_json),
        "hidden": conflict.hidden.as_ref().map(value_json),
        "version": hex(&conflict.version),
    })
}

fn value_json(value: &ConflictValue) -> Json {
    let content = match &value.value {
        None => Json::Null,
        Some(Value::Json(json)) => raw(json),
        Some(Value::Register(register)) => match std::str::from_utf8(&register.content) {
            Ok(text) => json!({ "content_type": register.content_type, "text": text }),
            Err(_) => json!({ "content_type": register.content_type, "hex": hex(&register.content) }),
        },
    };
    json!({
        "value": content,
        "bytes": value.bytes,
        "version": hex(&value.version),
        "region": value.region,
        "node": value.node,
        "origin": value.origin,
        "time_ms": value.time_ms,
        "stamp": (value.stamp != 0).then(|| stamp(Stamp::from_u64(value.stamp))),
    })
}

fn raw(json: &Bytes) -> Json {
    serde_json::from_slice(json).unwrap_or_else(|_| Json::String(hex(json)))
}
