//! Who may ask about the directory, and what is answered.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use tonic::{Request, Status};
use tropism_replica::{DigestKey, Identity, Opening, Peer};
use tropism_storage::{MemoryEngine, Store};
use tropism_wire::v1::directory_service_server::DirectoryService;
use tropism_wire::{Problem, Reason};

use bytes::Bytes;

use super::*;
use crate::driver::Driver;
use crate::placement::Pace;
use crate::telemetry::Telemetry;

const REGIONS: &str = r#"
region = [
    { name = "a", place = "A" }, { name = "b", place = "B" }, { name = "c", place = "C" },
    { name = "d", place = "D" }, { name = "e", place = "E" }, { name = "f", place = "F" },
]
rtt = [
    { between = ["a", "b"], ms = 1 }, { between = ["a", "c"], ms = 1 }, { between = ["a", "d"], ms = 1 },
    { between = ["a", "e"], ms = 1 }, { between = ["a", "f"], ms = 1 }, { between = ["b", "c"], ms = 1 },
    { between = ["b", "d"], ms = 1 }, { between = ["b", "e"], ms = 1 }, { between = ["b", "f"], ms = 1 },
    { between = ["c", "d"], ms = 1 }, { between = ["c", "e"], ms = 1 }, { between = ["c", "f"], ms = 1 },
    { between = ["d", "e"], ms = 1 }, { between = ["d", "f"], ms = 1 }, { between = ["e", "f"], ms = 1 },
]
[[rule]]
name = "everything"
pattern = "**"
kind = "register"
"#;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

/// Node `a-1`, which does not vote; its only peer is `b-1`.
struct Answering {
    driver: Option<Driver>,
    service: Service,
    seal: Seal,
    policy: PolicyHash,
}

impl Answering {
    fn new() -> Self {
        let regions = Regions::parse("regions.toml", REGIONS).unwrap();
        let peer = PeerAddress { node: node("b-1"), region: region("b"), address: "127.0.0.1:1".into() };
        let identity = Identity {
            cluster: "test".into(),
            node: node("a-1"),
            region: region("a"),
            boot_random: 1,
            new_store_id: 1,
            opening: Opening { accept_loss: true, ..Opening::default() },
            peers: vec![Peer { node: peer.node, region: peer.region.clone() }],
            rules: regions.rules().clone(),
            directory: true,
            cache_bytes: 1 << 20,
            log_keep_ms: 600_000,
            digest_key: DigestKey::default(),
            part_bytes: tropism_replica::limits::FRAME_BYTES,
            settle_keys: tropism_replica::limits::SETTLE_KEYS,
            log_cap_ms: u64::MAX,
            log_cap_bytes: u64::MAX,
            log_keep_bytes: 256 << 20,
        };
        let store = Store::open(Box::new(MemoryEngine::new())).unwrap();
        let (driver, handle) = Driver::start(store, identity, None, Telemetry::default()).unwrap();
        let config = DirectoryConfig {
            node: node("a-1"),
            cluster: "test".into(),
            secret: b"secret".to_vec(),
            policy: regions.rules().hash(),
            peers: vec![peer],
            voters: vec![node("a-1")],
            path: None,
            placement: Placement::new(
                node("a-1"),
                &BTreeMap::from([(node("a-1"), region("a")), (node("b-1"), region("b"))]),
                &regions,
                Pace { times: 1, moves: true },
                (1, 2),
            ),
        };
        let seal = Seal::new("test", b"secret");
        let service = Service::new(&config, seal.clone(), handle, watch::channel(None).1);
        Self { driver: Some(driver), service, seal, policy: config.policy }
    }

    fn question(&self, question: Question) -> v1::AskRequest {
        self.seal.question(&node("b-1"), &node("a-1"), &self.policy, [7; 16], question)
    }

    async fn ask(&self, request: v1::AskRequest) -> Result<Reply, Status> {
        let asked = request.hmac.clone();
        let answer = self.service.ask(Request::new(request)).await?.into_inner();
        Ok(self.seal.open(&asked, answer).unwrap())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.driver.take().unwrap().stop();
    }
}

fn standing() -> Question {
    Question::Standing(v1::StandingQuestion {})
}

