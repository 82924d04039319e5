//! The parser: one pass over bytes known to be UTF-8, recursion bounded by [`MAX_DEPTH`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use thiserror::Error;

use super::{Json, JsonLimits, MAX_DEPTH, shown};

/// A text that is not accepted, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("JSON at line {line}, column {column}: {kind}")]
pub struct JsonError {
    /// What is wrong.
    pub kind: JsonErrorKind,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Why a text is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonErrorKind {
    /// The text ends inside a value.
    #[error("ends where {expected} is expected")]
    Truncated {
        /// What the grammar asks for.
        expected: &'static str,
    },
    /// A byte that the grammar does not allow there.
    #[error("{found} where {expected} is expected")]
    Unexpected {
        /// The character, escaped.
        found: String,
        /// What the grammar asks for.
        expected: &'static str,
    },
    /// Something follows the value.
    #[error("{found} behind the end of the value")]
    Trailing {
        /// The character, escaped.
        found: String,
    },
    /// The text starts with a byte order mark.
    #[error("a byte order mark; JSON is UTF-8 without one")]
    ByteOrderMark,
    /// The text is not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// A control character inside a string.
    #[error("control character \\u{{{code:04x}}} in a string; it must be escaped")]
    ControlCharacter {
        /// The character.
        code: u8,
    },
    /// A backslash followed by something else than the grammar's escapes.
    #[error("an escape that JSON does not have")]
    BadEscape,
    /// Half of a surrogate pair.
    #[error("an escape of half a surrogate pair, which is no character")]
    LoneSurrogate,
    /// An integer beyond i64 and u64, or a float beyond f64.
    #[error("number {shown} is out of range; integers are exact in i64 and u64, floats finite in f64")]
    NumberOutOfRange {
        /// The number's start.
        shown: String,
    },
    /// A key given twice in one object.
    #[error("key {shown} is given twice in one object")]
    DuplicateKey {
        /// The key's start, escaped.
        shown: String,
    },
    /// Arrays and objects nest too deep.
    #[error("nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The text is too long.
    #[error("{size} bytes; at most {limit} are accepted: split the value over several keys")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A container has too many entries.
    #[error("more than {limit} keys or items in one container: split it over several keys")]
    TooManyItems {
        /// The limit.
        limit: usize,
    },
}

impl JsonErrorKind {
    /// A word for machines that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::Unexpected { .. } => "syntax",
            Self::Trailing { .. } => "trailing_bytes",
            Self::ByteOrderMark => "byte_order_mark",
            Self::NotUtf8 => "not_utf8",
            Self::ControlCharacter { .. } => "control_character",
            Self::BadEscape => "bad_escape",
            Self::LoneSurrogate => "lone_surrogate",
            Self::NumberOutOfRange { .. } => "number_out_of_range",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::TooDeep { .. } => "too_deep",
            Self::TooLarge { .. } => "too_large",
            Self::TooManyItems { .. } => "too_many_items",
        }
    }

    /// Whether the text may be fine and only exceeds what is taken at once.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::TooManyItems { .. })
    }
}

/// Reads one JSON value that is the whole of `bytes`.
///
/// # Errors
/// Everything that RFC 8259 does not allow, everything it leaves open (duplicate keys, numbers that cannot be kept
/// exactly, lone surrogates) and everything above `limits`. A float too small for f64 becomes 0.0, the nearest one.
pub fn parse(bytes: &[u8], limits: &JsonLimits) -> Result<Json, JsonError> {
    let refuse = |kind, at| Err(locate(bytes, kind, at));
    if bytes.len() > limits.bytes {
        return refuse(JsonErrorKind::TooLarge { size: bytes.len(), limit: limits.bytes }, 0);
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return refuse(JsonErrorKind::ByteOrderMark, 0);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return refuse(JsonErrorKind::NotUtf8, error.valid_up_to()),
    };
    let mut parser = Parser { text, bytes, at: 0, depth_left: limits.depth.min(MAX_DEPTH), limits: *limits };
    parser.document().or_else(|kind| refuse(kind, parser.at))
}

fn locate(bytes: &[u8], kind: JsonErrorKind, at: usize) -> JsonError {
    let before = &bytes[..at.min(bytes.len())];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    JsonError {
        kind,
        line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count(),
    }
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    /// Where reading stands, and where an error is reported.
    at: usize,
    depth_left: usize,
    limits: JsonLimits,
}

type Parsed<T> = Result<T, JsonErrorKind>;

