//! What a document shows: straight to canonical bytes for readers, or as a tree that remembers automerge's objects for
//! the difference to something else.
//!
//! Walks recurse, to [`MAX_DEPTH`]. No write nests deeper; what a hostile peer nests deeper by many changes shows as
//! `null`, the same everywhere.

use std::collections::BTreeMap;

use automerge::iter::{ListRange, MapRange};
use automerge::{ChangeHash, ObjId, ObjType, Prop, ROOT, ReadDoc, ScalarValueRef, Value, ValueRef};

use crate::json::{
    Json, MAX_DEPTH, MAX_ITEMS, MAX_JSON_BYTES, write_bool, write_float, write_int, write_string, write_uint,
};

/// A document, or an open transaction, as of a version.
pub(super) struct View<'a, R> {
    document: &'a R,
    /// `None`: everything there is.
    heads: Option<Vec<ChangeHash>>,
}

/// How large a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    /// Canonical JSON in bytes.
    pub(super) bytes: usize,
    /// Entries of the fullest container.
    pub(super) items: usize,
}

impl Shape {
    pub(super) fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), items: self.items.saturating_add(other.items) }
    }

    pub(super) fn is_within_limits(&self) -> bool {
        self.bytes <= MAX_JSON_BYTES && self.items <= MAX_ITEMS
    }
}

/// A value and the automerge objects it consists of.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(String),
    Counter(i64),
    Text(ObjId, String),
    List(ObjId, Vec<Node>),
    Map(ObjId, BTreeMap<String, Node>),
}

impl Node {
    /// What reading this value cost: one for each value, and for 16 bytes of text.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::String(text) | Self::Text(_, text) => 1 + text.len() / 16,
            Self::List(_, items) => 1 + items.iter().map(Self::weight).sum::<usize>(),
            Self::Map(_, entries) => 1 + entries.values().map(Self::weight).sum::<usize>(),
            _ => 1,
        }
    }

    /// The value alone.
    pub(super) fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) | Self::Counter(value) => Json::Int(*value),
            Self::Uint(value) => Json::Uint(*value),
            Self::Float(value) => Json::Float(*value),
            Self::String(value) | Self::Text(_, value) => Json::String(value.clone()),
            Self::List(_, items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Self::Map(_, entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }
}

impl<'a, R: ReadDoc> View<'a, R> {
    /// What there is now; in a transaction, what it sees.
    pub(super) fn now(document: &'a R) -> Self {
        Self { document, heads: None }
    }

    /// What there was at a version, which must be known.
    pub(super) fn at(document: &'a R, heads: Vec<ChangeHash>) -> Self {
        Self { document, heads: Some(heads) }
    }

    /// The whole document as canonical JSON, and its shape.
    pub(super) fn canonical(&self) -> (Vec<u8>, Shape) {
        let mut out = Vec::new();
        let mut shape = Shape::default();
        self.write_object(&ROOT, ObjType::Map, 1, &mut out, &mut shape);
        shape.bytes = out.len();
        (out, shape)
    }

    /// A value that stands at `depth` segments from the root, shown or not, as canonical JSON.
    pub(super) fn canonical_value(&self, value: &ValueRef<'_>, id: ObjId, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_value(value, || id, depth, &mut out, &mut Shape::default());
        out
    }

    /// The whole document as a tree.
    pub(super) fn root(&self) -> Node {
        self.object(ROOT, ObjType::Map, 1)
    }

    /// The object at one entry of `object`; `None` when there is none.
    pub(super) fn object_at(&self, object: &ObjId, entry: impl Into<Prop>) -> Option<(ObjId, ObjType)> {
        let found = self.document.get(object, entry);
        match found.ok()?? {
            (Value::Object(kind), id) => Some((id, kind)),
            (Value::Scalar(_), _) => None,
        }
    }

    /// The tree at one entry of `object`; `None` when there is none.
    pub(super) fn entry(&self, object: &ObjId, entry: impl Into<Prop>) -> Option<Node> {
        let found = self.document.get(object, entry);
        let (value, id) = found.ok()??; // an error means that the entry does not fit the object's kind
        Some(match value {
            Value::Object(kind) => self.object(id, kind, 1),
            Value::Scalar(scalar) => self.value(&ValueRef::Scalar(scalar.into_owned().into()), || id, 0),
        })
    }

