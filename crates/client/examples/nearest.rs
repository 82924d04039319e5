//! Which region answers: writes and reads ten times a second, and tells when another region answers or a call fails. Cut links
//! meanwhile, and heal them.
//!
//! ```text
//! cargo run -p tropism-client --example nearest -- SECONDS http://127.0.0.1:PORT ...
//! tropism dev link cut london frankfurt
//! ```
//!
//! Give the endpoints of a place of `tropism dev`, from its ready file (`places.london.endpoints`): they are as far as the
//! place is. Needs a rule for `stats/**` that counts, as the shipped regions files have it.

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tropism_client::{Client, Effect};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let time = Duration::from_secs_f64(given.next().ok_or("give seconds and endpoints")?.parse()?);
    let tropism = Client::connect(given).await?;
    let counts = tropism.scope("stats/nearest")?;
    let key = format!("run-{:08x}", rand::random::<u32>());
    let begun = Instant::now();
    let (mut acknowledged, mut unknown, mut failed, mut longest) = (0, 0, 0, Duration::ZERO);
    let mut last = String::new();
    while begun.elapsed() < time {
        let asked = Instant::now();
        let added = counts.increment(&key, 1).await;
        let written = asked.elapsed();
        // What was acknowledged is read, whichever region answers.
        let read = tropism.calls().get(counts.name(), &key).await;
        let took = asked.elapsed();
        longest = longest.max(took);
        match &added {
            Ok(_) => acknowledged += 1,
            Err(error) if error.effect() == Effect::Unknown => unknown += 1,
            Err(_) => failed += 1,
        }
        let now = match (&added, &read) {
            (Ok(_), Ok(found)) => found.answered.region.clone(),
            (Err(error), _) | (_, Err(error)) => error.to_string(),
        };
        if now != last {
            let at = begun.elapsed().as_secs_f64();
            let (written, read) = (written.as_secs_f64() * 1e3, (took - written).as_secs_f64() * 1e3);
            println!("{at:6.1} s  {now}  (write {written:.1} ms, read {read:.1} ms)");
            last = now;
        }
        sleep(Duration::from_millis(100).saturating_sub(took)).await;
    }
    for node in tropism.nodes() {
        let far = node.round_trip.map(|round_trip| format!("{:.1} ms", round_trip.as_secs_f64() * 1e3));
        println!(
            "{} {} {}{}",
            node.region.unwrap_or_default(),
            far.unwrap_or_default(),
            node.endpoint,
            if node.away { " away" } else { "" }
        );
    }
    let sum = counts.count(&key).await?;
    println!(
        "{acknowledged} acknowledged, {unknown} unknown, {failed} without effect; the counter is {sum}; longest {:.1} s",
        longest.as_secs_f64()
    );
    assert!((acknowledged..=acknowledged + unknown).contains(&sum), "a write was lost or done twice");
    println!("ok");
    Ok(())
}
