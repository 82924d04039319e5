//! `load`: many keys from one file.
//!
//! Two forms: one object `{key: value}`, read whole, or one object `{"key": .., "value": ..}` per line, read as it comes.
//! Keys are written by bulk calls; the first that is refused ends the load, with its line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::vec;

use bytes::Bytes;
use serde_json::json;
use tropism_client::v1::Kind;
use tropism_client::{Calls, PutItem, PutOptions, Register, Value};
use tropism_crdt::json::{Json, JsonError, JsonLimits, MAX_DEPTH, parse};
use tropism_placement::check_key;
use tropism_wire::error::echo;
use tropism_wire::limits::MAX_BULK_ITEMS;

use super::{MAX_VALUE_BYTES, name, unreadable};
use crate::args::Load;
use crate::output::{Failure, Output, say};
use crate::target::connect;

/// Bytes of values after which a bulk call is sent: with the largest value behind it still half a message.
const BATCH_BYTES: usize = 1 << 20;
/// Longest line, in bytes: the largest value with every character escaped, and its key.
const MAX_LINE_BYTES: usize = 8 << 20;
/// Largest file read as one object, in bytes: what a small machine holds several times.
const MAX_OBJECT_BYTES: usize = 256 << 20;

/// A key to write, and where it stands.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    line: usize,
    key: String,
    value: Json,
}

/// Something wrong in the file.
#[derive(Debug, PartialEq)]
struct Wrong {
    line: usize,
    reason: String,
}

pub(super) async fn load(args: &Load, out: &mut Output) -> Result<(), Failure> {
    let input: Box<dyn Read> = if args.file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&args.file).map_err(|error| unreadable(&args.file, &error))?)
    };
    let client = connect(&args.connection).await?.with_durability(args.durability);
    let scope = &args.scope;
    let kind = client.scope(scope).await?.kind();
    if kind == Kind::Counter {
        return Err(Failure::Failed(format!(
            "{scope} holds counters; `tropism incr {scope} KEY N` changes them"
        )));
    }
    let mut loader = Loader { client, scope, items: Vec::new(), lines: Vec::new(), bytes: 0, loaded: 0 };
    let done = loader.load(BufReader::new(input), kind).await;
    let Loader { loaded, .. } = loader;
    if io::stderr().is_terminal() && loaded > 0 {
        let _ = write!(io::stderr(), "\r"); // ends the line of progress
    }
    if let Err(stop) = done {
        let place = |line| format!("{}, line {line}", name(&args.file));
        say(&format!("{loaded} keys were loaded before this; loading them again is harmless"));
        return Err(match stop {
            Stop::Read(error) => unreadable(&args.file, &error),
            Stop::Wrong(Wrong { line, reason }) => Failure::Failed(format!("{}: {reason}", place(line))),
            Stop::Refused { line, key, problem } => {
                Failure::Item(format!("{}, key {}", place(line), echo(&key)), *problem)
            }
            Stop::Call(error) => error.into(),
        });
    }
    say(&format!("{loaded} keys loaded into {scope}"));
    if out.json { out.object(&json!({ "loaded": loaded })) } else { Ok(()) }
}

/// Why loading stopped.
enum Stop {
    /// The file cannot be read.
    Read(io::Error),
    /// The file is not what it should be.
    Wrong(Wrong),
    /// A node refused a key.
    Refused { line: usize, key: String, problem: Box<tropism_client::Problem> },
    /// No node could be asked.
    Call(tropism_client::Error),
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Stop::Wrong(wrong)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Read(error)
    }
}

/// A bulk call being filled.
struct Loader<'a> {
    client: Calls,
    scope: &'a str,
    items: Vec<PutItem>,
    lines: Vec<usize>,
    bytes: usize,
    loaded: usize,
}

