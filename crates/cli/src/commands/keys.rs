//! Commands about one key.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;
use tropism_client::v1::Kind;
use tropism_client::v1::get_at_request::At;
use tropism_client::{Calls, Entry, Expiry, Precondition, PutOptions, Reason, Register, Value, Written};
use tropism_crdt::json::{JsonLimits, parse};
use tropism_wire::error::echo;

use super::read_value;
use crate::args::{Delete, Expire, Get, Incr, Place, Put, Stamp, Ttl, Version};
use crate::output::{
    EntryJson, Failure, Output, WrittenJson, hex, now_ms, one_line, say, stamp as stamp_text,
};
use crate::target::connect;

/// The type of a register whose text was given in the command.
const PLAIN_TEXT: &str = "text/plain";

/// `put`: the kind follows from how the value is given, and where that does not fit from the scope.
pub(super) async fn put(args: Put, out: &mut Output) -> Result<(), Failure> {
    let Place { scope, key } = &args.place;
    let (content, content_type) = match (&args.file, &args.text, &args.value) {
        (Some(file), ..) => (read_value(file)?, type_of(file)),
        (_, Some(text), _) => (text.clone().into_bytes(), PLAIN_TEXT),
        (.., Some(value)) => (value.clone().into_bytes(), PLAIN_TEXT),
        (None, None, None) => (read_value(Path::new("-"))?, type_of(Path::new(""))),
    };
    let content = Bytes::from(content);
    let content_type = args.content_type.clone().unwrap_or_else(|| content_type.to_owned());
    let value = |kind| match kind {
        Kind::Register => {
            Value::Register(Register { content: content.clone(), content_type: content_type.clone() })
        }
        _ => Value::Document(content.clone()),
    };
    let options = PutOptions {
        base_version: args.base.map(bytes).unwrap_or_default(),
        precondition: match args.if_version {
            Some(version) => Precondition::Version(bytes(version)),
            None if args.if_absent => Precondition::Absent,
            None => Precondition::None,
        },
        expiry: args.ttl.map(Expiry::After),
    };

    let client = connect(&args.connection).await?.with_durability(args.safety.durability);
    let mut kind = if args.value.is_none() { Kind::Register } else { Kind::Document };
    if kind == Kind::Document
        && let Err(error) = parse(&content, &JsonLimits::default())
    {
        kind = client.scope(scope).await?.kind();
        if kind == Kind::Document {
            let value = echo(&String::from_utf8_lossy(&content));
            return Err(Failure::Usage(format!(
                "the value {value} is no JSON, which {scope} holds: {error}"
            )));
        }
    }
    let mut done = client.put(scope, key, value(kind), options.clone()).await;
    if matches!(&done, Err(error) if error.reason() == Some(Reason::KindMismatch)) {
        match client.scope(scope).await?.kind() {
            Kind::Counter => {
                let message = format!("{scope} holds counters; `tropism incr {scope} KEY N` changes them");
                return Err(Failure::Failed(message));
            }
            // A text is a register by the caller's own word; a file is what the scope holds.
            other if other != kind && args.text.is_none() && args.content_type.is_none() => {
                done = client.put(scope, key, value(other), options).await;
            }
            _ => {}
        }
    }
    tell(&done?, args.safety.show_version, out)
}

/// `get`: the value alone.
pub(super) async fn get(args: &Get, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let entry = match &args.at {
        None => visible(&client, &args.place).await?,
        Some(at) => as_it_was(&client, &args.place, at).await?,
    };
    if out.json {
        return out.object(&EntryJson::from(&entry));
    }
    if args.show_version {
        out.bytes(hex(&entry.version).as_bytes())?;
        out.bytes(b"\t")?;
    }
    match &entry.value {
        // The bytes and nothing else, unless a person would find the prompt behind them.
        Some(Value::Register(register)) => {
            out.bytes(&register.content)?;
            if out.terminal && !register.content.ends_with(b"\n") { out.line("") } else { Ok(()) }
        }
        Some(value) => out.line(one_line(value)),
        None => Ok(()),
    }
}

