//! Strict JSON in, canonical JSON out.
//!
//! What a client sends must mean the same in every region and after every round trip, so the parser takes RFC 8259 and
//! nothing else: no byte order mark, no duplicate keys, no number that would silently become another one. The writer
//! has one form for each value: keys sorted by their bytes, no spaces, as few escapes as the grammar allows, floats in
//! their shortest form that still reads as a float. So `parse(canonical(x)) == x`, and equal values are equal bytes.

mod parse;
mod pointer;
mod splice;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

pub use parse::{JsonError, JsonErrorKind, parse};
pub(crate) use pointer::index;
pub use pointer::{PathPattern, Pointer, PointerError, Segment};
pub(crate) use splice::{entry, spliced};

/// Deepest nesting of arrays and objects: a scalar has depth 0, `[]` has 1. Deep enough for any honest document, shallow
/// enough that a walk fits any stack.
pub const MAX_DEPTH: usize = 64;
/// Largest JSON text in bytes, given or as stored: one value stays a fraction of a 4 MiB message.
pub const MAX_JSON_BYTES: usize = 1 << 20;
/// Most keys of one object or items of one array: what a write may have to compare and a reader to page through.
pub const MAX_ITEMS: usize = 10_000;
/// Most bytes of input that an error repeats, so that logs stay readable.
const MAX_SHOWN_BYTES: usize = 64;

/// A JSON value. Integers and floats are different values: `1` is not `1.0`.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of i64's range; `-0` is read as 0.
    Int(i64),
    /// An integer above `i64::MAX`.
    Uint(u64),
    /// A finite number written with a fraction or an exponent; `-0.0` shows as `0.0`: automerge takes them for one.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object; the keys order by their bytes.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// The value's type as a word for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) => "an integer",
            Self::Float(_) => "a float",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The canonical bytes, see [`write_canonical`].
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_canonical(self, &mut out);
        out
    }
}

/// What a parser accepts. [`Default`] is the limit of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonLimits {
    /// Deepest nesting; values above [`MAX_DEPTH`] count as that.
    pub depth: usize,
    /// Largest text in bytes.
    pub bytes: usize,
    /// Most keys or items of one container.
    pub items: usize,
}

impl Default for JsonLimits {
    fn default() -> Self {
        Self { depth: MAX_DEPTH, bytes: MAX_JSON_BYTES, items: MAX_ITEMS }
    }
}

/// Appends the one canonical form of `value`. Recurses as deep as the value nests, which the parser bounds.
pub fn write_canonical(value: &Json, out: &mut Vec<u8>) {
    match value {
        Json::Null => out.extend_from_slice(b"null"),
        Json::Bool(value) => write_bool(*value, out),
        Json::Int(value) => write_int(*value, out),
        Json::Uint(value) => write_uint(*value, out),
        Json::Float(value) => write_float(*value, out),
        Json::String(value) => write_string(value, out),
        Json::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        Json::Object(entries) => {
            out.push(b'{');
            for (index, (key, item)) in entries.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write_canonical(item, out);
            }
            out.push(b'}');
        }
    }
}

pub(crate) fn write_bool(value: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

pub(crate) fn write_int(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_uint(value.unsigned_abs(), out);
}

pub(crate) fn write_uint(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20]; // u64::MAX has 20
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The shortest decimal that reads back as the same float and as a float. A value that JSON has no word for, which no
/// parser makes, is written as `null`.
pub(crate) fn write_float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        let value = value + 0.0; // -0.0 becomes 0.0: equal values have equal bytes
        out.extend_from_slice(format!("{value:?}").as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Quotes `text`; escapes only what the grammar demands: the quote, the backslash and control characters.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[written..at]);
        written = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            control => out.extend_from_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(control >> 4)],
                HEX[usize::from(control & 15)],
            ]),
        }
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

/// At most [`MAX_SHOWN_BYTES`] of `text`, escaped so that no terminal obeys it.
pub(crate) fn shown(text: &str) -> String {
    let mut end = text.len().min(MAX_SHOWN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let dots = if end < text.len() { "..." } else { "" };
    format!("\"{}\"{dots}", text[..end].escape_default())
}
