//! A table for people, and the quantities in it.

use std::io::IsTerminal;
use std::time::Duration;

/// Rows below a heading; every cell of a column has the column's width.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    /// With the names of its columns.
    pub(super) fn new(columns: &[&str]) -> Self {
        Self(vec![columns.iter().map(|name| (*name).to_owned()).collect()])
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// All of it, the heading bold on a terminal.
    pub(super) fn text(&self) -> String {
        let text = self.plain();
        match text.split_once('\n') {
            Some((heading, rows)) if std::io::stdout().is_terminal() => format!("\x1b[1m{heading}\x1b[0m\n{rows}"),
            _ => text,
        }
    }

    fn plain(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.0.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text of others in one line: names of pods and images may hold anything.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes, with one digit after the point.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time span by its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "ID"]);
        table.row(vec!["web".into(), "1".into()]);
        table.row(vec!["database".into(), "23".into()]);
        assert_eq!(table.plain(), "NAME      ID\nweb       1\ndatabase  23\n");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!([0, 1023, 1024, 5 << 20, 3 << 40].map(bytes), ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB"]);
        let spans = [5, 65, 3_700, 90_000].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(spans, ["5s", "1m5s", "1h1m", "1d1h"]);
        assert_eq!(plain("a\u{1b}[31mb\nc"), "a?[31mb?c");
    }
}
