//! The report: benchmarks.json for programs, benchmarks.md for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::failure::{Doing, Outcome, ensure};

/// What containerd + runc is called in the report.
pub(crate) const PEER: &str = "containerd + runc";
/// Where the notes begin, which are the last section.
const NOTES: &str = "\n## Notes\n";

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
    /// Ours / peer of the medians, unless the peer's is 0.
    pub(super) fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        let ratio = percentile(&self.ours, 0.5) / percentile(peer, 0.5);
        ratio.is_finite().then(|| (ratio * 1000.0).round() / 1000.0)
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

/// Adds rows to a report that is in `folder`, in place of earlier ones of their names, and notes, in
/// place of those about targets of these rows.
pub(crate) fn add(folder: &Path, rows: &[Row], notes: &[String]) -> Outcome {
    rows.iter().try_for_each(Row::ensure_measured)?;
    notes.iter().for_each(|note| println!("bench: {note}"));
    let is_new = |name: &str| rows.iter().any(|row| row.name == name);
    let path = folder.join("benchmarks.json");
    let text = fs::read_to_string(&path).doing("read benchmarks.json")?;
    let mut report: Value = serde_json::from_str(&text).doing("read benchmarks.json")?;
    let list = report["rows"].as_array_mut().ok_or("benchmarks.json has no rows")?;
    list.retain(|row| !row["name"].as_str().is_some_and(is_new));
    list.extend(rows.iter().map(Row::json));
    let json = serde_json::to_string_pretty(&report).doing("write the report")? + "\n";
    change(folder, |text| with_notes(&with_rows(text, rows, is_new)?, notes, is_new))?;
    fs::write(path, json).doing("write benchmarks.json")
}

/// Puts a section into the report for people, in place of an earlier one of its title, else before
/// the notes.
pub(super) fn put_section(folder: &Path, title: &str, body: &str) -> Outcome {
    change(folder, |text| Ok(with_section(text, title, body)))
}

/// Changes the report for people.
fn change(folder: &Path, how: impl FnOnce(&str) -> Outcome<String>) -> Outcome {
    let path = folder.join("benchmarks.md");
    let text = fs::read_to_string(&path).doing("read benchmarks.md")?;
    fs::write(&path, how(&text)?).doing("write benchmarks.md")
}

/// The report for people with `rows` at the end of its table.
fn with_rows(text: &str, rows: &[Row], is_new: impl Fn(&str) -> bool) -> Outcome<String> {
    let name = |line: &str| line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).map(str::to_owned);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // Other sections have tables of their own.
    let end = lines.iter().position(|line| line.starts_with("## ")).unwrap_or(lines.len());
    let sections = lines.split_off(end);
    lines.retain(|line| !name(line).is_some_and(|name| is_new(&name)));
    let last = lines.iter().rposition(|line| name(line).is_some()).ok_or("benchmarks.md has no rows")?;
    lines.splice(last + 1..last + 1, rows.iter().map(Row::markdown));
    lines.extend(sections);
    Ok(lines.join("\n") + "\n")
}

/// The report for people with `notes` at the end of its notes.
fn with_notes(text: &str, notes: &[String], is_new: impl Fn(&str) -> bool) -> Outcome<String> {
    let is_old =
        |line: &str| line.strip_prefix("- Target: `").and_then(|rest| rest.split('`').next()).is_some_and(&is_new);
    let mut text: String = text.lines().filter(|line| !is_old(line)).map(|line| format!("{line}\n")).collect();
    ensure!(notes.is_empty() || text.contains(NOTES), "benchmarks.md has no notes");
    for note in notes {
        let _ = writeln!(text, "- {note}");
    }
    Ok(text)
}

fn with_section(text: &str, title: &str, body: &str) -> String {
    let heading = format!("\n## {title}\n");
    let section = format!("{heading}\n{}\n", body.trim_end());
    let (before, after) = match text.find(&heading) {
        Some(start) => {
            let rest = &text[start + heading.len()..];
            (&text[..start], rest.find("\n## ").map_or("", |end| &rest[end..]))
        }
        None => text.split_at(text.find(NOTES).unwrap_or(text.len())),
    };
    format!("{before}{section}{after}")
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
        text.push_str(NOTES);
        text.push('\n');
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
        let notes = vec!["Target: `a` old".into(), "Target: `b` old".into(), "else".into()];
        let report = Report { machine: "m".into(), rows: vec![row("a", 1.0), row("b", 2.0)], steps: vec![], notes };
        report.write(folder.path()).unwrap();
        add(folder.path(), &[row("a", 3.0), row("c", 4.0)], &["Target: `a` new".into()]).unwrap();
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
        assert!(text.ends_with("\n## Notes\n\n- Target: `b` old\n- else\n- Target: `a` new\n"), "{text}");
    }

    #[test]
    fn a_section_is_put_before_the_notes_and_replaced() {
        let text = "# B\n\n## Steps\n\ns\n\n## Notes\n\n- n\n";
        let once = with_section(text, "Counts", "| `a` |\n");
        assert_eq!(once, "# B\n\n## Steps\n\ns\n\n## Counts\n\n| `a` |\n\n## Notes\n\n- n\n");
        assert_eq!(with_section(&once, "Counts", "| `a` |"), once);
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        let row = Row { name: "a", handler: None, unit: "", ours: vec![0.0], peer: Some(("p", vec![0.0])) };
        assert_eq!(row.ratio(), None);
    }

    #[test]
    fn a_row_without_samples_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let row = Row { name: "a", handler: None, unit: "ms", ours: vec![], peer: None };
        assert!(add(folder.path(), &[row], &[]).is_err());
    }
}
