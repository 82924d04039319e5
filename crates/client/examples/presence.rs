//! Who is there: everybody says so every second, and who stops saying so is gone, in every region.
//!
//! ```text
//! cargo run -p tropism-client --example presence -- http://127.0.0.1:PORT http://127.0.0.1:PORT
//! ```
//!
//! Two nodes, of two regions: `tropism dev` prints theirs. Needs a rule for `cache/**` that keeps registers, as the shipped
//! regions files have it.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tropism_client::{Change, Client, Expiry, Scope, WatchTarget};

/// How often somebody says so.
const BEAT: Duration = Duration::from_millis(500);
/// How long that holds: three may be late.
const HOLDS: Duration = Duration::from_millis(2000);

#[derive(Debug, Serialize, Deserialize)]
struct Presence {
    page: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [one, other] = endpoints()?;
    let here = Client::connect([one]).await?.scope("cache/presence")?.with_expiry(Expiry::After(HOLDS));
    let there = Client::connect([other]).await?.scope("cache/presence")?;
    let room = format!("room-{:08x}/", rand::random::<u32>());
    let (alice, bob) = (format!("{room}alice"), format!("{room}bob"));

    // Somebody looks on, in the other region.
    let mut changes = there.watch::<Presence>(WatchTarget::Prefix(room.clone()));
    while !matches!(changes.next().await?, Change::Current) {}

    let stays = tokio::spawn(beat(here.clone(), alice.clone(), 12));
    let leaves = tokio::spawn(beat(here.with_new_session(), bob.clone(), 2));
    let mut present = BTreeSet::new();
    let mut most = 0;
    // Until the first is gone.
    loop {
        match changes.next().await? {
            Change::Put { record, region } => {
                if present.insert(record.key.clone()) {
                    println!("+ {} is at {} (told by {region})", record.key, record.value.page);
                }
                most = most.max(present.len());
            }
            Change::Expire { key } | Change::Delete { key, .. } => {
                println!("- {key}");
                present.remove(&key);
                break;
            }
            Change::Value(_) | Change::Current | Change::Reset => {}
        }
    }
    assert_eq!((most, &present), (2, &BTreeSet::from([alice.clone()])));
    assert!(there.get::<Presence>(&bob).await?.is_none());
    leaves.await??;
    stays.await??;
    // And the last one out. What expired is deleted some time later, which is told, too.
    while present.contains(&alice) {
        if let Change::Expire { key } | Change::Delete { key, .. } = changes.next().await?
            && present.remove(&key)
        {
            println!("- {key}");
        }
    }
    assert_eq!(there.keys(room.as_str()).all().await?, Vec::<String>::new());
    println!("ok");
    Ok(())
}

/// Says so a number of times.
async fn beat(scope: Scope, key: String, times: u32) -> Result<(), tropism_client::Error> {
    for _ in 0..times {
        scope.put(&key, &Presence { page: "checkout".to_owned() }).await?;
        sleep(BEAT).await;
    }
    Ok(())
}

fn endpoints() -> Result<[String; 2], Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "give two endpoints: http://HOST:PORT http://HOST:PORT".into())
}
