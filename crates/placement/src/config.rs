//! Reading configuration text so that every complaint names file, line and key.
//!
//! A table is read by *taking* its keys: what is left at the end is unknown and an error. Reading goes on after an
//! error, so that one look at the file mends all of it; the result is used only if there was none.

use std::fmt::{self, Display};

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::name::echo;

/// Largest configuration text in bytes: a thousand times a usual one, and parsed in milliseconds.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// Most errors reported of one file: nobody mends more at once. The rest is counted.
pub const MAX_CONFIG_ERRORS: usize = 100;

/// One thing wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}:{line}: {key}: {reason}")]
pub struct ConfigError {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The key, with its section: `rule.spread`. `syntax` when the text is no TOML.
    pub key: String,
    /// What is wrong and what is allowed.
    pub reason: String,
}

/// Everything wrong in a configuration file, by line; nothing of the file is in force.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    /// At least one and at most [`MAX_CONFIG_ERRORS`], by line.
    pub errors: Vec<ConfigError>,
    /// How many more there were.
    pub omitted: usize,
}

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// A value and where it stands: its byte offset in the text.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) at: usize,
    pub(crate) value: T,
}

/// The text being read and what was found wrong in it so far.
pub(crate) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    errors: Vec<ConfigError>,
    omitted: usize,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, errors: Vec::new(), omitted: 0 }
    }

    /// The top-level table; None when the text is no TOML, which is then reported.
    pub(crate) fn root(&mut self) -> Option<Table<'t>> {
        if self.text.len() > MAX_CONFIG_BYTES {
            let reason = format!("the file has {} bytes; the limit is {MAX_CONFIG_BYTES}", self.text.len());
            self.fail(0, "syntax", reason);
            return None;
        }
        match DeTable::parse(self.text) {
            Ok(root) => Some(Table { section: "", at: 0, entries: root.into_inner() }),
            Err(error) => {
                // Only the first: what follows a syntax error is mostly its echo.
                let span = error.span().unwrap_or_default();
                let near = self.text.get(span.clone()).filter(|near| !near.trim().is_empty());
                let near = near.map(|near| format!(", at \"{}\"", echo(near))).unwrap_or_default();
                self.fail(span.start, "syntax", format!("{}{near}", error.message().replace('\n', ", ")));
                None
            }
        }
    }

    /// Reports that `key`, at this byte of the text, is wrong.
    pub(crate) fn fail(&mut self, at: usize, key: &str, reason: impl Display) {
        if self.errors.len() == MAX_CONFIG_ERRORS {
            self.omitted += 1;
            return;
        }
        let line = 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        self.errors.push(ConfigError {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            reason: reason.to_string(),
        });
    }

    /// Whether anything was wrong so far.
    pub(crate) fn failed(&self) -> bool {
        !self.errors.is_empty()
    }

    /// What was wrong.
    pub(crate) fn into_errors(mut self) -> ConfigErrors {
        self.errors.sort_by_key(|error| error.line);
        ConfigErrors { errors: self.errors, omitted: self.omitted }
    }
}

/// One table of the text; its keys are taken out as they are read.
pub(crate) struct Table<'t> {
    section: &'static str,
    /// Where the table begins: errors about missing keys point here.
    pub(crate) at: usize,
    entries: DeTable<'t>,
}

impl<'t> Table<'t> {
    /// Takes the array of tables `section`, in file order; none if it is absent.
    pub(crate) fn sections(
        &mut self,
        reader: &mut Reader<'_>,
        section: &'static str,
        limit: usize,
    ) -> Vec<Table<'t>> {
        let Some(At { at, value }) = self.take(section) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            reader.fail(at, section, format!("must be an array of tables, [[{section}]]"));
            return Vec::new();
        };
        if items.len() > limit {
            reader.fail(at, section, format!("{} entries; the limit is {limit}", items.len()));
            return Vec::new();
        }
        let mut tables = Vec::new();
        for item in items {
            match spanned(item) {
                At { at, value: DeValue::Table(entries) } => tables.push(Table { section, at, entries }),
                At { at, .. } => reader.fail(at, section, "must be a table"),
            }
        }
        tables
    }

    /// Takes an optional key. A value that `convert` refuses is reported, and then None as well.
    pub(crate) fn optional<T>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &str,
        convert: impl FnOnce(DeValue<'_>) -> Result<T, String>,
    ) -> Option<At<T>> {
        let At { at, value } = self.take(key)?;
        match convert(value) {
            Ok(value) => Some(At { at, value }),
            Err(reason) => {
                reader.fail(at, &self.path(key), reason);
                None
            }
        }
    }

    /// Takes a key that must be there.
    pub(crate) fn required<T>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &str,
        convert: impl FnOnce(DeValue<'_>) -> Result<T, String>,
    ) -> Option<At<T>> {
        self.require(reader, key);
        self.optional(reader, key, convert)
    }

    /// Reports a key that must be there and is not.
    pub(crate) fn require(&self, reader: &mut Reader<'_>, key: &str) {
        if !self.entries.contains_key(key) {
            reader.fail(self.at, &self.path(key), "is missing");
        }
    }

    /// Takes an optional array of at most `limit` strings, each converted and reported at its own place.
    pub(crate) fn list<T>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &str,
        limit: usize,
        convert: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<Vec<At<T>>>> {
        let At { at, value } = self.take(key)?;
        let path = self.path(key);
        let DeValue::Array(items) = value else {
            reader.fail(at, &path, format!("must be an array of strings, not {}", value.type_str()));
            return None;
        };
        if items.len() > limit {
            reader.fail(at, &path, format!("{} entries; the limit is {limit}", items.len()));
            return None;
        }
        let mut list = Vec::new();
        for item in items {
            let At { at, value } = spanned(item);
            match string(value).and_then(|text| convert(&text)) {
                Ok(value) => list.push(At { at, value }),
                Err(reason) => reader.fail(at, &path, reason),
            }
        }
        Some(At { at, value: list })
    }

    /// Reports every key that nobody took.
    pub(crate) fn finish(self, reader: &mut Reader<'_>) {
        for key in self.entries.keys() {
            reader.fail(key.span().start, &self.path(&echo(key.get_ref())), "unknown key");
        }
    }

    /// `section.key`, as errors name it.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.section.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section) }
    }

    fn take(&mut self, key: &str) -> Option<At<DeValue<'t>>> {
        self.entries.remove(key).map(spanned)
    }
}

fn spanned<T>(value: Spanned<T>) -> At<T> {
    At { at: value.span().start, value: value.into_inner() }
}

/// A string.
pub(crate) fn string(value: DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.into_owned()),
        other => Err(format!("must be a string, not {}", other.type_str())),
    }
}

/// A number, with or without a fraction.
pub(crate) fn number(value: DeValue<'_>) -> Result<f64, String> {
    let text = match &value {
        DeValue::Float(float) => float.as_str(),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
        other => return Err(format!("must be a number, not {}", other.type_str())),
    };
    text.parse().map_err(|_| format!("\"{}\" is not a number", echo(text)))
}

/// A whole number from `least` to `most`.
pub(crate) fn whole(value: DeValue<'_>, least: u64, most: u64) -> Result<u64, String> {
    let DeValue::Integer(integer) = &value else {
        return Err(format!("must be a whole number from {least} to {most}, not {}", value.type_str()));
    };
    match u64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{} is outside {least} to {most}", echo(integer.as_str()))),
    }
}
