//! Where scopes are, and changes of that.

use tonic::{Code, Request};
use tropism_wire::v1::scope_service_server::ScopeService;
use tropism_wire::{Reason, v1};

use super::*;

impl World {
    async fn move_to(&self, scope: &str, regions: &[&str], stay: bool) -> Result<v1::Scope, Status> {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let request = v1::MoveScopeRequest { name: scope.into(), regions, stay };
        self.api.move_scope(Request::new(request)).await.map(|answer| answer.into_inner().scope.unwrap())
    }

    async fn scope(&self, name: &str) -> Result<v1::Scope, Status> {
        let request = v1::GetScopeRequest { name: name.into() };
        self.api.get_scope(Request::new(request)).await.map(|answer| answer.into_inner().scope.unwrap())
    }

    async fn drop_it(&self, name: &str, incarnation: u64) -> Result<v1::DropScopeResponse, Status> {
        let request = v1::DropScopeRequest { name: name.into(), incarnation };
        self.api.drop_scope(Request::new(request)).await.map(|answer| answer.into_inner())
    }

    async fn create(&self, name: &str) -> Result<v1::Scope, Status> {
        let request = v1::CreateScopeRequest { name: name.into() };
        self.api.create_scope(Request::new(request)).await.map(|answer| answer.into_inner().scope.unwrap())
    }
}

