//! Shopping carts in two regions: both fill the same cart at the same time, and nothing is lost.
//!
//! ```text
//! cargo run -p tropism-client --example carts -- http://127.0.0.1:PORT http://127.0.0.1:PORT
//! ```
//!
//! Two nodes, of two regions: `tropism dev` prints theirs. Needs a rule for `shop/**` that keeps documents and counts
//! `/items/*/n`, as the shipped regions files have it.

use std::collections::BTreeMap;
use std::error::Error;

use serde::{Deserialize, Serialize};
use tropism_client::{Client, Edit};

/// Fields merge one by one, and so do the entries of a map: key things by what they are, not by their place in a list.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cart {
    items: BTreeMap<String, Item>,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Item {
    n: i64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [one, other] = endpoints()?;
    let (one, other) = (Client::connect([one]).await?, Client::connect([other]).await?);
    println!("one in {:?}, other in {:?}", one.region(), other.region());
    let here = one.scope("shop/carts")?;
    let key = format!("alice-{:08x}", rand::random::<u32>());

    // Made here, and seen there by whoever goes on with the session.
    here.update(&key, |cart: &mut Cart| {
        cart.items.insert("tea".to_owned(), Item { n: 2 });
    })
    .await?;
    let there = other.resume(&one.session()).scope("shop/carts")?;
    println!("there: {:?}", there.get::<Cart>(&key).await?);

    // Both at once: each changes what it read, knowing nothing of the other.
    let (mine, theirs) = tokio::join!(
        here.update(&key, |cart: &mut Cart| {
            cart.items.insert("milk".to_owned(), Item { n: 1 });
        }),
        there.update(&key, |cart: &mut Cart| cart.note = Some("leave it at the door".to_owned())),
    );
    mine.and(theirs)?;
    // Counters inside documents add up, so say what you mean.
    let (mine, theirs) = tokio::join!(
        here.edit(&key, Edit::new().increment("/items/tea/n", 1)),
        there.edit(&key, Edit::new().increment("/items/tea/n", 5)),
    );
    mine.and(theirs)?;

    let item = |n| Item { n };
    let expected = Cart {
        items: [("tea".to_owned(), item(8)), ("milk".to_owned(), item(1))].into(),
        note: Some("leave it at the door".to_owned()),
    };
    // Each region has what was written in it; with the session of the other side it has that, too.
    for (name, client, session) in [("here", &one, there.session()), ("there", &other, here.session())] {
        let cart: Option<Cart> = client.resume(&session).scope("shop/carts")?.get(&key).await?;
        println!("{name}: {cart:?}");
        assert_eq!(cart.as_ref(), Some(&expected));
    }
    assert!(here.delete(&key).await?);
    println!("ok");
    Ok(())
}

fn endpoints() -> Result<[String; 2], Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "give two endpoints: http://HOST:PORT http://HOST:PORT".into())
}
