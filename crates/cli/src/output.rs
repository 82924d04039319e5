//! How answers look: values alone for shells, JSON for programs, tables for people. Data go to stdout, words to stderr.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tropism_client::{Effect, Entry, Error, Problem, Reason, Value, Written};
use tropism_crdt::Stamp;

use crate::world::WorldError;

/// Why a command did not succeed, by the exit status it ends with.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Arguments, or a file named by them, are wrong: 2.
    #[error("{0}")]
    Usage(String),
    /// It could not be done: 1.
    #[error("{0}")]
    Failed(String),
    /// A node could not be asked, or refused: 1.
    #[error("{}{}", .0, hint(.0))]
    Call(Error),
    /// One key of many was refused: 1.
    #[error("{}: {} ({})", .0, .1, .1.reason())]
    Item(String, Problem),
    /// Nobody reads the output any more, so there is nothing left to do: 0.
    #[error("nobody reads the output")]
    ReaderGone,
}

impl Failure {
    /// Tells the reason on stderr and is the exit status.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let code = match &self {
            Failure::ReaderGone => return ExitCode::SUCCESS,
            Failure::Usage(_) => 2,
            Failure::Failed(_) | Failure::Call(_) | Failure::Item(..) => 1,
        };
        if json {
            say(&serde_json::json!({ "error": self.to_json() }).to_string());
        } else {
            say(&format!("error: {self}"));
        }
        ExitCode::from(code)
    }

    fn to_json(&self) -> serde_json::Value {
        let problem = match self {
            Failure::Call(error) => error.problem(),
            Failure::Item(_, problem) => Some(problem),
            _ => None,
        };
        let effect = match self {
            Failure::Call(error) => error.effect(),
            Failure::Item(_, problem) => problem.effect(),
            _ => Effect::None,
        };
        serde_json::json!({
            "message": self.to_string(),
            "reason": problem.map(|problem| problem.reason().as_str()),
            "field": problem.and_then(Problem::field),
            "effect": effect.as_str(),
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::BadEndpoint { .. } => Failure::Usage(error.to_string()),
            error => Failure::Call(error),
        }
    }
}

impl From<WorldError> for Failure {
    fn from(error: WorldError) -> Self {
        match error {
            WorldError::Options(why) => Failure::Usage(why),
            error @ WorldError::NoWorld(_) => {
                Failure::Failed(format!("{error}, --endpoint URL names a node"))
            }
            error => Failure::Failed(error.to_string()),
        }
    }
}

/// Of writing to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::Failed(format!("stdout cannot be written: {error}")),
        }
    }
}

/// The reason's name, and what to do next where the message does not say.
fn hint(error: &Error) -> String {
    let Some(reason) = error.reason() else {
        return match error {
            Error::Unreachable(_) => "; `tropism dev` starts a world, --endpoint URL names a node".to_owned(),
            _ => String::new(),
        };
    };
    let next = match reason {
        Reason::KindMismatch => "; `tropism scope SCOPE` shows the kind",
        Reason::NotACounter => "; counters in documents are set up by the rule's `counters` paths",
        Reason::VersionMismatch | Reason::UnknownBase | Reason::EarlierLife | Reason::TooManyBranches => {
            "; `tropism get SCOPE KEY --show-version` shows the version of now"
        }
        _ => "",
    };
    format!("{next} ({reason})")
}

/// Writes a line of words to stderr. That nobody reads them is no reason to fail.
pub(crate) fn say(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Where data go.
pub(crate) struct Output {
    to: Box<dyn Write>,
    /// Whether answers are JSON.
    pub(crate) json: bool,
    /// Whether a person looks at it.
    pub(crate) terminal: bool,
}

impl Output {
    /// The process's stdout.
    pub(crate) fn stdout(json: bool) -> Self {
        let stdout = io::stdout();
        Self { terminal: stdout.is_terminal(), to: Box::new(BufWriter::new(stdout)), json }
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.to.write_all(bytes)?)
    }

    /// Writes bytes and a newline.
    pub(crate) fn line(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.bytes(bytes.as_ref())?;
        self.bytes(b"\n")
    }

    /// Writes an object of JSON and a newline.
    pub(crate) fn object(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.to, object).map_err(io::Error::from)?;
        self.bytes(b"\n")
    }

    /// Lets everything written so far be seen.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.to.flush()?)
    }
}