impl Parser<'_> {
    fn document(&mut self) -> Parsed<Json> {
        self.skip_space();
        let value = self.value()?;
        self.skip_space();
        match self.peek() {
            None => Ok(value),
            Some(_) => Err(JsonErrorKind::Trailing { found: self.found() }),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn found(&self) -> String {
        // `at` stands behind whole characters; if it ever did not, the message loses the character and nothing else.
        let next = self.text.get(self.at..).and_then(|rest| rest.chars().next());
        next.map_or_else(String::new, |character| format!("'{}'", character.escape_default()))
    }

    fn unexpected<T>(&self, expected: &'static str) -> Parsed<T> {
        Err(match self.peek() {
            None => JsonErrorKind::Truncated { expected },
            Some(_) => JsonErrorKind::Unexpected { found: self.found(), expected },
        })
    }

    fn value(&mut self) -> Parsed<Json> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => self.unexpected("a value"),
        }
    }

    fn word(&mut self, word: &'static str, value: Json) -> Parsed<Json> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return self.unexpected(word);
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn nested(&mut self, container: fn(&mut Self) -> Parsed<Json>) -> Parsed<Json> {
        if self.depth_left == 0 {
            return Err(JsonErrorKind::TooDeep { limit: self.limits.depth.min(MAX_DEPTH) });
        }
        self.depth_left -= 1;
        self.at += 1; // the bracket
        self.skip_space();
        let value = container(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn array(&mut self) -> Parsed<Json> {
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            self.check_count(items.len())?;
            items.push(self.value()?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return self.unexpected("',' or ']'"),
            }
            self.skip_space();
        }
        self.at += 1;
        Ok(Json::Array(items))
    }

    fn object(&mut self) -> Parsed<Json> {
        let mut entries = BTreeMap::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(entries));
        }
        loop {
            self.check_count(entries.len())?;
            if self.peek() != Some(b'"') {
                return self.unexpected("a key in double quotes");
            }
            let key_at = self.at;
            let slot = match entries.entry(self.string()?) {
                Entry::Vacant(slot) => slot,
                Entry::Occupied(slot) => {
                    self.at = key_at;
                    return Err(JsonErrorKind::DuplicateKey { shown: shown(slot.key()) });
                }
            };
            self.skip_space();
            if self.peek() != Some(b':') {
                return self.unexpected("':'");
            }
            self.at += 1;
            self.skip_space();
            slot.insert(self.value()?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return self.unexpected("',' or '}'"),
            }
            self.skip_space();
        }
        self.at += 1;
        Ok(Json::Object(entries))
    }

    fn check_count(&self, count: usize) -> Parsed<()> {
        if count < self.limits.items {
            return Ok(());
        }
        Err(JsonErrorKind::TooManyItems { limit: self.limits.items })
    }

    fn number(&mut self) -> Parsed<Json> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.skip_digits(),
            _ => return self.unexpected("a digit"),
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            integer = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        let value = if !integer {
            text.parse().ok().filter(|value: &f64| value.is_finite()).map(Json::Float)
        } else {
            text.parse().map(Json::Int).or_else(|_| text.parse().map(Json::Uint)).ok()
        };
        value.ok_or_else(|| {
            let shown = shown(text);
            self.at = start;
            JsonErrorKind::NumberOutOfRange { shown }
        })
    }

    fn digits(&mut self) -> Parsed<()> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.unexpected("a digit");
        }
        self.skip_digits();
        Ok(())
    }

    fn skip_digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Parsed<String> {
        self.at += 1; // the quote
        let mut text = String::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            text.push_str(&self.text[start..self.at]); // between ASCII bytes: whole characters
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(code) => return Err(JsonErrorKind::ControlCharacter { code }),
                None => return self.unexpected("the end of a string"),
            }
        }
    }

    fn escape(&mut self) -> Parsed<char> {
        let start = self.at;
        let Some(&letter) = self.bytes.get(start + 1) else {
            self.at += 1;
            return self.unexpected("an escape");
        };
        self.at += 2;
        let refuse = |parser: &mut Self, kind| {
            parser.at = start;
            Err(kind)
        };
        let unit = match letter {
            b'"' | b'\\' | b'/' => return Ok(char::from(letter)),
            b'b' => return Ok('\u{8}'),
            b'f' => return Ok('\u{c}'),
            b'n' => return Ok('\n'),
            b'r' => return Ok('\r'),
            b't' => return Ok('\t'),
            b'u' => self.hex_unit()?,
            _ => return refuse(self, JsonErrorKind::BadEscape),
        };
        let code = match unit {
            0xd800..=0xdbff if self.bytes[self.at..].starts_with(b"\\u") => {
                self.at += 2;
                match self.hex_unit()? {
                    low @ 0xdc00..=0xdfff => 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00),
                    _ => return refuse(self, JsonErrorKind::LoneSurrogate),
                }
            }
            unit => unit,
        };
        char::from_u32(code).map_or_else(|| refuse(self, JsonErrorKind::LoneSurrogate), Ok)
    }

    fn hex_unit(&mut self) -> Parsed<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else {
                return self.unexpected("four hexadecimal digits");
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}
