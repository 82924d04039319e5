//! Keys and values: `StateService`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};
use tropism_placement::{Access, ShardId, check_key};
use tropism_replica::WriteDone;
use tropism_storage::Reads;
use tropism_wire::limits::{MAX_MESSAGE_BYTES, MAX_STAMPS, MAX_TOKEN_BYTES};
use tropism_wire::v1::state_service_server::StateService;
use tropism_wire::{Problem, Reason, from_proto, v1};

use super::write::{self, Draft};
use super::{Api, Call, Inner, Served, scan, stopping, unreadable, value, watch};
use crate::driver::{Published, wall_ms};
use crate::token::Token;

/// Keys of a bulk read that are read without leaving the runtime's thread: a tenth of a millisecond at most.
const READ_AT_ONCE: usize = 32;
/// What an answer to a bulk read keeps free for token and names, in bytes.
const ANSWER_BYTES: usize = MAX_TOKEN_BYTES + (4 << 10);
/// What a list entry costs in a message beside its content, in bytes: tag and length.
const ENTRY_BYTES: usize = 6;

type ScanStream = ReceiverStream<Result<v1::ScanResponse, Status>>;
type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

/// Answers a call here, or has it answered where its scope is served.
macro_rules! wherever {
    ($api:ident, $request:ident, $here:ident, $way:ident, $method:ident) => {
        $api.wherever(
            $request,
            |request| $api.$here(request),
            |route, request| async move {
                route.$way(request, |mut client, request| async move { client.$method(request).await }).await
            },
        )
        .await
    };
}

#[async_trait]
impl StateService for Api {
    type ScanStream = ScanStream;
    type WatchStream = WatchStream;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        wherever!(self, request, get_here, state, get)
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        wherever!(self, request, batch_get_here, state, batch_get)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        wherever!(self, request, put_here, state, put)
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        wherever!(self, request, batch_put_here, state, batch_put)
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Result<Response<v1::PatchResponse>, Status> {
        wherever!(self, request, patch_here, state, patch)
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        wherever!(self, request, increment_here, state, increment)
    }

    async fn batch_increment(
        &self,
        request: Request<v1::BatchIncrementRequest>,
    ) -> Result<Response<v1::BatchIncrementResponse>, Status> {
        wherever!(self, request, batch_increment_here, state, batch_increment)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        wherever!(self, request, delete_here, state, delete)
    }

    async fn expire(
        &self,
        request: Request<v1::ExpireRequest>,
    ) -> Result<Response<v1::ExpireResponse>, Status> {
        wherever!(self, request, expire_here, state, expire)
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<ScanStream>, Status> {
        wherever!(self, request, scan_here, stream, scan)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        wherever!(self, request, watch_here, stream, watch)
    }

    async fn stamp(&self, request: Request<v1::StampRequest>) -> Result<Response<v1::StampResponse>, Status> {
        wherever!(self, request, stamp_here, state, stamp)
    }
}

/// The calls, of scopes that are served here.
impl Api {
    async fn get_here(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (call, v1::GetRequest { scope, key, token }) = Call::of(request)?;
        let scope = self.served("scope", &scope)?;
        from_proto::key("key", &key)?;
        let mut token = self.token("token", &token, &call)?;
        let shard = scope.shard(&key);
        let wanted = [(shard, key)];
        let published = self.readable(&scope, &token, &[shard], Some(&wanted), call.deadline).await?;
        let [(_, key)] = wanted;
        let entry = read(&published, shard, &key, wall_ms(), &mut token)?
            .map(|entry| v1::Entry { key: String::new(), ..entry });
        self.count(&scope, &call, Access::Read, entry.as_ref().map_or(0, v1::Entry::encoded_len));
        let answer = self.answer(&scope.serving, &published, self.seen(token, &published));
        Ok(Response::new(v1::GetResponse { entry, answer: Some(answer) }))
    }

