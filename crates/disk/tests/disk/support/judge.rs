//! What became of a damaged store: it is whole, it says what is wrong, or it is wrong.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tropism_disk::{DiskEngine, DiskOptions, OpenError, Witness, open};
use tropism_storage::{Engine, Head, Space, Store, View};

use super::content::{AllRows, Histories, KEYS, commit_next, head_of, log_key, origin, value_key};

/// What a store turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It shows exactly what was written up to a commit, which is not before what was acknowledged.
    Harmless,
    /// The same, after a write that nobody was told of was cut off its journal.
    Cut,
    /// It says that something is wrong, in place of what it cannot show.
    Detected(&'static str),
    /// It shows something else, or less, without a word.
    Wrong(String),
}

/// The kind of a refusal.
pub(crate) fn kind(error: &OpenError) -> &'static str {
    match error {
        OpenError::Locked { .. } => "Locked",
        OpenError::Damaged { .. } => "Damaged",
        OpenError::Short { .. } => "Short",
        OpenError::WitnessLost { .. } => "WitnessLost",
        OpenError::Io { .. } => "Io",
    }
}

/// What a state is judged by.
pub(crate) struct Judge<'a> {
    pub(crate) histories: &'a mut Histories,
    pub(crate) options: &'a DiskOptions,
    /// The last commit that was acknowledged.
    pub(crate) acknowledged: u64,
    /// The last commit that was made.
    pub(crate) made: u64,
    /// How many commits to make on it afterwards, so that what is damaged is flushed over and compacted.
    pub(crate) further: u64,
    /// Refusals that are no good answer to what was done.
    pub(crate) must_open: bool,
}

