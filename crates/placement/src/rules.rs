//! Policy rules: which scopes are created how, and held where.
//!
//! Rules stand in order and the first whose pattern (and share) matches a scope's name decides; a scope that none
//! matches cannot be created. A list of rules is taken whole or not at all.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::{At, Reader, Table, string, whole};
use crate::name::{MAX_SCOPE_NAME_BYTES, RegionName, ScopeName, check_label, echo};
use crate::placing::Placing;
use crate::scope::{Kind, MAX_SPREAD, first_bytes};

/// Most rules of a policy: finding a name's rule walks them in order.
pub const MAX_RULES: usize = 1024;
/// History of one document, in bytes, beyond which it takes no writes, unless its rule says otherwise. Unit: bytes.
pub const DEFAULT_HISTORY_BYTES: u64 = 8 << 20;
/// The same in changes: loading a document takes time with every one of them.
pub const DEFAULT_HISTORY_CHANGES: u64 = 100_000;
/// Longest expiry: ten years. What shall live longer needs none.
pub const MAX_EXPIRY: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Longest rule name in bytes: it is a metric label.
const MAX_RULE_NAME_BYTES: usize = 32;
/// Most paths in one list of a rule: every value of a put is compared with them.
const MAX_PATHS: usize = 64;
/// Longest path pattern in bytes, like a key.
const MAX_PATH_BYTES: usize = 512;
/// Most segments of a path pattern: documents are not deeper.
const MAX_PATH_SEGMENTS: usize = 64;
/// History budgets that make sense, in bytes: from one small document to what a node can load beside others.
const HISTORY_BYTES: (u64, u64) = (4 << 10, 256 << 20);
/// The same in changes.
const HISTORY_CHANGES: (u64, u64) = (1, 10_000_000);

/// A text that does not say what a rule needs. The caller corrects the text; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct RuleError(pub(crate) String);

/// Which scope names a rule is for: an exact name (`shop/carts`), names with `*` for any run of characters inside a
/// segment (`team-*/carts`), and with `/**` at the end everything *below* (`shop/**` matches `shop/carts`, not `shop`).
/// `**` alone matches every name.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<String>,
    /// Ends with `**`: at least one more segment follows.
    open: bool,
}

impl Pattern {
    /// Whether the pattern matches a name.
    pub fn matches(&self, name: &ScopeName) -> bool {
        self.covers_segments(name.segments(), false)
    }

    /// Whether every name that `other` matches is matched by this pattern too.
    pub fn covers(&self, other: &Pattern) -> bool {
        self.covers_segments(other.segments.iter().map(String::as_str), other.open)
    }

    /// A name is a pattern without stars, so matching is covering.
    fn covers_segments<'a>(&self, mut other: impl Iterator<Item = &'a str>, other_open: bool) -> bool {
        let head = self.segments.iter().all(|mine| other.next().is_some_and(|theirs| glob(mine, theirs)));
        let more = other.next().is_some() || other_open;
        head && more == self.open
    }
}

impl FromStr for Pattern {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let refuse = |problem: &str| Err(RuleError(format!("pattern \"{}\": {problem}", echo(text))));
        if text.is_empty() || text.len() > MAX_SCOPE_NAME_BYTES {
            return refuse(&format!("has {} bytes; it must have 1 to {MAX_SCOPE_NAME_BYTES}", text.len()));
        }
        let mut segments: Vec<String> = text.split('/').map(str::to_owned).collect();
        let open = segments.pop_if(|last| last == "**").is_some();
        for segment in &segments {
            if segment.contains("**") {
                return refuse("`**` must be the whole last segment");
            }
            if !segment.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '*')
                || !segment.chars().all(|c| ScopeName::segment_char(c) || c == '*')
            {
                return refuse("segments are [a-z0-9*][a-z0-9._*-]* joined by `/`");
            }
        }
        Ok(Self { segments, open })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = self.open.then_some("**");
        let parts: Vec<&str> = self.segments.iter().map(String::as_str).chain(tail).collect();
        f.pad(&parts.join("/"))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether `pattern`, with `*` for any run of characters, matches `text`. A star in `text` is a character that only a
/// star matches, which makes this the test for covering as well. At most |pattern| * |text| steps.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry = None; // after the last star: where to go on in pattern, and up to where the star has eaten text
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, eaten)) = retry {
            (p, t) = (after, eaten + 1);
            retry = Some((p, t));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A part of all names by hash, written `0..25%`: the names whose point, `h * 100 / 2^64` with `h` the first 8 bytes
/// (BE) of SHA-256 of `"tropism share v1" 0x00 name`, lies in the range, the end excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    start: u8,
    end: u8,
}

