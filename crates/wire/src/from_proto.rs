//! Fields of requests into what lies below the shell, checked: each error names the field, its problem and the limit.

use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::MetadataMap;
use tropism_crdt::{ExpiryChange, RequestId};
use tropism_placement::{Durability, Kind, MAX_EXPIRY, NameError, ScopeName, check_key};

use crate::error::{Problem, Reason, echo};
use crate::limits::{MAX_CONTENT_TYPE_BYTES, MAX_METADATA_TOKEN_BYTES, MAX_TOKEN_BYTES};
use crate::{TOKEN_METADATA, v1};

/// Longest time to live in milliseconds.
const MAX_TTL_MS: u64 = MAX_EXPIRY.as_millis() as u64; // ten years: fits

/// A scope name; `field` is the field it came in.
pub fn scope_name(field: &str, name: &str) -> Result<ScopeName, Problem> {
    ScopeName::new(name).map_err(|error: NameError| {
        Problem::invalid_argument(Reason::BadScope, field, format!("{field}: {error}"))
    })
}

/// A key, which stays a text; `field` is the field it came in.
pub fn key(field: &str, key: &str) -> Result<(), Problem> {
    check_key(key)
        .map_err(|error| Problem::invalid_argument(Reason::BadKey, field, format!("{field}: {error}")))
}

/// A kind; `field` is the field it came in.
pub fn kind(field: &str, kind: i32) -> Result<Kind, Problem> {
    match v1::Kind::try_from(kind) {
        Ok(v1::Kind::Document) => Ok(Kind::Document),
        Ok(v1::Kind::Register) => Ok(Kind::Register),
        Ok(v1::Kind::Counter) => Ok(Kind::Counter),
        Ok(v1::Kind::Unspecified) | Err(_) => Err(Problem::invalid_argument(
            Reason::BadNumber,
            field,
            format!("{field} is {kind}; a kind is 1 (document), 2 (register) or 3 (counter)"),
        )),
    }
}

/// A write's durability; none means the policy's. Whether enough regions serve the scope is not known here.
pub fn durability(durability: Option<&v1::Durability>) -> Result<Option<Durability>, Problem> {
    use v1::DurabilityLevel as Level;
    const LEVEL: &str = "options.durability.level";
    const REGIONS: &str = "options.durability.regions";

    let Some(&v1::Durability { level, regions }) = durability else { return Ok(None) };
    let bad = |field, message: String| Err(Problem::invalid_argument(Reason::BadDurability, field, message));
    let chosen = match Level::try_from(level) {
        Ok(Level::Regions) => {
            return match u16::try_from(regions) {
                Ok(count) if count > 0 => Ok(Some(Durability::Regions(count))),
                _ => bad(
                    REGIONS,
                    format!("{REGIONS} is {regions}; it must be 1 to the number of serving regions"),
                ),
            };
        }
        Ok(Level::Unspecified) => None,
        Ok(Level::Local) => Some(Durability::Local),
        Ok(Level::Region) => Some(Durability::Region),
        Err(_) => {
            let known = "0 (the policy's), 1 (local), 2 (region) or 3 (regions)";
            return bad(LEVEL, format!("{LEVEL} is {level}; a level is {known}"));
        }
    };
    match regions {
        0 => Ok(chosen),
        _ => bad(
            REGIONS,
            format!("{REGIONS} is {regions} but the level takes no number; only level 3 (regions) does"),
        ),
    }
}

/// A write's request id; empty bytes are none.
pub fn request_id(id: &[u8]) -> Result<Option<RequestId>, Problem> {
    if id.is_empty() {
        return Ok(None);
    }
    RequestId::try_from(id).map(Some).map_err(|_| {
        let message = format!("options.request_id has {} bytes; it must have 16, or none", id.len());
        Problem::invalid_argument(Reason::BadRequestId, "options.request_id", message)
    })
}

/// The request id of item `index` of a bulk call: `id` with the index added to its last 4 bytes (big endian).
pub fn item_request_id(id: RequestId, index: u32) -> RequestId {
    let number = u128::from_be_bytes(id);
    let low = (number as u32).wrapping_add(index); // the last 4 bytes
    (number >> 32 << 32 | u128::from(low)).to_be_bytes()
}