impl Loader<'_> {
    async fn load(&mut self, input: impl BufRead, kind: Kind) -> Result<(), Stop> {
        let mut rows = Rows::new(input)?;
        let mut keys = BTreeSet::new();
        while let Some(row) = rows.next()? {
            let value = row.value(kind)?;
            // A key has one place in a bulk call; the later line wins.
            if !keys.insert(row.key.clone())
                || self.items.len() >= MAX_BULK_ITEMS
                || self.bytes >= BATCH_BYTES
            {
                self.send().await?;
                keys = BTreeSet::from([row.key.clone()]);
            }
            self.bytes += row.key.len() + size(&value);
            self.lines.push(row.line);
            self.items.push(PutItem { key: row.key, value, options: PutOptions::default() });
        }
        self.send().await
    }

    async fn send(&mut self) -> Result<(), Stop> {
        if self.items.is_empty() {
            return Ok(());
        }
        let items = std::mem::take(&mut self.items);
        let keys: Vec<String> = items.iter().map(|item| item.key.clone()).collect();
        let lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        let results = self.client.batch_put(self.scope, items).await.map_err(Stop::Call)?;
        self.loaded += results.iter().filter(|result| result.is_ok()).count();
        for ((result, key), line) in results.into_iter().zip(keys).zip(lines) {
            if let Err(problem) = result {
                return Err(Stop::Refused { line, key, problem: Box::new(problem) });
            }
        }
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r{} keys", self.loaded); // words, which nobody has to read
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Document(json) => json.len(),
        Value::Register(register) => register.content.len(),
        Value::Counter(_) => 0,
    }
}

impl Row {
    /// The value as the scope's kind takes it.
    fn value(&self, kind: Kind) -> Result<Value, Wrong> {
        let wrong = |reason| Wrong { line: self.line, reason: format!("key {}: {reason}", echo(&self.key)) };
        check_key(&self.key).map_err(|error| wrong(error.to_string()))?;
        let register = |content: Vec<u8>, content_type: &str| {
            Value::Register(Register { content: content.into(), content_type: content_type.to_owned() })
        };
        let value = match (kind, &self.value) {
            (Kind::Register, Json::String(text)) => register(text.clone().into_bytes(), "text/plain"),
            (Kind::Register, other) => register(other.to_canonical(), "application/json"),
            (_, object @ Json::Object(_)) => Value::Document(Bytes::from(object.to_canonical())),
            (_, other) => {
                return Err(wrong(format!("the value is {}; a document is an object", other.type_name())));
            }
        };
        let bytes = size(&value);
        if bytes > MAX_VALUE_BYTES {
            return Err(wrong(format!("the value has {bytes} bytes; the limit is {MAX_VALUE_BYTES}")));
        }
        Ok(value)
    }
}

/// The rows of a file, in its order.
enum Rows<R> {
    Lines { input: R, line: usize, first: Option<Row> },
    Object(vec::IntoIter<Row>),
}

impl<R: BufRead> Rows<R> {
    /// Looks at the first line that is not blank: a whole row means lines, everything else one object.
    fn new(mut input: R) -> Result<Self, Stop> {
        let mut start = Vec::new();
        let mut line = 0;
        while start.trim_ascii().is_empty() {
            line += 1;
            let before = start.len();
            if read_line(&mut input, line, &mut start)? == before {
                return Ok(Rows::Object(Vec::new().into_iter()));
            }
        }
        if let Ok(row) = row(&start[start.len() - start.trim_ascii_start().len()..], line) {
            return Ok(Rows::Lines { input, line, first: Some(row) });
        }
        let most = MAX_OBJECT_BYTES.saturating_sub(start.len()) as u64 + 1;
        input.take(most).read_to_end(&mut start)?;
        if start.len() > MAX_OBJECT_BYTES {
            let reason = format!(
                "one object of more than {MAX_OBJECT_BYTES} bytes, the limit; lines of {{\"key\":..,\"value\":..}} \
                 have none"
            );
            return Err(Wrong { line: 1, reason }.into());
        }
        Ok(Rows::Object(object(&start)?.into_iter()))
    }

