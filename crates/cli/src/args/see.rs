//! Arguments of the commands that look at the past and at what is going on.

use std::time::Duration;

use clap::{ArgGroup, Subcommand};
use tropism_client::v1::get_at_request::At;
use tropism_wire::error::echo;

use super::{AtNode, Connection, Place, Safety, key, moment, scope_name, ttl, version};
use crate::output::now_ms;

/// Longest text that is taken for a time span, and not for the digits of a version.
const LONGEST_SPAN: usize = 8;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism history shop/carts alice\n  \
                        tropism get shop/carts alice --at VERSION     the document as that change left it")]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Most changes to print, the newest first.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("decision").args(["take", "keep"]),
    after_help = "Examples:\n  tropism conflicts shop/carts\n  \
                  tropism conflicts shop/carts --take 0123456789abcdef     show the hidden value instead\n  \
                  tropism conflicts shop/carts --keep 0123456789abcdef     what is shown is right"
)]
pub(crate) struct Conflicts {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// Only this key.
    #[arg(value_parser = key)]
    pub(crate) key: Option<String>,
    /// Show the hidden value of this conflict instead of what is shown.
    #[arg(long, value_name = "ID", value_parser = conflict_id)]
    pub(crate) take: Option<String>,
    /// Let what is shown stand, and the conflict be over.
    #[arg(long, value_name = "ID", value_parser = conflict_id)]
    pub(crate) keep: Option<String>,
    #[command(flatten)]
    pub(crate) safety: Safety,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism top\n  tropism top --once     one frame, as into a pipe")]
pub(crate) struct Top {
    /// Print one frame and end.
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism telemetry show\n  \
                        tropism telemetry set --log debug --node tokyo-1\n  \
                        tropism telemetry set --sampling 0.1 --all-nodes\n\n\
                        What is set holds until the node starts again.")]
pub(crate) struct Telemetry {
    #[command(subcommand)]
    pub(crate) action: TelemetryAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TelemetryAction {
    /// Print what nodes log and sample.
    #[command(after_help = "Example:\n  tropism telemetry show")]
    Show(TelemetryShow),
    /// Change what a node logs and samples, until it starts again.
    #[command(
        after_help = "Example:\n  tropism telemetry set --log info,tropism_replica=debug --node tokyo-1"
    )]
    Set(TelemetrySet),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TelemetryShow {
    #[command(flatten)]
    pub(crate) at: AtNode,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["sampling", "log"]))]
pub(crate) struct TelemetrySet {
    /// The share of calls without a decision of their client that are sampled, 0 to 1.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) sampling: Option<u32>,
    /// Filters of the log: a level (error, warn, info, debug, trace), or target=level, joined by commas.
    #[arg(long, value_name = "FILTERS")]
    pub(crate) log: Option<String>,
    /// At every node, not one.
    #[arg(long, conflicts_with = "node")]
    pub(crate) all_nodes: bool,
    #[command(flatten)]
    pub(crate) at: AtNode,
}

/// A share of 1, in millionths.
fn share(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok((share * 1e6).round() as u32), // at most a million
        _ => Err(format!("{} must be a number from 0 to 1, like 0.01", echo(text))),
    }
}

/// The id of a conflict as it is printed.
fn conflict_id(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 16 && digits {
        return Ok(text.to_owned());
    }
    Err(format!("{} must be the 16 hexadecimal digits that `tropism conflicts SCOPE` prints", echo(text)))
}

/// A version in hexadecimal, a moment, or how long ago.
pub(super) fn at(text: &str) -> Result<At, String> {
    if text.contains(['-', '@', ':']) {
        return moment(text).map(At::TimeMs);
    }
    if text.len() <= LONGEST_SPAN {
        let ago = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        return ttl(text).map(|span| At::TimeMs(now_ms().saturating_sub(ago(span)))).map_err(|_| {
            format!(
                "{} must be a version as `tropism history` prints it, a moment like 2030-01-31T12:00:00Z or \
                 @1900000000, or how long ago, like 5m",
                echo(text)
            )
        });
    }
    version(text).map(|version| At::Version(version.0.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use super::*;

    #[test]
    fn a_version_a_moment_and_a_span_are_told_apart() {
        assert_eq!(at("2030-01-31T12:00:00Z").unwrap(), At::TimeMs(1_896_091_200_000));
        assert_eq!(at("@1900000000").unwrap(), At::TimeMs(1_900_000_000_000));
        assert!(matches!(at("7d").unwrap(), At::TimeMs(ms) if ms < now_ms()));
        let text = format!("0001{}", "ab".repeat(32));
        assert!(matches!(at(&text).unwrap(), At::Version(bytes) if bytes.len() == 34));
        for bad in ["", "abc", "yesterday", "2030-13-31T12:00:00Z", "0001zz00112233445566"] {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert!(at("soon").unwrap_err().contains("\"soon\""));
    }

    #[test]
    fn a_share_is_from_none_to_all() {
        assert_eq!(["0", "0.01", "1", "1e-6"].map(share), [Ok(0), Ok(10_000), Ok(1_000_000), Ok(1)]);
        for bad in ["", "-0.1", "1.01", "NaN", "inf", "half"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_conflict_is_named_by_sixteen_digits() {
        assert!(conflict_id("0123456789abcdef").is_ok());
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "0123456789abcdeg"] {
            assert!(conflict_id(bad).unwrap_err().contains("16 hexadecimal"), "{bad}");
        }
    }
}
