//! A real editing session of two people, typed by two origins into one text.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{actor, json, paths, pointer};
use crate::document::{Document, PatchOp, PeerChange};

/// Where the traces are: `$TROPISM_DATA`, or beside the workspace.
fn trace_file() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    std::env::var_os("TROPISM_DATA").map_or(beside, PathBuf::from).join("friendsforever.json.gz")
}

#[test]
fn two_people_typing_end_with_exactly_what_they_wrote() {
    let Ok(file) = std::fs::File::open(trace_file()) else {
        println!("skipped: {} is not there", trace_file().display());
        return;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |value: &serde_json::Value| usize::try_from(value.as_u64().unwrap()).unwrap();

    let paths = paths(&["/doc"], &[]);
    let mut first = Document::empty(&actor(b'0'));
    let created = first.replace(&json(r#"{"doc":""}"#), None, &paths, 0).unwrap().unwrap();
    let mut second = Document::empty(&actor(b'1'));
    second.apply(&[PeerChange { origin: &actor(b'0'), bytes: &created }]).unwrap();
    let mut typists = [first, second];
    // What each has seen of the other's, as a position in `log`.
    let mut seen = [0, 0];
    let mut log: Vec<(usize, Vec<u8>)> = Vec::new();

    for transaction in trace["txns"].as_array().unwrap() {
        let who = number(&transaction["agent"]);
        let parents = transaction["parents"].as_array().unwrap();
        let until = parents
            .iter()
            .map(number)
            .filter(|parent| log[*parent].0 != who)
            .max()
            .map_or(0, |last| last + 1);
        if until > seen[who] {
            let origin = actor(b'0' + (1 - who) as u8);
            let news = log[seen[who]..until].iter().filter(|(author, _)| *author != who);
            let batch: Vec<PeerChange<'_>> =
                news.map(|(_, bytes)| PeerChange { origin: &origin, bytes }).collect();
            typists[who].apply(&batch).unwrap();
            seen[who] = until;
        }
        let splices: Vec<PatchOp> = transaction["patches"]
            .as_array()
            .unwrap()
            .iter()
            .map(|patch| PatchOp::SpliceText {
                path: pointer("/doc"),
                index: number(&patch[0]),
                delete: number(&patch[1]),
                insert: patch[2].as_str().unwrap().to_owned(),
            })
            .collect();
        let change = typists[who].patch(&splices, None, &paths, 0).unwrap().unwrap();
        log.push((who, change));
    }
    let expected = serde_json::json!({ "doc": trace["endContent"] });
    for (who, typist) in typists.iter_mut().enumerate() {
        let origin = actor(b'0' + (1 - who) as u8);
        let rest = log[seen[who]..].iter().filter(|(author, _)| *author != who);
        let batch: Vec<PeerChange<'_>> =
            rest.map(|(_, bytes)| PeerChange { origin: &origin, bytes }).collect();
        typist.apply(&batch).unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&typist.to_canonical_json()).unwrap();
        assert!(shown == expected, "typist {who} ends with another text");
        let loaded = Document::load(&typist.save(), &actor(b'9')).unwrap();
        assert!(loaded.to_canonical_json() == typist.to_canonical_json());
    }
    assert_eq!(typists[0].heads(), typists[1].heads());
}