    fn next(&mut self) -> Result<Option<Row>, Stop> {
        match self {
            Rows::Object(rows) => Ok(rows.next()),
            Rows::Lines { first: first @ Some(_), .. } => Ok(first.take()),
            Rows::Lines { input, line, .. } => loop {
                let mut text = Vec::new();
                *line += 1;
                if read_line(input, *line, &mut text)? == 0 {
                    return Ok(None);
                }
                if !text.trim_ascii().is_empty() {
                    return Ok(Some(row(&text, *line)?));
                }
            },
        }
    }
}

/// Appends a line to `text`; returns the length of `text`, which has not grown at the end of the input.
fn read_line(input: &mut impl BufRead, line: usize, text: &mut Vec<u8>) -> Result<usize, Stop> {
    let read = input.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', text)?;
    if read > MAX_LINE_BYTES {
        return Err(Wrong {
            line,
            reason: format!("longer than {MAX_LINE_BYTES} bytes, the limit of a line"),
        }
        .into());
    }
    Ok(text.len())
}

/// Values may be as deep as nodes take; their size is looked at when they stand alone.
fn limits(depth_around: usize) -> JsonLimits {
    JsonLimits { depth: MAX_DEPTH + depth_around, bytes: usize::MAX, items: usize::MAX }
}

/// Reads `{"key": .., "value": ..}`.
fn row(text: &[u8], line: usize) -> Result<Row, Wrong> {
    let wrong = |reason| Wrong { line, reason };
    let json = parse(text.trim_ascii_end(), &limits(1))
        .map_err(|JsonError { kind, column, .. }| wrong(format!("no JSON: {kind}, at column {column}")))?;
    let Json::Object(mut fields) = json else {
        return Err(wrong(format!("{} where {{\"key\":..,\"value\":..}} is expected", json.type_name())));
    };
    let (key, value) = (fields.remove("key"), fields.remove("value"));
    match (key, value, fields.keys().next()) {
        (Some(Json::String(key)), Some(value), None) => Ok(Row { line, key, value }),
        (_, _, Some(other)) => Err(wrong(format!("{} is neither \"key\" nor \"value\"", echo(other)))),
        (Some(Json::String(_)), None, _) => Err(wrong("\"value\" is missing".to_owned())),
        (None, ..) => Err(wrong("\"key\" is missing".to_owned())),
        (Some(other), ..) => Err(wrong(format!("\"key\" is {}; it must be a string", other.type_name()))),
    }
}

/// Reads `{key: value, ..}`; the rows are in the order of the file.
fn object(text: &[u8]) -> Result<Vec<Row>, Wrong> {
    let json = parse(text, &limits(1)).map_err(|JsonError { kind, line, column }| Wrong {
        line,
        reason: format!("no JSON: {kind}, at column {column}"),
    })?;
    let Json::Object(mut entries) = json else {
        let reason = format!(
            "{} where an object {{key: value}} or lines of {{\"key\":..,\"value\":..}} are expected",
            json.type_name()
        );
        return Err(Wrong { line: 1, reason });
    };
    let places = top_level_keys(text);
    let rows = places.into_iter().filter_map(|(line, quoted)| {
        let Ok(Json::String(key)) = parse(quoted, &limits(0)) else { return None }; // it was parsed as a part before
        let value = entries.remove(&key)?;
        Some(Row { line, key, value })
    });
    Ok(rows.collect())
}

/// The keys of the outermost object of a text that is known to be JSON, in quotes, each with its line.
fn top_level_keys(text: &[u8]) -> Vec<(usize, &[u8])> {
    let (mut keys, mut line, mut depth) = (Vec::new(), 1, 0_usize);
    // Inside an object a string is a key when no colon came since the last comma or brace.
    let mut key_next = false;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let end = string_end(text, at);
                if depth == 1 && key_next {
                    keys.push((line, &text[at..end]));
                    key_next = false;
                }
                at = end;
                continue;
            }
            b'\n' => line += 1,
            b'{' | b'[' => {
                depth += 1;
                key_next = depth == 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => key_next = true,
            _ => {}
        }
        at += 1;
    }
    keys
}