impl Judge<'_> {
    /// Opens a directory, reads every row, goes on writing, reads again, opens again and reads once more.
    pub(crate) fn judge(&mut self, dir: &Path) -> Outcome {
        let judged = catch_unwind(AssertUnwindSafe(|| self.look(dir)));
        judged.unwrap_or_else(|panic| Outcome::Wrong(format!("panicked: {}", said(&*panic))))
    }

    fn look(&mut self, dir: &Path) -> Outcome {
        let (engine, witness) = match open(dir, self.options) {
            Ok(opened) => opened,
            Err(error) if self.must_open => return Outcome::Wrong(format!("refused: {error}")),
            Err(error) => return refusal(&error),
        };
        let cut = engine.cut_bytes() > 0;
        let head = match head_of(&engine) {
            Ok(head) => head,
            Err(_) => return Outcome::Detected("reading"),
        };
        if !(self.acknowledged..=self.made).contains(&head.commit) {
            let (acknowledged, made) = (self.acknowledged, self.made);
            return Outcome::Wrong(format!("opened at {}, not in {acknowledged}..={made}", head.commit));
        }
        let first = self.read(&engine, head.commit);
        if first == Outcome::Detected("reading") {
            return self.found_again(dir, engine, witness, head);
        }
        if self.further == 0 || matches!(first, Outcome::Wrong(_)) {
            return told_as(first, cut);
        }
        told_as(self.go_on(dir, engine, witness, head), cut)
    }

    /// A store that could not read a row, and maybe goes on: it says what is damaged when it is opened again, unless the
    /// damaged table is gone by then.
    fn found_again(&mut self, dir: &Path, engine: DiskEngine, witness: Witness, head: Head) -> Outcome {
        if self.further == 0 {
            drop((engine, witness));
        } else if let Outcome::Wrong(what) = self.go_on(dir, engine, witness, head) {
            return Outcome::Wrong(what);
        }
        match open(dir, self.options) {
            Err(OpenError::Damaged { reason, .. }) if reason.contains("tables/") => {
                Outcome::Detected("reading")
            }
            Err(error) => Outcome::Wrong(format!("does not say which table is damaged: {error}")),
            // It went on until the table was compacted away, by what does not read all of it: then every table was read as a
            // whole, and every row is there.
            Ok((engine, _)) if self.further > 0 => match head_of(&engine).map(|head| head.commit) {
                Ok(commit) if self.read(&engine, commit) == Outcome::Harmless => Outcome::Detected("reading"),
                _ => Outcome::Wrong("opened again though a row cannot be read".into()),
            },
            Ok(_) => Outcome::Wrong("opened again though a row could not be read".into()),
        }
    }

    /// Reads every row by its key and in order.
    fn read(&mut self, view: &(impl View + ?Sized), commit: u64) -> Outcome {
        let expected = self.histories.rows(commit);
        let mut outcome = Outcome::Harmless;
        for (space, key, value) in &expected {
            match view.get(*space, key) {
                Ok(found) if found.as_ref() == Some(value) => {}
                Ok(found) => {
                    let found = found.map(|found| found.len());
                    return Outcome::Wrong(format!("{space:?} {key:?} is {found:?} bytes at {commit}"));
                }
                Err(_) => outcome = Outcome::Detected("reading"),
            }
        }
        for (space, key) in removed(&expected, commit) {
            match view.get(space, &key) {
                Ok(None) => {}
                Ok(Some(_)) => return Outcome::Wrong(format!("{space:?} {key:?} is back at {commit}")),
                Err(_) => outcome = Outcome::Detected("reading"),
            }
        }
        for space in Space::ALL {
            let mut rows = expected.iter().filter(|(of, ..)| *of == space);
            for row in view.scan(space, b"", &[0xff; 64]) {
                let Ok((key, value)) = row else {
                    outcome = Outcome::Detected("reading");
                    rows.by_ref().for_each(drop);
                    break;
                };
                if rows.next().is_none_or(|(_, name, written)| *name != key || *written != value) {
                    return Outcome::Wrong(format!("a scan of {space:?} shows {key:?} at {commit}"));
                }
            }
            if let Some((_, key, _)) = rows.next() {
                return Outcome::Wrong(format!("a scan of {space:?} ends before {key:?} at {commit}"));
            }
        }
        outcome
    }

    /// Makes further commits, and reads what is there then.
    fn go_on(&mut self, dir: &Path, engine: DiskEngine, mut witness: Witness, head: Head) -> Outcome {
        let mut store = match Store::open(Box::new(engine) as Box<dyn Engine>) {
            Ok(store) => store,
            Err(_) => return Outcome::Detected("reading"),
        };
        let until = head.commit + self.further;
        while store.head().commit < until {
            let reached = store.head().commit;
            if commit_next(&mut store).is_err() {
                // The node stops and starts again: what was acknowledged is there, or it says what is wrong.
                drop((store, witness));
                let (acknowledged, made) = (self.acknowledged.max(head.commit), reached + 1);
                return match self.again(dir, acknowledged, made) {
                    Outcome::Harmless | Outcome::Cut => Outcome::Detected("stopped"),
                    other => other,
                };
            }
        }
        let read = self.read(&store, until);
        if let Outcome::Wrong(what) = read {
            return Outcome::Wrong(format!("after further commits: {what}"));
        }
        if store.sync().is_err() {
            drop((store, witness));
            return match self.again(dir, self.acknowledged.max(head.commit), until) {
                Outcome::Harmless | Outcome::Cut => Outcome::Detected("stopped"),
                other => other,
            };
        }
        witness.record(origin(), 77, store.head()).unwrap();
        drop(store);
        match (read, self.again(dir, until, until)) {
            (_, Outcome::Wrong(what)) => Outcome::Wrong(format!("opened again: {what}")),
            (Outcome::Harmless, again) => again,
            (read, _) => read,
        }
    }

    fn again(&mut self, dir: &Path, acknowledged: u64, made: u64) -> Outcome {
        let judge = &mut Judge { histories: self.histories, acknowledged, made, further: 0, ..*self };
        judge.look(dir)
    }
}

/// Keys that commits wrote and that are not there.
fn removed(expected: &AllRows, commit: u64) -> Vec<(Space, Vec<u8>)> {
    let values = (0..KEYS).map(|number| (Space::Values, value_key(number)));
    let edits = (0..9).map(|number| (Space::Edits, value_key(number)));
    let logged = (commit.saturating_sub(300)..=commit).map(|seq| (Space::Log, log_key(seq).encode()));
    let there: std::collections::BTreeSet<(Space, &[u8])> =
        expected.iter().map(|(space, key, _)| (*space, &key[..])).collect();
    let all = values.chain(edits).chain(logged).map(|(space, key)| (space, key.as_bytes().to_vec()));
    all.filter(|(space, key)| !there.contains(&(*space, &key[..]))).collect()
}

/// What a refusal is: it has to say what was not changed, and what to do.
pub(crate) fn refusal(error: &OpenError) -> Outcome {
    let text = error.to_string();
    let told = text.contains("was changed") || text.contains("was not opened");
    if told { Outcome::Detected(kind(error)) } else { Outcome::Wrong(format!("says too little: {text}")) }
}

fn told_as(outcome: Outcome, cut: bool) -> Outcome {
    if cut && outcome == Outcome::Harmless { Outcome::Cut } else { outcome }
}

pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