impl Share {
    /// Whether a name belongs to the share.
    pub fn contains(self, name: &ScopeName) -> bool {
        let hash = Sha256::new_with_prefix(b"tropism share v1\0").chain_update(name.as_str());
        let point = (u128::from(u64::from_be_bytes(first_bytes(hash))) * 100) >> 64;
        (u128::from(self.start)..u128::from(self.end)).contains(&point)
    }

    fn covers(self, other: Share) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl FromStr for Share {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let range = text.strip_suffix('%').and_then(|range| range.split_once(".."));
        match range.and_then(|(start, end)| Some((decimal(start)?, decimal(end)?))) {
            Some((start, end)) if start < end && end <= 100 => Ok(Self { start, end }),
            _ => Err(RuleError(format!(
                "share \"{}\" must be like \"0..25%\": whole percents from 0 to 100, the first below the second",
                echo(text)
            ))),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}%", self.start, self.end)
    }
}

/// What must have a write on disk before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// This node.
    Local,
    /// The write quorum of owners in this region.
    Region,
    /// That in this many regions, this one included; at least 1.
    Regions(u16),
}

impl FromStr for Durability {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "local" => return Ok(Self::Local),
            "region" => return Ok(Self::Region),
            _ => {}
        }
        match text.strip_prefix("regions:").and_then(decimal) {
            Some(count) if count >= 1 => Ok(Self::Regions(count)),
            _ => Err(RuleError(format!(
                "\"{}\" is no durability; allowed are local, region, regions:K with K at least 1",
                echo(text)
            ))),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Region => f.write_str("region"),
            Self::Regions(count) => write!(f, "regions:{count}"),
        }
    }
}

/// How the values of a scope are kept. May change while the scope lives, unlike its kind and spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What an acknowledged write has survived, unless the request says otherwise.
    pub durability: Durability,
    /// How long after its last write a key is visible; None: for ever.
    pub expiry: Option<Duration>,
    /// Where a document's strings merge by character: JSON Pointers in which a segment `*` stands for any one.
    pub text: Vec<String>,
    /// Where a document's integers are counters, likewise. No path can match both lists.
    pub counters: Vec<String>,
    /// Bytes of history beyond which a document takes no writes.
    pub history_bytes: u64,
    /// Changes in a document's history beyond which it takes no writes.
    pub history_changes: u64,
}

impl Default for Policy {
    /// What a rule that says nothing gives.
    fn default() -> Self {
        Self {
            durability: Durability::Region,
            expiry: None,
            text: Vec::new(),
            counters: Vec::new(),
            history_bytes: DEFAULT_HISTORY_BYTES,
            history_changes: DEFAULT_HISTORY_CHANGES,
        }
    }
}

/// One rule: the scopes it is for and what it gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique in the policy: `[a-z0-9][a-z0-9-]*`, at most 32 bytes.
    pub name: Arc<str>,
    /// The names it matches.
    pub pattern: Pattern,
    /// Of these, only this share; None: all.
    pub share: Option<Share>,
    /// What the values are.
    pub kind: Kind,
    /// Number of shards, 1 to [`MAX_SPREAD`].
    pub spread: u16,
    /// The regions that hold the scopes, at least one; the first is the steward's.
    pub regions: Vec<RegionName>,
    /// How the values are kept.
    pub policy: Arc<Policy>,
    /// Where else the scopes may go, and what moves them there.
    pub placing: Arc<Placing>,
}

impl Rule {
    /// Whether the rule is for this scope, earlier rules aside.
    pub fn matches(&self, name: &ScopeName) -> bool {
        self.pattern.matches(name) && self.share.is_none_or(|share| share.contains(name))
    }