#[tokio::test]
async fn who_does_not_know_the_secret_or_means_another_node_is_refused_with_the_reason() {
    let answering = Answering::new();
    let sound = answering.question(standing());
    assert_eq!(answering.ask(sound.clone()).await.unwrap(), Reply::Standing(v1::StandingReply::default()));

    let other = |secret: &[u8]| Seal::new("test", secret);
    let (a, b, rules) = (node("a-1"), node("b-1"), answering.policy);
    let forged = |change: fn(&mut v1::AskRequest)| {
        let mut request = sound.clone();
        change(&mut request);
        request
    };
    let refused = [
        (other(b"Secret").question(&b, &a, &rules, [7; 16], standing()), Reason::BadProof, "secret"),
        (forged(|ask| ask.hmac = Bytes::new()), Reason::BadProof, "secret"),
        (forged(|ask| ask.nonce = Bytes::from_static(&[8; 16])), Reason::BadProof, "secret"),
        (forged(|ask| ask.from_node = "c-1".into()), Reason::BadProof, "secret"),
        (forged(|ask| ask.to_node = "b-1".into()), Reason::BadProof, "secret"),
        (forged(|ask| ask.question = Bytes::from_static(b"\x1a\x00")), Reason::BadProof, "secret"),
        (forged(|ask| ask.cluster_id = "other".into()), Reason::PeerRefused, "cluster \"other\""),
        (
            answering.seal.question(&b, &b, &rules, [7; 16], standing()),
            Reason::PeerRefused,
            "this is node a-1",
        ),
        (
            answering.seal.question(&node("c-1"), &a, &rules, [7; 16], standing()),
            Reason::PeerRefused,
            "no peer",
        ),
        (
            answering.seal.question(&b, &a, &PolicyHash([1; 32]), [7; 16], standing()),
            Reason::PeerRefused,
            "different rules or voters",
        ),
    ];
    for (request, reason, words) in refused {
        let status = answering.ask(request).await.unwrap_err();
        assert_eq!(Problem::from_status(&status).unwrap().reason(), reason, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    }
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused_and_change_nothing() {
    let answering = Answering::new();
    for question in [&b"\xff\xff"[..], b"", b"\x7a\x00"] {
        let mut nothing = answering.question(standing());
        nothing.question = Bytes::copy_from_slice(question);
        nothing.hmac = answering.seal.of_question(&nothing).to_vec().into();
        let status = answering.ask(nothing).await.unwrap_err();
        assert_eq!(Problem::from_status(&status).unwrap().reason(), Reason::MalformedRequest, "{status:?}");
    }
    let no_vote = [
        Question::Voter(v1::VoterMessage { kind: 1, body: Bytes::from_static(b"{}"), voter: 1 }),
        Question::Admit(v1::AdmitQuestion { voter: 1 }),
        Question::Decide(v1::DecideQuestion { record: Bytes::from_static(b"no record") }),
    ];
    for question in no_vote {
        let status = answering.ask(answering.question(question)).await.unwrap_err();
        assert_eq!(Problem::from_status(&status).unwrap().reason(), Reason::NotReady, "{status:?}");
    }
    let copies = Question::Copies(v1::CopiesQuestion { after: "zz".into() });
    let none = Reply::Copies(v1::CopiesReply { records: Vec::new(), last: true });
    assert_eq!(answering.ask(answering.question(copies)).await.unwrap(), none);
    let follow =
        Question::Follow(v1::FollowQuestion { wait_ms: u32::MAX, confirmed: true, ..Default::default() });
    assert_eq!(
        answering.ask(answering.question(follow)).await.unwrap(),
        Reply::Follow(v1::FollowReply::default())
    );
}

#[test]
fn an_answer_is_one_to_its_question_and_of_somebody_who_knows_the_secret() {
    let seal = Seal::new("test", b"secret");
    let ask = |nonce| seal.question(&node("a-1"), &node("b-1"), &PolicyHash([0; 32]), nonce, standing());
    let (first, second) = (ask([1; 16]), ask([2; 16]));
    let reply = Reply::Standing(v1::StandingReply { voter: 3, ..Default::default() });
    let answer = seal.answer(&first.hmac, reply.clone());
    assert_eq!(seal.open(&first.hmac, answer.clone()), Ok(reply.clone()));
    seal.open(&second.hmac, answer.clone()).unwrap_err();
    Seal::new("test", b"Secret").open(&first.hmac, answer.clone()).unwrap_err();
    let mut changed = answer.reply.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    seal.open(&first.hmac, v1::AskResponse { reply: changed.into(), ..answer }).unwrap_err();
}

#[test]
fn what_became_of_a_proposal_comes_over_the_wire() {
    let all = [
        Ok(7),
        Err(Undecided::Late { epoch: 3 }),
        Err(Undecided::Refused("because".into())),
        Err(Undecided::Elsewhere { leader: Some("a-1".into()) }),
        Err(Undecided::Elsewhere { leader: None }),
        Err(Undecided::NotFounded),
        Err(Undecided::Unknown),
    ];
    for outcome in all {
        assert_eq!(service::decided(service::told(outcome.clone())), outcome);
    }
    assert_eq!(service::decided(v1::DecideReply::default()), Err(Undecided::Unknown));
}

#[test]
fn an_odd_number_of_regions_votes_each_by_its_first_node() {
    let regions = Regions::parse("regions.toml", REGIONS).unwrap();
    let of = |nodes: &[&str]| {
        let nodes: BTreeMap<NodeId, RegionName> =
            nodes.iter().map(|name| (node(name), region(&name[..1]))).collect();
        voters(&nodes, &regions).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of(&["a-1"]), "a-1");
    assert_eq!(of(&["b-1", "a-1"]), "a-1");
    assert_eq!(of(&["c-1", "b-2", "b-1", "a-1"]), "a-1 b-1 c-1");
    assert_eq!(of(&["d-1", "c-1", "b-1", "a-1"]), "a-1 b-1 c-1");
    assert_eq!(of(&["f-1", "e-1", "d-1", "c-1", "b-1", "a-1"]), "a-1 b-1 c-1 d-1 e-1");
    let agreed = |names: &[&str]| {
        agreement(PolicyHash([1; 32]), &names.iter().map(|name| node(name)).collect::<Vec<_>>())
    };
    assert_eq!(agreed(&["a-1", "b-1"]), agreed(&["a-1", "b-1"]));
    for others in [&["b-1", "a-1"][..], &["a-1"], &["a-1b-1"], &["a-1", "c-1"]] {
        assert_ne!(agreed(others), agreed(&["a-1", "b-1"]), "{others:?}");
    }
    assert_eq!(of(&["f-1", "e-1", "d-1"]), "d-1 e-1 f-1", "regions without nodes do not vote");
}
