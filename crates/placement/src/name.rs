//! The names people choose: scopes, regions, keys.
//!
//! One normal form each, compared as bytes: no case folding, no Unicode normalisation, no escapes, so that two names
//! are the same exactly if they look the same in a hex dump.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Longest scope name in bytes: names are directory data and travel in every change, so they stay small.
pub const MAX_SCOPE_NAME_BYTES: usize = 128;
/// Longest region name in bytes: it appears in metric labels and in every answer.
pub const MAX_REGION_NAME_BYTES: usize = 32;
/// Longest key in bytes: it is part of every store key, and the engine takes far less than 64 KiB.
pub const MAX_KEY_BYTES: usize = 512;
/// Bytes of a refused input that an error repeats: enough to recognise it, too few to flood a log.
const ECHO_BYTES: usize = 64;

const SCOPE_GRAMMAR: &str =
    "a scope name is segments [a-z0-9][a-z0-9._-]* joined by `/`; segments starting with `_` are reserved";
const LABEL_GRAMMAR: &str = "allowed is [a-z0-9][a-z0-9-]*";
const KEY_GRAMMAR: &str = "a key is any UTF-8 text without the control characters U+0000..U+001F and U+007F";

/// A text that is no valid name. The caller corrects the text; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// There is no text at all.
    #[error("{what} is empty; it must have 1 to {limit} bytes")]
    Empty {
        /// What was being named.
        what: &'static str,
        /// Longest allowed, in bytes.
        limit: usize,
    },
    /// The text is longer than the limit.
    #[error("{what} \"{shown}\" has {length} bytes; the limit is {limit}")]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// The beginning of the text, escaped.
        shown: String,
        /// Its length in bytes.
        length: usize,
        /// Longest allowed, in bytes.
        limit: usize,
    },
    /// The text breaks the grammar.
    #[error("{what} \"{shown}\": {problem} at byte {offset}; {grammar}")]
    Malformed {
        /// What was being named.
        what: &'static str,
        /// The beginning of the text, escaped.
        shown: String,
        /// What is wrong.
        problem: String,
        /// Where, in bytes from the beginning.
        offset: usize,
        /// What is allowed.
        grammar: &'static str,
    },
}

/// The name of a scope: segments `[a-z0-9][a-z0-9._-]*` joined by `/`, at most [`MAX_SCOPE_NAME_BYTES`]. Ordered by
/// segment, so that a scope and everything below it are neighbours (`a`, `a/b`, `a-b`). Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ScopeName(Arc<str>);

impl ScopeName {
    /// Checks and takes a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        const WHAT: &str = "scope name";
        check_length(WHAT, text, MAX_SCOPE_NAME_BYTES)?;
        let mut start = 0;
        for segment in text.split('/') {
            check_word(segment, ScopeName::segment_char)
                .map_err(|(offset, problem)| malformed(WHAT, text, problem, start + offset, SCOPE_GRAMMAR))?;
            start += segment.len() + 1;
        }
        Ok(Self(text.into()))
    }

    /// Whether a segment may contain this character (the first must also be a letter or a digit).
    pub(crate) fn segment_char(c: char) -> bool {
        matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its segments, at least one.
    pub fn segments(&self) -> std::str::Split<'_, char> {
        self.0.split('/')
    }

    /// Whether this name is `prefix` or lies below it, by segment: `team10` does not start with `team1`.
    pub fn starts_with(&self, prefix: &ScopeName) -> bool {
        self.0.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Ord for ScopeName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.segments().cmp(other.segments())
    }
}

impl PartialOrd for ScopeName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The name of a region: `[a-z0-9][a-z0-9-]*`, at most [`MAX_REGION_NAME_BYTES`]. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName(Arc<str>);

impl RegionName {
    /// Checks and takes a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_label("region name", text, MAX_REGION_NAME_BYTES)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ScopeName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl FromStr for RegionName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a key: 1 to [`MAX_KEY_BYTES`] bytes of UTF-8 without the control characters U+0000..U+001F and U+007F,
/// which break terminals and logs.
pub fn check_key(key: &str) -> Result<(), NameError> {
    const WHAT: &str = "key";
    check_length(WHAT, key, MAX_KEY_BYTES)?;
    match key.char_indices().find(|(_, c)| c.is_ascii_control()) {
        Some((offset, c)) => Err(malformed(WHAT, key, not_allowed(c), offset, KEY_GRAMMAR)),
        None => Ok(()),
    }
}

/// Checks a short name `[a-z0-9][a-z0-9-]*` of at most `limit` bytes: regions, places, nodes, rules.
pub(crate) fn check_label(what: &'static str, text: &str, limit: usize) -> Result<(), NameError> {
    check_length(what, text, limit)?;
    check_word(text, |c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
        .map_err(|(offset, problem)| malformed(what, text, problem, offset, LABEL_GRAMMAR))
}

/// The beginning of an untrusted text, escaped for errors and logs.
pub(crate) fn echo(text: &str) -> String {
    let mut end = text.len().min(ECHO_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1; // ends at 0, which is always a boundary
    }
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text[..end].escape_debug())
}

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty { what, limit }),
        length if length > limit => Err(NameError::TooLong { what, shown: echo(text), length, limit }),
        _ => Ok(()),
    }
}

/// Checks one word: not empty, every character allowed, the first a letter or digit. Says where it fails and why.
fn check_word(word: &str, allowed: impl Fn(char) -> bool) -> Result<(), (usize, String)> {
    if word.is_empty() {
        return Err((0, "an empty segment".to_owned()));
    }
    for (offset, c) in word.char_indices() {
        if !allowed(c) {
            return Err((offset, not_allowed(c)));
        }
        if offset == 0 && !c.is_ascii_alphanumeric() {
            return Err((0, format!("'{c}' cannot come first")));
        }
    }
    Ok(())
}

