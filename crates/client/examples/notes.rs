//! A note that two people write at once, each in their own region: the text, its title and its tags all merge.
//!
//! ```text
//! cargo run -p tropism-client --example notes -- http://127.0.0.1:PORT http://127.0.0.1:PORT
//! ```
//!
//! Two nodes, of two regions: `tropism dev` prints theirs. Needs a rule for `notes/**` that keeps documents whose `/text` is
//! a text, as the shipped regions files have it.

use std::error::Error;

use serde::{Deserialize, Serialize};
use tropism_client::{Client, Edit, Record, Scope};

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    title: String,
    text: String,
    tags: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [one, other] = endpoints()?;
    let (one, other) = (Client::connect([one]).await?, Client::connect([other]).await?);
    let here = one.scope("notes/shared")?;
    let key = format!("note-{:08x}", rand::random::<u32>());
    let start = Note { title: "Plan".to_owned(), text: "We meet on Monday.".to_owned(), tags: Vec::new() };
    here.put(&key, &start).await?;
    let there = other.resume(&one.session()).scope("notes/shared")?;

    // Both have the same version before them.
    let mine: Record<Note> = there_is(&here, &key).await?;
    let theirs: Record<Note> = there_is(&there, &key).await?;
    assert_eq!((&mine.value, &mine.version), (&theirs.value, &theirs.version));

    // Positions are those of that version, wherever the text is by then.
    let at = |word: &str| start.text.find(word).map(|bytes| bytes as u64).ok_or("no such word");
    let here_edit = Edit::new().splice("/text", at("Monday")?, 6, "Tuesday").append("/tags", &"urgent");
    let there_edit = Edit::new().splice("/text", at(".")?, 0, ", at nine").append("/tags", &"office");
    let (mine, theirs) = tokio::join!(
        here.edit_at(&key, &mine.version, here_edit),
        there.edit_at(&key, &theirs.version, there_edit),
    );
    mine.and(theirs)?;
    // And the rest by plain Rust.
    there.update(&key, |note: &mut Note| note.title = "The plan".to_owned()).await?;

    let here_after = one.resume(&there.session()).scope("notes/shared")?;
    let there_after = other.resume(&here.session()).scope("notes/shared")?;
    let (mine, theirs) =
        (there_is::<Note>(&here_after, &key).await?, there_is::<Note>(&there_after, &key).await?);
    println!("{:?}", mine.value);
    assert_eq!(mine.value, theirs.value);
    assert_eq!(mine.version, theirs.version, "the same edits are the same version, everywhere");
    assert_eq!(mine.value.text, "We meet on Tuesday, at nine.");
    assert_eq!(mine.value.title, "The plan");
    let mut tags = mine.value.tags;
    tags.sort();
    assert_eq!(tags, ["office", "urgent"]);
    assert!(here.delete(&key).await?);
    println!("ok");
    Ok(())
}

async fn there_is<T: serde::de::DeserializeOwned>(
    scope: &Scope,
    key: &str,
) -> Result<Record<T>, Box<dyn Error>> {
    scope.read(key).await?.ok_or_else(|| format!("{key} is gone").into())
}

fn endpoints() -> Result<[String; 2], Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "give two endpoints: http://HOST:PORT http://HOST:PORT".into())
}
