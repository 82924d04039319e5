//! Questions and answers that only who knows the cluster's secret can make.
//!
//! A code over all of a question, and one over that code and the answer. What is replayed changes nothing: consensus
//! stands messages that come twice, late and in any order, records are compared and set, and the rest only asks.

use bytes::Bytes;
use prost::Message;
use subtle::ConstantTimeEq;
use tropism_crdt::NodeId;
use tropism_placement::PolicyHash;
use tropism_wire::v1;
use tropism_wire::v1::directory_question::Question;
use tropism_wire::v1::directory_reply::Reply;

use crate::peer::code;

/// Makes and checks codes.
#[derive(Clone)]
pub(super) struct Seal {
    cluster: String,
    secret: Vec<u8>,
}

impl Seal {
    pub(super) fn new(cluster: &str, secret: &[u8]) -> Self {
        Self { cluster: cluster.to_owned(), secret: secret.to_vec() }
    }

    pub(super) fn of_question(&self, ask: &v1::AskRequest) -> [u8; 32] {
        let (from, to) = (ask.from_node.as_bytes(), ask.to_node.as_bytes());
        let head: [&[u8]; 4] = [b"tropism directory question v1", self.cluster.as_bytes(), from, to];
        let body: [&[u8]; 3] = [&ask.policy_hash, &ask.nonce, &ask.question];
        code(&self.secret, &[&head[..], &body].concat())
    }

    fn of_reply(&self, asked: &[u8], reply: &[u8]) -> [u8; 32] {
        code(&self.secret, &[b"tropism directory reply v1", asked, reply])
    }

    /// A question from one node to another.
    pub(super) fn question(
        &self,
        from: &NodeId,
        to: &NodeId,
        policy: &PolicyHash,
        nonce: [u8; 16],
        question: Question,
    ) -> v1::AskRequest {
        let question = v1::DirectoryQuestion { question: Some(question) }.encode_to_vec();
        let mut ask = v1::AskRequest {
            cluster_id: self.cluster.clone(),
            from_node: from.to_string(),
            to_node: to.to_string(),
            policy_hash: policy.0.to_vec().into(),
            nonce: nonce.to_vec().into(),
            question: question.into(),
            hmac: Bytes::new(),
        };
        ask.hmac = self.of_question(&ask).to_vec().into();
        ask
    }

    /// Whether a question was made with the secret.
    pub(super) fn is_sound(&self, ask: &v1::AskRequest) -> bool {
        self.of_question(ask).as_slice().ct_eq(&ask.hmac).into()
    }

    /// The answer to a question with this code.
    pub(super) fn answer(&self, asked: &[u8], reply: Reply) -> v1::AskResponse {
        let reply = v1::DirectoryReply { reply: Some(reply) }.encode_to_vec();
        let hmac = self.of_reply(asked, &reply).to_vec().into();
        v1::AskResponse { reply: reply.into(), hmac }
    }

    /// What an answer says, if it is one to the question with this code.
    pub(super) fn open(&self, asked: &[u8], answer: v1::AskResponse) -> Result<Reply, &'static str> {
        if !bool::from(self.of_reply(asked, &answer.reply).as_slice().ct_eq(&answer.hmac)) {
            return Err("the answer was made by somebody who does not know the cluster's secret");
        }
        let reply = v1::DirectoryReply::decode(answer.reply).map_err(|_| "the answer cannot be read")?;
        reply.reply.ok_or("the answer says nothing")
    }
}