    async fn batch_get_here(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let (call, v1::BatchGetRequest { scope, keys, token }) = Call::of(request)?;
        let scope = self.served("scope", &scope)?;
        write::count("keys", keys.len())?;
        for (index, key) in keys.iter().enumerate().filter(|(_, key)| check_key(key).is_err()) {
            from_proto::key(&format!("keys[{index}]"), key)?;
        }
        each_once("keys", "", keys.iter().map(String::as_str))?;
        let token = self.token("token", &token, &call)?;
        let keys: Vec<(ShardId, String)> = keys.into_iter().map(|key| (scope.shard(&key), key)).collect();
        let mut shards: Vec<ShardId> = keys.iter().map(|(shard, _)| *shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let published = self.readable(&scope, &token, &shards, Some(&keys), call.deadline).await?;
        let (mut response, token) = if keys.len() <= READ_AT_ONCE {
            read_many(&published, keys, token)
        } else {
            let published = published.clone();
            let read = tokio::task::spawn_blocking(move || read_many(&published, keys, token));
            read.await.map_err(|_| stopping())?
        };
        self.count(&scope, &call, Access::Read, response.encoded_len());
        response.answer = Some(self.answer(&scope.serving, &published, self.seen(token, &published)));
        Ok(Response::new(response))
    }

    async fn put_here(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        use v1::batch_put_item::Precondition as Item;
        use v1::put_request::Precondition as Sent;

        let (call, request) = Call::sized(request)?;
        let v1::PutRequest { scope, key, value, base_version, precondition, expiry, options } = request;
        let precondition = precondition.map(|sent| match sent {
            Sent::IfAbsent(absent) => Item::IfAbsent(absent),
            Sent::IfVersion(version) => Item::IfVersion(version),
        });
        let item = v1::BatchPutItem { key, value, base_version, precondition, expiry };
        let scope = self.served("scope", &scope)?;
        let draft = write::put(&scope, item, wall_ms())?;
        let (done, answer) = self.write_one(&scope, draft, options, &call).await?;
        Ok(Response::new(v1::PutResponse { result: Some(result(&done)), answer: Some(answer) }))
    }

    async fn batch_put_here(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        let (call, v1::BatchPutRequest { scope, items, options }) = Call::sized(request)?;
        let scope = self.served("scope", &scope)?;
        write::count("items", items.len())?;
        each_once("items", ".key", items.iter().map(|item| item.key.as_str()))?;
        let now_ms = wall_ms();
        let drafts = items.into_iter().map(|item| write::put(&scope, item, now_ms)).collect();
        let (outcomes, answer) = self.write_many(&scope, drafts, options, &call).await?;
        let results = outcomes.iter().map(outcome).collect();
        Ok(Response::new(v1::BatchPutResponse { results, answer: Some(answer) }))
    }

    async fn patch_here(
        &self,
        request: Request<v1::PatchRequest>,
    ) -> Result<Response<v1::PatchResponse>, Status> {
        let (call, mut request) = Call::sized(request)?;
        let options = request.options.take();
        let scope = self.served("scope", &request.scope)?;
        let draft = write::patch(&scope, request, wall_ms())?;
        let (done, answer) = self.write_one(&scope, draft, options, &call).await?;
        Ok(Response::new(v1::PatchResponse { result: Some(result(&done)), answer: Some(answer) }))
    }

    async fn increment_here(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        let (call, v1::IncrementRequest { scope, key, by, expiry, options }) = Call::sized(request)?;
        let scope = self.served("scope", &scope)?;
        let draft = write::increment(&scope, v1::BatchIncrementItem { key, by, expiry }, wall_ms())?;
        let (done, answer) = self.write_one(&scope, draft, options, &call).await?;
        let value = done.counter.unwrap_or(0);
        let result = Some(result(&done));
        Ok(Response::new(v1::IncrementResponse { result, value, answer: Some(answer) }))
    }

    async fn batch_increment_here(
        &self,
        request: Request<v1::BatchIncrementRequest>,
    ) -> Result<Response<v1::BatchIncrementResponse>, Status> {
        let (call, v1::BatchIncrementRequest { scope, items, options }) = Call::sized(request)?;
        let scope = self.served("scope", &scope)?;
        write::count("items", items.len())?;
        let now_ms = wall_ms();
        let drafts = items.into_iter().map(|item| write::increment(&scope, item, now_ms)).collect();
        let (outcomes, answer) = self.write_many(&scope, drafts, options, &call).await?;
        let values =
            outcomes.iter().map(|done| done.as_ref().map_or(0, |done| done.counter.unwrap_or(0))).collect();
        let results = outcomes.iter().map(outcome).collect();
        Ok(Response::new(v1::BatchIncrementResponse { results, values, answer: Some(answer) }))
    }

    async fn delete_here(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let (call, v1::DeleteRequest { scope, key, if_version, options }) = Call::sized(request)?;
        let scope = self.served("scope", &scope)?;
        let draft = write::delete(key, if_version)?;
        let (done, answer) = self.write_one(&scope, draft, options, &call).await?;
        let (result, was_visible) = (Some(result(&done)), done.existed);
        Ok(Response::new(v1::DeleteResponse { result, was_visible, answer: Some(answer) }))
    }

    async fn expire_here(
        &self,
        request: Request<v1::ExpireRequest>,
    ) -> Result<Response<v1::ExpireResponse>, Status> {
        let (call, v1::ExpireRequest { scope, key, expiry, options }) = Call::sized(request)?;
        let scope = self.served("scope", &scope)?;
        let draft = write::expire(key, expiry.as_ref(), wall_ms())?;
        let (done, answer) = self.write_one(&scope, draft, options, &call).await?;
        let expires_at_ms = value::expires_at_ms(done.expires_at_ms);
        let result = Some(result(&done));
        Ok(Response::new(v1::ExpireResponse { result, expires_at_ms, answer: Some(answer) }))
    }

    async fn scan_here(&self, request: Request<v1::ScanRequest>) -> Result<Response<ScanStream>, Status> {
        Ok(Response::new(scan::start(self, request).await?))
    }

    async fn watch_here(&self, request: Request<v1::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        Ok(Response::new(watch::start(self, request).await?))
    }

    async fn stamp_here(
        &self,
        request: Request<v1::StampRequest>,
    ) -> Result<Response<v1::StampResponse>, Status> {
        let (call, v1::StampRequest { scope, count, token }) = Call::of(request)?;
        let scope = self.served("scope", &scope)?;
        let count = match u16::try_from(count) {
            Ok(count) if u32::from(count) <= MAX_STAMPS => count.max(1),
            _ => {
                let message = format!("count is {count}; at most {MAX_STAMPS} stamps are drawn at once");
                return Err(Problem::invalid_argument(Reason::BadNumber, "count", message).into());
            }
        };
        let token = self.token("token", &token, &call)?;
        let published = self.reached(&token, &scope.shards(), call.deadline).await?;
        if published.status.fenced {
            return Err(write::fenced().into());
        }
        let stamps = self
            .handle
            .stamps(count)
            .await
            .map_err(|error| write::call_refused(&error).unwrap_or_else(stopping))?;
        let answer = self.answer(&scope.serving, &published, self.seen(token, &published));
        Ok(Response::new(v1::StampResponse {
            stamps: stamps.iter().map(|stamp| stamp.as_u64()).collect(),
            origin: published.status.origin.to_string(),
            answer: Some(answer),
        }))
    }
}

impl Inner {
    /// Counts a call for placement: one, whatever it carries, since its client waits once.
    fn count(&self, scope: &Served<'_>, call: &Call, access: Access, bytes: usize) {
        let region = self.placement.arrived(&call.metadata);
        self.placement.count(&scope.id.name, region, access, bytes);
    }

