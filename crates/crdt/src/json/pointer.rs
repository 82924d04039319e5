//! JSON Pointers (RFC 6901) name one place in a document; patterns name places in policies.

use std::fmt;

use thiserror::Error;

use super::{MAX_DEPTH, MAX_JSON_BYTES, shown};

/// Longest pointer in bytes: a pointer is a short text; keys of a path as long as a whole document are no use.
const MAX_POINTER_BYTES: usize = 16 << 10;
const _: () = assert!(MAX_POINTER_BYTES < MAX_JSON_BYTES);

/// A text that is no pointer, or one that does not fit the place it is used at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pointer {shown} at byte {offset}: {problem}")]
pub struct PointerError {
    /// The pointer's start, escaped.
    pub shown: String,
    /// Where, in bytes from 0.
    pub offset: usize,
    /// What is wrong.
    pub problem: &'static str,
}

/// A place in a document: keys and indices from the root. The empty pointer is the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pointer {
    segments: Vec<String>,
}

/// One step on the way from the root to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Into an object.
    Key(&'a str),
    /// Into an array.
    Index(usize),
}

impl Pointer {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads a pointer: empty, or `/` and a segment, again and again; `~0` is `~` and `~1` is `/`.
    ///
    /// # Errors
    /// No leading slash, an escape that does not exist, more than [`MAX_DEPTH`] segments, too many bytes.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let segments = split(text)?;
        let mut unescaped = Vec::with_capacity(segments.len());
        for (offset, segment) in segments {
            unescaped.push(unescape(text, offset, segment)?);
        }
        Ok(Self { segments: unescaped })
    }

    /// The segments, unescaped.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.segments.is_empty()
    }

    /// The place of the container and the last segment; `None` for the root.
    pub fn split_last(&self) -> Option<(&str, &[String])> {
        self.segments.split_last().map(|(last, parent)| (last.as_str(), parent))
    }

    /// Whether `other` is this place or inside it.
    pub fn contains(&self, other: &Self) -> bool {
        other.segments.starts_with(&self.segments)
    }

    /// This place with one more segment.
    #[must_use]
    pub fn child(&self, segment: &str) -> Self {
        let mut segments = self.segments.clone();
        segments.push(segment.to_owned());
        Self { segments }
    }

    /// The error that `problem` makes at the segment with this index.
    pub(crate) fn error_at(&self, segment: usize, problem: &'static str) -> PointerError {
        let text = self.to_string();
        let offset = text.match_indices('/').nth(segment).map_or(text.len(), |(at, _)| at);
        PointerError { shown: shown(&text), offset, problem }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{}", segment.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

/// Reads a segment as an index of an array: digits without leading zeros. The error is the problem in words.
pub(crate) fn index(segment: &str) -> Result<usize, &'static str> {
    if segment.is_empty() || !segment.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("not an index; an array is indexed by digits");
    }
    if segment.len() > 1 && segment.starts_with('0') {
        return Err("an index with a leading zero");
    }
    segment.parse().map_err(|_| "an index beyond 64 bits")
}

/// Places in a document: a pointer in which the segment `*` stands for any key or index. A key that is a lone star
/// cannot be named alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPattern {
    segments: Vec<Option<String>>,
}

impl PathPattern {
    /// Reads a pattern such as `/items/*/n`.
    ///
    /// # Errors
    /// As for [`Pointer::parse`], and the empty pattern, which would name the root.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let pointer = Pointer::parse(text)?;
        if pointer.is_root() {
            return Err(pointer.error_at(0, "a pattern names a place below the root"));
        }
        let wildcard = |segment: String| (segment != "*").then_some(segment);
        Ok(Self { segments: pointer.segments.into_iter().map(wildcard).collect() })
    }

    /// Whether it names the place at `path`.
    pub fn matches(&self, path: &[Segment<'_>]) -> bool {
        self.segments.len() == path.len()
            && self.segments.iter().zip(path).all(|(pattern, segment)| match (pattern, segment) {
                (None, _) => true,
                (Some(pattern), Segment::Key(key)) => pattern == key,
                (Some(pattern), Segment::Index(at)) => index(pattern) == Ok(*at),
            })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                None => f.write_str("/*")?,
                Some(segment) => write!(f, "/{}", segment.replace('~', "~0").replace('/', "~1"))?,
            }
        }
        Ok(())
    }
}

/// The segments, still escaped, each with the offset of its first byte.
fn split(text: &str) -> Result<Vec<(usize, &str)>, PointerError> {
    let refuse = |offset, problem| Err(PointerError { shown: shown(text), offset, problem });
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > MAX_POINTER_BYTES {
        return refuse(MAX_POINTER_BYTES, "longer than 16384 bytes");
    }
    let Some(rest) = text.strip_prefix('/') else {
        return refuse(0, "a pointer is empty or starts with a slash");
    };
    let mut segments = Vec::new();
    let mut offset = 1;
    for segment in rest.split('/') {
        if segments.len() == MAX_DEPTH {
            return refuse(offset, "more than 64 segments; no document is deeper");
        }
        segments.push((offset, segment));
        offset += segment.len() + 1;
    }
    Ok(segments)
}

fn unescape(text: &str, offset: usize, segment: &str) -> Result<String, PointerError> {
    let mut plain = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((before, after)) = rest.split_once('~') {
        plain.push_str(before);
        rest = if let Some(after) = after.strip_prefix('0') {
            plain.push('~');
            after
        } else if let Some(after) = after.strip_prefix('1') {
            plain.push('/');
            after
        } else {
            let offset = offset + segment.len() - after.len() - 1;
            return Err(PointerError { shown: shown(text), offset, problem: "~ is escaped as ~0, / as ~1" });
        };
    }
    plain.push_str(rest);
    Ok(plain)
}
