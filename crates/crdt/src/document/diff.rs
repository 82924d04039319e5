//! Edits: from what a document shows to what it should show, in as few automerge operations as is cheap to find.
//!
//! The fewer operations, the more of what others do at the same time survives: a key that is not written cannot
//! overwrite another region's, an item that stays keeps its identity, a counter that is incremented adds up.

use std::collections::BTreeMap;
use std::ops::Range;

use automerge::hydrate;
use automerge::transaction::{Transactable, Transaction};
use automerge::{ObjId, Prop, ROOT, ScalarValue, TextEncoding};
use xxhash_rust::xxh3::xxh3_64;

use super::show::{Node, Shape, View};
use super::{DocumentError, MAX_CHANGE_OPS, MAX_CHANGE_TEXT_BYTES, MAX_COUNTER, Paths};
use crate::json::{Json, MAX_DEPTH, Segment, shown};

/// Most insertions and removals the search for a shortest difference of two sequences tries. Its cost is this times
/// their length; sequences that differ in more are compared item by item.
const MAX_SEARCHED_EDITS: usize = 256;

/// Most that one write reads, in values and 16 bytes of text: a document at its limits, more than once, and half a second
/// of one core.
const MAX_READ: usize = 1_000_000;

/// Writes into one open transaction, counting what it costs. `path` is where it stands, for policies and errors.
pub(super) struct Writer<'w, 'd> {
    pub(super) transaction: &'w mut Transaction<'d>,
    paths: &'w Paths,
    path: Vec<Step>,
    operations: usize,
    text_bytes: usize,
    read: usize,
}

/// An owned [`Segment`].
#[derive(Debug, Clone)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn as_segment(&self) -> Segment<'_> {
        match self {
            Self::Key(key) => Segment::Key(key),
            Self::Index(index) => Segment::Index(*index),
        }
    }
}

/// How the policy wants the values at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Text,
    Counter,
}

/// How a value enters a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placing {
    /// In place of what is there.
    Over,
    /// Before what is there.
    Before,
}

type Edited = Result<(), DocumentError>;

impl<'w, 'd> Writer<'w, 'd> {
    pub(super) fn new(transaction: &'w mut Transaction<'d>, paths: &'w Paths) -> Self {
        Self { transaction, paths, path: Vec::new(), operations: 0, text_bytes: 0, read: 0 }
    }

    /// Makes the root show `entries`; `shown` is what it shows.
    pub(super) fn replace_root(&mut self, shown: &Node, entries: &BTreeMap<String, Json>) -> Edited {
        let nothing = BTreeMap::new();
        let shown = if let Node::Map(_, shown) = shown { shown } else { &nothing };
        self.replace_map(&ROOT, shown, entries)
    }

    /// By how much what the document shows can have grown: for each value a number, quotes and commas, for each byte of
    /// text the longest escape.
    pub(super) fn growth(&self) -> Shape {
        Shape { bytes: self.operations * 32 + self.text_bytes * 6, items: self.operations }
    }

    /// Stands at `path` from now on.
    pub(super) fn go_to(&mut self, path: Vec<Step>) {
        self.path = path;
    }

    /// Makes one entry of `object` show `value`, by the smallest edit from `shown`. The writer stands at the entry.
    pub(super) fn replace(&mut self, object: &ObjId, entry: Prop, shown: &Node, value: &Json) -> Edited {
        match (self.kind(), shown, value) {
            (Kind::Counter, Node::Counter(before), _) => {
                let by = self.counter_value(value)? - i128::from(*before);
                return if by == 0 { Ok(()) } else { self.increment(object, entry, *before, by) };
            }
            (Kind::Text, Node::Text(text, before), Json::String(after)) => {
                return self.replace_text(&text.clone(), before, after);
            }
            (Kind::Plain, Node::String(before), Json::String(after)) if before == after => return Ok(()),
            (Kind::Plain | Kind::Text, Node::Map(map, before), Json::Object(after)) => {
                return self.replace_map(map, before, after);
            }
            (Kind::Plain | Kind::Text, Node::List(list, before), Json::Array(after)) => {
                return self.replace_list(list, before, after);
            }
            (Kind::Plain | Kind::Text, Node::Null, Json::Null) => return Ok(()),
            (Kind::Plain | Kind::Text, Node::Bool(before), Json::Bool(after)) if before == after => {
                return Ok(());
            }
            (Kind::Plain | Kind::Text, Node::Int(before), Json::Int(after)) if before == after => {
                return Ok(());
            }
            (Kind::Plain | Kind::Text, Node::Uint(before), Json::Uint(after)) if before == after => {
                return Ok(());
            }
            (Kind::Plain | Kind::Text, Node::Float(before), Json::Float(after)) if before == after => {
                return Ok(());
            }
            _ => {}
        }
        self.put(object, entry, value, Placing::Over)
    }

