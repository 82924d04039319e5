//! A leaderboard: points are added in two regions at once, and no region has to ask the other.
//!
//! ```text
//! cargo run -p tropism-client --example leaderboard -- http://127.0.0.1:PORT http://127.0.0.1:PORT
//! ```
//!
//! Two nodes, of two regions: `tropism dev` prints theirs. Needs a rule for `stats/**` that counts, as the shipped regions
//! files have it.

use std::cmp::Reverse;
use std::error::Error;

use tropism_client::{Client, Scope};

/// What is scored: player and points.
const HERE: [(&str, i64); 5] = [("ada", 30), ("grace", 10), ("ada", 5), ("linus", 20), ("grace", 10)];
const THERE: [(&str, i64); 4] = [("grace", 40), ("ada", 7), ("linus", -3), ("ada", 1)];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [one, other] = endpoints()?;
    let (one, other) = (Client::connect([one]).await?, Client::connect([other]).await?);
    let (here, there) = (one.scope("stats/points")?, other.scope("stats/points")?);
    let game = format!("game-{:08x}/", rand::random::<u32>());
    let (mine, theirs) = tokio::join!(score(&here, &game, &HERE), score(&there, &game, &THERE));
    mine.and(theirs)?;

    for (client, session) in [(&one, other.session()), (&other, one.session())] {
        // A region has what was added in it; with the session of the other side the sums have that, too.
        let board = board(&client.resume(&session).scope("stats/points")?, &game).await?;
        println!("{}: {board:?}", client.region().unwrap_or_default());
        let points: Vec<(&str, i64)> =
            board.iter().map(|(player, points)| (player.as_str(), *points)).collect();
        assert_eq!(points, [("grace", 60), ("ada", 43), ("linus", 17)]);
    }
    for (player, _) in board(&here, &game).await? {
        here.delete(&format!("{game}{player}")).await?;
    }
    println!("ok");
    Ok(())
}

async fn score(points: &Scope, game: &str, scored: &[(&str, i64)]) -> Result<(), tropism_client::Error> {
    for (player, by) in scored {
        points.increment(&format!("{game}{player}"), *by).await?;
    }
    Ok(())
}

/// The best first.
async fn board(points: &Scope, game: &str) -> Result<Vec<(String, i64)>, tropism_client::Error> {
    let records = points.scan::<i64>(game).all().await?;
    let player = |key: &str| key.strip_prefix(game).unwrap_or(key).to_owned();
    let mut board: Vec<(String, i64)> =
        records.into_iter().map(|record| (player(&record.key), record.value)).collect();
    board.sort_by_key(|(player, points)| (Reverse(*points), player.clone()));
    Ok(board)
}

fn endpoints() -> Result<[String; 2], Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "give two endpoints: http://HOST:PORT http://HOST:PORT".into())
}
