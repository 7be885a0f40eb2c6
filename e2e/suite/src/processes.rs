//! Which processes of the node run a program: by what they execute, since a process may call itself what it likes.

use std::fs;

/// The program's file name, also of one that runs from memory or was replaced since.
fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_str()?;
    Some(name.trim_end_matches(" (deleted)").trim_start_matches("memfd:").to_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process runs `name`.
pub(crate) fn runs(pid: u32, name: &str) -> bool {
    program(pid).is_some_and(|p| p == name)
}

/// Every process that runs `name`. No template of microVMs is in the making then: its monitor is
/// no pod's.
pub(crate) fn all(name: &str) -> Vec<u32> {
    if name == "cofferdam-vmm" {
        crate::templates::settle();
    }
    now(name)
}

/// Every process that runs `name` at this moment.
pub(crate) fn now(name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    pids.filter(|pid| runs(*pid, name)).collect()
}

/// Those of them that no other process of the same program has forked.
pub(crate) fn heads(name: &str) -> Vec<u32> {
    let all = all(name);
    all.iter().copied().filter(|pid| parent(*pid).is_none_or(|p| !all.contains(&p))).collect()
}
