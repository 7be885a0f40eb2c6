//! The report: benchmarks.json for programs, benchmarks.md for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::failure::{Doing, Outcome, ensure};

/// What containerd + runc is called in the report.
pub(crate) const PEER: &str = "containerd + runc";

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) handler: Option<&'static str>,
    pub(crate) unit: &'static str,
    pub(crate) ours: Vec<f64>,
    pub(crate) peer: Option<(&'static str, Vec<f64>)>,
}

/// Everything that was measured.
pub(super) struct Report {
    pub(super) machine: String,
    pub(super) rows: Vec<Row>,
    /// Step of a vm pod's start, and its milliseconds in each pod.
    pub(super) steps: Vec<(&'static str, Vec<f64>)>,
    /// Facts beside the rows.
    pub(super) notes: Vec<String>,
}

/// The value below which `share` of the samples lie, by the nearest rank.
pub(super) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

fn summary(samples: &[f64]) -> Value {
    let round = |v: f64| (v * 1000.0).round() / 1000.0;
    json!({"n": samples.len(), "p50": round(percentile(samples, 0.5)), "p99": round(percentile(samples, 0.99))})
}

impl Row {
    /// Ours / peer of the medians.
    pub(super) fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        Some((percentile(&self.ours, 0.5) / percentile(peer, 0.5) * 1000.0).round() / 1000.0)
    }

    /// Nobody has measured it if it has no sample.
    pub(super) fn ensure_measured(&self) -> Outcome {
        ensure!(!self.ours.is_empty(), "row {} has no sample", self.name);
        Ok(())
    }

    fn json(&self) -> Value {
        let peer = self.peer.as_ref().map(|(name, samples)| {
            let mut value = summary(samples);
            value["name"] = json!(name);
            value
        });
        json!({"name": self.name, "handler": self.handler, "unit": self.unit, "ours": summary(&self.ours), "peer": peer,
            "ratio": self.ratio()})
    }

    pub(super) fn markdown(&self) -> String {
        let cell = |s: &[f64]| format!("{:.1} | {:.1} | {}", percentile(s, 0.5), percentile(s, 0.99), s.len());
        let peer = self.peer.as_ref().map_or_else(|| "– | – | –".into(), |(_, s)| cell(s));
        let ratio = self.ratio().map_or_else(|| "–".into(), |r| format!("{r:.2}"));
        format!(
            "| `{}` | {} | {} | {} | {peer} | {ratio} |",
            self.name,
            self.handler.unwrap_or("–"),
            self.unit,
            cell(&self.ours)
        )
    }
}

/// Adds rows to a report that is in `folder`, in place of earlier ones of their names.
pub(crate) fn add(folder: &Path, rows: &[Row]) -> Outcome {
    rows.iter().try_for_each(Row::ensure_measured)?;
    let is_new = |name: &str| rows.iter().any(|row| row.name == name);
    let path = folder.join("benchmarks.json");
    let text = fs::read_to_string(&path).doing("read benchmarks.json")?;
    let mut report: Value = serde_json::from_str(&text).doing("read benchmarks.json")?;
    let list = report["rows"].as_array_mut().ok_or("benchmarks.json has no rows")?;
    list.retain(|row| !row["name"].as_str().is_some_and(is_new));
    list.extend(rows.iter().map(Row::json));
    let json = serde_json::to_string_pretty(&report).doing("write the report")? + "\n";
    let text = fs::read_to_string(folder.join("benchmarks.md")).doing("read benchmarks.md")?;
    let markdown = with_rows(&text, rows, is_new)?;
    fs::write(path, json).doing("write benchmarks.json")?;
    fs::write(folder.join("benchmarks.md"), markdown).doing("write benchmarks.md")
}

/// The report for people with `rows` at the end of its table.
fn with_rows(text: &str, rows: &[Row], is_new: impl Fn(&str) -> bool) -> Outcome<String> {
    let name = |line: &str| line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).map(str::to_owned);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.retain(|line| !name(line).is_some_and(|name| is_new(&name)));
    let last = lines.iter().rposition(|line| name(line).is_some()).ok_or("benchmarks.md has no rows")?;
    lines.splice(last + 1..last + 1, rows.iter().map(Row::markdown));
    Ok(lines.join("\n") + "\n")
}

impl Report {
    /// Writes both files into `folder`.
    pub(super) fn write(&self, folder: &Path) -> Outcome {
        fs::create_dir_all(folder).doing("make the report's folder")?;
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let value = json!({"machine": self.machine, "rows": rows});
        let text = serde_json::to_string_pretty(&value).doing("write the report")? + "\n";
        fs::write(folder.join("benchmarks.json"), text).doing("write benchmarks.json")?;
        fs::write(folder.join("benchmarks.md"), self.markdown()).doing("write benchmarks.md")
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench`. Cofferdam and {PEER} in the same node VM, in the same run, alternating.\n\n\
             Machine: {}\n\nAbsolute times of an emulated node mean nothing; compare within a row. \
             `ratio` is ours / peer of the medians: below 1 we are faster or smaller. For `vm` rows the peer still is {PEER}, \
             which isolates with namespaces only.\n\n\
             | row | handler | unit | ours p50 | p99 | n | peer p50 | p99 | n | ratio |\n|---|---|---|---|---|---|---|---|---|---|\n",
            self.machine
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.markdown());
        }
        text.push_str("\n## Where the time of a vm pod's start goes\n\nFrom the daemon's own events, milliseconds. CNI and the restore run side by side.\n\n| step | p50 | p99 | n |\n|---|---|---|---|\n");
        for (step, samples) in self.steps.iter().filter(|(_, samples)| !samples.is_empty()) {
            let _ = writeln!(
                text,
                "| {step} | {:.1} | {:.1} | {} |",
                percentile(samples, 0.5),
                percentile(samples, 0.99),
                samples.len()
            );
        }
        text.push_str("\n## Notes\n\n");
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_added_replace_those_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let row = |name, ours: f64| Row { name, handler: None, unit: "ms", ours: vec![ours], peer: None };
        let report =
            Report { machine: "m".into(), rows: vec![row("a", 1.0), row("b", 2.0)], steps: vec![], notes: vec![] };
        report.write(folder.path()).unwrap();
        add(folder.path(), &[row("a", 3.0), row("c", 4.0)]).unwrap();
        let json: Value =
            serde_json::from_str(&fs::read_to_string(folder.path().join("benchmarks.json")).unwrap()).unwrap();
        let names: Vec<&str> =
            json["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["b", "a", "c"]);
        assert_eq!(json["rows"][1]["ours"]["p50"], 3.0);
        let text = fs::read_to_string(folder.path().join("benchmarks.md")).unwrap();
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(table.len(), 3, "{text}");
        assert!(table[1].starts_with("| `a` | – | ms | 3.0"), "{text}");
    }

    #[test]
    fn a_row_without_samples_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let row = Row { name: "a", handler: None, unit: "ms", ours: vec![], peer: None };
        assert!(add(folder.path(), &[row]).is_err());
    }
}
