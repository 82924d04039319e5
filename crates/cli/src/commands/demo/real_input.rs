//! The last act: real input. Two people's recorded editing session, typed from two regions; where the recording is not
//! there, the catalogue below, loaded in one region and edited in another meanwhile.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Value as Report, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tropism_client::v1::{PatchOperation, TextSplice, patch_operation::Action};
use tropism_client::{Calls, Patch, PutItem, PutOptions, Value};

use super::figures::{Times, milliseconds, ms, row};
use super::{Tour, broken};
use crate::output::Failure;

/// Names the directory of recordings.
const DATA_VARIABLE: &str = "TROPISM_DATA";
/// Where it is otherwise, from the current directory.
const DATA_DIRECTORY: &str = "../shared/data";
const TRACE: &str = "friendsforever.json.gz";
/// Largest recording that is read, in bytes: several times the one that is known.
const MAX_TRACE_BYTES: u64 = 64 << 20;
/// Transactions that are typed, one keystroke each.
const KEYSTROKES: usize = 4000;
/// Most keystrokes in one patch: below the limit of operations, and a second or two of fast typing.
const MAX_RUN: usize = 500;
const NOTES: &str = "demo-notes/session";
const NOTE: &str = "friends";
/// How long one typist waits for the other's answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

const CATALOGUE: &str = "shop/catalogue";
const CATALOGUE_JSON: &str = include_str!("catalogue.json");
/// Products in one bulk call, and the pause between two: the other region shall edit meanwhile.
const CATALOGUE_BATCH: usize = 10;
const CATALOGUE_PAUSE: Duration = Duration::from_millis(30);

impl Tour<'_, '_> {
    /// Act 6.
    pub(super) async fn real_input(&mut self) -> Result<Report, Failure> {
        let directory = env::var_os(DATA_VARIABLE).filter(|value| !value.is_empty());
        let path = directory.map_or_else(|| PathBuf::from(DATA_DIRECTORY), PathBuf::from).join(TRACE);
        if path.is_file() { self.session(&path).await } else { self.catalogue().await }
    }

    /// The recorded session, with the parents of every keystroke respected.
    async fn session(&mut self, path: &Path) -> Result<Report, Failure> {
        let (one, other) = (self.sites[0].name.clone(), self.sites[1].name.clone());
        self.screen.act(
            6,
            "Real input: two people type into one text",
            &format!(
                "The first {KEYSTROKES} keystrokes of a recorded session, one person in {one}, one in {other};\n   \
                 every keystroke on top of exactly what its author had seen."
            ),
        )?;
        let trace = read_trace(path)?;
        let runs = runs(&trace)
            .ok_or_else(|| Failure::Failed(format!("{} is no session of two people", path.display())))?;
        let begun = self.sites[0].client.put_json(NOTES, NOTE, "{\"text\":\"\"}").await?.version;
        self.equal(NOTES, NOTE).await?;
        let begun = Version::read(&begun)?;
        let (mine, of_one) = watch::channel(vec![Typed { keystrokes: 0, seen: 0, hash: begun.newest()? }]);
        let (theirs, of_other) =
            watch::channel(vec![Typed { keystrokes: 0, seen: 0, hash: begun.newest()? }]);
        let [first, second] = runs;
        let (keystrokes, merged) = (first.iter().chain(&second).map(|run| run.keystrokes).sum::<usize>(), {
            let merges = |runs: &[Run]| runs.windows(2).filter(|pair| pair[0].seen < pair[1].seen).count();
            merges(&first) + merges(&second)
        });
        let typist = |site: usize, runs, told, heard| Typist {
            client: self.sites[site].client.new_session(),
            life: begun.life.clone(),
            runs,
            told,
            heard,
        };
        let (first, second) = (typist(0, first, mine, of_other), typist(1, second, theirs, of_one));
        let progress = second.heard.clone();
        let start = Instant::now();
        let typing = async { tokio::try_join!(first.type_all(), second.type_all()) };
        tokio::pin!(typing);
        let (mut patches, more) = loop {
            tokio::select! {
                done = &mut typing => break done?,
                () = sleep(Duration::from_millis(200)) => {
                    let typed = progress.borrow().last().map_or(0, |typed| typed.keystrokes);
                    self.screen.progress(&format!("{one} has typed {typed} keystrokes ..."));
                }
            }
        };
        let took = start.elapsed();
        patches.extend(&more);
        let equal = Instant::now();
        let entries = self.equal(NOTES, NOTE).await?;
        let equal = equal.elapsed();
        let Some(Value::Document(shown)) = entries.first().and_then(|entry| entry.value.clone()) else {
            return Err(broken(format!("{NOTES} {NOTE} is gone")));
        };
        let shown: Report = serde_json::from_slice(&shown)
            .map_err(|error| broken(format!("{NOTES} {NOTE} is no JSON: {error}")))?;
        let text = shown["text"].as_str().unwrap_or_default();
        // Only a recording that was typed to its end says what the text must be.
        if trace.txns.len() <= KEYSTROKES && trace.end_content.as_deref().is_some_and(|end| end != text) {
            return Err(broken("the text is not the one that the session ended with".to_owned()));
        }
        let beginning: String = text.chars().flat_map(char::escape_default).take(56).collect();
        self.screen.table(&[
            row(["keystrokes", &format!("{keystrokes} in {} patches", patches.len())]),
            row(["news taken in from the other", &merged.to_string()]),
            row(["typed in", &format!("{:.1} s", took.as_secs_f64())]),
            row(["the text", &format!("{} characters, the same in every region", text.chars().count())]),
            row(["it begins", &format!("{beginning} ...")]),
        ])?;
        self.screen
            .note(&format!("Equal everywhere {} after the last keystroke.", ms(milliseconds(equal))))?;
        Ok(json!({
            "source": TRACE, "keystrokes": keystrokes, "patches": patches.to_json(), "merges": merged,
            "seconds": took.as_secs_f64(), "characters": text.chars().count(), "equal_ms": milliseconds(equal),
        }))
    }

