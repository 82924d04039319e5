//! One entry of a canonical text replaced without reading the rest of it.

use super::{JsonLimits, index, parse, write_string};
use crate::json::Json;

/// The canonical `text` of a value in which the entry `key` of the object at `path` shows `value` (canonical too), or is
/// gone; a new key takes its place in the order. `None` when that cannot be written: there is no object, or what is to be
/// removed is not there.
pub(crate) fn spliced(text: &[u8], path: &[String], key: &str, value: Option<&[u8]>) -> Option<Vec<u8>> {
    let at = object(text, path)?;
    let mut out = Vec::with_capacity(text.len() + key.len() + value.map_or(0, <[u8]>::len) + 4);
    match (find(text, at, key)?, value) {
        (Found::Entry { value: start, end, .. }, Some(value)) => {
            out.extend_from_slice(&text[..start]);
            out.extend_from_slice(value);
            out.extend_from_slice(&text[end..]);
        }
        (Found::Entry { key: mut start, mut end, .. }, None) => {
            // One comma goes with it, the one behind if there is one.
            if text.get(end) == Some(&b',') {
                end += 1;
            } else if text.get(start.checked_sub(1)?) == Some(&b',') {
                start -= 1;
            }
            out.extend_from_slice(&text[..start]);
            out.extend_from_slice(&text[end..]);
        }
        (Found::Gap(place), Some(value)) => {
            let (before, behind) = (text.get(place.checked_sub(1)?)?, text.get(place)?);
            out.extend_from_slice(&text[..place]);
            if *behind == b'}' && *before != b'{' {
                out.push(b',');
            }
            write_string(key, &mut out);
            out.push(b':');
            out.extend_from_slice(value);
            if *behind != b'}' {
                out.push(b',');
            }
            out.extend_from_slice(&text[place..]);
        }
        (Found::Gap(_), None) => return None,
    }
    Some(out)
}

/// The text of the entry `key` of the object at `path` in a canonical text; `None` when there is none.
pub(crate) fn entry<'t>(text: &'t [u8], path: &[String], key: &str) -> Option<&'t [u8]> {
    match find(text, object(text, path)?, key)? {
        Found::Entry { value, end, .. } => text.get(value..end),
        Found::Gap(_) => None,
    }
}

/// Where the object at `path` begins.
fn object(text: &[u8], path: &[String]) -> Option<usize> {
    let mut at = 0;
    for segment in path {
        at = match text.get(at)? {
            b'{' => match find(text, at, segment)? {
                Found::Entry { value, .. } => value,
                Found::Gap(_) => return None,
            },
            b'[' => item(text, at, index(segment).ok()?)?,
            _ => return None,
        };
    }
    (text.get(at) == Some(&b'{')).then_some(at)
}

enum Found {
    /// Where the key, its value and what follows begin.
    Entry { key: usize, value: usize, end: usize },
    /// Where the key would stand: at another key or the end of the object.
    Gap(usize),
}

/// Looks for a key in the object that begins at `at`.
fn find(text: &[u8], at: usize, key: &str) -> Option<Found> {
    let mut at = at + 1;
    if text.get(at)? == &b'}' {
        return Some(Found::Gap(at));
    }
    loop {
        let value = string_end(text, at)? + 1; // behind the colon
        let order = match text.get(at + 1..value - 2)? {
            plain if !plain.contains(&b'\\') => plain.cmp(key.as_bytes()),
            _ => match parse(&text[at..value - 1], &JsonLimits::default()) {
                Ok(Json::String(unescaped)) => unescaped.as_str().cmp(key),
                _ => return None,
            },
        };
        if order.is_gt() {
            return Some(Found::Gap(at));
        }
        let end = value_end(text, value)?;
        if order.is_eq() {
            return Some(Found::Entry { key: at, value, end });
        }
        match text.get(end)? {
            b',' => at = end + 1,
            _ => return Some(Found::Gap(end)),
        }
    }
}

/// Where an item of the array that begins at `at` begins.
fn item(text: &[u8], at: usize, index: usize) -> Option<usize> {
    let mut at = at + 1;
    if text.get(at)? == &b']' {
        return None;
    }
    for _ in 0..index {
        at = value_end(text, at)?;
        if text.get(at)? != &b',' {
            return None;
        }
        at += 1;
    }
    Some(at)
}

/// Behind the string that begins at `at`.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Behind the value that begins at `at`.
fn value_end(text: &[u8], mut at: usize) -> Option<usize> {
    let mut open = 0_usize;
    loop {
        at = match text.get(at)? {
            b'"' => string_end(text, at)?,
            b'{' | b'[' => {
                open += 1;
                at + 1
            }
            b'}' | b']' => {
                open = open.checked_sub(1)?;
                at + 1
            }
            b',' | b':' => at + 1,
            _ => {
                let rest = &text[at..];
                at + rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(rest.len())
            }
        };
        if open == 0 {
            return Some(at);
        }
    }
}
