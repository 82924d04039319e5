//! Clients that measure distances, between scripted nodes.

use super::*;
use crate::{Client, NodeView};

/// A node that says who it is, is so far away and answers gets and puts for ever. Knows the nodes before it.
async fn site(name: &str, delay_ms: u64, others: &[v1::Node]) -> (Node, v1::Node) {
    let answers = std::iter::repeat_with(|| Answer::Token("t")).take(10_000);
    let (node, endpoint) = Node::start(answers).await;
    let this = v1::Node { id: format!("{name}-1"), region: name.to_owned(), endpoint, ..v1::Node::default() };
    {
        let mut script = node.0.lock().unwrap();
        script.nodes = others.to_vec();
        script.nodes.push(v1::Node { this_node: true, ..this.clone() });
        (script.delay, script.serves) = (Duration::from_millis(delay_ms), true);
    }
    (node, this)
}

/// Waits until all is measured, and the nearest chosen.
async fn until_measured(client: &Client) {
    let chosen = |node: &NodeView| node.chosen && node.region.as_deref() == Some("near");
    let measured = |node: &NodeView| node.round_trip.is_some();
    until(client, "measured", |nodes| nodes.iter().all(measured) && nodes.iter().any(chosen)).await;
}

/// Waits until the client says so of its nodes; what it waits for comes or the test hangs, and says of what.
async fn until(client: &Client, what: &str, is: impl Fn(&[NodeView]) -> bool) {
    for _ in 0..2_000 {
        // Asking is what makes a client choose.
        client.calls().get("any", "key").await.unwrap();
        if is(&client.nodes()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {:?}", client.nodes());
}

async fn until_in(client: &Client, region: &str) {
    until(client, region, |_| client.region().as_deref() == Some(region)).await;
}

fn not_served(regions: &str) -> Status {
    Problem::unavailable(Reason::NotServedHere, Duration::from_secs(1), "it is elsewhere")
        .with("regions", regions)
        .to_status()
}

fn says(node: &Node, answers: impl IntoIterator<Item = Answer>) {
    let mut script = node.0.lock().unwrap();
    for answer in answers.into_iter().collect::<Vec<_>>().into_iter().rev() {
        script.answers.push_front(answer);
    }
}

#[tokio::test]
async fn from_one_seed_the_nearest_node_is_found_and_asked() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (far, told_far) = site("far", 80, &[told_near]).await;
    let client = Client::in_a_hurry(vec![told_far.endpoint]).await.unwrap();
    until_in(&client, "near").await;
    let before = far.calls();
    client.scope("s").unwrap().get::<i64>("key").await.unwrap();
    assert_eq!(far.calls(), before);
    assert!(near.calls() > 0);
}

#[tokio::test]
async fn a_node_at_the_address_of_another_is_never_asked() {
    let (stranger, mut told) = site("stranger", 0, &[]).await;
    (told.id, told.region) = ("near-1".to_owned(), "near".to_owned());
    let (_far, told_far) = site("far", 80, &[told]).await;
    let client = Client::in_a_hurry(vec![told_far.endpoint]).await.unwrap();
    until(&client, "both are probed", |nodes| nodes.iter().any(|node| node.away)).await;
    assert_eq!((client.region().as_deref(), stranger.calls()), (Some("far"), 0));
}

#[tokio::test]
async fn a_call_leaves_a_node_that_stops_and_the_client_comes_back_when_it_serves_again() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (_far, told_far) = site("far", 80, &[]).await;
    let client = Client::in_a_hurry(vec![told_near.endpoint, told_far.endpoint]).await.unwrap();
    until_measured(&client).await;
    near.0.lock().unwrap().serves = false;
    says(&near, [Answer::Fails(not_ready())]);
    client.scope("s").unwrap().put("key", &serde_json::json!({})).await.unwrap();
    until_in(&client, "far").await;
    near.0.lock().unwrap().serves = true;
    until_in(&client, "near").await;
}

#[tokio::test]
async fn a_call_that_finds_a_node_gone_is_the_last_that_asks_it() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (_far, told_far) = site("far", 80, &[]).await;
    // At the usual pace, in which probes do not bring it back meanwhile.
    let client = Client::connect([told_near.endpoint, told_far.endpoint]).await.unwrap();
    until_measured(&client).await;
    let before = near.calls();
    says(&near, [Answer::Fails(not_ready())]);
    for _ in 0..3 {
        client.scope("s").unwrap().get::<i64>("key").await.unwrap();
    }
    assert_eq!(near.calls() - before, 1);
}

