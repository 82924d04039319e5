//! What the gate refuses, and that a refusal leaves no trace.

use automerge::ActorId;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use sha2::{Digest, Sha256};

use super::super::encode::{Action, Head, MapOp, OpId, Scalar, encode};
use super::{actor, any_root, json, paths, plain, pointer, receive, saved, showing, text};
use crate::document::{
    Document, DocumentError, GateErrorKind, Light, MAX_COUNTER, MAX_HEADS, PatchOp, Paths, PeerChange,
};
use crate::json::Json;

/// Makes the checksum fit again: SHA-256 over the chunk without magic and checksum.
fn repair(bytes: &mut [u8]) {
    if bytes.len() > 8 {
        let sum = Sha256::digest(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum[..4]);
    }
}

/// Applies what must be refused, and sees that nothing changed. A spoiled document is loaded again.
fn refuse(document: &mut Document, origin: &[u8], bytes: &[u8]) -> GateErrorKind {
    let before = document.clone();
    let error = document.apply(&[PeerChange { origin, bytes }]).unwrap_err();
    if error.spoiled {
        *document = before;
    } else {
        assert_eq!(
            (saved(document), document.heads(), text(document)),
            (saved(&before), before.heads(), text(&before))
        );
    }
    error.kind
}

/// A document, and two changes of origin b that follow it.
fn scene(paths: &Paths) -> (Document, Vec<u8>, Vec<u8>) {
    let (mut theirs, first) = showing(b'b', r#"{"l":[1,{"x":2.5}],"n":3,"s":"str","t":"text"}"#, paths);
    let mut document = Document::empty(&actor(b'a'));
    receive(&mut document, b'b', &first);
    let second =
        theirs.replace(&json(r#"{"l":[1,{"x":9}],"m":{"k":[null]},"n":7,"t":"teext"}"#), None, paths, 1);
    let third = theirs.patch(&[PatchOp::Increment { path: pointer("/n"), by: 5 }], None, paths, 2);
    (document, second.unwrap().unwrap(), third.unwrap().unwrap())
}

fn merging() -> Paths {
    paths(&["/t"], &["/n"])
}

/// One header of a change replaced: the bytes behind the chunk's header, with length and checksum made to fit.
fn rebuilt(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, 1];
    crate::codec::put_bytes(&mut bytes, body);
    repair(&mut bytes);
    bytes
}

/// A first change of origin b with these columns.
fn with_columns(columns: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![0]; // no dependencies
    crate::codec::put_bytes(&mut body, &actor(b'b'));
    body.extend([1, 1, 0, 0, 0]); // seq, first operation, time, message, other actors
    crate::codec::put_varint(&mut body, columns.len() as u64);
    for (specification, data) in columns {
        crate::codec::put_varint(&mut body, *specification);
        crate::codec::put_varint(&mut body, data.len() as u64);
    }
    body.extend(columns.iter().flat_map(|(_, data)| data.clone()));
    rebuilt(&body)
}

fn signed(mut value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = value as u8 & 0x7f;
        value >>= 7;
        if (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0) {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

/// `count` times `value` in a run-length encoded column.
fn run_of(count: i64, value: &[u8]) -> Vec<u8> {
    [signed(count), value.to_vec()].concat()
}

/// The columns of `count` times "set key k to null".
fn puts(count: i64) -> Vec<(u64, Vec<u8>)> {
    let mut rows = Vec::new();
    crate::codec::put_varint(&mut rows, count as u64);
    vec![
        (0x15, run_of(count, b"\x01k")),
        (0x34, rows),
        (0x42, run_of(count, &[1])),
        (0x56, run_of(count, &[0])),
        (0x70, run_of(count, &[0])),
    ]
}

#[test]
fn a_change_is_uncompressed_and_applied_once() {
    let (mut document, second, third) = scene(&merging());
    assert_eq!((second[8], third[8]), (1, 1));
    let origin = actor(b'b');
    let change = |bytes| PeerChange { origin: &origin, bytes };
    let batch = [change(&second[..]), change(&third[..]), change(&second[..])];
    let applied = document.apply(&batch).unwrap();
    assert_eq!((applied.applied, applied.known), (2, 1));
    let applied = document.apply(&batch).unwrap();
    assert_eq!((applied.applied, applied.known), (0, 3));
    assert_eq!(text(&document), r#"{"l":[1,{"x":9}],"m":{"k":[null]},"n":12,"t":"teext"}"#);
    assert_eq!(document.apply(&[]).unwrap().applied, 0);
}

#[test]
fn a_batch_is_applied_whole_or_not_at_all() {
    let (mut document, second, mut third) = scene(&merging());
    let last = third.len() - 1;
    third[last] ^= 1;
    let origin = actor(b'b');
    let batch = [&second, &third].map(|bytes| PeerChange { origin: &origin, bytes });
    let before = saved(&document);
    let error = document.apply(&batch).unwrap_err();
    assert_eq!((error.change, error.spoiled), (Some(1), false));
    assert_eq!(saved(&document), before);
}

#[test]
fn frames_that_are_no_plain_change_are_refused() {
    let (mut document, second, _) = scene(&merging());
    let origin = actor(b'b');
    let saved = document.save();
    for (bad, problem) in [
        (vec![], "not the format of a change"),
        (b"\x85\x6f\x4a\x84".repeat(3), "not automerge's format"),
        ([&second[..], &[0]].concat(), "its length does not fit"),
        (second[..second.len() - 1].to_vec(), "its length does not fit"),
        ([&second[..4], &[0; 4], &second[8..]].concat(), "its checksum does not fit"),
        (saved, "not a plain change"),
        ([&second[..8], &[2], &second[9..]].concat(), "not a plain change"),
        ([&second[..8], &[3], &second[9..]].concat(), "not a plain change"),
    ] {
        assert_eq!(refuse(&mut document, &origin, &bad), GateErrorKind::Malformed { problem });
    }
    let large = vec![0; (2 << 20) + 1];
    assert!(matches!(refuse(&mut document, &origin, &large), GateErrorKind::TooLarge { .. }));
}

#[test]
fn bombs_are_refused_by_their_headers() {
    let mut document = Document::empty(&actor(b'a'));
    let origin = actor(b'b');
    assert_eq!(with_columns(&puts(100_000_000)).len() / 100, 0, "a few dozen bytes");
    for count in [20_001, 5_000_000, 100_000_000, 1 << 62, i64::MAX] {
        let bomb = with_columns(&puts(count));
        let error = refuse(&mut document, &origin, &bomb);
        assert!(matches!(error, GateErrorKind::TooLarge { what: "operations of a change", .. }), "{error}");
    }
    let mut literals = puts(1);
    literals[2].1 = signed(i64::MIN);
    assert!(matches!(
        refuse(&mut document, &origin, &with_columns(&literals)),
        GateErrorKind::TooLarge { .. }
    ));
    // A long key many times, many predecessors, a long value that is not there.
    let mut keys = puts(20_000);
    keys[0].1 = run_of(20_000, &[&[0xc8, 0x01][..], &[b'k'; 200]].concat());
    let error = refuse(&mut document, &origin, &with_columns(&keys));
    assert!(matches!(error, GateErrorKind::TooLarge { what: "bytes of a change's keys", .. }), "{error}");
    let mut predecessors = puts(20_000);
    predecessors[4].1 = run_of(20_000, &[0xff, 0xff, 0x03]);
    let error = refuse(&mut document, &origin, &with_columns(&predecessors));
    assert!(matches!(error, GateErrorKind::TooLarge { what: "values a change overwrites", .. }), "{error}");
    let mut values = puts(1);
    values[3].1 = run_of(1, &[0xf6, 0xff, 0xff, 0xff, 0x0f]);
    let problem = "its values do not fit their lengths";
    assert_eq!(refuse(&mut document, &origin, &with_columns(&values)), GateErrorKind::Malformed { problem });
    // Columns that disagree, that nobody writes, and none.
    let mut fewer = puts(3);
    fewer[0].1 = run_of(5, b"\x01k");
    refuse(&mut document, &origin, &with_columns(&fewer));
    for (specification, problem) in
        [(0x5e, "a column that members do not write"), (0xa5, "a column that members do not write")]
    {
        let columns = [puts(1), vec![(specification, vec![1])]].concat();
        assert_eq!(
            refuse(&mut document, &origin, &with_columns(&columns)),
            GateErrorKind::Malformed { problem }
        );
    }
    let problem = "it has no operations";
    assert_eq!(refuse(&mut document, &origin, &with_columns(&[])), GateErrorKind::Malformed { problem });
    for (meta, action) in [(7, 1), (9, 1), (10, 1), (0, 6), (0, 7), (0, 99)] {
        let mut columns = puts(1);
        columns[2].1 = run_of(1, &[action]);
        columns[3].1 = run_of(1, &[meta]);
        let error = refuse(&mut document, &origin, &with_columns(&columns));
        assert!(matches!(error, GateErrorKind::Malformed { .. }), "{error}");
    }
}

#[test]
fn an_actor_is_its_origin_or_a_branch_of_it() {
    use super::super::gate::branch_of;
    let origin = actor(b'b');
    let branch = |number: u8, of: &[u8]| [&[0x13, 0xb2, 0x23, 0x09, number], of].concat();
    assert_eq!(branch_of(&origin, &origin), Some(0));
    assert_eq!(branch_of(&branch(1, &origin), &origin), Some(1));
    assert_eq!(branch_of(&branch(16, &origin), &origin), Some(16));
    for other in [
        actor(b'a'),
        branch(17, &origin),
        branch(0, &origin),
        branch(1, &actor(b'a')),
        vec![],
        origin[1..].to_vec(),
    ] {
        assert_eq!(branch_of(&other, &origin), None);
    }
    let (mut document, second, _) = scene(&merging());
    assert_eq!(refuse(&mut document, &actor(b'c'), &second), GateErrorKind::NotTheOrigins);
}

#[test]
fn a_change_that_came_too_early_waits_outside() {
    let (mut document, second, third) = scene(&merging());
    assert_eq!(refuse(&mut document, &actor(b'b'), &third), GateErrorKind::MissingDependency);
    receive(&mut document, b'b', &second);
    receive(&mut document, b'b', &third);
}

#[test]
fn two_changes_with_one_number_are_a_fork() {
    let (document, first) = showing(b'b', r#"{"x":1}"#, &plain());
    let (_, other) = showing(b'b', r#"{"x":2}"#, &plain());
    let mut here = Document::empty(&actor(b'a'));
    receive(&mut here, b'b', &first);
    assert_eq!(refuse(&mut here, &actor(b'b'), &other), GateErrorKind::Fork { seq: 1 });
    // The same on a longer history: one copied store goes two ways.
    let (mut one, mut two) = (super::copy_for(&document, b'b'), super::copy_for(&document, b'b'));
    let a = one.replace(&json(r#"{"x":3}"#), None, &plain(), 0).unwrap().unwrap();
    let b = two.replace(&json(r#"{"x":4}"#), None, &plain(), 0).unwrap().unwrap();
    receive(&mut here, b'b', &a);
    assert_eq!(refuse(&mut here, &actor(b'b'), &b), GateErrorKind::Fork { seq: 2 });
    // And in one batch.
    let mut fresh = Document::empty(&actor(b'a'));
    let origin = actor(b'b');
    let batch = [&first, &a, &b].map(|bytes| PeerChange { origin: &origin, bytes });
    let error = fresh.apply(&batch).unwrap_err();
    assert_eq!((error.kind, error.spoiled), (GateErrorKind::Fork { seq: 2 }, true));
}

#[test]
fn values_and_depths_that_members_do_not_write_are_refused() {
    use automerge::transaction::{CommitOptions, Transactable, Transaction};
    use automerge::{ActorId, Automerge, ObjType, ROOT, ScalarValue};
    let made = |edit: &dyn Fn(&mut Transaction<'_>), options: CommitOptions| {
        let mut hostile = Automerge::new().with_actor(ActorId::from(actor(b'b')));
        let mut transaction = hostile.transaction();
        edit(&mut transaction);
        let hash = transaction.commit_with(options).0.unwrap();
        hostile.get_change_by_hash_bytes(&hash)
    };
    let value =
        |value: ScalarValue| made(&|t| t.put(ROOT, "k", value.clone()).unwrap(), CommitOptions::default());
    let mut document = Document::empty(&actor(b'a'));
    let origin = actor(b'b');
    for bad in [
        ScalarValue::Bytes(vec![1]),
        ScalarValue::Timestamp(1),
        ScalarValue::F64(f64::NAN),
        ScalarValue::F64(f64::INFINITY),
        ScalarValue::counter(i64::MAX),
    ] {
        let error = refuse(&mut document, &origin, &value(bad.clone()));
        assert!(matches!(error, GateErrorKind::Malformed { .. }), "{bad}: {error}");
    }
    let note =
        made(&|t| t.put(ROOT, "k", 1).unwrap(), CommitOptions::default().with_message("note".to_owned()));
    assert_eq!(
        refuse(&mut document, &origin, &note),
        GateErrorKind::Malformed { problem: "it has a message" }
    );
    let overflow = made(
        &|t| {
            t.put(ROOT, "k", ScalarValue::counter(0)).unwrap();
            t.increment(ROOT, "k", i64::MAX).unwrap();
        },
        CommitOptions::default(),
    );
    assert!(matches!(refuse(&mut document, &origin, &overflow), GateErrorKind::Malformed { .. }));
    let nested = |levels: usize| {
        let edit = move |t: &mut Transaction<'_>| {
            let mut holder = ROOT;
            for _ in 0..levels {
                holder = t.put_object(&holder, "k", ObjType::Map).unwrap();
            }
        };
        made(&edit, CommitOptions::default())
    };
    for levels in [64, 300, 5_000] {
        let error = refuse(&mut document, &origin, &nested(levels));
        assert!(matches!(error, GateErrorKind::TooLarge { what: "levels of nesting", .. }), "{error}");
    }
    receive(&mut document, b'b', &nested(63));
    assert!(!document.to_canonical_json().is_empty());
}

#[test]
fn nesting_built_up_by_several_changes_shows_null_beyond_the_limit() {
    use automerge::transaction::Transactable;
    use automerge::{ActorId, Automerge, ObjType, ROOT};
    let mut hostile = Automerge::new().with_actor(ActorId::from(actor(b'b')));
    let mut document = Document::empty(&actor(b'a'));
    let mut holder = ROOT;
    for _ in 0..10 {
        let mut transaction = hostile.transaction();
        for _ in 0..60 {
            holder = transaction.put_object(&holder, "k", ObjType::Map).unwrap();
        }
        let hash = transaction.commit().0.unwrap();
        receive(&mut document, b'b', &hostile.get_change_by_hash_bytes(&hash));
    }
    assert_eq!(text(&document), r#"{"k":"#.repeat(64) + "null" + &"}".repeat(64));
    assert_eq!(document.to_json(), json(&text(&document)));
    assert_eq!(text(&super::copy_for(&document, b'c')), text(&document));
    // And it can be cleaned up.
    document.replace(&json("{}"), None, &plain(), 0).unwrap();
    assert_eq!(text(&document), "{}");
}

/// What the hostile tests need of automerge.
trait ChangeBytes {
    fn get_change_by_hash_bytes(&self, hash: &automerge::ChangeHash) -> Vec<u8>;
}

impl ChangeBytes for automerge::Automerge {
    fn get_change_by_hash_bytes(&self, hash: &automerge::ChangeHash) -> Vec<u8> {
        automerge::ReadDoc::get_change_by_hash(self, hash).unwrap().raw_bytes().to_vec()
    }
}

/// Applies bytes that may be anything: refused without a trace, or a document that still works.
fn survive(document: &mut Document, bytes: &[u8]) -> bool {
    let before = document.clone();
    match document.apply(&[PeerChange { origin: &actor(b'b'), bytes }]) {
        Err(error) if error.spoiled => {
            *document = before;
            false
        }
        Err(_) => {
            assert_eq!(
                (saved(document), document.heads(), text(document)),
                (saved(&before), before.heads(), text(&before))
            );
            false
        }
        Ok(_) => {
            // Without automerge it is the same, or is left to it.
            if let Some(mut light) = before.into_light()
                && light.apply(PeerChange { origin: &actor(b'b'), bytes })
            {
                assert_eq!(
                    (light.heads(), &light.shown()[..]),
                    (document.heads(), text(document).as_bytes())
                );
            }
            document.settle().expect("what was accepted is automerge's");
            let loaded = Document::load(&document.save(), &actor(b'a')).expect("what was accepted loads");
            assert_eq!((loaded.heads(), text(&loaded)), (document.heads(), text(document)));
            let value = document.to_json();
            let Json::Object(mut entries) = value else { panic!("an object") };
            entries.insert("still".into(), Json::Bool(true));
            document
                .replace(&Json::Object(entries), None, &plain(), 0)
                .expect("what was accepted can be edited");
            true
        }
    }
}

#[test]
fn every_single_byte_behind_a_repaired_checksum_is_survived() {
    quietly(|| {
        let (document, second, _) = scene(&merging());
        let mut accepted = 0;
        for at in 8..second.len() {
            for value in (0..=255).step_by(5).chain([1, 2, 3, 0x7e, 0x7f, 0x80, 0x81, 0xfe]) {
                let mut bad = second.clone();
                bad[at] = value;
                repair(&mut bad);
                accepted += usize::from(survive(&mut document.clone(), &bad));
            }
        }
        println!("{accepted} mutants were well-formed changes");
    });
}

/// Runs without the panic messages of what the gate catches. The hook is the process's: tests that run meanwhile lose
/// theirs too, but not their failure.
fn quietly(run: impl FnOnce() + std::panic::UnwindSafe) {
    std::panic::set_hook(Box::new(|i| {
        if i.location().is_some_and(|l| l.file().contains("tests")) {
            eprintln!("{i}")
        }
    }));
    let result = std::panic::catch_unwind(run);
    drop(std::panic::take_hook());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_peers_would_refuse_is_refused_where_it_is_made() {
    // One head more than a change may name.
    let mut document = Document::empty(&actor(b'a'));
    let origins: Vec<Vec<u8>> =
        (0..=MAX_HEADS).map(|n| [&actor(b'b')[..], &n.to_be_bytes()].concat()).collect();
    let changes: Vec<Vec<u8>> = origins
        .iter()
        .map(|origin| {
            Document::empty(origin).replace(&json(r#"{"k":1}"#), None, &plain(), 0).unwrap().unwrap()
        })
        .collect();
    let batch: Vec<PeerChange<'_>> =
        origins.iter().zip(&changes).map(|(origin, bytes)| PeerChange { origin, bytes }).collect();
    document.apply(&batch[1..]).unwrap();
    let mut fits = document.clone();
    assert!(fits.replace(&json(r#"{"k":2}"#), None, &plain(), 0).is_ok());
    document.apply(&batch[..1]).unwrap();
    let error = document.replace(&json(r#"{"k":2}"#), None, &plain(), 0).unwrap_err();
    assert!(matches!(error, DocumentError::NotPassed { .. }) && error.spoils(), "{error}");
    let error = document.replace(&json(r#"{"k":[]}"#), None, &plain(), 0).unwrap_err();
    assert!(matches!(error, DocumentError::NotPassed { .. }) && error.spoils(), "{error}");
    // And a peer refuses it as well.
    let made = document.automerge.get_change_by_hash_bytes(&document.automerge.get_heads()[0]);
    let mut peer = Document::empty(&actor(b'z'));
    peer.apply(&batch).unwrap();
    let error = peer.apply(&[PeerChange { origin: &actor(b'a'), bytes: &made }]).unwrap_err();
    assert!(matches!(error.kind, GateErrorKind::TooLarge { what: "dependencies", .. }), "{error}");
}

#[test]
fn without_automerge_nothing_passes_that_a_member_would_not_have_written() {
    // Forms that mean the same: a run of one, where members write a literal.
    let canonical: Vec<(u64, Vec<u8>)> = puts(1)
        .into_iter()
        .map(|(column, data)| match column {
            0x34 => (column, data),
            _ => (column, [signed(-1), data[1..].to_vec()].concat()),
        })
        .collect();
    let origin = actor(b'b');
    let empty = Light::empty(&actor(b'a'));
    let accepts = |light: &Light, bytes: &[u8]| light.clone().apply(PeerChange { origin: &origin, bytes });
    assert!(accepts(&empty, &with_columns(&canonical)));
    for (at, column) in puts(1).into_iter().enumerate() {
        let mut other = canonical.clone();
        other[at] = column;
        let bytes = with_columns(&other);
        assert_eq!(accepts(&empty, &bytes), other == canonical, "column {at}");
    }
    assert!(!accepts(&empty, &with_columns(&puts(1))));

    // What b could write next, and what it could not.
    let (document, _) = showing(b'b', r#"{"n":3,"x":1,"y":1}"#, &paths(&[], &["/n"]));
    let light = document.into_light().unwrap();
    let heads = light.heads();
    let of = |counter| OpId { counter, author: 0 };
    let (n, x, y) = ([of(1)], [of(2)], [of(3)]);
    let put = |key, seen| MapOp { map: None, key, action: Action::Put(Scalar::Null), seen };
    let by = |key, by, seen| MapOp { map: None, key, action: Action::Increment(by), seen };
    let made = |letter: &[u8], seq, first_op, dependencies: &[[u8; 32]], operations: &[MapOp<'_>]| {
        let (author, known) = (ActorId::from(letter), ActorId::from(&origin[..]));
        let head = Head { actor: &author, seq, first_op, time: 0, dependencies };
        let (bytes, _) = encode(&head, operations, |_| &known);
        accepts(&light, &bytes)
    };
    let deps = heads.hashes();
    let branch = [&[0x13, 0xb2, 0x23, 0x09, 1], &origin[..]].concat();
    let right = [put("x", &x), by("n", 2, &n), put("z", &[])];
    assert!(made(&origin, 2, 4, deps, &right));
    for (letter, seq, first_op, deps, problem) in [
        (&actor(b'a')[..], 1, 4, deps, "of another origin"),
        (&branch[..], 1, 4, deps, "of a branch"),
        (&origin, 1, 4, deps, "a number that is known"),
        (&origin, 3, 4, deps, "a number left out"),
        (&origin, 2, 3, deps, "an operation's number that is known"),
        (&origin, 2, 5, deps, "an operation's number left out"),
        (&origin, 2, 4, &[][..], "on top of nothing"),
        (&origin, 2, 4, &[[7; 32]][..], "on top of something else"),
    ] {
        assert!(!made(letter, seq, first_op, deps, &right), "{problem}");
    }
    for (operations, problem) in [
        (vec![put("x", &[])], "a value it has not seen"),
        (vec![put("x", &y)], "the value of another entry"),
        (vec![put("z", &x)], "a value that is not there"),
        (vec![put("x", &x), put("x", &x)], "one entry twice"),
        (vec![by("x", 1, &x)], "an increment of a plain value"),
        (vec![by("z", 1, &[])], "an increment of nothing"),
        (vec![by("n", i64::MAX, &n)], "an increment beyond the range"),
        (vec![by("n", MAX_COUNTER, &n)], "a counter beyond its range"),
        (vec![MapOp { action: Action::Delete, ..put("z", &[]) }], "a delete of nothing"),
        (vec![MapOp { action: Action::Put(Scalar::Uint(5)), ..put("x", &x) }], "a small unsigned number"),
        (vec![MapOp { action: Action::Put(Scalar::Float(f64::NAN)), ..put("x", &x) }], "no number"),
        (vec![MapOp { action: Action::PutCounter(i64::MIN), ..put("x", &x) }], "a counter that starts there"),
        (vec![MapOp { map: Some(of(2)), ..put("x", &x) }], "in something that is no map"),
        (vec![], "no operation"),
    ] {
        assert!(!made(&origin, 2, 4, deps, &operations), "{problem}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_changes_are_survived(
        values in (any_root(), any_root()),
        mutations in vec((any::<proptest::sample::Index>(), any::<u8>(), 0_u8..4), 1..6),
    ) {
        let (mut theirs, mut document) = (Document::empty(&actor(b'b')), Document::empty(&actor(b'a')));
        let first = theirs.replace(&values.0, None, &paths(&["/*"], &[]), 0).unwrap();
        if let Some(first) = &first {
            receive(&mut document, b'b', first);
        }
        if let Some(mut bytes) = theirs.replace(&values.1, None, &paths(&["/*"], &[]), 0).unwrap() {
            for (at, value, kind) in mutations {
                let at = 9 + at.index(bytes.len() - 9);
                match kind {
                    0 => bytes[at] = value,
                    1 => bytes[at] ^= 1 << (value % 8),
                    2 => bytes.insert(at, value),
                    _ => drop(bytes.remove(at)),
                }
                if bytes.len() < 12 {
                    break;
                }
            }
            // The length may have changed; keep it fitting where one byte says it.
            if bytes.len() > 10 && bytes.len() - 10 < 128 {
                bytes[9] = (bytes.len() - 10) as u8;
            }
            repair(&mut bytes);
            survive(&mut document, &bytes);
        }
    }

    #[test]
    fn random_columns_are_survived(columns in vec((0_usize..12, vec(any::<u8>(), 0..12)), 0..8)) {
        const KNOWN: [u64; 12] = [1, 2, 0x11, 0x13, 0x15, 0x34, 0x42, 0x56, 0x57, 0x70, 0x71, 0x73];
        let mut columns: Vec<(u64, Vec<u8>)> = columns.into_iter().map(|(at, data)| (KNOWN[at], data)).collect();
        columns.sort();
        columns.dedup_by_key(|column| column.0);
        let bytes = with_columns(&columns);
        let mut document = Document::empty(&actor(b'a'));
        survive(&mut document, &bytes);
        prop_assert!(document.history_changes() <= 2);
        prop_assert_eq!(document.heads().hashes().len(), usize::from(document.history_changes() > 0));
    }
}
