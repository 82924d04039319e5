//! Why a call did not succeed, by what its caller does next.

use std::error::Error as _;
use std::time::Duration;

use thiserror::Error;
use tonic::{Code, ConnectError, Status};
use tropism_wire::{Effect, Problem, Reason};

/// Why a call did not succeed. [`Error::effect`] says what happened to the state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// An endpoint is no URL of a node: correct it.
    #[error("endpoint {endpoint} {reason}")]
    BadEndpoint {
        /// The endpoint, quoted and escaped.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A node said why not: act on its reason.
    #[error("{0}")]
    Refused(Problem),
    /// No node could be reached, so nothing was sent: start one, or name another.
    #[error("no node answered: {}; no effect", .0.join("; "))]
    Unreachable(
        /// Per endpoint that was tried, what happened there.
        Vec<String>,
    ),
    /// The time was over before an answer came.
    #[error("{endpoint} did not answer within {} s{}", .timeout.as_secs_f64(), ending(*.effect))]
    TimedOut {
        /// The endpoint asked last.
        endpoint: String,
        /// The client's timeout.
        timeout: Duration,
        /// Unknown for a write.
        effect: Effect,
    },
    /// The connection was lost before the answer came.
    #[error("lost the connection to {endpoint}: {cause}{}", ending(*.effect))]
    Lost {
        /// The endpoint.
        endpoint: String,
        /// What is known of why.
        cause: String,
        /// Unknown for a write.
        effect: Effect,
    },
    /// The answer is not one of Tropism: see what listens there.
    #[error("{endpoint} gave an answer that is not Tropism's: {what}{}", ending(*.effect))]
    Unexpected {
        /// The endpoint.
        endpoint: String,
        /// What it said.
        what: String,
        /// Unknown for a write.
        effect: Effect,
    },
    /// A value of the application is no JSON, so nothing was sent.
    #[error("a value of type {of} cannot be written as JSON: {reason}; no effect")]
    Encode {
        /// Its type.
        of: &'static str,
        /// What serde says.
        reason: String,
    },
    /// A value that was read is none of the type asked for: ask for another one.
    #[error("the value of key \"{}\" is no {into}: {reason}", .key.escape_debug())]
    Decode {
        /// The key.
        key: String,
        /// The type asked for.
        into: &'static str,
        /// What serde says.
        reason: String,
    },
    /// A text is no session.
    #[error("the text of a session {reason}")]
    BadSession {
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// What happened to the state.
    pub fn effect(&self) -> Effect {
        match self {
            Error::BadEndpoint { .. }
            | Error::Unreachable(_)
            | Error::Encode { .. }
            | Error::Decode { .. }
            | Error::BadSession { .. } => Effect::None,
            Error::Refused(problem) => problem.effect(),
            Error::TimedOut { effect, .. }
            | Error::Lost { effect, .. }
            | Error::Unexpected { effect, .. } => *effect,
        }
    }

    /// Why a node refused; none when no node did.
    pub fn reason(&self) -> Option<Reason> {
        self.problem().map(Problem::reason)
    }

    /// All that a node said about its refusal; none when no node did.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Error::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// What a status from `endpoint` means that is not retried any more.
    pub(crate) fn from_status(endpoint: &str, status: &Status, effect: Effect) -> Self {
        if let Some(problem) = Problem::from_status(status) {
            return Error::Refused(problem);
        }
        let endpoint = endpoint.to_owned();
        if is_loss(status.code()) {
            return Error::Lost { endpoint, cause: innermost(status), effect };
        }
        let what = format!("{:?}: {}", status.code(), tropism_wire::error::echo(status.message()));
        Error::Unexpected { endpoint, what, effect }
    }
}

/// What a message ends with.
fn ending(effect: Effect) -> &'static str {
    match effect {
        Effect::None => "; no effect",
        Effect::Unknown => "; outcome unknown",
    }
}

/// Whether a status that no node of Tropism made is what a lost connection looks like.
pub(crate) fn is_loss(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// Whether there was no connection, so that nothing was sent.
pub(crate) fn never_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

/// The innermost cause of a status: the system's word for it.
pub(crate) fn innermost(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |cause| (**cause).source())
}