#[tokio::test]
async fn a_node_that_says_that_it_does_not_serve_is_left_though_no_call_failed() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (_far, told_far) = site("far", 80, &[]).await;
    let client = Client::in_a_hurry(vec![told_near.endpoint, told_far.endpoint]).await.unwrap();
    until_measured(&client).await;
    near.0.lock().unwrap().serves = false;
    until_in(&client, "far").await;
}

#[tokio::test]
async fn where_the_nearest_does_not_serve_a_scope_the_nearest_that_does_is_asked_and_remembered() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (middle, told_middle) = site("middle", 80, &[]).await;
    let (far, told_far) = site("far", 160, &[]).await;
    let seeds = [told_near, told_middle, told_far].map(|told| told.endpoint);
    let client = Client::in_a_hurry(seeds.to_vec()).await.unwrap();
    until_measured(&client).await;
    let scope = client.scope("shop/carts").unwrap();
    let calls = || [&near, &middle, &far].map(Node::calls);

    let before = calls();
    says(&near, [Answer::Fails(not_served("far,middle"))]);
    for _ in 0..3 {
        scope.get::<i64>("key").await.unwrap();
    }
    let after = calls();
    assert_eq!(std::array::from_fn(|at| after[at] - before[at]), [1, 3, 0], "the nearest refuses once");

    // The scope has moved on, which the refusal tells; the caller notices nothing.
    says(&middle, [Answer::Fails(not_served("far"))]);
    for _ in 0..2 {
        scope.put("key", &serde_json::json!({})).await.unwrap();
    }
    let moved = calls();
    assert_eq!(std::array::from_fn(|at| moved[at] - after[at]), [0, 1, 2]);
    assert_eq!(client.region().as_deref(), Some("near"), "for other scopes");
}

#[tokio::test]
async fn a_scope_that_no_known_node_serves_is_an_error_that_says_where_it_is() {
    let (near, told) = site("near", 0, &[]).await;
    let client = Client::in_a_hurry(vec![told.endpoint]).await.unwrap();
    says(&near, [Answer::Fails(not_served("far"))]);
    let error = client.scope("s").unwrap().get::<i64>("key").await.unwrap_err();
    assert_eq!(error.problem().unwrap().fact("regions"), Some("far"));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_stays_at_its_node_though_that_leaves_the_scope() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (far, told_far) = site("far", 80, &[]).await;
    let client = Client::in_a_hurry(vec![told_near.endpoint, told_far.endpoint]).await.unwrap();
    until_measured(&client).await;
    let before = far.0.lock().unwrap().ids.len();
    says(&near, [lost(), not_served("far"), lost()].map(Answer::Fails));
    let scope = client.scope("s").unwrap();
    scope.put("key", &serde_json::json!({})).await.unwrap();
    assert_eq!(far.0.lock().unwrap().ids.len(), before, "it would be written twice");
    let ids = near.0.lock().unwrap().ids.clone();
    assert!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_read_leaves_a_node_that_hangs() {
    let (near, told_near) = site("near", 0, &[]).await;
    let (_far, told_far) = site("far", 80, &[]).await;
    let client = Client::in_a_hurry(vec![told_near.endpoint, told_far.endpoint]).await.unwrap();
    until_measured(&client).await;
    says(&near, [Answer::Silence]);
    client.scope("s").unwrap().get::<i64>("key").await.unwrap();
    assert!(!matches!(near.0.lock().unwrap().answers.front(), Some(Answer::Silence)), "it was asked");
}

#[tokio::test]
async fn the_prober_ends_with_the_last_client() {
    let (_near, told) = site("near", 0, &[]).await;
    let client = Client::in_a_hurry(vec![told.endpoint]).await.unwrap();
    let nodes = Arc::downgrade(&client.calls().nodes);
    let scope = client.scope("s").unwrap();
    drop(client);
    assert!(nodes.upgrade().is_some());
    drop(scope);
    for _ in 0..2_000 {
        if nodes.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("somebody keeps it");
}