    /// Writes a value with all below it. The writer stands at its place.
    pub(super) fn put(&mut self, object: &ObjId, entry: Prop, value: &Json, placing: Placing) -> Edited {
        self.charge_entry(&entry)?;
        let value = self.build(value)?;
        match (value, entry) {
            (hydrate::Value::Scalar(scalar), Prop::Seq(index)) if placing == Placing::Before => {
                self.transaction.insert(object, index, scalar)?;
            }
            (hydrate::Value::Scalar(scalar), entry) => self.transaction.put(object, entry, scalar)?,
            (value, entry) => {
                let insert = placing == Placing::Before;
                self.transaction.batch_create_object(object, entry, &value, insert)?;
            }
        }
        Ok(())
    }

    /// Removes one entry of `object`.
    pub(super) fn remove(&mut self, object: &ObjId, entry: Prop) -> Edited {
        self.charge_entry(&entry)?;
        self.charge(1, 0)?;
        Ok(self.transaction.delete(object, entry)?)
    }

    /// Adds to the counter at one entry of `object`, which shows `before`. The writer stands there.
    pub(super) fn increment(&mut self, object: &ObjId, entry: Prop, before: i64, by: i128) -> Edited {
        let limit = MAX_COUNTER;
        let allowed = -i128::from(limit)..=i128::from(limit);
        let overflow = || DocumentError::CounterOverflow { path: shown(&self.path_text()), limit };
        if !allowed.contains(&(i128::from(before) + by)) {
            return Err(overflow());
        }
        let by = i64::try_from(by).map_err(|_| overflow())?;
        self.charge_entry(&entry)?;
        self.charge(1, 0)?;
        Ok(self.transaction.increment(object, entry, by)?)
    }

    /// Replaces `delete` characters from `index` on. The caller has checked that they exist.
    pub(super) fn splice_text(&mut self, text: &ObjId, index: usize, delete: usize, insert: &str) -> Edited {
        self.charge(delete.saturating_add(insert.chars().count()), insert.len())?;
        let delete = isize::try_from(delete).unwrap_or(isize::MAX); // charge() has bounded it
        Ok(self.transaction.splice_text(text, index, delete, insert)?)
    }

    /// What the transaction shows at one entry of `object`, counted.
    pub(super) fn entry(&mut self, object: &ObjId, entry: Prop) -> Result<Option<Node>, DocumentError> {
        let node = View::now(&*self.transaction).entry(object, entry);
        self.charge_read(node.as_ref())?;
        Ok(node)
    }

    /// What the transaction shows, counted.
    pub(super) fn root(&mut self) -> Result<Node, DocumentError> {
        let node = View::now(&*self.transaction).root();
        self.charge_read(Some(&node))?;
        Ok(node)
    }