    /// Whether nothing is left of what `later` matches.
    fn hides(&self, later: &Rule) -> bool {
        let all_shares = match (self.share, later.share) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.covers(theirs),
            (Some(mine), None) => mine.covers(Share { start: 0, end: 100 }),
        };
        all_shares && self.pattern.covers(&later.pattern)
    }

    /// Reads one `[[rule]]`. What is wrong is reported; None when something needed is.
    fn read(
        reader: &mut Reader<'_>,
        mut table: Table<'_>,
        all: &[RegionName],
        earlier: &[Rule],
    ) -> Option<ReadRule> {
        let name = table.required(reader, "name", |value| {
            let name = string(value)?;
            check_label("rule name", &name, MAX_RULE_NAME_BYTES).map_err(|error| error.to_string())?;
            Ok(name)
        });
        let pattern = table.required(reader, "pattern", parsed::<Pattern>);
        let share = table.optional(reader, "share", parsed::<Share>);
        let kind = table.required(reader, "kind", parsed::<Kind>);
        let spread = table.optional(reader, "spread", |value| whole(value, 1, MAX_SPREAD.into()));
        let (regions, placing) = Placing::read(reader, &mut table, all, earlier);
        let durability = table.optional(reader, "durability", parsed::<Durability>);
        if let Some(At { at, value: Durability::Regions(count) }) = durability
            && usize::from(count) > regions.len().min(placing.min_regions)
        {
            let least = regions.len().min(placing.min_regions);
            let reason = format!("regions:{count} is more than the rule's regions, {least}");
            reader.fail(at, &table.path("durability"), reason);
        }
        let expiry = table.optional(reader, "expiry", |value| {
            parse_expiry(&string(value)?).map_err(|error| error.to_string())
        });

        let text = read_paths(reader, &mut table, "text");
        let counters = read_paths(reader, &mut table, "counters");
        for counter in counters.iter().flat_map(|list| &list.value) {
            let both =
                text.iter().flat_map(|list| &list.value).find(|text| overlap(&text.value, &counter.value));
            if let Some(text) = both {
                let reason = format!(
                    "\"{}\" matches what the text path \"{}\" does",
                    echo(&counter.value),
                    echo(&text.value)
                );
                reader.fail(counter.at, &table.path("counters"), reason);
            }
        }
        let history_bytes =
            table.optional(reader, "history_bytes", |value| whole(value, HISTORY_BYTES.0, HISTORY_BYTES.1));
        let history_changes = table
            .optional(reader, "history_changes", |value| whole(value, HISTORY_CHANGES.0, HISTORY_CHANGES.1));
        let for_documents = [
            ("text", text.as_ref().map(|list| list.at)),
            ("counters", counters.as_ref().map(|list| list.at)),
            ("history_bytes", history_bytes.as_ref().map(|bytes| bytes.at)),
            ("history_changes", history_changes.as_ref().map(|changes| changes.at)),
        ];
        if let Some(At { value: kind @ (Kind::Register | Kind::Counter), .. }) = kind {
            for (key, at) in for_documents {
                if let Some(at) = at {
                    reader.fail(at, &table.path(key), format!("is for documents; the kind is {kind}"));
                }
            }
        }
        table.finish(reader);

        let plain = Policy::default();
        let values = |list: Option<At<Vec<At<String>>>>| {
            list.into_iter().flat_map(|list| list.value).map(|path| path.value).collect()
        };
        let policy = Policy {
            durability: durability.map_or(plain.durability, |durability| durability.value),
            expiry: expiry.map(|expiry| expiry.value),
            text: values(text),
            counters: values(counters),
            history_bytes: history_bytes.map_or(plain.history_bytes, |bytes| bytes.value),
            history_changes: history_changes.map_or(plain.history_changes, |changes| changes.value),
        };
        let (name, pattern) = (name?, pattern?);
        let rule = Rule {
            name: name.value.into(),
            pattern: pattern.value,
            share: share.map(|share| share.value),
            kind: kind?.value,
            spread: spread.map_or(1, |spread| spread.value as u16), // at most MAX_SPREAD
            regions,
            policy: policy.into(),
            placing: placing.into(),
        };
        Some(ReadRule { rule, name_at: name.at, pattern_at: pattern.at })
    }
}

/// A rule, and where its name and pattern stand in the text.
struct ReadRule {
    rule: Rule,
    name_at: usize,
    pattern_at: usize,
}

/// What all members of a scope must find alike, hashed: SHA-256 over the rules in order, of each its pattern, share, kind,
/// spread, regions in order, and text and counter paths. Left out is what only the node looks at that is asked: names,
/// durability, expiry and history budgets; these may differ for as long as a change of them goes round.
///
/// The bytes are hashed as `docs/decisions/0001-formats.md` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyHash(pub [u8; 32]);

impl fmt::Display for PolicyHash {
    /// The first 8 bytes: enough to tell two policies apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Feeds a hash with counts and texts, so that no two lists of texts are the same bytes.
struct PolicyHasher(Sha256);

impl PolicyHasher {
    fn count(&mut self, count: usize) {
        self.0.update(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()); // every list and text is far shorter
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text);
    }

    fn list<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) {
        self.count(texts.len());
        texts.for_each(|text| self.text(text));
    }

    /// Paths whose order says nothing.
    fn paths(&mut self, paths: &[String]) {
        let mut sorted: Vec<&str> = paths.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        self.list(sorted.into_iter());
    }
}

