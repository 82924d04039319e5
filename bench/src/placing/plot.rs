//! The figures of all policies side by side, as SVG.

use std::fmt::Write;

use crate::Row;

/// Pixels: of a panel, and of a bar.
const PANEL: (usize, usize) = (410, 240);
const BAR: usize = 26;

/// Draws six panels of bars, one for each figure; ours is the one in colour.
pub(crate) fn svg(title: &str, rows: &[Row]) -> String {
    type Figure = (&'static str, usize, fn(&Row) -> f64);
    let figures: [Figure; 6] = [
        ("local reads, %", 1, |row| row.local),
        ("mean read, ms", 1, |row| row.mean_ms),
        ("99th percentile of reads, ms", 0, |row| row.p99_ms),
        ("cost, of the offline optimum's", 2, |row| row.cost),
        ("copies a scope and day", 1, |row| row.copies),
        ("between regions, GB", 1, |row| row.wan_gb),
    ];
    let (width, height) = (PANEL.0 * 2, PANEL.1 * 3 + 40);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" fill=\"#1a1a1a\">{title}</text>\n"
    );
    for (panel, (name, digits, figure)) in figures.into_iter().enumerate() {
        let (left, top) = (panel % 2 * PANEL.0 + 12, panel / 2 * PANEL.1 + 56);
        let longest = rows.iter().map(figure).fold(1e-12, f64::max);
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{top}\" font-weight=\"bold\" fill=\"#1a1a1a\">{name}</text>"
        );
        for (i, row) in rows.iter().enumerate() {
            let value = figure(row);
            let (y, x) = (top + 10 + i * BAR, left + 140);
            let length = (value / longest * 190.0).max(1.0);
            let colour = if i == 1 { "#0b6e4f" } else { "#b4bcc4" };
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1a1a1a\">{}</text><rect x=\"{x}\" y=\"{y}\" \
                 width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\" \
                 fill=\"#1a1a1a\">{value:.digits$}</text>",
                x - 8,
                y + 15,
                row.name,
                BAR - 6,
                x as f64 + length + 5.0,
                y + 15
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
