//! `patch`, and the small language of its operations.

use bytes::Bytes;
use tropism_client::v1::{PatchOperation, TextSplice, patch_operation::Action};
use tropism_client::{Expiry, Patch as Edit, Precondition, PutOptions};
use tropism_crdt::json::{Json, JsonLimits, Pointer, parse};
use tropism_wire::error::echo;

use super::keys::{bytes, tell};
use super::read_value;
use crate::args::{Patch, Place};
use crate::output::{Failure, Output};
use crate::target::connect;

/// The operations and what each takes.
const KNOWN: &str = "set PATH JSON, inc PATH N, remove PATH, insert PATH JSON, append PATH JSON, test PATH JSON, \
                     move FROM TO, copy FROM TO, splice PATH INDEX DELETE TEXT";

/// `patch`: all of it or nothing.
pub(super) async fn patch(args: Patch, out: &mut Output) -> Result<(), Failure> {
    let edit = match (&args.json_patch, &args.merge_patch) {
        (Some(file), _) => Edit::Json(read_value(file)?.into()),
        (None, Some(file)) => Edit::Merge(read_value(file)?.into()),
        (None, None) => Edit::Operations(args.op),
    };
    let options = PutOptions {
        base_version: args.base.map(bytes).unwrap_or_default(),
        precondition: args
            .if_version
            .map_or(Precondition::None, |version| Precondition::Version(bytes(version))),
        expiry: args.ttl.map(Expiry::After),
    };
    let client = connect(&args.connection).await?.with_durability(args.safety.durability);
    let Place { scope, key } = &args.place;
    tell(&client.patch(scope, key, edit, options).await?, args.safety.show_version, out)
}

/// Reads an operation: a word, then a path, then what the word takes.
pub(crate) fn operation(text: &str) -> Result<PatchOperation, String> {
    let (word, rest) = word(text);
    let (first, rest) = path(word, rest)?;
    let action = match word {
        "set" => Action::Set(value(word, rest)?),
        "insert" => Action::Insert(value(word, rest)?),
        "append" => Action::Append(value(word, rest)?),
        "test" => Action::Test(value(word, rest)?),
        "inc" => Action::Increment(number(word, rest, "N, a whole number of 64 bits")?),
        "remove" if rest.is_empty() => Action::Remove(true),
        "remove" => return Err(format!("remove takes a path and nothing else, not {}", echo(rest))),
        "move" | "copy" => {
            let (to, rest) = path(word, rest)?;
            if !rest.is_empty() {
                return Err(format!("{word} takes two paths and nothing else, not {}", echo(rest)));
            }
            let action = if word == "move" { Action::MoveFrom(first) } else { Action::CopyFrom(first) };
            return Ok(PatchOperation { path: to, action: Some(action) });
        }
        "splice" => {
            let (index, rest) = self::word(rest);
            let (delete, insert) = self::word(rest);
            Action::SpliceText(TextSplice {
                index: number(word, index, "INDEX, a whole number from 0")?,
                delete: number(word, delete, "DELETE, a whole number from 0")?,
                insert: inserted(insert)?,
            })
        }
        _ => return Err(unknown(word)),
    };
    Ok(PatchOperation { path: first, action: Some(action) })
}

/// The first word, and what comes behind one space.
fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// A path, and what comes behind it. One with spaces, and that of the root, stands in quotes, as a string of JSON.
fn path<'t>(operation: &str, text: &'t str) -> Result<(String, &'t str), String> {
    if text.is_empty() {
        let known = KNOWN.split(", ").any(|usage| word(usage).0 == operation);
        let missing =
            format!("{operation} takes a path; the operations are {KNOWN}; the path of the root is \"\"");
        return Err(if known { missing } else { unknown(operation) });
    }
    let (path, rest) = match string_end(text) {
        Some(end) => match parse(&text.as_bytes()[..end], &JsonLimits::default()) {
            Ok(Json::String(path)) => (path, text[end..].strip_prefix(' ').unwrap_or(&text[end..])),
            _ => return Err(format!("path {} is no string of JSON", echo(text))),
        },
        None => {
            let (path, rest) = word(text);
            (path.to_owned(), rest)
        }
    };
    Pointer::parse(&path).map_err(|error| format!("path {}: {error}", echo(&path)))?;
    Ok((path, rest))
}

