//! Slips of the emulator that nodes of build machines run in. A test in which one happened is run again once, and says so.
//!
//! - KVM failed with "Bad address", the pod died, and the registers that KVM showed as the guest's had the node's kernel's instruction
//!   pointer and stack: QEMU's emulation of nested SVM is taken to have stored the one's registers as the other's. It is told from
//!   anything of ours by that instruction pointer, which is among the node's modules: no guest has code there, as its kernel has no
//!   modules.
//! - A guest ended with a triple fault. That was seen five times in some thousand guests, twice in one that was just restored, each
//!   time in an emulated node under load, in a guest that its monitor had just served without an error. The node's own kernel dies in
//!   the same emulation of an int3 with which it patches itself (`e2e/node/vm`), and a guest's kernel patches itself likewise; that
//!   this is the same slip is not shown. On a node that is not emulated, or twice in one test, it fails the test.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where x86-64 kernels have their modules, to the end of the address space.
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// What a monitor said that it made end a pod since then, if it did.
pub(crate) fn slip(since: SystemTime) -> Option<String> {
    // Journal times are cut to seconds.
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(Duration::from_secs(1));
    let since = format!("--since=@{}", since.as_secs());
    let machine = Command::new("systemd-detect-virt").output().ok()?;
    let journal =
        Command::new("journalctl").args(["-u", "cofferdam", "-o", "cat", "--no-pager", &since]).output().ok()?;
    first_slip(&String::from_utf8_lossy(&machine.stdout), &String::from_utf8_lossy(&journal.stdout))
}

/// The first line of the daemon's journal that tells of a slip; `machine` is what systemd-detect-virt says of the node.
pub(crate) fn first_slip(machine: &str, journal: &str) -> Option<String> {
    let emulated = machine.trim() == "qemu";
    journal.lines().find(|line| is_slip(line, emulated)).map(str::to_owned)
}

fn is_slip(line: &str, emulated: bool) -> bool {
    let ended = line.contains("pod died") || line.contains("could not be restored from its template");
    if emulated && ended && line.contains("crashed with a triple fault") {
        return true;
    }
    let Some((_, registers)) = line.split_once("KVM_RUN failed: Bad address") else { return false };
    let rip = registers.split_once("rip 0x").and_then(|(_, rest)| rest.split(',').next());
    rip.and_then(|rip| u64::from_str_radix(rip, 16).ok()).is_some_and(|rip| rip >= MODULES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_s_own_registers_are_a_slip() {
        let died = |rip: &str| {
            format!(
                "pod died detail=\"the monitor failed: vCPU 0: KVM_RUN failed: Bad address (os error 14); rip {rip}, rsp 0xffffc900008979d8\""
            )
        };
        assert!(is_slip(&died("0xffffffffc03ed6b0"), false));
        for guests in ["0xffffffff810003b0", "0x401000", "0", "0x"] {
            assert!(!is_slip(&died(guests), true), "{guests}");
        }
        assert!(!is_slip(
            "vCPU 0: KVM_RUN failed: Invalid argument (os error 22); rip 0xffffffffc03ed6b0, rsp 0",
            true
        ));
    }

    #[test]
    fn a_triple_fault_is_one_in_an_emulated_node_only() {
        let died =
            "WARN pod died pod=ab detail=\"the guest's kernel crashed with a triple fault: vCPU 0: triple fault; ...\"";
        assert!(is_slip(died, true));
        assert!(!is_slip(died, false));
        let restored = "WARN booting the microVM: it could not be restored from its template pod=ab \
            error=\"cannot start the pod: the guest's kernel crashed with a triple fault: vCPU 0: triple fault\"";
        assert!(is_slip(restored, true));
        assert!(!is_slip("a guest said: crashed with a triple fault", true));
    }
}
