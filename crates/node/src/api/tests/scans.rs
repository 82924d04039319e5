//! Ranges.

use bytes::Bytes;
use tropism_wire::v1;

use super::World;

async fn filled(keys: usize) -> World {
    let world = World::new().await;
    for chunk in (0..keys).collect::<Vec<_>>().chunks(1000) {
        let items = chunk.iter().map(|n| v1::BatchPutItem {
            key: format!("k{n:05}"),
            value: Some(v1::Value { value: Some(super::register(&n.to_string())) }),
            ..Default::default()
        });
        let request =
            v1::BatchPutRequest { scope: "cache/pages".into(), items: items.collect(), options: None };
        let response = world.client.clone().batch_put(request).await.unwrap().into_inner();
        assert!(response.results.iter().all(|result| result.failure.is_none()));
    }
    world
}

async fn scan(world: &World, request: v1::ScanRequest) -> Vec<v1::ScanResponse> {
    let request = v1::ScanRequest { scope: "cache/pages".into(), ..request };
    let mut stream = world.client.clone().scan(request).await.unwrap().into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

fn keys(messages: &[v1::ScanResponse]) -> Vec<String> {
    messages.iter().flat_map(|message| message.entries.iter().map(|entry| entry.key.clone())).collect()
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("k{n:05}")).collect()
}

#[tokio::test]
async fn keys_of_three_shards_come_in_one_order_in_messages_of_bounded_size() {
    let world = filled(1_700).await;
    let messages = scan(&world, v1::ScanRequest::default()).await;
    assert_eq!(keys(&messages), numbered(0..1_700));
    assert!(messages.len() >= 4 && messages.iter().all(|message| message.entries.len() <= 500));
    let (last, before) = messages.split_last().unwrap();
    assert!(last.page_token.is_empty() && before.iter().all(|message| !message.page_token.is_empty()));
    assert!(messages[0].entries[0].value.is_some());
    assert!(!messages[0].answer.as_ref().unwrap().token.is_empty());
}

#[tokio::test]
async fn prefix_start_end_and_limit_bound_a_scan_and_a_page_token_goes_on() {
    let world = filled(30).await;
    let of = async |request| keys(&scan(&world, request).await);
    assert_eq!(of(v1::ScanRequest { prefix: "k0001".into(), ..Default::default() }).await, numbered(10..20));
    let range = v1::ScanRequest { start: "k00005".into(), end: "k00008".into(), ..Default::default() };
    assert_eq!(of(range.clone()).await, numbered(5..8));
    assert_eq!(of(v1::ScanRequest { prefix: "k0001".into(), ..range.clone() }).await, numbered(0..0));
    assert_eq!(of(v1::ScanRequest { end: range.start.clone(), ..range.clone() }).await, numbered(0..0));
    let mut request = v1::ScanRequest { limit: 12, keys_only: true, ..Default::default() };
    let mut found = Vec::new();
    loop {
        let messages = scan(&world, request.clone()).await;
        assert!(messages.iter().flat_map(|message| &message.entries).all(|entry| entry.value.is_none()));
        found.extend(keys(&messages));
        request.page_token = messages.last().unwrap().page_token.clone();
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, numbered(0..30));
}

#[tokio::test]
async fn keys_that_are_not_visible_are_left_out_and_an_empty_range_is_one_empty_message() {
    let world = filled(3).await;
    let delete =
        v1::DeleteRequest { scope: "cache/pages".into(), key: "k00001".into(), ..Default::default() };
    world.client.clone().delete(delete).await.unwrap();
    assert_eq!(keys(&scan(&world, v1::ScanRequest::default()).await), ["k00000", "k00002"]);
    let messages = scan(&world, v1::ScanRequest { prefix: "z".into(), ..Default::default() }).await;
    assert_eq!((messages.len(), keys(&messages).len()), (1, 0));
    assert_eq!(messages[0].page_token, Bytes::new());
    assert_eq!(messages[0].answer.as_ref().unwrap().region, "here");
}

#[tokio::test]
async fn large_values_make_small_messages() {
    let world = World::new().await;
    for n in 0..4 {
        world.put("cache/pages", &n.to_string(), &"x".repeat(150 << 10)).await;
    }
    let messages = scan(&world, v1::ScanRequest::default()).await;
    assert_eq!(messages.iter().map(|message| message.entries.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);
}