/// The rules of a policy, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// The rule for a scope: the first that matches. None: a scope of this name cannot be created.
    pub fn find(&self, name: &ScopeName) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.matches(name))
    }

    /// The rule with this name.
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| &*rule.name == name)
    }

    /// What two nodes compare before they replicate: equal hashes, equal records.
    pub fn hash(&self) -> PolicyHash {
        let mut hasher = PolicyHasher(Sha256::new_with_prefix(b"tropism policy v1\0"));
        hasher.count(self.0.len());
        for rule in &self.0 {
            hasher.text(&rule.pattern.to_string());
            let share = rule.share.unwrap_or(Share { start: 0, end: 100 });
            hasher.0.update([share.start, share.end, rule.kind.code()]);
            hasher.0.update(rule.spread.to_be_bytes());
            hasher.list(rule.regions.iter().map(RegionName::as_str));
            hasher.paths(&rule.policy.text);
            hasher.paths(&rule.policy.counters);
        }
        PolicyHash(hasher.0.finalize().into())
    }

    /// All rules, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Rule> {
        self.0.iter()
    }

    /// Reads every `[[rule]]`. What is wrong is reported; then the result is not to be used.
    pub(crate) fn read(reader: &mut Reader<'_>, tables: Vec<Table<'_>>, all: &[RegionName]) -> Self {
        let mut rules: Vec<Rule> = Vec::new();
        for table in tables {
            let Some(ReadRule { rule, name_at, pattern_at }) = Rule::read(reader, table, all, &rules) else {
                continue;
            };
            if rules.iter().any(|earlier| earlier.name == rule.name) {
                reader.fail(
                    name_at,
                    "rule.name",
                    format!("\"{}\" is the name of an earlier rule", rule.name),
                );
            }
            if let Some(earlier) = rules.iter().find(|earlier| earlier.hides(&rule)) {
                let reason = format!(
                    "can never match: the earlier rule \"{}\" matches all that it does",
                    earlier.name
                );
                reader.fail(pattern_at, "rule.pattern", reason);
            }
            if let Some(other) = rules.iter().find(|other| {
                other.placing.with.is_some()
                    && other.placing.with == rule.placing.with
                    && (&other.placing, &other.regions) != (&rule.placing, &rule.regions)
            }) {
                let group = rule.placing.with.as_deref().unwrap_or_default();
                let reason =
                    format!("the group \"{group}\" is placed by the rule \"{}\" in another way", other.name);
                reader.fail(name_at, "rule.with", reason);
            }
            rules.push(rule);
        }
        Self(rules)
    }
}

/// Reads a time to live or an expiry: a whole number with its unit, `45s`, `30m`, `12h`, `7d`; at least one second
/// (regions may differ by half of one) and at most [`MAX_EXPIRY`].
pub fn parse_expiry(text: &str) -> Result<Duration, RuleError> {
    let seconds =
        [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)].into_iter().find_map(|(unit, seconds)| {
            let count: u64 = decimal(text.strip_suffix(unit)?)?;
            count.checked_mul(seconds)
        });
    match seconds {
        Some(seconds) if (1..=MAX_EXPIRY.as_secs()).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(RuleError(format!(
            "\"{}\" must be a whole number with a unit (s, m, h, d) like \"30m\", from 1s to 3650d",
            echo(text)
        ))),
    }
}

fn read_paths(reader: &mut Reader<'_>, table: &mut Table<'_>, key: &str) -> Option<At<Vec<At<String>>>> {
    let list = table.list(reader, key, MAX_PATHS, |text| check_path(text).map(|()| text.to_owned()))?;
    unique(reader, &table.path(key), &list.value);
    Some(list)
}

/// Reports every value that stands in the list twice.
pub(crate) fn unique<T: Ord + fmt::Display>(reader: &mut Reader<'_>, path: &str, list: &[At<T>]) {
    let mut seen = BTreeSet::new();
    for item in list {
        if !seen.insert(&item.value) {
            reader.fail(item.at, path, format!("\"{}\" is given twice", echo(&item.value.to_string())));
        }
    }
}

/// Checks a JSON Pointer (RFC 6901) that may have segments `*`. The root is always an object, so it cannot be meant.
fn check_path(text: &str) -> Result<(), String> {
    let refuse = |problem: String| Err(format!("path \"{}\" {problem}", echo(text)));
    if text.len() > MAX_PATH_BYTES {
        return refuse(format!("has {} bytes; the limit is {MAX_PATH_BYTES}", text.len()));
    }
    let Some(segments) = text.strip_prefix('/') else {
        return refuse("must start with `/`".to_owned());
    };
    if segments.split('/').count() > MAX_PATH_SEGMENTS {
        return refuse(format!("has more than {MAX_PATH_SEGMENTS} segments"));
    }
    match text.match_indices('~').find(|(i, _)| !matches!(text.as_bytes().get(i + 1), Some(b'0' | b'1'))) {
        Some((i, _)) => refuse(format!("has `~` without 0 or 1 after it at byte {i}")),
        None => Ok(()),
    }
}

/// Whether some place in a document is matched by both paths.
fn overlap(a: &str, b: &str) -> bool {
    a.split('/').count() == b.split('/').count()
        && a.split('/').zip(b.split('/')).all(|(a, b)| a == b || a == "*" || b == "*")
}

/// A whole number in plain digits; `parse` alone would take a sign.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A string that parses.
pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(value: toml::de::DeValue<'_>) -> Result<T, String> {
    string(value)?.parse().map_err(|error: T::Err| error.to_string())
}