/// A write's expiry at `now_ms` (Unix); absent, the key keeps what it has or gets what the policy says.
pub fn expiry(expiry: Option<&v1::Expiry>, now_ms: u64) -> Result<ExpiryChange, Problem> {
    use v1::expiry::When;
    const MOST: &str = "the most is 10 years (315360000000 ms)";

    let Some(v1::Expiry { when }) = expiry else { return Ok(ExpiryChange::Keep) };
    let bad =
        |field: &str, message: String| Err(Problem::invalid_argument(Reason::BadExpiry, field, message));
    match when {
        None => Err(Problem::invalid_argument(
            Reason::MissingField,
            "expiry",
            "expiry is empty; set ttl_ms, at_ms or never, or leave it out",
        )),
        Some(When::Never(true)) => Ok(ExpiryChange::Clear),
        Some(When::Never(false)) => {
            bad("expiry.never", "expiry.never is false; set it to true or not at all".into())
        }
        Some(When::TtlMs(ttl @ 1..=MAX_TTL_MS)) => Ok(ExpiryChange::At(now_ms.saturating_add(*ttl))),
        Some(When::TtlMs(ttl)) => {
            bad("expiry.ttl_ms", format!("expiry.ttl_ms is {ttl}; the least is 1 ms, {MOST}"))
        }
        Some(When::AtMs(at)) if *at <= now_ms => Err(Problem::failed_precondition(
            Reason::AlreadyExpired,
            format!("expiry.at_ms is {at}, which has passed: it is {now_ms} (Unix milliseconds)"),
        )
        .at("expiry.at_ms")),
        Some(When::AtMs(at)) if *at - now_ms > MAX_TTL_MS => {
            bad("expiry.at_ms", format!("expiry.at_ms is {at}, too far from now ({now_ms}); {MOST}"))
        }
        Some(When::AtMs(at)) => Ok(ExpiryChange::At(*at)),
    }
}

/// A register's content type.
pub fn content_type(content_type: &str) -> Result<(), Problem> {
    const FIELD: &str = "value.register.content_type";
    let problem = if content_type.len() > MAX_CONTENT_TYPE_BYTES {
        format!("has {} bytes", content_type.len())
    } else if content_type.bytes().any(|b| !matches!(b, b' '..=b'~')) {
        "has a character that is not printable ASCII".to_owned()
    } else {
        return Ok(());
    };
    let shown = echo(content_type);
    let message =
        format!("{FIELD} {shown} {problem}; it is at most {MAX_CONTENT_TYPE_BYTES} bytes of printable ASCII");
    Err(Problem::invalid_argument(Reason::BadContentType, FIELD, message))
}

/// The session token of a request: the body's, else the metadata's, else empty.
pub fn token(field: &str, body: &Bytes, metadata: &MetadataMap) -> Result<Bytes, Problem> {
    let (place, token, most) = match metadata.get_bin(TOKEN_METADATA) {
        Some(value) if body.is_empty() => {
            let token = value.to_bytes().map_err(|_| {
                let message = format!("metadata {TOKEN_METADATA} is not base64");
                Problem::invalid_argument(Reason::BadToken, TOKEN_METADATA, message)
            })?;
            (TOKEN_METADATA, token, MAX_METADATA_TOKEN_BYTES)
        }
        _ => (field, body.clone(), MAX_TOKEN_BYTES),
    };
    if token.len() > most {
        let message = format!("{place} has {} bytes; the limit is {most}", token.len());
        return Err(
            Problem::resource_exhausted(Reason::TokenTooLarge, "token_bytes", most as u64, message).at(place)
        );
    }
    Ok(token)
}

/// The time a unary call may take: what its client names (`grpc-timeout`), within the limits.
pub fn deadline(named: Option<Duration>) -> Duration {
    named.map_or(crate::limits::DEFAULT_DEADLINE, |named| named.min(crate::limits::MAX_DEADLINE))
}