    /// Carries out one write.
    async fn write_one(
        &self,
        scope: &Served<'_>,
        draft: Draft,
        options: Option<v1::WriteOptions>,
        call: &Call,
    ) -> Result<(WriteDone, v1::Answer), Problem> {
        self.count(scope, call, Access::Write, call.bytes);
        let options = self.options(options, call)?;
        self.reached(&options.token, &[scope.shard(&draft.key)], options.deadline).await?;
        let done = self.write(scope, draft, &options, options.request_id).await?;
        let (mut token, published) = (options.token, self.handle.published());
        token.wrote(std::iter::once(&done), published.stable_commit);
        let answer = self.answer(&scope.serving, &published, self.seen(token, &published));
        Ok((done, answer))
    }

    /// Carries out many writes, all under way before the first is waited for: they share a commit.
    async fn write_many(
        &self,
        scope: &Served<'_>,
        drafts: Vec<Result<Draft, Problem>>,
        options: Option<v1::WriteOptions>,
        call: &Call,
    ) -> Result<(Vec<Result<WriteDone, Problem>>, v1::Answer), Problem> {
        self.count(scope, call, Access::Write, call.bytes);
        let options = self.options(options, call)?;
        let shards: Vec<ShardId> = drafts.iter().flatten().map(|draft| scope.shard(&draft.key)).collect();
        self.reached(&options.token, &shards, options.deadline).await?;
        let write = |index: u32, draft: Result<Draft, Problem>| {
            let options = &options;
            let request_id = options.request_id.map(|id| from_proto::item_request_id(id, index));
            async move { self.write(scope, draft?, options, request_id).await }
        };
        let outcomes = all((0..).zip(drafts).map(|(index, draft)| write(index, draft))).await;
        let mut token = options.token;
        let published = self.handle.published();
        token.wrote(outcomes.iter().flatten(), published.stable_commit);
        let answer = self.answer(&scope.serving, &published, self.seen(token, &published));
        Ok((outcomes, answer))
    }
}

/// Starts every future, then waits for each.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let first: Vec<Poll<F::Output>> = poll_fn(|context| {
        Poll::Ready(futures.iter_mut().map(|future| future.as_mut().poll(context)).collect())
    })
    .await;
    let mut outputs = Vec::with_capacity(first.len());
    for (future, output) in futures.into_iter().zip(first) {
        outputs.push(match output {
            Poll::Ready(output) => output,
            Poll::Pending => future.await,
        });
    }
    outputs
}