    fn replace_map(
        &mut self,
        map: &ObjId,
        before: &BTreeMap<String, Node>,
        after: &BTreeMap<String, Json>,
    ) -> Edited {
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            self.remove(map, Prop::Map(key.clone()))?;
        }
        for (key, value) in after {
            self.path.push(Step::Key(key.clone()));
            let entry = Prop::Map(key.clone());
            match before.get(key) {
                Some(shown) => self.replace(map, entry, shown, value)?,
                None => self.put(map, entry, value, Placing::Over)?,
            }
            self.path.pop();
        }
        Ok(())
    }

    fn replace_list(&mut self, list: &ObjId, before: &[Node], after: &[Json]) -> Edited {
        let token = |value: &Json| xxh3_64(&value.to_canonical());
        let old: Vec<u64> = before.iter().map(|node| token(&node.to_json())).collect();
        let new: Vec<u64> = after.iter().map(token).collect();
        let gaps = differences(&old, &new);
        let end = (before.len()..before.len(), after.len()..after.len());
        let (mut from, mut to) = (0, 0); // `to` is also the place in the list as it is becoming
        for (removed, added) in gaps.into_iter().chain([end]) {
            let replaced = removed.len().min(added.len());
            // Items that look alike, then as many as the gap has on both sides: those keep their identity.
            while from < removed.start + replaced {
                self.path.push(Step::Index(to));
                self.replace(list, Prop::Seq(to), &before[from], &after[to])?;
                self.path.pop();
                (from, to) = (from + 1, to + 1);
            }
            while from < removed.end {
                self.remove(list, Prop::Seq(to))?;
                from += 1;
            }
            if to < added.end {
                self.insert_all(list, to, &after[to..added.end])?;
                to = added.end;
            }
        }
        Ok(())
    }

    fn insert_all(&mut self, list: &ObjId, index: usize, values: &[Json]) -> Edited {
        let mut built = Vec::with_capacity(values.len());
        for (offset, value) in values.iter().enumerate() {
            self.path.push(Step::Index(index + offset));
            built.push(self.build(value)?);
            self.path.pop();
        }
        Ok(self.transaction.splice(list, index, 0, built)?)
    }

    fn replace_text(&mut self, text: &ObjId, before: &str, after: &str) -> Edited {
        if before == after {
            return Ok(());
        }
        let old: Vec<char> = before.chars().collect();
        let new: Vec<char> = after.chars().collect();
        // From the end on, so that the positions of what is still to come hold.
        for (removed, added) in differences(&old, &new).into_iter().rev() {
            let insert: String = new[added].iter().collect();
            self.splice_text(text, removed.start, removed.len(), &insert)?;
        }
        Ok(())
    }

    /// The value as automerge takes it, charged. The writer stands at its place.
    fn build(&mut self, value: &Json) -> Result<hydrate::Value, DocumentError> {
        self.charge(1, 0)?;
        let scalar = match (self.kind(), value) {
            (Kind::Counter, _) => {
                let start = self.counter_value(value)?;
                let start = i64::try_from(start).map_err(|_| self.not_a_counter(value))?;
                ScalarValue::counter(start)
            }
            (Kind::Text, Json::String(text)) => {
                self.charge(text.chars().count(), text.len())?;
                return Ok(hydrate::Value::text(TextEncoding::UnicodeCodePoint, text));
            }
            (_, Json::Null) => ScalarValue::Null,
            (_, Json::Bool(value)) => ScalarValue::Boolean(*value),
            (_, Json::Int(value)) => ScalarValue::Int(*value),
            (_, Json::Uint(value)) => ScalarValue::Uint(*value),
            (_, Json::Float(value)) => ScalarValue::F64(*value),
            (_, Json::String(text)) => {
                self.charge(0, text.len())?;
                ScalarValue::Str(text.as_str().into())
            }
            (_, Json::Array(items)) => {
                self.check_depth()?;
                let mut built = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    self.path.push(Step::Index(index));
                    built.push(self.build(item)?);
                    self.path.pop();
                }
                return Ok(built.into());
            }
            (_, Json::Object(entries)) => {
                self.check_depth()?;
                // Automerge keeps this map unordered, and writes it in the order of its keys.
                let mut map = hydrate::Map::default();
                for (key, item) in entries {
                    self.charge(0, key.len())?;
                    self.path.push(Step::Key(key.clone()));
                    let entry = hydrate::MapValue { value: self.build(item)?, conflict: false };
                    map.insert(key.clone(), entry);
                    self.path.pop();
                }
                return Ok(map.into());
            }
        };
        Ok(hydrate::Value::Scalar(scalar))
    }

    fn kind(&self) -> Kind {
        if self.paths.text.is_empty() && self.paths.counters.is_empty() {
            return Kind::Plain;
        }
        kind_at(self.paths, &self.path.iter().map(Step::as_segment).collect::<Vec<_>>())
    }

    fn counter_value(&self, value: &Json) -> Result<i128, DocumentError> {
        let limit = MAX_COUNTER;
        match value {
            Json::Int(value) if (-limit..=limit).contains(value) => Ok(i128::from(*value)),
            Json::Int(_) | Json::Uint(_) => {
                Err(DocumentError::CounterOverflow { path: shown(&self.path_text()), limit })
            }
            _ => Err(self.not_a_counter(value)),
        }
    }

    fn not_a_counter(&self, value: &Json) -> DocumentError {
        DocumentError::NotACounterValue { path: shown(&self.path_text()), found: value.type_name() }
    }

    /// The place as a pointer, for errors.
    fn path_text(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            text.push('/');
            match step {
                Step::Key(key) => text.push_str(&key.replace('~', "~0").replace('/', "~1")),
                Step::Index(index) => text.push_str(&index.to_string()),
            }
        }
        text
    }

    /// Refuses a container here when its level would be beyond [`MAX_DEPTH`]; the root is level 1.
    fn check_depth(&self) -> Edited {
        let level = self.path.len() + 1;
        if level <= MAX_DEPTH {
            return Ok(());
        }
        Err(DocumentError::TooLarge { what: "levels of nesting", size: level, limit: MAX_DEPTH })
    }

    fn charge_entry(&mut self, entry: &Prop) -> Edited {
        if let Prop::Map(key) = entry { self.charge(0, key.len()) } else { Ok(()) }
    }

    fn charge_read(&mut self, node: Option<&Node>) -> Edited {
        self.read = self.read.saturating_add(node.map_or(1, Node::weight));
        if self.read <= MAX_READ {
            return Ok(());
        }
        Err(DocumentError::TooLarge { what: "values read by one write", size: self.read, limit: MAX_READ })
    }

    /// Counts what is about to be written, and refuses before it is.
    fn charge(&mut self, operations: usize, text_bytes: usize) -> Edited {
        self.operations = self.operations.saturating_add(operations);
        self.text_bytes = self.text_bytes.saturating_add(text_bytes);
        let (what, size, limit) = if self.operations > MAX_CHANGE_OPS {
            ("values and characters in one write", self.operations, MAX_CHANGE_OPS)
        } else if self.text_bytes > MAX_CHANGE_TEXT_BYTES {
            ("bytes of strings and keys in one write", self.text_bytes, MAX_CHANGE_TEXT_BYTES)
        } else {
            return Ok(());
        };
        Err(DocumentError::TooLarge { what, size, limit })
    }
}