fn not_allowed(c: char) -> String {
    format!("{c:?} is not allowed")
}

fn malformed(
    what: &'static str,
    text: &str,
    problem: String,
    offset: usize,
    grammar: &'static str,
) -> NameError {
    NameError::Malformed { what, shown: echo(text), problem, offset, grammar }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::{NameError, RegionName, ScopeName, check_key, echo};

    #[test]
    fn malformed_scope_names_are_refused_at_the_byte_that_is_wrong() {
        for (text, at) in [
            (".", 0),
            ("..", 0),
            ("/a", 0),
            ("a/", 2),
            ("a//b", 2),
            ("a/../b", 2),
            ("%2e%2e", 0),
            ("A", 0),
            ("a/B", 2),
            ("_sys/directory", 0),
            ("a/_sys", 2),
            ("-a", 0),
            ("caf\u{e9}", 3),
            ("cafe\u{301}", 4),
            ("a b", 1),
            ("a\0", 1),
            ("a\\b", 1),
        ] {
            match ScopeName::new(text) {
                Err(NameError::Malformed { offset, .. }) => assert_eq!(offset, at, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn lengths_are_limited_in_bytes_and_the_limit_is_named() {
        assert!(ScopeName::new(&"a".repeat(128)).is_ok());
        assert!(RegionName::new(&"a".repeat(32)).is_ok());
        assert!(check_key(&"\u{e9}".repeat(256)).is_ok());
        for (error, limit) in [
            (ScopeName::new(&"a".repeat(129)).unwrap_err(), "129 bytes; the limit is 128"),
            (RegionName::new(&"a".repeat(33)).unwrap_err(), "33 bytes; the limit is 32"),
            (check_key(&"a".repeat(513)).unwrap_err(), "513 bytes; the limit is 512"),
            (check_key(&"a".repeat(1 << 20)).unwrap_err(), "1048576 bytes; the limit is 512"),
            (check_key("").unwrap_err(), "key is empty; it must have 1 to 512 bytes"),
            (ScopeName::new("").unwrap_err(), "scope name is empty; it must have 1 to 128 bytes"),
            (RegionName::new("").unwrap_err(), "region name is empty; it must have 1 to 32 bytes"),
        ] {
            let message = error.to_string();
            assert!(message.contains(limit) && message.len() < 200, "{message}");
        }
    }

    #[test]
    fn region_names_have_no_dots_underscores_slashes_or_capitals() {
        assert!(RegionName::new("eu-west-1").is_ok());
        for text in ["eu.west", "eu_west", "eu/west", "Eu", "-eu", "\u{e9}u"] {
            assert!(RegionName::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_may_be_anything_but_control_characters() {
        for key in ["a", " ", "a/b", "\u{1f980}", "\u{85}", "..", "*"] {
            assert!(check_key(key).is_ok(), "{key:?}");
        }
        for key in ["\0", "a\n", "a\tb", "\u{1f}", "\u{7f}", "\u{1b}[2J"] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
        let error = check_key("ab\u{1b}[2J").unwrap_err().to_string();
        assert_eq!(
            error,
            "key \"ab\\u{1b}[2J\": '\\u{1b}' is not allowed at byte 2; a key is any UTF-8 text without the control \
             characters U+0000..U+001F and U+007F"
        );
    }

    #[test]
    fn an_echo_is_at_most_64_bytes_of_input_cut_between_characters() {
        assert_eq!(echo("a\nb"), "a\\nb");
        assert_eq!(echo(&"\u{1f980}".repeat(17)), format!("{}...", "\u{1f980}".repeat(16)));
        assert_eq!(echo(&format!("a{}", "\u{1f980}".repeat(17))), format!("a{}...", "\u{1f980}".repeat(15)));
    }

    #[test]
    fn a_prefix_counts_by_segment() {
        let name = |text: &str| ScopeName::new(text).unwrap();
        assert!(name("team1/a").starts_with(&name("team1")));
        assert!(name("team1").starts_with(&name("team1")));
        assert!(!name("team10").starts_with(&name("team1")));
        assert!(!name("team1").starts_with(&name("team1/a")));
        assert!(name("a/b") < name("a-b"), "what is below a comes before a's siblings");
    }

    fn segment() -> impl Strategy<Value = String> {
        "[a-z0-9][a-z0-9._-]{0,8}"
    }

    proptest! {
        #[test]
        fn a_name_made_of_segments_is_accepted_and_gives_them_back(parts in proptest::collection::vec(segment(), 1..8)) {
            let name = ScopeName::new(&parts.join("/")).unwrap();
            prop_assert_eq!(name.segments().collect::<Vec<_>>(), parts);
            prop_assert_eq!(name.to_string().parse::<ScopeName>().unwrap(), name);
        }

        #[test]
        fn names_order_as_their_segments_do(
            a in proptest::collection::vec(segment(), 1..4),
            b in proptest::collection::vec(segment(), 1..4),
        ) {
            let (left, right) = (ScopeName::new(&a.join("/")).unwrap(), ScopeName::new(&b.join("/")).unwrap());
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left.starts_with(&right), a.starts_with(&b));
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_panic(text in ".{0,200}") {
            if let Ok(name) = ScopeName::new(&text) {
                prop_assert_eq!(name.as_str(), &text);
            }
            if let Err(error) = check_key(&text) {
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
        }
    }
}
