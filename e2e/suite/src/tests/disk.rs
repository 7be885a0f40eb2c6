//! The writable layer of a vm pod is a disk, not guest memory, and what is deleted comes back to the node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::Test;
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("writes_more_than_its_memory_and_gives_the_space_back", writes)];

const MIB: u64 = 1 << 20;
/// Pieces that it writes, and their size.
const WRITTEN: u64 = 68;
const PIECE: u64 = 4 * MIB;

fn disk_of(pod: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/cofferdam/pods/{pod}/disk.ext4"))
}

fn allocated(pod: &str) -> Outcome<u64> {
    Ok(fs::metadata(disk_of(pod)).doing("look at the pod's disk")?.blocks() * 512)
}

fn writes() -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("writer");
    let id = crictl.run_pod("vm", &pod)?;
    let writer = crictl.run_container(&id, &pod, &Container::shell("writer", "exec sleep 100000"))?;
    let memory = crictl.run(&["exec", "--sync", &writer, "grep", "MemTotal", "/proc/meminfo"])?;
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
    let bytes = WRITTEN * PIECE;
    ensure!(kib * 1024 < bytes, "the pod has {kib} KiB of memory, so writing {} MiB would prove nothing", bytes / MIB);
    let before = allocated(&id)?;

    // Each piece holds its own number, so that a block in the wrong place is seen.
    let script = format!("i=0; while [ $i -lt {WRITTEN} ]; do yes \"block $i\" | head -c {PIECE}; i=$((i+1)); done");
    let write = format!("{{ {script}; }} > /big && sync && echo written");
    let output = crictl.run(&["exec", "--sync", "--timeout", "1500", &writer, "sh", "-c", &write])?;
    ensure!(output.contains("written"), "writing failed: {output}");
    let grown = allocated(&id)? - before;
    ensure!(grown >= bytes, "the disk grew by {} MiB only", grown / MIB);

    let compare = format!("{{ {script}; }} | cmp - /big && echo same");
    let output = crictl.run(&["exec", "--sync", "--timeout", "1500", &writer, "sh", "-c", &compare])?;
    ensure!(output.contains("same"), "reading back differs: {output}");

    crictl.run(&["exec", "--sync", "--timeout", "300", &writer, "sh", "-c", "rm /big && sync"])?;
    wait_for("the deleted space to come back to the node", || Ok(allocated(&id)? < before + 32 * MIB))?;
    crictl.remove_pod(&id)?;
    ensure!(!disk_of(&id).exists(), "the pod's disk outlives it");
    Ok(())
}