/// How the policy wants the values at `path`.
pub(super) fn kind_at(paths: &Paths, path: &[Segment<'_>]) -> Kind {
    if paths.counters.iter().any(|pattern| pattern.matches(path)) {
        Kind::Counter
    } else if paths.text.iter().any(|pattern| pattern.matches(path)) {
        Kind::Text
    } else {
        Kind::Plain
    }
}

/// A part of the old sequence and what takes its place in the new one.
type Gap = (Range<usize>, Range<usize>);

/// Where two sequences differ, in order; what lies between is equal.
fn differences<T: PartialEq>(old: &[T], new: &[T]) -> Vec<Gap> {
    let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let same_end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) =
        (&old_rest[..old_rest.len() - same_end], &new_rest[..new_rest.len() - same_end]);
    let mut gaps = Vec::new();
    let mut push = |old_from, old_to, new_from, new_to| {
        if old_from < old_to || new_from < new_to {
            gaps.push((start + old_from..start + old_to, start + new_from..start + new_to));
        }
    };
    let (mut old_at, mut new_at) = (0, 0);
    for (old_equal, new_equal) in shortest_edit(old_middle, new_middle) {
        push(old_at, old_equal, new_at, new_equal);
        (old_at, new_at) = (old_equal + 1, new_equal + 1);
    }
    push(old_at, old_middle.len(), new_at, new_middle.len());
    gaps
}