/// Behind the quote that ends the string beginning at `start`.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'\\' => at += 1,
            b'"' => break,
            _ => {}
        }
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use tropism_client::v1::Kind;
    use tropism_client::{Register, Value};

    use super::{Row, Rows, Stop};

    /// All rows of a text, or the line and reason of what is wrong.
    fn rows(text: &str) -> Result<Vec<Row>, (usize, String)> {
        let told = |stop| match stop {
            Stop::Wrong(wrong) => (wrong.line, wrong.reason),
            _ => unreachable!("a text in memory can be read"),
        };
        let mut rows = Rows::new(text.as_bytes()).map_err(told)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(told)? {
            all.push(row);
        }
        Ok(all)
    }

    fn keys(text: &str) -> Vec<(usize, String)> {
        rows(text).unwrap().into_iter().map(|row| (row.line, row.key)).collect()
    }

    #[test]
    fn an_object_gives_its_keys_in_the_order_of_the_file_with_their_lines() {
        let text = "\n{\n  \"b\": {\"x\": [\"y\", {\"z\": 1}]},\n  \"a\\n\\\"\": {}, \"key\":\n    {}\n}\n";
        let found = keys(text);
        assert_eq!(found, [(3, "b".to_owned()), (4, "a\n\"".to_owned()), (4, "key".to_owned())]);
    }

    #[test]
    fn lines_give_their_keys_and_blank_lines_count() {
        let text = "\n{\"key\":\"b\",\"value\":{}}\n\n{\"value\":{\"key\":1},\"key\":\"a\"}\n";
        assert_eq!(keys(text), [(2, "b".to_owned()), (4, "a".to_owned())]);
    }

    #[test]
    fn nothing_is_loaded_from_nothing() {
        for text in ["", "\n \n", "{}"] {
            assert_eq!(keys(text), [], "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let row = "{\"key\":\"a\",\"value\":{}}\n";
        for (text, line, part) in [
            ("[1]", 1, "an array"),
            ("{\n\"a\": {},\n\"a\": {}\n}", 3, "given twice"),
            ("{\n\"a\": {\n", 3, "ends where"),
            ("{\"a\": 01}", 1, "no JSON"),
            (&format!("{row}\n{{\"key\":\"b\"}}"), 3, "\"value\" is missing"),
            (&format!("{row}{{\"value\":1}}"), 2, "\"key\" is missing"),
            (&format!("{row}{{\"key\":1,\"value\":1}}"), 2, "must be a string"),
            (&format!("{row}{{\"key\":\"b\",\"value\":1,\"ttl\":1}}"), 2, "\"ttl\""),
            (&format!("{row}{row}nonsense"), 3, "no JSON"),
            (&format!("{row}[]"), 2, "an array"),
            (&format!("{row}{{\"key\":\"b\"\n"), 2, "at column 11"),
        ] {
            let (found, reason) = rows(text).unwrap_err();
            assert!(found == line && reason.contains(part), "{text:?}: line {found}: {reason}");
        }
    }

    #[test]
    fn values_become_what_the_scope_holds() {
        let row = |value: &str| rows(&format!("{{\"key\":\"a\",\"value\":{value}}}")).unwrap().remove(0);
        assert_eq!(
            row("{\"b\": 1, \"a\": 18446744073709551615}").value(Kind::Document).unwrap(),
            Value::Document("{\"a\":18446744073709551615,\"b\":1}".into())
        );
        assert_eq!(
            row("\"page\"").value(Kind::Register).unwrap(),
            Value::Register(Register { content: "page".into(), content_type: "text/plain".to_owned() })
        );
        let wrong = row("\"page\"").value(Kind::Document).unwrap_err();
        assert!(wrong.line == 1 && wrong.reason.contains("a string; a document is an object"), "{wrong:?}");
    }

    #[test]
    fn bad_keys_are_found_before_anything_is_sent() {
        let wrong = rows("{\n\"\": {}}").unwrap()[0].value(Kind::Document).unwrap_err();
        assert_eq!(wrong.line, 2);
    }
}
