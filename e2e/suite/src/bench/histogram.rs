//! The node's kernel counts an event by one of its fields.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Doing, Outcome};

const TRACING: &str = "/sys/kernel/tracing";

/// Counts until it is dropped.
pub(super) struct Histogram {
    event: PathBuf,
    key: &'static str,
}

impl Histogram {
    /// Of an event such as `kvm/kvm_exit`, by a field whose values are numbers.
    pub(super) fn start(event: &str, key: &'static str) -> Outcome<Self> {
        if !Path::new(TRACING).join("events").exists() {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", TRACING, "tracefs", flags, None).doing("mount tracefs")?;
        }
        let histogram = Self { event: Path::new(TRACING).join("events").join(event), key };
        fs::write(histogram.trigger(), histogram.command()).doing(&format!("count {event}"))?;
        Ok(histogram)
    }

    fn trigger(&self) -> PathBuf {
        self.event.join("trigger")
    }

    fn command(&self) -> String {
        format!("hist:keys={}:size=65536", self.key)
    }

    /// How often each value of the field has been there since the start.
    pub(super) fn read(&self) -> Outcome<BTreeMap<u64, u64>> {
        let path = self.event.join("hist");
        let text = fs::read_to_string(&path).doing(&format!("read {}", path.display()))?;
        Ok(text.lines().filter_map(|text| line(text, self.key)).collect())
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.trigger(), format!("!{}", self.command())) {
            println!("bench: {} is still counted: {error}", self.event.display());
        }
    }
}

/// A value and its hits: `{ common_pid: 123 } hitcount: 45`.
fn line(text: &str, key: &str) -> Option<(u64, u64)> {
    let rest = text.trim().strip_prefix("{ ")?.strip_prefix(key)?.strip_prefix(':')?;
    let (value, hits) = rest.split_once("} hitcount:")?;
    Some((value.trim().parse().ok()?, hits.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_histogram_is_read() {
        assert_eq!(line("{ common_pid:       1234 } hitcount:         56", "common_pid"), Some((1234, 56)));
        assert_eq!(line("{ exit_reason:        120 } hitcount:        7", "exit_reason"), Some((120, 7)));
        assert_eq!(line("Totals:", "common_pid"), None);
    }
}
