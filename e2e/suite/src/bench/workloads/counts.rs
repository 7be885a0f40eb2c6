//! What each operation costs in a vm pod, in numbers that no emulator changes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::network::Servers;
use super::operations::OPERATIONS;
use super::pod::Pod;
use crate::bench::counts::{Counts, SystemCalls, added};
use crate::bench::histogram::Histogram;
use crate::bench::report::percentile;
use crate::failure::Outcome;

pub(super) const TITLE: &str = "Counts of one operation in a vm pod";
const ROUNDS: usize = 3;
/// Reasons that are shown.
const REASONS: usize = 4;

/// Of one operation, once.
struct Counted {
    counts: Counts,
    /// Exits to the node's kernel, by their reason.
    reasons: BTreeMap<u64, u64>,
}

/// Counts, which takes time: nothing is timed meanwhile. Answers the report's section.
pub(super) async fn measure(pod: &mut Pod, servers: &Servers) -> Outcome<String> {
    println!("bench: counts of work in the vm pod");
    let calls = SystemCalls::count()?;
    // This pod's guest is the only one that runs.
    let exits = Histogram::start("kvm/kvm_exit", "exit_reason")?;
    let mut table = String::from(HEAD);
    for operation in OPERATIONS {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            pod.prepare(operation).await?;
            let (before, exits_before) = (Counts::of(&pod.id, &calls)?, exits.read()?);
            pod.run(operation, servers).await?;
            let counts = Counts::of(&pod.id, &calls)?.since(&before);
            rounds.push(Counted { counts, reasons: added(&exits.read()?, &exits_before) });
        }
        let line = line(operation.row, &rounds);
        println!("bench: {line}");
        let _ = writeln!(table, "{line}");
    }
    Ok(table)
}

const HEAD: &str = "Medians of three times, the exec of the command included; `work_exec_sync` shows what an exec costs \
alone. `exits` are those to the monitor. The last column counts those to the node's kernel, which handles most of them \
itself: the four most frequent reasons.

| operation | exits | interrupts | file requests | system calls | file requests by kind | exits to the kernel by reason |
|---|---|---|---|---|---|---|
";

fn line(operation: &str, rounds: &[Counted]) -> String {
    let of = |number: fn(&Counts) -> u64| median(rounds.iter().map(|round| number(&round.counts)));
    let kinds = medians(rounds.iter().map(|round| &round.counts.file_requests_by_kind));
    let reasons = medians(rounds.iter().map(|round| &round.reasons));
    format!(
        "| `{operation}` | {} | {} | {} | {} | {} | {} |",
        of(|counts| counts.exits),
        of(|counts| counts.interrupts),
        of(|counts| counts.file_requests),
        of(|counts| counts.system_calls),
        list(kinds.iter().map(|(kind, count)| (file_request(*kind), *count))),
        list(reasons.iter().take(REASONS).map(|(reason, count)| (exit_reason(*reason), *count))),
    )
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    percentile(&values.map(|value| value as f64).collect::<Vec<f64>>(), 0.5) as u64
}

/// The median of each key, which a round may be without; the largest first.
fn medians<'a, K: Ord + Copy + 'a>(rounds: impl Iterator<Item = &'a BTreeMap<K, u64>> + Clone) -> Vec<(K, u64)> {
    let keys: std::collections::BTreeSet<K> = rounds.clone().flat_map(BTreeMap::keys).copied().collect();
    let of = |key| (key, median(rounds.clone().map(|round| round.get(&key).copied().unwrap_or(0))));
    let mut medians: Vec<(K, u64)> = keys.into_iter().map(of).filter(|(_, count)| *count > 0).collect();
    medians.sort_by_key(|(key, count)| (std::cmp::Reverse(*count), *key));
    medians
}

fn list(counts: impl Iterator<Item = (String, u64)>) -> String {
    let counts: Vec<String> = counts.map(|(name, count)| format!("{name} {count}")).collect();
    if counts.is_empty() { "–".into() } else { counts.join(", ") }
}

/// Opcodes of FUSE (`enum fuse_opcode` of Linux's `fuse.h`).
const FILE_REQUESTS: &[(u32, &str)] = &[
    (1, "LOOKUP"),
    (2, "FORGET"),
    (3, "GETATTR"),
    (4, "SETATTR"),
    (5, "READLINK"),
    (6, "SYMLINK"),
    (9, "MKDIR"),
    (10, "UNLINK"),
    (11, "RMDIR"),
    (12, "RENAME"),
    (13, "LINK"),
    (14, "OPEN"),
    (15, "READ"),
    (16, "WRITE"),
    (17, "STATFS"),
    (18, "RELEASE"),
    (20, "FSYNC"),
    (22, "GETXATTR"),
    (25, "FLUSH"),
    (27, "OPENDIR"),
    (28, "READDIR"),
    (29, "RELEASEDIR"),
    (35, "CREATE"),
    (42, "BATCH_FORGET"),
    (44, "READDIRPLUS"),
    (45, "RENAME2"),
    (46, "LSEEK"),
    (48, "SETUPMAPPING"),
    (49, "REMOVEMAPPING"),
    (50, "SYNCFS"),
    (52, "STATX"),
];

/// Exit codes of AMD's SVM (`arch/x86/include/uapi/asm/svm.h` of Linux).
const EXIT_REASONS: &[(u64, &str)] = &[
    (0x60, "INTR"),
    (0x61, "NMI"),
    (0x64, "VINTR"),
    (0x72, "CPUID"),
    (0x77, "PAUSE"),
    (0x78, "HLT"),
    (0x7b, "IOIO"),
    (0x7c, "MSR"),
    (0x81, "VMMCALL"),
    (0x400, "NPF"),
    (0x401, "AVIC_IPI"),
    (0x402, "AVIC_NOACCEL"),
];

fn file_request(kind: u32) -> String {
    let known = FILE_REQUESTS.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("opcode {kind}"), |(_, name)| (*name).to_owned())
}

fn exit_reason(reason: u64) -> String {
    let known = EXIT_REASONS.iter().find(|(number, _)| *number == reason);
    known.map_or_else(|| format!("{reason:#x}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(exits: u64, kinds: &[(u32, u64)], reasons: &[(u64, u64)]) -> Counted {
        let counts = Counts {
            exits,
            interrupts: 1,
            file_requests: 2,
            file_requests_by_kind: kinds.iter().copied().collect(),
            page_faults: 3,
            system_calls: 4,
        };
        Counted { counts, reasons: reasons.iter().copied().collect() }
    }

    #[test]
    fn a_line_has_medians_and_names() {
        let rounds = [
            counted(5, &[(1, 3), (15, 64)], &[(0x78, 9), (0x400, 20)]),
            counted(7, &[(1, 4), (15, 65), (99, 1)], &[(0x78, 8), (0x400, 21), (0x4d, 7), (0x60, 6), (0x7c, 5)]),
            counted(6, &[(1, 5), (15, 66), (99, 2)], &[(0x78, 7), (0x400, 22), (0x4d, 7), (0x60, 6), (0x7c, 5)]),
        ];
        let expected = "| `a` | 6 | 1 | 2 | 4 | READ 65, LOOKUP 4, opcode 99 1 | NPF 21, HLT 8, 0x4d 7, INTR 6 |";
        assert_eq!(line("a", &rounds), expected);
    }

    #[test]
    fn a_monitor_that_does_not_tell_kinds_has_none() {
        assert!(line("a", &[counted(1, &[], &[])]).ends_with("| – | – |"));
    }
}