    /// The catalogue, loaded in one region and repriced in another as it arrives.
    async fn catalogue(&mut self) -> Result<Report, Failure> {
        let (one, other) = (self.sites[0].name.clone(), self.sites[1].name.clone());
        self.screen.act(
            6,
            "Real input: a catalogue, edited while it is loaded",
            &format!(
                "{TRACE} is not there ({DATA_VARIABLE} names its directory), so the catalogue of this\n   \
                 repository is loaded in {one}, and {other} marks every product as it arrives."
            ),
        )?;
        let products: serde_json::Map<String, Report> = serde_json::from_str(CATALOGUE_JSON)
            .map_err(|error| Failure::Failed(format!("the catalogue is no JSON: {error}")))?;
        self.screen.progress(&format!("loading {} products ...", products.len()));
        let start = Instant::now();
        let (loader, editor) = (&self.sites[0].client, &self.sites[1].client);
        let loading = async {
            let items: Vec<(&String, &Report)> = products.iter().collect();
            for batch in items.chunks(CATALOGUE_BATCH) {
                let item = |(key, value): &(&String, &Report)| PutItem {
                    key: (*key).clone(),
                    value: Value::Document(value.to_string().into()),
                    options: PutOptions::default(),
                };
                for result in loader.batch_put(CATALOGUE, batch.iter().map(item).collect()).await? {
                    result.map_err(|problem| Failure::Item("the catalogue".to_owned(), problem))?;
                }
                sleep(CATALOGUE_PAUSE).await;
            }
            Ok(start.elapsed())
        };
        let editing = async {
            let mut edits = Times::default();
            for key in products.keys() {
                let deadline = Instant::now() + ANSWER_TIME;
                while editor.get(CATALOGUE, key).await?.entry.is_none() {
                    if Instant::now() > deadline {
                        return Err(broken(format!("{CATALOGUE} {key} did not reach {other}")));
                    }
                    sleep(Duration::from_millis(1)).await;
                }
                let mark = PatchOperation {
                    path: "/checked_in".to_owned(),
                    action: Some(Action::Set(json!(other).to_string().into())),
                };
                let edit = Instant::now();
                editor.patch(CATALOGUE, key, Patch::Operations(vec![mark]), PutOptions::default()).await?;
                edits.add(edit.elapsed());
            }
            Ok(edits)
        };
        let (loaded, edits) = tokio::try_join!(loading, editing)?;
        let entries = self.equal(CATALOGUE, "").await?;
        let took = start.elapsed();
        for (key, product) in &products {
            let mut wanted = product.clone();
            wanted["checked_in"] = json!(other);
            let found = entries.iter().find(|entry| entry.key == *key).and_then(|entry| entry.value.as_ref());
            let same = matches!(found, Some(Value::Document(json))
                if serde_json::from_slice::<Report>(json).is_ok_and(|found| found == wanted));
            if !same {
                return Err(broken(format!("{CATALOGUE} {key} lost its product or its mark")));
            }
        }
        self.screen.table(&[
            row(["products loaded", &format!("{} in {}", products.len(), ms(milliseconds(loaded)))]),
            row(["marked meanwhile", &format!("{}, p50 {}", edits.len(), ms(edits.percentile(50)))]),
            row(["equal everywhere", &format!("after {}, product and mark in each", ms(milliseconds(took)))]),
        ])?;
        Ok(json!({
            "source": "catalogue", "products": products.len(), "loaded_ms": milliseconds(loaded),
            "edits": edits.to_json(), "equal_ms": milliseconds(took),
        }))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    end_content: Option<String>,
    txns: Vec<Transaction>,
}

/// What one person typed at once, on top of the transactions `parents`.
#[derive(Debug, Deserialize)]
struct Transaction {
    parents: Vec<usize>,
    agent: usize,
    /// Position, characters deleted, text inserted.
    patches: Vec<(u64, u64, String)>,
}

fn read_trace(path: &Path) -> Result<Trace, Failure> {
    let wrong = |error: String| Failure::Failed(format!("{} cannot be read: {error}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    GzDecoder::new(file)
        .take(MAX_TRACE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| wrong(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// Keystrokes of one person that build on the same ones of the other, in one patch.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    /// How many of the other's keystrokes they build on.
    seen: usize,
    keystrokes: usize,
    operations: Vec<PatchOperation>,
}

/// The beginning of a session as the runs of both people: a run ends where its author sees more of the other's, and
/// where the other has seen no more of it. None when it is no session of two people in causal order.
fn runs(trace: &Trace) -> Option<[Vec<Run>; 2]> {
    let mut typed: [Vec<(usize, &Transaction)>; 2] = Default::default();
    let mut places: Vec<(usize, usize)> = Vec::new(); // of each transaction: who, and the how manieth
    for transaction in trace.txns.iter().take(KEYSTROKES) {
        let who = transaction.agent;
        let mut seen = typed.get(who)?.last().map_or(0, |(seen, _)| *seen);
        for parent in &transaction.parents {
            let (author, place) = *places.get(*parent)?;
            if author != who {
                seen = seen.max(place + 1);
            }
        }
        places.push((who, typed[who].len()));
        typed[who].push((seen, transaction));
    }
    Some([0, 1].map(|who| {
        let mut runs: Vec<Run> = Vec::new();
        for (place, (seen, transaction)) in typed[who].iter().enumerate() {
            let boundary = typed[1 - who].binary_search_by_key(&place, |(seen, _)| *seen).is_ok();
            let operations = transaction.patches.iter().map(|(index, delete, insert)| PatchOperation {
                path: "/text".to_owned(),
                action: Some(Action::SpliceText(TextSplice {
                    index: *index,
                    delete: *delete,
                    insert: insert.clone(),
                })),
            });
            match runs.last_mut() {
                Some(run) if run.seen == *seen && !boundary && run.keystrokes < MAX_RUN => {
                    run.keystrokes += 1;
                    run.operations.extend(operations);
                }
                _ => runs.push(Run { seen: *seen, keystrokes: 1, operations: operations.collect() }),
            }
        }
        runs
    }))
}

/// One step of what a typist has done: after so many keystrokes, having seen so many of the other's.
#[derive(Debug, Clone, Copy)]
struct Typed {
    keystrokes: usize,
    seen: usize,
    hash: [u8; HASH_BYTES],
}

const HASH_BYTES: usize = 32;

/// A version of a document, taken apart. Versions are opaque to applications, which send back what they were shown; a
/// replay has to name states that its typists saw and that nobody is shown any more.
#[derive(Debug, Clone, PartialEq)]
struct Version {
    /// The life and kind, as they came.
    life: Bytes,
    /// The newest changes.
    hashes: Vec<[u8; HASH_BYTES]>,
}

impl Version {
    fn read(version: &Bytes) -> Result<Self, Failure> {
        let life = version.len() % HASH_BYTES;
        let (hashes, _) = version[life..].as_chunks::<HASH_BYTES>();
        Ok(Self { life: version.slice(..life), hashes: hashes.to_vec() })
    }

    fn newest(&self) -> Result<[u8; HASH_BYTES], Failure> {
        self.hashes.last().copied().ok_or_else(|| broken("a version names no change".to_owned()))
    }
}

/// One of the two people.
struct Typist {
    client: Calls,
    /// What versions of the document begin with.
    life: Bytes,
    runs: Vec<Run>,
    told: watch::Sender<Vec<Typed>>,
    heard: watch::Receiver<Vec<Typed>>,
}

impl Typist {
    /// Types every run at exactly the version that its author had seen; the node waits for what has not arrived.
    async fn type_all(mut self) -> Result<Times, Failure> {
        let mut times = Times::default();
        for run in std::mem::take(&mut self.runs) {
            let Some(before) = self.told.borrow().last().copied() else { continue }; // it begins with one
            let theirs = self.heard_of(run.seen).await?;
            // Only the newest: what has seen all of the other stands for both.
            let mut base = Vec::new();
            if theirs.seen < before.keystrokes || run.seen <= before.seen {
                base.push(before.hash);
            }
            if run.seen > before.seen {
                base.push(theirs.hash);
            }
            base.sort_unstable();
            base.dedup();
            let keystrokes = before.keystrokes + run.keystrokes;
            let mut hash = before.hash;
            let mut seen = before.seen;
            if !run.operations.is_empty() {
                let options = PutOptions {
                    base_version: [self.life.as_ref(), base.as_flattened()].concat().into(),
                    ..PutOptions::default()
                };
                let start = Instant::now();
                let patch = Patch::Operations(run.operations);
                let written = self.client.patch(NOTES, NOTE, patch, options).await?;
                times.add(start.elapsed());
                hash = self.own_of(&Version::read(&written.version)?).await?;
                seen = run.seen;
            }
            self.told.send_modify(|told| told.push(Typed { keystrokes, seen, hash }));
        }
        Ok(times)
    }

    /// The other's step after so many keystrokes, once it is made.
    async fn heard_of(&mut self, keystrokes: usize) -> Result<Typed, Failure> {
        let find = |steps: &[Typed]| steps.iter().find(|step| step.keystrokes == keystrokes).copied();
        let waiting = self.heard.wait_for(|steps| find(steps).is_some());
        match timeout(ANSWER_TIME, waiting).await {
            Ok(Ok(steps)) => find(&steps).ok_or_else(silent),
            _ => Err(silent()),
        }
    }

    /// The change just made: the one of the answer that neither has told of. The other's newest may be there before
    /// its answer is.
    async fn own_of(&mut self, answer: &Version) -> Result<[u8; HASH_BYTES], Failure> {
        let mine: Vec<[u8; HASH_BYTES]> = self.told.borrow().iter().map(|step| step.hash).collect();
        let new = |theirs: &[Typed]| -> Vec<[u8; HASH_BYTES]> {
            let known =
                |hash: &[u8; HASH_BYTES]| mine.contains(hash) || theirs.iter().any(|step| step.hash == *hash);
            answer.hashes.iter().filter(|hash| !known(hash)).copied().collect()
        };
        let waiting = self.heard.wait_for(|theirs| new(theirs).len() == 1);
        match timeout(ANSWER_TIME, waiting).await {
            Ok(Ok(theirs)) => new(&theirs).first().copied().ok_or_else(silent),
            _ => Err(silent()),
        }
    }
}

fn silent() -> Failure {
    Failure::Failed("one of the two typists fell silent".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Trace, Transaction, runs};

    fn transaction(agent: usize, parents: &[usize]) -> Transaction {
        Transaction { parents: parents.to_vec(), agent, patches: vec![(0, 0, "x".to_owned())] }
    }

    fn shape(txns: Vec<Transaction>) -> Option<[Vec<(usize, usize)>; 2]> {
        let shape = |runs: Vec<super::Run>| runs.iter().map(|run| (run.seen, run.keystrokes)).collect();
        runs(&Trace { end_content: None, txns }).map(|both| both.map(shape))
    }

    #[test]
    fn a_run_ends_where_its_author_sees_more_and_where_the_other_has_seen_no_more() {
        let typed = [
            transaction(0, &[]),
            transaction(0, &[0]),
            transaction(1, &[0]), // has seen one keystroke of the first run
            transaction(0, &[1, 2]),
        ];
        let [one, other] = [vec![(0, 1), (0, 1), (1, 1)], vec![(1, 1)]];
        assert_eq!(shape(typed.into()), Some([one, other]));
    }

    #[test]
    fn a_third_person_and_a_parent_that_comes_later_are_no_session() {
        assert_eq!(shape(vec![transaction(2, &[])]), None);
        assert_eq!(shape(vec![transaction(0, &[1]), transaction(1, &[])]), None);
    }

    #[test]
    fn the_catalogue_has_two_hundred_products() {
        let read: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_str(super::CATALOGUE_JSON);
        assert!(matches!(read, Ok(products) if products.len() == 200));
    }
}
