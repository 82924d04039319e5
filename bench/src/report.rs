//! What was measured, as tables for people or one JSON object for programs.

use serde_json::{Map, Value, json};

use crate::load::Figures;

/// Everything measured so far. Sections are printed as they come.
pub(crate) struct Report {
    json: bool,
    sections: Map<String, Value>,
    bars: Vec<Bar>,
}

/// A figure that has to be reached.
struct Bar {
    what: String,
    measured: f64,
    most: bool,
    bar: f64,
}

impl Bar {
    fn met(&self) -> bool {
        if self.most { self.measured <= self.bar } else { self.measured >= self.bar }
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, sections: Map::new(), bars: Vec::new() }
    }

    /// Prints a table; the first row names the columns.
    pub(crate) fn table(&self, title: &str, rows: &[Vec<String>]) {
        if self.json {
            return;
        }
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell: &String| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        println!("\n{title}");
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate();
            let line: Vec<String> = cells
                .map(|(column, (cell, width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            println!("   {}", line.join("  ").trim_end());
        }
    }

    /// Keeps a section's figures for the JSON object.
    pub(crate) fn keep(&mut self, section: &str, figures: Value) {
        self.sections.insert(section.to_owned(), figures);
    }

    /// A figure that is to be at least `bar`.
    pub(crate) fn at_least(&mut self, what: impl Into<String>, measured: f64, bar: f64) {
        self.bars.push(Bar { what: what.into(), measured, most: false, bar });
    }

    /// A figure that is to be at most `bar`.
    pub(crate) fn at_most(&mut self, what: impl Into<String>, measured: f64, bar: f64) {
        self.bars.push(Bar { what: what.into(), measured, most: true, bar });
    }

    /// Prints the bars, or everything as JSON.
    pub(crate) fn finish(self) {
        if self.json {
            let bars = self.bars.iter().map(|bar| {
                json!({
                    "what": bar.what, "measured": bar.measured, "bar": bar.bar,
                    "kind": if bar.most { "at most" } else { "at least" }, "met": bar.met(),
                })
            });
            let bars = Value::Array(bars.collect());
            println!("{}", json!({ "sections": self.sections, "bars": bars }));
            return;
        }
        let mut rows = vec![cells(["", "measured", "bar", ""])];
        for bar in &self.bars {
            let bound = format!("{} {}", if bar.most { "<=" } else { ">=" }, number(bar.bar));
            let met = if bar.met() { "met" } else { "missed" };
            rows.push(cells([&bar.what, &number(bar.measured), &bound, met]));
        }
        self.table("Bars", &rows);
    }
}

/// Cells of a row.
pub(crate) fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Three or four digits, with thousands apart.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 && digit.is_ascii_digit() && !out.ends_with('-') {
                    out.push(' ');
                }
                out.push(digit);
            }
            out
        }
    }
}

/// The middle of some figures.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The run in the middle, by rate.
pub(crate) fn middle(mut runs: Vec<Figures>) -> Figures {
    runs.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    runs.get(runs.len() / 2).copied().unwrap_or_default()
}
