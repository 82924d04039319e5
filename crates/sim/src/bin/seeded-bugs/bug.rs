//! One seeded bug: a file that says what is wrong, what that breaks, and the lines that make it so.
//!
//! ```text
//! title: one line, what is wrong
//! breaks: one line, the promise or mechanism
//! file: crates/replica/src/link.rs
//! escapes: why no seed finds it (only of the one that may escape)
//! --- old
//! lines that occur once in the file
//! --- new
//! lines in their place
//! ```

use std::fs;
use std::path::Path;

/// A change of the code that makes it wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bug {
    /// The name of its file, without the ending.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) breaks: String,
    /// Relative to the workspace.
    pub(crate) file: String,
    pub(crate) escapes: Option<String>,
    pub(crate) old: String,
    pub(crate) new: String,
}

impl Bug {
    /// Reads one from the text of its file.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        let problem = |what: &str| format!("bug {name}: {what}");
        let (head, rest) = text.split_once("--- old\n").ok_or_else(|| problem("it has no line `--- old`"))?;
        let (old, new) = match rest.strip_prefix("--- new\n") {
            Some(new) => ("", new),
            None => rest.split_once("\n--- new\n").ok_or_else(|| problem("it has no line `--- new`"))?,
        };
        let mut bug = Self {
            name: name.to_owned(),
            title: String::new(),
            breaks: String::new(),
            file: String::new(),
            escapes: None,
            old: old.to_owned(),
            new: new.strip_suffix('\n').unwrap_or(new).to_owned(),
        };
        for line in head.lines().filter(|line| !line.is_empty()) {
            let (field, said) =
                line.split_once(": ").ok_or_else(|| problem(&format!("{line:?} is no field")))?;
            let said = said.trim().to_owned();
            match field {
                "title" => bug.title = said,
                "breaks" => bug.breaks = said,
                "file" => bug.file = said,
                "escapes" => bug.escapes = Some(said),
                _ => return Err(problem(&format!("there is no field {field:?}"))),
            }
        }
        for (field, said) in [("title", &bug.title), ("breaks", &bug.breaks), ("file", &bug.file)] {
            if said.is_empty() {
                return Err(problem(&format!("it does not say `{field}`")));
            }
        }
        if bug.old.trim().is_empty() {
            return Err(problem("its old text is empty"));
        }
        if bug.old == bug.new {
            return Err(problem("its new text is its old text"));
        }
        Ok(bug)
    }

    /// The text of its file with the bug in it.
    pub(crate) fn patch(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.old).count() {
            1 => Ok(text.replacen(&self.old, &self.new, 1)),
            0 => Err(format!("bug {}: its old text is not in {}:\n{}", self.name, self.file, self.old)),
            count => Err(format!(
                "bug {}: its old text is {count} times in {}, it must be there once:\n{}",
                self.name, self.file, self.old
            )),
        }
    }
}

/// All bugs of a folder: by file, so that those of one crate are built one after the other, then by name.
pub(crate) fn read_all(folder: &Path) -> Result<Vec<Bug>, String> {
    let unread = |error| format!("{}: {error}", folder.display());
    let mut bugs = Vec::new();
    for entry in fs::read_dir(folder).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".txt"));
        let Some(name) = name else {
            return Err(format!("{}: not a bug, those end in .txt", path.display()));
        };
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        bugs.push(Bug::parse(name, &text)?);
    }
    bugs.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    Ok(bugs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use super::*;
    use crate::{bugs_folder, root};

    /// Fewer would leave mechanisms out.
    const LEAST: usize = 25;

    #[test]
    fn every_bug_fits_the_code_of_today_and_no_two_are_alike() {
        let bugs = read_all(&bugs_folder()).unwrap();
        assert!(bugs.len() >= LEAST, "{} bugs", bugs.len());
        let mut seen = BTreeSet::new();
        for bug in &bugs {
            let below = ["crdt", "placement", "storage", "replica"].map(|name| format!("crates/{name}/src/"));
            assert!(below.iter().any(|path| bug.file.starts_with(path)), "{}: {}", bug.name, bug.file);
            let patched = bug.patch(&fs::read_to_string(root().join(&bug.file)).unwrap()).unwrap();
            assert!(seen.insert(&bug.title), "two bugs are called {:?}", bug.title);
            assert!(seen.insert(&bug.name), "two bugs are called {:?}", bug.name);
            assert!(patched.contains(&bug.new));
        }
        let escape: Vec<&str> =
            bugs.iter().filter(|bug| bug.escapes.is_some()).map(|bug| &bug.name[..]).collect();
        assert!(escape.len() <= 1, "only one may escape: {escape:?}");
    }

    #[test]
    fn a_bug_that_does_not_fit_is_an_error_that_says_why() {
        let text = "title: t\nbreaks: b\nfile: f\n--- old\na\nb\n--- new\nc\n";
        let bug = Bug::parse("x", text).unwrap();
        assert_eq!((&bug.old[..], &bug.new[..]), ("a\nb", "c"));
        assert_eq!(bug.patch("1a\nb2").unwrap(), "1c2");
        assert!(bug.patch("ab").unwrap_err().contains("is not in f"));
        assert!(bug.patch("a\nba\nb").unwrap_err().contains("2 times in f"));
        for (from, to, says) in [
            ("title: t\n", "", "does not say `title`"),
            ("breaks: b", "broken: b", "no field \"broken\""),
            ("file: f", "file", "is no field"),
            ("--- old", "old", "no line `--- old`"),
            ("--- new", "new", "no line `--- new`"),
            ("a\nb\n", "", "old text is empty"),
            ("c\n", "a\nb\n", "its new text is its old text"),
        ] {
            let error = Bug::parse("x", &text.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(says), "{from:?} to {to:?}: {error}");
        }
        let removed = Bug::parse("x", "title: t\nbreaks: b\nfile: f\n--- old\na\n--- new\n").unwrap();
        assert_eq!(removed.patch("1a2").unwrap(), "12");
    }
}
