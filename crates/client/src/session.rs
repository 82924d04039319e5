//! A session as something to carry: in a cookie, a header, a job's arguments.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use tropism_wire::limits::MAX_TOKEN_BYTES;

use crate::error::Error;

/// What the text of a session begins with: the version of its form.
const PREFIX: &str = "s1.";

/// What a client has written and read, so far as not every region has it yet. Whoever goes on with it, in another process or
/// another region, reads those writes and nothing older than was read; a region that lacks some of it waits, and when the
/// time is over says `TOKEN_AHEAD`.
///
/// As text it is URL-safe, `s1.` and base64: some 100 bytes for a handful of scopes, at most 88 KiB. What it says is sealed
/// by the cluster: nobody can read or change it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    token: Bytes,
}

impl Session {
    pub(crate) fn new(token: Bytes) -> Self {
        Self { token }
    }

    /// The session's token, as it travels in requests.
    pub fn token(&self) -> &Bytes {
        &self.token
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(&self.token))
    }
}

impl FromStr for Session {
    type Err = Error;

    /// Reads what [`Session`]'s `to_string` wrote; anything else is [`Error::BadSession`].
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadSession { reason };
        let coded = text.strip_prefix(PREFIX).ok_or_else(|| bad(format!("does not begin with {PREFIX}")))?;
        if coded.len() > MAX_TOKEN_BYTES.div_ceil(3) * 4 {
            return Err(bad(format!("is longer than any: a token has at most {MAX_TOKEN_BYTES} bytes")));
        }
        let token =
            URL_SAFE_NO_PAD.decode(coded).map_err(|error| bad(format!("is not URL-safe base64: {error}")))?;
        Ok(Self { token: token.into() })
    }
}
