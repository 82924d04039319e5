//! What a request may cost. Limits of names, values and patches are those of the crates that check them.

use std::time::Duration;

/// Longest message in bytes, both ways: several values of the greatest size, and a call cannot fill the memory.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Longest metadata in bytes: trace context and a token, within what proxies let pass.
pub const MAX_METADATA_BYTES: usize = 8 << 10;
/// Longest token in metadata, in bytes: base64 leaves room for the rest of [`MAX_METADATA_BYTES`].
pub const MAX_METADATA_TOKEN_BYTES: usize = 4 << 10;
/// Longest token in a request's body, in bytes: some 1000 vector entries; more means a session over too many shards.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;
/// A call's time when its client names none: a person has given up by then.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// The longest time a call may take; a longer one is shortened. Streams of scans and watches are not bound by it.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Most items of a bulk call: one commit, a few milliseconds of one core.
pub const MAX_BULK_ITEMS: usize = 1000;
/// Most stamps of a call: a small part of the 65 536 of a millisecond.
pub const MAX_STAMPS: u32 = 1000;
/// Scopes of a page when the client names no number.
pub const DEFAULT_PAGE_SCOPES: u32 = 100;
/// Most scopes of a page: some 500 KiB.
pub const MAX_PAGE_SCOPES: u32 = 1000;
/// Parked keys of a page when the client names no number.
pub const DEFAULT_PAGE_PARKED: u32 = 100;
/// Most parked keys of a page: some 700 KiB.
pub const MAX_PAGE_PARKED: u32 = 1000;
/// Changes of a page of a key's history when the client names no number.
pub const DEFAULT_PAGE_HISTORY: u32 = 100;
/// Most changes of a page of a key's history: some 400 KiB.
pub const MAX_PAGE_HISTORY: u32 = 1000;
/// Conflicts of a page when the client names no number.
pub const DEFAULT_PAGE_CONFLICTS: u32 = 100;
/// Most conflicts of a page, and of one key: a person decides each.
pub const MAX_PAGE_CONFLICTS: u32 = 1000;
/// Longest content type in bytes, as long as RFC 6838 lets both its names be.
pub const MAX_CONTENT_TYPE_BYTES: usize = 255;
/// Keys that one answer about the comparison of a scope names: a person reads them.
pub const MAX_VERIFIED_KEYS: usize = tropism_replica::limits::VERIFIED_KEYS;