/// Reads one key as it is visible at `now_ms`, and adds to the token what a session has seen by that.
fn read(
    published: &Published,
    shard: ShardId,
    key: &str,
    now_ms: u64,
    token: &mut Token,
) -> Result<Option<v1::Entry>, Problem> {
    let Some(row) = published.snapshot.value(shard, key).map_err(unreadable)? else { return Ok(None) };
    token.saw(shard, &row, published.stable_commit);
    if row.parked.is_none() && !row.cell.visible(now_ms) {
        return Ok(None);
    }
    value::entry(key.to_owned(), row, false).map(Some)
}

/// Reads keys until the answer is full.
fn read_many(
    published: &Published,
    keys: Vec<(ShardId, String)>,
    mut token: Token,
) -> (v1::BatchGetResponse, Token) {
    let now_ms = wall_ms();
    let mut response = v1::BatchGetResponse::default();
    // Every key is in the answer once: in its entry or among those left.
    let mut size: usize = ANSWER_BYTES + keys.iter().map(|(_, key)| key.len() + ENTRY_BYTES).sum::<usize>();
    for (shard, key) in keys {
        if !response.left.is_empty() {
            response.left.push(key);
            continue;
        }
        let entry = match read(published, shard, &key, now_ms, &mut token) {
            Ok(None) => continue,
            Ok(Some(entry)) => entry,
            Err(problem) => value::failed(key, &problem),
        };
        size += entry.encoded_len() - entry.key.len() + ENTRY_BYTES;
        if size > MAX_MESSAGE_BYTES && !response.entries.is_empty() {
            response.left.push(entry.key);
        } else {
            response.entries.push(entry);
        }
    }
    (response, token)
}

/// Checks the keys of a bulk call; `field` is the list, `rest` the way from its items to the key.
fn each_once<'a>(
    field: &str,
    rest: &str,
    keys: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Problem> {
    let mut sorted: Vec<(&str, usize)> = keys.zip(0..).collect();
    sorted.sort_unstable();
    let twice = sorted.windows(2).find_map(|pair| match pair {
        [(first, _), (second, index)] if first == second => Some((*second, *index)),
        _ => None,
    });
    if let Some((key, index)) = twice {
        let field = format!("{field}[{index}]{rest}");
        let message = format!("{field} {} comes a second time", tropism_wire::error::echo(key));
        return Err(Problem::invalid_argument(Reason::BadKey, field, message));
    }
    Ok(())
}

fn result(done: &WriteDone) -> v1::WriteResult {
    v1::WriteResult {
        version: Bytes::clone(&done.version),
        stamp: done.stamp.as_u64(),
        replayed: done.replayed,
        failure: None,
    }
}

fn outcome(outcome: &Result<WriteDone, Problem>) -> v1::WriteResult {
    match outcome {
        Ok(done) => result(done),
        Err(problem) => v1::WriteResult { failure: Some(problem.to_failure()), ..v1::WriteResult::default() },
    }
}