    fn map(&self, object: &ObjId) -> MapRange<'_> {
        match &self.heads {
            None => self.document.map_range(object, ..),
            Some(heads) => self.document.map_range_at(object, .., heads),
        }
    }

    fn list(&self, object: &ObjId) -> ListRange<'_> {
        match &self.heads {
            None => self.document.list_range(object, ..),
            Some(heads) => self.document.list_range_at(object, .., heads),
        }
    }

    fn text(&self, object: &ObjId) -> String {
        let text = match &self.heads {
            None => self.document.text(object),
            Some(heads) => self.document.text_at(object, heads),
        };
        text.unwrap_or_default() // only an object that is no text has none
    }

    fn write_object(
        &self,
        object: &ObjId,
        kind: ObjType,
        depth: usize,
        out: &mut Vec<u8>,
        shape: &mut Shape,
    ) {
        if kind == ObjType::Text {
            return write_string(&self.text(object), out);
        }
        if depth > MAX_DEPTH {
            return out.extend_from_slice(b"null");
        }
        let mut count = 0;
        if kind == ObjType::List {
            out.push(b'[');
            for item in self.list(object) {
                if count > 0 {
                    out.push(b',');
                }
                count += 1;
                self.write_value(&item.value, || item.id(), depth, out, shape);
            }
            out.push(b']');
        } else {
            out.push(b'{');
            for item in self.map(object) {
                if count > 0 {
                    out.push(b',');
                }
                count += 1;
                write_string(&item.key, out);
                out.push(b':');
                self.write_value(&item.value, || item.id(), depth, out, shape);
            }
            out.push(b'}');
        }
        shape.items = shape.items.max(count);
    }

    fn write_value(
        &self,
        value: &ValueRef<'_>,
        id: impl FnOnce() -> ObjId,
        depth: usize,
        out: &mut Vec<u8>,
        shape: &mut Shape,
    ) {
        let scalar = match value {
            ValueRef::Object(kind) => return self.write_object(&id(), *kind, depth + 1, out, shape),
            ValueRef::Scalar(scalar) => scalar,
        };
        match scalar {
            ScalarValueRef::Boolean(value) => write_bool(*value, out),
            ScalarValueRef::Int(value) | ScalarValueRef::Counter(value) => write_int(*value, out),
            ScalarValueRef::Uint(value) => write_uint(*value, out),
            ScalarValueRef::F64(value) => write_float(*value, out),
            ScalarValueRef::Str(value) => write_string(value, out),
            // The last three are never written here, and the gate refuses them.
            ScalarValueRef::Null
            | ScalarValueRef::Bytes(_)
            | ScalarValueRef::Timestamp(_)
            | ScalarValueRef::Unknown { .. } => out.extend_from_slice(b"null"),
        }
    }

    fn object(&self, object: ObjId, kind: ObjType, depth: usize) -> Node {
        if kind == ObjType::Text {
            let text = self.text(&object);
            return Node::Text(object, text);
        }
        if depth > MAX_DEPTH {
            return Node::Null;
        }
        if kind == ObjType::List {
            let items = self.list(&object).map(|item| self.value(&item.value, || item.id(), depth)).collect();
            return Node::List(object, items);
        }
        let entry = |item: automerge::iter::MapRangeItem<'_>| {
            let node = self.value(&item.value, || item.id(), depth);
            (item.key.into_owned(), node)
        };
        let entries = self.map(&object).map(entry).collect();
        Node::Map(object, entries)
    }

    fn value(&self, value: &ValueRef<'_>, id: impl FnOnce() -> ObjId, depth: usize) -> Node {
        let scalar = match value {
            ValueRef::Object(kind) => return self.object(id(), *kind, depth + 1),
            ValueRef::Scalar(scalar) => scalar,
        };
        Self::scalar(scalar)
    }

    /// The value that is no object.
    pub(super) fn scalar(scalar: &ScalarValueRef<'_>) -> Node {
        match scalar {
            ScalarValueRef::Boolean(value) => Node::Bool(*value),
            ScalarValueRef::Int(value) => Node::Int(*value),
            ScalarValueRef::Counter(value) => Node::Counter(*value),
            // Only values above i64::MAX are written as unsigned here; a peer's smaller one shows the same.
            ScalarValueRef::Uint(value) => i64::try_from(*value).map_or(Node::Uint(*value), Node::Int),
            ScalarValueRef::F64(value) => Node::Float(*value),
            ScalarValueRef::Str(value) => Node::String(value.clone().into_owned()),
            ScalarValueRef::Null
            | ScalarValueRef::Bytes(_)
            | ScalarValueRef::Timestamp(_)
            | ScalarValueRef::Unknown { .. } => Node::Null,
        }
    }
}