/// The pairs that stay in a shortest edit (Myers 1986), in order; none when that takes more than
/// [`MAX_SEARCHED_EDITS`].
fn shortest_edit<T: PartialEq>(old: &[T], new: &[T]) -> Vec<(usize, usize)> {
    if old.is_empty() || new.is_empty() {
        return Vec::new();
    }
    // `reach[k]` is how far in `old` a path on diagonal `k - centre` (old index minus new index) has come.
    let centre = MAX_SEARCHED_EDITS + 1;
    let mut reach = vec![0_usize; 2 * centre + 1];
    let mut rounds: Vec<Vec<usize>> = Vec::new(); // `reach` before each round
    let mut edits = 0;
    loop {
        if edits > MAX_SEARCHED_EDITS {
            return Vec::new();
        }
        rounds.push(reach[centre - edits..=centre + edits].to_vec());
        for diagonal in (centre - edits..=centre + edits).step_by(2) {
            let down = steps_down(&reach, diagonal, centre - edits, centre + edits);
            let mut x = if down { reach[diagonal + 1] } else { reach[diagonal - 1] + 1 };
            let mut y = x + centre - diagonal;
            while x < old.len() && y < new.len() && old[x] == new[y] {
                (x, y) = (x + 1, y + 1);
            }
            reach[diagonal] = x;
            if x >= old.len() && y >= new.len() {
                return walk_back(rounds, centre, (old.len(), new.len()));
            }
        }
        edits += 1;
    }
}

/// Whether the best path to `diagonal` comes from the diagonal above, by an insertion.
fn steps_down(reach: &[usize], diagonal: usize, lowest: usize, highest: usize) -> bool {
    diagonal == lowest || (diagonal != highest && reach[diagonal - 1] < reach[diagonal + 1])
}

fn walk_back(rounds: Vec<Vec<usize>>, centre: usize, end: (usize, usize)) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let (mut x, mut y) = end;
    for (edits, reach) in rounds.iter().enumerate().rev() {
        let diagonal = x + centre - y;
        let lowest = centre - edits;
        // Where this round started: the origin, or one edit behind a path of the round before.
        let (start, before) = if edits == 0 {
            ((0, 0), (0, 0))
        } else {
            let local = diagonal - lowest; // index into this round's slice
            let down = steps_down(reach, local, 0, 2 * edits);
            let from = if down { local + 1 } else { local - 1 };
            let before_x = reach[from];
            let before = (before_x, before_x + centre - (from + lowest));
            (if down { (before.0, before.1 + 1) } else { (before.0 + 1, before.1) }, before)
        };
        while x > start.0 && y > start.1 {
            (x, y) = (x - 1, y - 1);
            pairs.push((x, y));
        }
        (x, y) = before;
    }
    pairs.reverse();
    pairs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::differences;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn differences_lead_from_the_old_to_the_new(
            old in vec(0_u8..4, 0..30),
            new in vec(0_u8..4, 0..30),
        ) {
            let gaps = differences(&old, &new);
            let mut made = old.clone();
            for (removed, added) in gaps.iter().rev() {
                made.splice(removed.clone(), new[added.clone()].to_vec());
            }
            prop_assert_eq!(made, new.clone());
            let touched: usize = gaps.iter().map(|(removed, added)| removed.len() + added.len()).sum();
            prop_assert_eq!(touched, old.len() + new.len() - 2 * longest_common(&old, &new));
        }

        #[test]
        fn long_sequences_that_differ_everywhere_are_one_gap_per_side(seed in any::<u8>()) {
            let old = vec![seed; 3_000];
            let new = vec![seed.wrapping_add(1); 2_000];
            prop_assert!(differences(&old, &new) == [(0..3_000, 0..2_000)]);
        }
    }

    fn longest_common(old: &[u8], new: &[u8]) -> usize {
        let mut row = vec![0; new.len() + 1];
        for a in old {
            let mut diagonal = 0;
            for (at, b) in new.iter().enumerate() {
                let above = row[at + 1];
                row[at + 1] = if a == b { diagonal + 1 } else { above.max(row[at]) };
                diagonal = above;
            }
        }
        row[new.len()]
    }
}
