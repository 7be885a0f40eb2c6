//! What the rows are to be.

use super::report::{Row, percentile};
use super::templates;

/// What a row is to be.
pub(super) struct Target {
    pub(super) row: &'static str,
    pub(super) handler: Option<&'static str>,
    /// Of the peer's median; false: of our own median, in the row's unit.
    pub(super) ratio: bool,
    pub(super) limit: Limit,
}

/// Where a target is met.
#[derive(Clone, Copy)]
pub(super) enum Limit {
    Most(f64),
    Least(f64),
}

impl Limit {
    fn is_met(self, got: f64) -> bool {
        match self {
            Self::Most(most) => got <= most,
            Self::Least(least) => got >= least,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Most(most) => write!(f, "at most {most}"),
            Self::Least(least) => write!(f, "at least {least}"),
        }
    }
}

/// A note for each target whose row was measured.
pub(super) fn notes(targets: &[Target], rows: &[Row]) -> Vec<String> {
    targets.iter().filter_map(|target| target.note(rows)).collect()
}

pub(super) const TARGETS: &[Target] = &[
    Target { row: "pull_60mb_5_layers", handler: None, ratio: true, limit: Limit::Most(0.4) },
    Target { row: "pull_300mb_5_layers", handler: None, ratio: true, limit: Limit::Most(0.4) },
    Target { row: "pull_20_layers", handler: None, ratio: true, limit: Limit::Most(0.4) },
    Target { row: "pull_many_small_files", handler: None, ratio: true, limit: Limit::Most(0.4) },
    Target { row: "pull_zstd", handler: None, ratio: true, limit: Limit::Most(0.4) },
    Target { row: "ten_pulls_at_once", handler: None, ratio: false, limit: Limit::Most(1.2) },
    Target { row: "pod_to_running_no_cni", handler: Some("host"), ratio: true, limit: Limit::Most(0.5) },
    Target { row: "pod_to_running_no_cni", handler: Some("vm"), ratio: true, limit: Limit::Most(1.0) },
    Target {
        row: "pod_to_running_no_cni",
        handler: Some(templates::FROM_THE_POOL),
        ratio: true,
        limit: Limit::Most(0.6),
    },
    Target { row: "pod_to_running", handler: Some("vm"), ratio: true, limit: Limit::Most(0.8) },
    Target { row: "run_pod_sandbox", handler: Some("vm"), ratio: true, limit: Limit::Most(0.8) },
    Target { row: "clones_20_at_once_ms", handler: Some("vm"), ratio: true, limit: Limit::Most(1.0) },
    Target { row: "idle_vm_pod_mib", handler: Some("vm"), ratio: false, limit: Limit::Most(16.0) },
    Target { row: "exec_sync", handler: Some("host"), ratio: true, limit: Limit::Most(0.25) },
    Target { row: "supervisor_rss_mib", handler: Some("host"), ratio: true, limit: Limit::Most(0.333) },
    Target { row: "list_200_pods_server_ms", handler: None, ratio: false, limit: Limit::Most(5.0) },
    Target { row: "list_200_containers_server_ms", handler: None, ratio: false, limit: Limit::Most(5.0) },
];

impl Target {
    fn note(&self, rows: &[Row]) -> Option<String> {
        let row = rows.iter().find(|row| row.name == self.row && row.handler == self.handler)?;
        let got = if self.ratio { row.ratio()? } else { percentile(&row.ours, 0.5) };
        let verdict = if self.limit.is_met(got) { "met" } else { "MISSED" };
        let of = if self.ratio { "of the peer" } else { row.unit };
        let handler = self.handler.map(|handler| format!(" ({handler})")).unwrap_or_default();
        Some(format!("Target: `{}`{handler} {} {of}: {got:.2}, {verdict}.", self.row, self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_to_be_high_and_a_time_low() {
        let row = |ours: f64| Row {
            name: "a",
            handler: Some("vm"),
            unit: "ms",
            ours: vec![ours],
            peer: Some(("peer", vec![10.0])),
        };
        let note = |limit, ours| {
            let target = Target { row: "a", handler: Some("vm"), ratio: true, limit };
            notes(&[target], &[row(ours)]).concat()
        };
        assert_eq!(note(Limit::Least(0.5), 6.0), "Target: `a` (vm) at least 0.5 of the peer: 0.60, met.");
        assert!(note(Limit::Least(0.5), 4.0).ends_with("0.40, MISSED."));
        assert!(note(Limit::Most(0.5), 6.0).ends_with("0.60, MISSED."));
    }
}
