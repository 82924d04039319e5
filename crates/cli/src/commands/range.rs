//! Commands about many keys: `scan` and `watch`.

use serde::Serialize;
use tokio::signal::ctrl_c;
use tropism_client::{Entry, Happening, ScanRange, WatchEvent, WatchMessage, WatchTarget};

use super::keys::bytes;
use crate::args::{Scan, Watch};
use crate::output::{EntryJson, Failure, Output, hex, one_line, say};
use crate::target::connect;

/// `scan`: one line per key.
pub(super) async fn scan(args: Scan, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let range = ScanRange {
        prefix: args.prefix,
        start: args.start,
        end: args.end,
        limit: args.limit.unwrap_or(0),
        keys_only: args.keys,
    };
    let mut scan = client.scan(&args.scope, range);
    while let Some(entry) = scan.next().await? {
        if out.json { out.object(&EntryJson::from(&entry))? } else { out.line(entry_line(&entry))? }
    }
    Ok(())
}

/// `watch`: one line per event, until Ctrl-C.
pub(super) async fn watch(args: Watch, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let target = match (args.key, args.prefix) {
        (Some(key), _) => WatchTarget::Key(key),
        (None, Some(prefix)) => WatchTarget::Prefix(prefix),
        (None, None) => WatchTarget::Scope,
    };
    let mut watch = client.watch(&args.scope, target, args.values, args.resume.map(bytes));
    let mut begun = false;
    let ended = loop {
        let message = tokio::select! {
            message = watch.next() => message,
            _ = ctrl_c() => break Ok(()),
        };
        match message {
            Ok(message) => {
                begun = true;
                print(&message, out)?;
            }
            Err(error) => break Err(error.into()),
        }
        out.flush()?; // somebody waits for each line
    };
    if begun && !out.json {
        say(&format!("go on with: tropism watch {} --resume {}", args.scope, hex(watch.resume_token())));
    }
    ended
}

/// An event for programs; the token is that of the message, so it stands after all events of the message.
#[derive(Serialize)]
struct EventJson<'e> {
    event: &'static str,
    #[serde(flatten)]
    entry: Option<EntryJson<'e>>,
    region: &'e str,
    node: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_token: Option<String>,
}

fn print(message: &WatchMessage, out: &mut Output) -> Result<(), Failure> {
    for (index, event) in message.events.iter().enumerate() {
        if !out.json {
            out.line(event_line(event))?;
            continue;
        }
        let last = index + 1 == message.events.len();
        out.object(&EventJson {
            event: happening(event.happening),
            entry: event.entry.as_ref().map(EntryJson::from),
            region: &event.region,
            node: &event.node,
            resume_token: last.then(|| hex(&message.resume_token)),
        })?;
    }
    Ok(())
}

fn happening(happening: Happening) -> &'static str {
    match happening {
        Happening::Put => "put",
        Happening::Delete => "delete",
        Happening::Expire => "expire",
        Happening::Reset => "reset",
        Happening::Value => "value",
        Happening::Current => "current",
    }
}

fn event_line(event: &WatchEvent) -> String {
    let word = happening(event.happening);
    event.entry.as_ref().map_or_else(|| word.to_owned(), |entry| format!("{word}\t{}", entry_line(entry)))
}

/// Key, tab, value; the key alone where there is no value. A key that cannot be shown says why in the value's place.
fn entry_line(entry: &Entry) -> String {
    match (&entry.failure, &entry.value) {
        (Some(problem), _) => format!("{}\terror: {problem} ({})", entry.key, problem.reason()),
        (None, Some(value)) => format!("{}\t{}", entry.key, one_line(value)),
        (None, None) => entry.key.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use tropism_client::{Entry, Happening, Problem, Reason, Register, Value, WatchEvent};
    use tropism_crdt::Stamp;

    use super::{entry_line, event_line};

    fn entry(value: Option<Value>) -> Entry {
        let (version, stamp) = (vec![1, 2].into(), Stamp::new(3, 4));
        Entry { key: "alice".to_owned(), value, version, stamp, expires_at_ms: None, failure: None }
    }

    #[test]
    fn an_entry_is_one_line_whatever_its_bytes() {
        let register = |content: &'static [u8]| {
            Value::Register(Register { content: content.into(), content_type: String::new() })
        };
        for (value, line) in [
            (None, "alice"),
            (Some(Value::Document("{\"a\":\"\\n\"}".into())), "alice\t{\"a\":\"\\n\"}"),
            (Some(Value::Counter(-5)), "alice\t-5"),
            (Some(register(b"a\nb\tc\\d\x1b[0m\xff\xc3\xa9")), "alice\ta\\nb\\tc\\\\d\\u{1b}[0m\\xff\u{e9}"),
        ] {
            assert_eq!(entry_line(&entry(value)), line);
        }
    }

    #[test]
    fn an_entry_that_cannot_be_shown_says_why() {
        let problem = Problem::failed_precondition(Reason::CounterOverflow, "the sum is beyond 64 bits");
        let line = entry_line(&Entry { failure: Some(problem), ..entry(None) });
        assert_eq!(line, "alice\terror: the sum is beyond 64 bits; no effect (COUNTER_OVERFLOW)");
    }

    #[test]
    fn events_name_what_happened_first() {
        let event =
            |happening, entry| WatchEvent { happening, entry, region: String::new(), node: String::new() };
        assert_eq!(event_line(&event(Happening::Put, Some(entry(Some(Value::Counter(1)))))), "put\talice\t1");
        assert_eq!(event_line(&event(Happening::Delete, Some(entry(None)))), "delete\talice");
        assert_eq!(event_line(&event(Happening::Reset, None)), "reset");
    }
}