#[tokio::test]
async fn a_move_that_makes_no_sense_is_refused_with_the_reason_and_changes_nothing() {
    let world = World::new().await;
    let many = vec!["here"; 200];
    type Case<'a> = (&'a str, &'a [&'a str], bool, Reason, &'a str, &'a str);
    let cases: [Case<'_>; 10] = [
        (
            "roam/x",
            &["here", "there"],
            false,
            Reason::PlacementRefused,
            "regions",
            "in 1 regions at most; 2 were",
        ),
        ("cache/x", &[], false, Reason::BadRegions, "regions", "regions has 0 names"),
        ("cache/x", &many, false, Reason::BadRegions, "regions", "regions has 200 names"),
        ("cache/x", &["here"], true, Reason::BadRegions, "regions", "shall stay where it is"),
        (
            "cache/x",
            &["here", "here"],
            false,
            Reason::BadRegions,
            "regions",
            "regions[1]: here is named twice",
        ),
        (
            "cache/x",
            &["here", "atlantis"],
            false,
            Reason::RegionNotFound,
            "regions",
            "regions[1]: there is no region",
        ),
        ("cache/x", &[""], false, Reason::RegionNotFound, "regions", "regions[0]: there is no region"),
        (
            "far/x",
            &["here"],
            false,
            Reason::PlacementRefused,
            "regions",
            "rule far allows scope \"far/x\" in there only",
        ),
        ("none/such", &["here"], false, Reason::ScopeNotFound, "name", "no policy rule matches"),
        ("Not a name", &["here"], false, Reason::BadScope, "name", "scope"),
    ];
    for (scope, regions, stay, reason, field, words) in cases {
        let status = world.move_to(scope, regions, stay).await.unwrap_err();
        let problem = problem(&status);
        assert_eq!((problem.reason(), problem.field()), (reason, Some(field)), "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    }
    assert!(world.scope("cache/x").await.unwrap().implied, "nothing was changed");
}

#[tokio::test]
async fn a_move_is_decided_once_whoever_asks_for_it_again() {
    let world = World::new().await;
    let here = world.move_to("cache/x", &["here"], false).await.unwrap();
    assert_eq!((here.epoch, here.goal.as_slice(), here.implied), (2, &["here".to_owned()][..], false));
    assert_eq!(world.move_to("cache/x", &["here"], false).await.unwrap().epoch, 2);
    let stays = world.move_to("cache/x", &[], true).await.unwrap();
    assert_eq!((stays.epoch, stays.goal.len()), (3, 0));
    assert_eq!(world.move_to("cache/x", &[], true).await.unwrap().epoch, 3);
    let unmoved = world.move_to("cache/y", &["here", "there"], false).await.unwrap();
    assert!(unmoved.implied, "it is there already");
}

#[tokio::test]
async fn a_dropped_scope_is_refused_by_every_call_and_created_anew_it_is_empty() {
    let world = World::new().await;
    world.put("cache/x", "k", "old").await;
    assert_eq!(problem(&world.drop_it("cache/x", 4).await.unwrap_err()).reason(), Reason::VersionMismatch);
    let dropped = world.drop_it("cache/x", 0).await.unwrap();
    assert_eq!((dropped.epoch, dropped.visible_keys), (2, 1));
    assert_eq!(world.drop_it("cache/x", 0).await.unwrap().epoch, 2);
    let get = v1::GetRequest { scope: "cache/x".into(), key: "k".into(), ..Default::default() };
    let scan = v1::ScanRequest { scope: "cache/x".into(), ..Default::default() };
    let watch = v1::WatchRequest { scope: "cache/x".into(), ..Default::default() };
    let delete = v1::DeleteRequest { scope: "cache/x".into(), key: "k".into(), ..Default::default() };
    let mut client = world.client.clone();
    for status in [
        client.get(get.clone()).await.unwrap_err(),
        client.scan(scan).await.unwrap_err(),
        client.watch(watch).await.unwrap_err(),
        client.delete(delete).await.unwrap_err(),
    ] {
        assert_eq!(
            (status.code(), problem(&status).reason()),
            (Code::FailedPrecondition, Reason::ScopeDropped)
        );
    }
    let moved = world.move_to("cache/x", &["here"], false).await.unwrap_err();
    assert_eq!(problem(&moved).reason(), Reason::ScopeDropped);
    assert_eq!(problem(&world.scope("cache/x").await.unwrap_err()).reason(), Reason::ScopeNotFound);

    let anew = world.create("cache/x").await.unwrap();
    assert_eq!((anew.incarnation, anew.epoch), (1, 3));
    assert_eq!(world.create("cache/x").await.unwrap().epoch, 3, "it is there");
    assert_eq!(client.get(get.clone()).await.unwrap().into_inner().entry, None);
    world.put("cache/x", "k", "new").await;
    assert!(client.get(get).await.unwrap().into_inner().entry.is_some());
    assert_eq!(problem(&world.drop_it("cache/x", 0).await.unwrap_err()).reason(), Reason::VersionMismatch);
    assert!(world.create("cache/never").await.unwrap().implied);
    assert_eq!(problem(&world.create("none/such").await.unwrap_err()).reason(), Reason::ScopeNotFound);
}

#[tokio::test]
async fn a_scope_that_is_frozen_is_moved_by_nobody_until_it_is_let_go() {
    let world = World::new().await;
    let hold = async |name: &str, hold: v1::ScopeHold| {
        let request = v1::HoldScopeRequest { name: name.into(), hold: hold.into() };
        world.api.hold_scope(Request::new(request)).await.map(|answer| answer.into_inner().scope.unwrap())
    };
    assert!(hold("cache/x", v1::ScopeHold::Free).await.unwrap().implied, "nothing holds it");
    let nothing = hold("cache/x", v1::ScopeHold::Unspecified).await.unwrap_err();
    assert_eq!(problem(&nothing).reason(), Reason::MissingField);
    let frozen = hold("cache/x", v1::ScopeHold::Frozen).await.unwrap();
    assert_eq!((frozen.hold(), frozen.epoch), (v1::ScopeHold::Frozen, 2));
    assert_eq!(hold("cache/x", v1::ScopeHold::Frozen).await.unwrap().epoch, 2);
    let refused = world.move_to("cache/x", &["here"], false).await.unwrap_err();
    assert_eq!(problem(&refused).reason(), Reason::PlacementRefused);
    assert!(refused.message().contains("is frozen"), "{refused:?}");
    assert_eq!(hold("cache/x", v1::ScopeHold::Pinned).await.unwrap().hold(), v1::ScopeHold::Pinned);
    world.move_to("cache/x", &["here"], false).await.unwrap();
    world.drop_it("cache/y", 0).await.unwrap();
    let gone = hold("cache/y", v1::ScopeHold::Pinned).await.unwrap_err();
    assert_eq!(problem(&gone).reason(), Reason::ScopeDropped);
}
