//! What the pods do: commands of their image (e2e/node/workloads) that print their nanoseconds.

use std::time::Duration;

use super::network::{SENT_MIB, Servers};

/// One-byte round trips.
const TRIPS: f64 = 500.0;

/// One operation and its row.
pub(super) struct Operation {
    pub(super) row: &'static str,
    /// Words with blanks between them. `GATEWAY`, `SINK`, `SOURCE` and `ECHO` stand for the node's
    /// address and its servers; `FORGET` for dropping the file from the guest's page cache: the
    /// other pods have the node's, which must not lose it.
    command: &'static str,
    pub(super) measure: Measure,
    pub(super) before: Before,
    /// Of the peer, in a vm and in a host pod.
    pub(super) targets: Option<(f64, f64)>,
}

/// What a row shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// The time that the command prints, in milliseconds.
    Time,
    /// Megabits a second of [`SENT_MIB`].
    Rate,
    /// Microseconds of one of [`TRIPS`].
    Trip,
    /// The call's time, as its client sees it, in milliseconds.
    Call,
}

/// What the node does beforehand to the volume that it shares with the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    /// Writes the large file anew.
    Large,
    /// Writes the small files anew.
    Small,
}

const fn work(row: &'static str, command: &'static str, targets: Option<(f64, f64)>) -> Operation {
    Operation { row, command, measure: Measure::Time, before: Before::Nothing, targets }
}

pub(super) const OPERATIONS: &[Operation] = &[
    Operation { measure: Measure::Rate, ..work("net_in_mbit", "work receive GATEWAY SOURCE", Some((0.5, 0.9))) },
    Operation { measure: Measure::Rate, ..work("net_out_mbit", "work send GATEWAY SINK 64", Some((0.5, 0.9))) },
    Operation { measure: Measure::Trip, ..work("net_round_trip", "work trips GATEWAY ECHO 500", Some((2.0, 1.1))) },
    work("layer_read", "work read /data/large FORGET", Some((3.0, 1.3))),
    Operation { before: Before::Large, ..work("volume_read", "work read /volume/large", Some((3.0, 1.3))) },
    work("volume_read_again", "work read /volume/large", None),
    Operation { before: Before::Small, ..work("volume_small_files", "work small /volume/small", Some((3.0, 1.3))) },
    work("volume_walk", "work walk /own/tree", Some((5.0, 1.3))),
    work("volume_create", "work create /own 300", Some((5.0, 1.3))),
    work("disk_write", "work write /tmp/written 96", Some((1.5, 1.1))),
    work("disk_create", "work create /tmp 1000", None),
    work("fork_exec", "work fork 100", Some((2.0, 1.1))),
    work("compute", "work compute 16", None),
    work("untar", "python3 /opt/work.py untar", Some((2.0, 1.1))),
    work("sqlite", "python3 /opt/work.py sqlite", Some((2.0, 1.1))),
    work("http", "python3 /opt/work.py http", Some((2.0, 1.1))),
    work("status_walk", "python3 /opt/work.py status", Some((2.0, 1.1))),
    // Not `exec_sync`: that row is of a pod without limits and of busybox.
    Operation { measure: Measure::Call, ..work("work_exec_sync", "true", Some((0.25, 0.09))) },
];

impl Operation {
    pub(super) fn is_network(&self) -> bool {
        self.command.contains("GATEWAY")
    }

    /// The command for a pod that reaches the node at `gateway`.
    pub(super) fn words(&self, who: &str, gateway: &str, servers: &Servers) -> Vec<String> {
        let word = |word: &str| match word {
            "GATEWAY" => Some(gateway.to_owned()),
            "SINK" => Some(servers.sink.to_string()),
            "SOURCE" => Some(servers.source.to_string()),
            "ECHO" => Some(servers.echo.to_string()),
            "FORGET" => (who == "vm").then(|| "forget".to_owned()),
            other => Some(other.to_owned()),
        };
        self.command.split(' ').filter_map(word).collect()
    }
}

impl Measure {
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Time | Self::Call => "ms",
            Self::Rate => "Mbit/s",
            Self::Trip => "µs",
        }
    }

    /// More is better.
    pub(super) fn is_rate(self) -> bool {
        self == Self::Rate
    }

    /// What took so long, in the unit.
    pub(super) fn value(self, took: Duration) -> f64 {
        match self {
            Self::Time | Self::Call => took.as_secs_f64() * 1e3,
            Self::Rate => (SENT_MIB << 20) as f64 * 8.0 / 1e6 / took.as_secs_f64(),
            Self::Trip => took.as_secs_f64() * 1e6 / TRIPS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: Servers = Servers { sink: 1, source: 2, echo: 3 };

    #[test]
    fn words_stand_for_the_pods_own() {
        let words = |row: &str, who| {
            let operation = OPERATIONS.iter().find(|operation| operation.row == row).unwrap();
            operation.words(who, "10.88.0.1", &SERVERS).join(" ")
        };
        assert_eq!(words("net_in_mbit", "vm"), "work receive 10.88.0.1 2");
        assert_eq!(words("layer_read", "vm"), "work read /data/large forget");
        assert_eq!(words("layer_read", "host"), "work read /data/large");
    }

    #[test]
    fn amounts_in_the_commands_are_those_of_the_measures() {
        for operation in OPERATIONS {
            let amount = match operation.measure {
                Measure::Rate if operation.command.contains("send") => SENT_MIB.to_string(),
                Measure::Trip => TRIPS.to_string(),
                _ => continue,
            };
            assert!(operation.command.ends_with(&format!(" {amount}")), "{}", operation.command);
        }
    }

    #[test]
    fn a_rate_is_in_megabits() {
        let value = Measure::Rate.value(Duration::from_secs(1));
        assert!((value - 536.87).abs() < 0.01, "{value}");
        assert!((Measure::Trip.value(Duration::from_millis(50)) - 100.0).abs() < 1e-6);
    }
}
