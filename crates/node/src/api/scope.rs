//! Scopes: `ScopeService`. A scope exists here when one of its shards is described in the store.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status, async_trait};
use tropism_placement::{PlacementRecord, RULE_EPOCH, ScopeName, ShardId};
use tropism_storage::keys::after_prefix;
use tropism_storage::keys::shard_prefix;
use tropism_storage::rows::{Row, ShardRow, ValueRow};
use tropism_storage::{Reads, ShardKey, Space, StoreError, View};
use tropism_wire::limits::{DEFAULT_PAGE_SCOPES, MAX_PAGE_SCOPES};
use tropism_wire::v1::scope_service_server::ScopeService;
use tropism_wire::{Problem, Reason, from_proto, to_proto, v1};

use super::{Api, Call, Inner, stopping, unreadable};
use crate::driver::wall_ms;

/// Keys of a scope that are counted: some 50 ms. A scope that has more says this number.
const COUNTED_KEYS: usize = 100_000;

#[async_trait]
impl ScopeService for Api {
    async fn get_scope(
        &self,
        request: Request<v1::GetScopeRequest>,
    ) -> Result<Response<v1::GetScopeResponse>, Status> {
        let (_, v1::GetScopeRequest { name }) = Call::of(request)?;
        let record = self.known_record(&name)?;
        let published = self.handle.published();
        let shards: Vec<ShardId> =
            (0..record.spread).map(|index| ShardId::of(&record.scope, index)).collect();
        let usage = tokio::task::spawn_blocking(move || usage(published.snapshot.as_ref(), &shards));
        let usage = usage.await.map_err(|_| stopping())?.map_err(unreadable)?;
        let scope = Some(to_proto::scope(&record, true, usage));
        Ok(Response::new(v1::GetScopeResponse { scope }))
    }

    async fn list_scopes(
        &self,
        request: Request<v1::ListScopesRequest>,
    ) -> Result<Response<v1::ListScopesResponse>, Status> {
        let (_, v1::ListScopesRequest { prefix, page_size, page_token }) = Call::of(request)?;
        let page_size = match page_size {
            0 => DEFAULT_PAGE_SCOPES,
            1..=MAX_PAGE_SCOPES => page_size,
            _ => {
                let message = format!("page_size is {page_size}; the limit is {MAX_PAGE_SCOPES}");
                return Err(Problem::invalid_argument(Reason::BadNumber, "page_size", message).into());
            }
        };
        let below = match prefix.as_str() {
            "" => None,
            prefix => Some(from_proto::scope_name("prefix", prefix)?),
        };
        let pages = self.seal.of(&["scopes", &prefix]);
        let behind = match page_token.as_ref() {
            [] => None,
            token => Some(position(pages.open(token).ok()).ok_or_else(|| {
                let message = "page_token is none of this list; send the same prefix";
                Problem::invalid_argument(Reason::BadPageToken, "page_token", message)
            })?),
        };
        let published = self.handle.published();
        let most = page_size as usize;
        let names = tokio::task::spawn_blocking(move || {
            known(published.snapshot.as_ref(), below.as_ref(), behind.as_ref(), most + 1)
        });
        let names = names.await.map_err(|_| stopping())?.map_err(unreadable)?;
        let more = names.len() > most;
        let mut response = v1::ListScopesResponse::default();
        for name in names.into_iter().take(most) {
            if more {
                response.next_page_token = pages.close(name.as_str().as_bytes()); // the last one stays
            }
            if let Some(record) = self.record(&name) {
                response.scopes.push(to_proto::scope(&record, true, None));
            }
        }
        Ok(Response::new(response))
    }

    async fn verify_scope(
        &self,
        request: Request<v1::VerifyScopeRequest>,
    ) -> Result<Response<v1::VerifyScopeResponse>, Status> {
        let (Call { deadline, .. }, request) = Call::of(request)?;
        Ok(Response::new(self.verify(&request, deadline.give_up).await?))
    }

    async fn drop_scope(
        &self,
        request: Request<v1::DropScopeRequest>,
    ) -> Result<Response<v1::DropScopeResponse>, Status> {
        let (_, v1::DropScopeRequest { name, .. }) = Call::of(request)?;
        let name = from_proto::scope_name("name", &name)?;
        let message = format!(
            "scope \"{name}\" was not dropped: a drop has to be ordered by the directory, which does not exist yet; \
             delete the keys instead"
        );
        Err(Problem::unimplemented(message).into())
    }
}

impl Inner {
    /// The record of the scope of a request's name.
    pub(super) fn known_record(&self, name: &str) -> Result<PlacementRecord, Problem> {
        let name = from_proto::scope_name("name", name)?;
        self.record(&name).ok_or_else(|| {
            let message = format!("no policy rule matches scope \"{name}\"");
            Problem::not_found(Reason::ScopeNotFound, message).at("name")
        })
    }

    fn record(&self, name: &ScopeName) -> Option<PlacementRecord> {
        Some(PlacementRecord::implied(RULE_EPOCH, self.rules.find(name)?, name))
    }
}

fn position(body: Option<&[u8]>) -> Option<ScopeName> {
    ScopeName::new(std::str::from_utf8(body?).ok()?).ok()
}

/// What is held of a scope; none when nothing was ever written here.
fn usage(snapshot: &dyn View, shards: &[ShardId]) -> Result<Option<v1::ScopeUsage>, StoreError> {
    let now_ms = wall_ms();
    let mut usage = v1::ScopeUsage::default();
    let (mut known, mut left) = (false, COUNTED_KEYS);
    for shard in shards {
        known |= snapshot.shard(*shard)?.is_some();
        let prefix = shard_prefix(shard);
        for row in snapshot.scan(Space::Values, &prefix, &after_prefix(&prefix)).take(left) {
            let (key, value) = row?;
            left -= 1;
            usage.stored_bytes += (key.len() - prefix.len() + value.len()) as u64;
            match ValueRow::decode(&value) {
                Ok(row) if row.parked.is_some() => usage.parked_keys += 1,
                Ok(row) if row.cell.visible(now_ms) => usage.visible_keys += 1,
                Ok(row) if !row.cell.alive() => usage.stubs += 1,
                Ok(_) => {} // expired
                Err(_) => usage.parked_keys += 1,
            }
        }
    }
    Ok(known.then_some(usage))
}

/// The first scopes by name behind a position. Shards are stored by hash, so all descriptions are read, and only as many
/// names kept as are wanted.
fn known(
    snapshot: &dyn View,
    below: Option<&ScopeName>,
    behind: Option<&ScopeName>,
    most: usize,
) -> Result<BTreeSet<ScopeName>, StoreError> {
    let mut names = BTreeSet::new();
    for row in snapshot.scan(Space::Shards, &[0], &[0xff; 3]) {
        let (key, value) = row?;
        if !matches!(ShardKey::decode(&key), Ok(ShardKey::Description(_))) {
            continue;
        }
        let row = ShardRow::decode(&value)
            .map_err(|problem| StoreError::Damaged { space: Space::Shards.name(), problem })?;
        let name = row.scope.name;
        let wanted = below.is_none_or(|below| name.starts_with(below))
            && behind.is_none_or(|behind| name > *behind)
            && (names.len() < most || names.last().is_some_and(|last| name < *last));
        if wanted {
            names.insert(name);
            if names.len() > most {
                names.pop_last();
            }
        }
    }
    Ok(names)
}
