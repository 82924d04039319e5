//! What is looked at: the past of keys, what a merge hid, and what a node tells of itself.

use tonic::transport::Channel;
use tropism_wire::limits::MAX_MESSAGE_BYTES;
use tropism_wire::v1;
use tropism_wire::v1::cluster_service_client::ClusterServiceClient;
use tropism_wire::v1::history_service_client::HistoryServiceClient;

use crate::calls::Calls;
use crate::error::Error;
use crate::retry::Nature;
use crate::types::{Entry, Found};

impl Calls {
    /// A page of the changes of a key, the newest first. The session's token is filled in; of several nodes the answering
    /// one may change from page to page, since members tell the same.
    pub async fn history(&self, request: v1::GetHistoryRequest) -> Result<v1::GetHistoryResponse, Error> {
        let request = v1::GetHistoryRequest { token: self.token(), ..request };
        let call = |channel, request| async move { history(channel).get_history(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, Some(&request.scope)), &request, call).await?;
        self.keep(answer.answer.clone());
        Ok(answer)
    }

    /// The value of a key as it was at a version or at a time; no entry when it had nothing to show then.
    pub async fn get_at(&self, scope: &str, key: &str, at: v1::get_at_request::At) -> Result<Found, Error> {
        let request = v1::GetAtRequest {
            scope: scope.to_owned(),
            key: key.to_owned(),
            token: self.token(),
            at: Some(at),
        };
        let call = |channel, request| async move { history(channel).get_at(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, Some(&request.scope)), &request, call).await?;
        let answered = self.keep(answer.answer);
        Ok(Found { entry: answer.entry.map(|entry| Entry::from_proto(entry, key)), answered })
    }

    /// A page of the values of a scope, or of a key, that a merge hid. The session's token is filled in.
    pub async fn conflicts(
        &self,
        request: v1::ListConflictsRequest,
    ) -> Result<v1::ListConflictsResponse, Error> {
        let request = v1::ListConflictsRequest { token: self.token(), ..request };
        let call = |channel, request| async move { history(channel).list_conflicts(request).await };
        let answer = self.nodes.call(self.about(Nature::Read, Some(&request.scope)), &request, call).await?;
        self.keep(answer.answer.clone());
        Ok(answer)
    }
}

impl Calls {
    /// What the answering node logs and samples, changed first as far as the request says so.
    pub async fn set_telemetry(
        &self,
        request: &v1::SetTelemetryRequest,
    ) -> Result<v1::SetTelemetryResponse, Error> {
        let call =
            |channel, request| async move { ClusterServiceClient::new(channel).set_telemetry(request).await };
        self.nodes.call(self.about(Nature::Read, None), request, call).await
    }
}

fn history(channel: Channel) -> HistoryServiceClient<Channel> {
    HistoryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