/// Where the string that `text` begins with ends, quotes included; none if it begins with something else.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if at == 0 && byte != b'"' => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if at > 0 => return Some(at + 1),
            _ => {}
        }
    }
    (!text.is_empty()).then_some(text.len()) // not closed: no string either, which the parser says
}

fn value(operation: &str, text: &str) -> Result<Bytes, String> {
    match parse(text.as_bytes(), &JsonLimits::default()) {
        Ok(_) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Err(error) => Err(format!(
            "{operation} takes a path and a value in JSON, not {} ({error}); texts stand in quotes: set /note \"hello\"",
            echo(text)
        )),
    }
}

fn number<N: std::str::FromStr>(operation: &str, text: &str, what: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{operation} takes {what}, not {}", echo(text)))
}

/// What a splice inserts: the rest as it is, or a string of JSON.
fn inserted(text: &str) -> Result<String, String> {
    if !text.starts_with('"') {
        return Ok(text.to_owned());
    }
    match parse(text.as_bytes(), &JsonLimits::default()) {
        Ok(Json::String(text)) => Ok(text),
        _ => Err(format!("splice: {} begins with a quote but is no string of JSON", echo(text))),
    }
}

fn unknown(operation: &str) -> String {
    format!("{} is no operation; there are {KNOWN}", echo(operation))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use bytes::Bytes;
    use tropism_client::v1::{TextSplice, patch_operation::Action};

    use super::operation;

    #[test]
    fn operations_mean_what_they_say() {
        let json = |text: &'static str| Bytes::from_static(text.as_bytes());
        let splice = |index, delete, insert: &str| {
            Action::SpliceText(TextSplice { index, delete, insert: insert.to_owned() })
        };
        for (text, path, action) in [
            ("set /note \"hello\"", "/note", Action::Set(json("\"hello\""))),
            ("set /a {\"b\": [1, 2]}", "/a", Action::Set(json("{\"b\": [1, 2]}"))),
            ("set \"\" {}", "", Action::Set(json("{}"))),
            ("set \"/two words\" 1", "/two words", Action::Set(json("1"))),
            ("set \"/a \\\"quote\\\"\" 1", "/a \"quote\"", Action::Set(json("1"))),
            ("inc /items/0/n 1", "/items/0/n", Action::Increment(1)),
            ("inc /n -9223372036854775808", "/n", Action::Increment(i64::MIN)),
            ("remove /a~1b", "/a~1b", Action::Remove(true)),
            ("insert /items/- 3", "/items/-", Action::Insert(json("3"))),
            ("append /items null", "/items", Action::Append(json("null"))),
            ("test /a 1.50", "/a", Action::Test(json("1.50"))),
            ("move /from /to", "/to", Action::MoveFrom("/from".to_owned())),
            ("copy \"/a b\" \"/c d\"", "/c d", Action::CopyFrom("/a b".to_owned())),
            ("splice /text 3 2 two words", "/text", splice(3, 2, "two words")),
            ("splice /text 3 2  indented", "/text", splice(3, 2, " indented")),
            ("splice /text 3 2", "/text", splice(3, 2, "")),
            ("splice /text 0 0 \"a\\nb\"", "/text", splice(0, 0, "a\nb")),
        ] {
            let read = operation(text).unwrap();
            assert_eq!((read.path.as_str(), read.action), (path, Some(action)), "{text}");
        }
    }

    #[test]
    fn bad_operations_are_refused_with_the_part_at_fault() {
        for (text, part) in [
            ("", "is no operation"),
            ("frobnicate /a 1", "\"frobnicate\" is no operation"),
            ("set", "takes a path"),
            ("set note 1", "note"),
            ("set /a~2 1", "/a~2"),
            ("set \"/open 1", "no string of JSON"),
            ("set /note hello", "texts stand in quotes"),
            ("set /note", "value in JSON"),
            ("set /a 18446744073709551616", "out of range"),
            ("inc /n", "whole number"),
            ("inc /n 1.5", "\"1.5\""),
            ("inc /n 9223372036854775808", "64 bits"),
            ("remove /a /b", "nothing else"),
            ("move /a", "takes a path"),
            ("copy /a /b /c", "nothing else"),
            ("splice /text", "INDEX"),
            ("splice /text -1 0 x", "INDEX"),
            ("splice /text 0 many x", "DELETE"),
            ("splice /text 0 0 \"open", "no string of JSON"),
        ] {
            let reason = operation(text).unwrap_err();
            assert!(reason.contains(part), "{text}: {reason}");
        }
    }
}
