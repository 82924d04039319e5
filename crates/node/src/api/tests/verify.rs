//! Verification of a scope as its caller sees it.

use tonic::Code;
use tropism_wire::v1::scope_service_client::ScopeServiceClient;
use tropism_wire::{Reason, v1};

use super::{World, problem};

fn request(name: &str) -> v1::VerifyScopeRequest {
    v1::VerifyScopeRequest { name: name.into(), ..v1::VerifyScopeRequest::default() }
}

#[tokio::test]
async fn every_shard_is_compared_and_a_member_that_was_never_heard_makes_it_incomplete() {
    let world = World::new().await;
    for number in 0..9 {
        world.put("cache/a", &format!("k{number}"), "value").await;
    }
    let before = world.state();
    let mut client = ScopeServiceClient::new(world.channel.clone());
    let answer = client.verify_scope(request("cache/a")).await.unwrap().into_inner();
    assert_eq!(answer.result(), v1::VerifyResult::Incomplete);
    assert_eq!((answer.node.as_str(), answer.region.as_str(), answer.spread), ("here-1", "here", 3));
    assert_eq!((answer.next_shard, answer.keys.len(), answer.more_keys), (None, 0, 0));
    let indexes: Vec<u32> = answer.shards.iter().map(|shard| shard.index).collect();
    assert_eq!(indexes, [0, 1, 2]);
    let mut keys = 0;
    for shard in &answer.shards {
        let [here, there] = shard.members.as_slice() else { panic!("{shard:?}") };
        assert_eq!((here.node.as_str(), here.state()), ("here-1", v1::MemberState::Compared));
        assert_eq!((here.rows(), here.digest()), (v1::RowsState::Equal, v1::DigestState::Sound));
        assert_eq!((there.node.as_str(), there.state()), ("there-1", v1::MemberState::Unreachable));
        assert_eq!((there.rows(), there.keys), (v1::RowsState::Unspecified, 0));
        keys += here.keys;
    }
    assert_eq!(keys, 9);
    let rest = v1::VerifyScopeRequest { first_shard: 2, node: "here-1".into(), ..request("cache/a") };
    let rest = client.verify_scope(rest).await.unwrap().into_inner();
    assert_eq!(rest.shards.iter().map(|shard| shard.index).collect::<Vec<_>>(), [2]);
    assert_eq!(world.state(), before, "nothing was written");
}

#[tokio::test]
async fn calls_that_make_no_sense_are_refused_with_the_field() {
    let world = World::new().await;
    let mut client = ScopeServiceClient::new(world.channel.clone());
    let long = "a".repeat(129);
    for (request, code, reason, field, says) in [
        (request(""), Code::InvalidArgument, Reason::BadScope, Some("name"), "name"),
        (request("A"), Code::InvalidArgument, Reason::BadScope, Some("name"), "\"A\""),
        (request(&long), Code::InvalidArgument, Reason::BadScope, Some("name"), "128"),
        (request("nowhere"), Code::NotFound, Reason::ScopeNotFound, Some("name"), "nowhere"),
        (request("far/a"), Code::Unavailable, Reason::NotServedHere, None, "ask one of: there"),
        (
            v1::VerifyScopeRequest { first_shard: 3, ..request("cache/a") },
            Code::InvalidArgument,
            Reason::BadNumber,
            Some("first_shard"),
            "first_shard is 3; scope \"cache/a\" has 3 shards, the last is 2",
        ),
        (
            v1::VerifyScopeRequest { first_shard: u32::MAX, ..request("shop/carts") },
            Code::InvalidArgument,
            Reason::BadNumber,
            Some("first_shard"),
            "the last is 0",
        ),
        (
            v1::VerifyScopeRequest { node: "there-1".into(), ..request("cache/a") },
            Code::FailedPrecondition,
            Reason::WrongNode,
            Some("node"),
            "there-1",
        ),
    ] {
        let status = client.verify_scope(request).await.unwrap_err();
        let problem = problem(&status);
        assert_eq!((status.code(), problem.reason(), problem.field()), (code, reason, field), "{status:?}");
        assert!(status.message().contains(says), "{status:?}");
    }
}