/// `incr`: prints the sum.
pub(super) async fn incr(args: &Incr, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?.with_durability(args.durability);
    let Place { scope, key } = &args.place;
    let done = client.increment(scope, key, args.by, args.ttl.map(Expiry::After)).await?;
    if out.json {
        return out.object(&json!({ "value": done.value, "written": WrittenJson::from(&done.written) }));
    }
    out.line(done.value.to_string())
}

/// `delete`: what is not visible is as good as deleted.
pub(super) async fn delete(args: Delete, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?.with_durability(args.safety.durability);
    let Place { scope, key } = &args.place;
    let done = client.delete(scope, key, args.if_version.map(bytes)).await?;
    if out.json {
        let written = WrittenJson::from(&done.written);
        return out.object(&json!({ "was_visible": done.was_visible, "written": written }));
    }
    if !done.was_visible {
        say(&format!("{} was not visible in {scope} before", echo(key)));
    }
    tell(&done.written, args.safety.show_version, out)
}

/// `expire`: sets or clears the moment.
pub(super) async fn expire(args: &Expire, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?.with_durability(args.durability);
    let expires_at_ms = client.expire(&args.place.scope, &args.place.key, args.when()).await?;
    if out.json { out.object(&json!({ "expires_at_ms": expires_at_ms })) } else { Ok(()) }
}

/// `ttl`: by this machine's clock, in a form that `--ttl` takes.
pub(super) async fn ttl(args: &Ttl, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let expires_at_ms = visible(&client, &args.place).await?.expires_at_ms;
    let left_ms = expires_at_ms.map(|at| at.saturating_sub(now_ms()));
    if out.json {
        return out.object(&json!({ "expires_at_ms": expires_at_ms, "ttl_ms": left_ms }));
    }
    out.line(left_ms.map_or_else(|| "never".to_owned(), |left_ms| format!("{}s", left_ms.div_ceil(1000))))
}

/// `stamp`: one per line.
pub(super) async fn stamp(args: &Stamp, out: &mut Output) -> Result<(), Failure> {
    let drawn = connect(&args.connection).await?.stamp(&args.scope, args.count).await?;
    let stamps: Vec<String> = drawn.stamps.into_iter().map(stamp_text).collect();
    if out.json {
        return out.object(&json!({ "stamps": stamps, "origin": drawn.origin }));
    }
    stamps.iter().try_for_each(|stamp| out.line(stamp))
}

/// The entry of a key that can be shown.
async fn visible(client: &Calls, Place { scope, key }: &Place) -> Result<Entry, Failure> {
    let found = client.get(scope, key).await?;
    let region = found.answered.region;
    match found.entry {
        Some(Entry { failure: Some(problem), .. }) => Err(Failure::Item(echo(key), problem)),
        Some(entry) => Ok(entry),
        None => {
            Err(Failure::Failed(format!("not found: {} is not visible in {scope}, says {region}", echo(key))))
        }
    }
}

/// The entry of a key as it was.
async fn as_it_was(client: &Calls, Place { scope, key }: &Place, at: &At) -> Result<Entry, Failure> {
    let found = client.get_at(scope, key, at.clone()).await?;
    let region = found.answered.region;
    let nothing = || format!("not found: {} had nothing to show in {scope} then, says {region}", echo(key));
    found.entry.ok_or_else(|| Failure::Failed(nothing()))
}

/// What a write tells: nothing, unless it is asked for.
pub(super) fn tell(written: &Written, show_version: bool, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        return out.object(&WrittenJson::from(written));
    }
    if show_version { out.line(hex(&written.version)) } else { Ok(()) }
}

/// The version of an argument as a client takes it.
pub(super) fn bytes(Version(version): Version) -> Bytes {
    version.into()
}

/// The MIME type that a file's name suggests.
fn type_of(file: &Path) -> &'static str {
    let extension = file.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("css") => "text/css",
        Some("csv") => "text/csv",
        Some("gif") => "image/gif",
        Some("htm" | "html") => "text/html",
        Some("jpeg" | "jpg") => "image/jpeg",
        Some("js") => "text/javascript",
        Some("json") => "application/json",
        Some("md") => "text/markdown",
        Some("pdf") => "application/pdf",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("txt") => PLAIN_TEXT,
        Some("webp") => "image/webp",
        Some("xml") => "application/xml",
        _ => "application/octet-stream",
    }
}