/// An entry for programs.
#[derive(Debug, Serialize)]
pub(crate) struct EntryJson<'e> {
    key: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<ValueJson<'e>>,
    version: String,
    stamp: String,
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// A value for programs: a document as it is, a counter as a number, a register with its type and its text or, when that
/// is not UTF-8, its bytes in hexadecimal.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ValueJson<'e> {
    Document(&'e RawValue),
    Counter(i64),
    Text { content_type: &'e str, text: &'e str },
    Bytes { content_type: &'e str, hex: String },
}

impl<'e> From<&'e Entry> for EntryJson<'e> {
    fn from(entry: &'e Entry) -> Self {
        Self {
            key: &entry.key,
            value: entry.value.as_ref().map(ValueJson::from),
            version: hex(&entry.version),
            stamp: stamp(entry.stamp),
            expires_at_ms: entry.expires_at_ms,
            failure: entry.failure.as_ref().map(ToString::to_string),
        }
    }
}

impl<'e> From<&'e Value> for ValueJson<'e> {
    fn from(value: &'e Value) -> Self {
        let bytes = |content_type, bytes: &[u8]| ValueJson::Bytes { content_type, hex: hex(bytes) };
        match value {
            // Raw, so that its numbers stay as they are. A node that sends no JSON is shown as it is, too.
            Value::Document(json) => serde_json::from_slice(json)
                .map_or_else(|_| bytes("application/json", json), ValueJson::Document),
            Value::Counter(sum) => ValueJson::Counter(*sum),
            Value::Register(register) => match std::str::from_utf8(&register.content) {
                Ok(text) => ValueJson::Text { content_type: &register.content_type, text },
                Err(_) => bytes(&register.content_type, &register.content),
            },
        }
    }
}

/// What a write did, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct WrittenJson<'w> {
    version: String,
    stamp: String,
    replayed: bool,
    region: &'w str,
    node: &'w str,
}

impl<'w> From<&'w Written> for WrittenJson<'w> {
    fn from(written: &'w Written) -> Self {
        Self {
            version: hex(&written.version),
            stamp: stamp(written.stamp),
            replayed: written.replayed,
            region: &written.answered.region,
            node: &written.answered.node,
        }
    }
}

/// A value on one line: JSON and sums as they are; of registers, control characters, backslashes and what is not UTF-8
/// are escaped.
pub(crate) fn one_line(value: &Value) -> String {
    match value {
        Value::Document(json) => String::from_utf8_lossy(json).into_owned(),
        Value::Counter(sum) => sum.to_string(),
        Value::Register(register) => {
            let mut line = String::with_capacity(register.content.len());
            for chunk in register.content.utf8_chunks() {
                for character in chunk.valid().chars() {
                    if character.is_control() || character == '\\' {
                        line.extend(character.escape_default());
                    } else {
                        line.push(character);
                    }
                }
                for byte in chunk.invalid() {
                    let _ = write!(line, "\\x{byte:02x}"); // writing to a string cannot fail
                }
            }
            line
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}

/// A stamp as text that sorts as stamps do: Unix milliseconds, a dot, the count.
pub(crate) fn stamp(stamp: Stamp) -> String {
    format!("{}.{:05}", stamp.unix_ms(), stamp.count())
}

/// This machine's clock, Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// A time for people, in two units at most.
pub(crate) fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A moment, Unix milliseconds, as UTC (RFC 3339).
pub(crate) fn moment(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Years that begin in March, in eras of 400: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

/// [`moment`] to the second, which is all that is known of some; as `--at` reads it.
pub(crate) fn moment_to_second(unix_ms: u64) -> String {
    let mut text = moment(unix_ms);
    text.truncate(text.len().saturating_sub(".000Z".len()));
    text.push('Z');
    text
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Rows with their columns aligned, two spaces apart; the last column is as long as it is.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let width = widths.get(column).copied().unwrap_or_default() + 2;
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
