//! Huge pages: a host pod's are the node's, a microVM has none to give.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::Test;
use super::shell::prints;
use crate::crictl::{self, Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("huge_pages", huge_pages)];

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PLACE: &str = "/run/cofferdam-e2e/huge";
/// How many pages of 2 MiB the node has for the test.
const PAGES: u64 = 8;
/// What the container may have: two of them.
const LIMIT: u64 = 4 << 20;

/// Pages that the node has set aside, and a place for them as the kubelet makes one for an emptyDir
/// of medium HugePages-2Mi.
struct Reserved {
    before: String,
}

impl Reserved {
    fn new() -> Outcome<Self> {
        let before = fs::read_to_string(POOL).doing(&format!("read {POOL}"))?;
        fs::write(POOL, PAGES.to_string()).doing(&format!("write {POOL}"))?;
        let reserved = Self { before };
        let got = fs::read_to_string(POOL).doing(&format!("read {POOL}"))?;
        ensure!(got.trim() == PAGES.to_string(), "the node's kernel set {} of {PAGES} huge pages aside", got.trim());
        fs::create_dir_all(PLACE).doing(&format!("make {PLACE}"))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none", PLACE]);
        let done = crictl::run(mount, "mount hugetlbfs")?;
        ensure!(done.code == 0, "cannot mount hugetlbfs: {}", done.stderr);
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", PLACE]).status();
        let _ = fs::remove_dir(PLACE);
        let _ = fs::write(POOL, &self.before);
    }
}

/// Pages of the node that nobody uses.
fn free() -> Outcome<u64> {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = fs::read_to_string(path).doing(&format!("read {path}"))?;
    text.trim().parse().doing(&format!("read {text:?} as a number of pages"))
}

fn container(name: &str, limit: u64, mounts: &Value) -> Container {
    let resources = json!({"hugepage_limits": [{"page_size": "2MB", "limit": limit}]});
    let container = Container::shell(name, "exec sleep 100000").with("linux", json!({"resources": resources}));
    container.with("mounts", mounts.clone())
}

fn huge_pages() -> Outcome {
    let _reserved = Reserved::new()?;
    let volume = json!([{"host_path": PLACE, "container_path": "/huge"}]);
    of_a_host_pod(&volume)?;
    of_a_vm_pod(&volume)
}

fn of_a_host_pod(volume: &Value) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("huge");
    let id = crictl.run_pod("host", &pod)?;
    let allowed = crictl.run_container(&id, &pod, &container("allowed", LIMIT, volume))?;
    let limits = "cd /sys/fs/cgroup; cat hugetlb.2MB.max hugetlb.2MB.rsvd.max";
    prints(&allowed, limits, &format!("{LIMIT}\n{LIMIT}"))?;
    ensure!(free()? == PAGES, "of {PAGES} pages {} are free before the test", free()?);

    prints(&allowed, "fallocate -l 4194304 /huge/two && echo has them", "has them")?;
    ensure!(free()? == PAGES - 2, "of {PAGES} pages {} are free while two are used", free()?);
    prints(&allowed, "cat /sys/fs/cgroup/hugetlb.2MB.current", &LIMIT.to_string())?;
    // There are more: it is the container's limit that is in the way.
    prints(&allowed, "fallocate -l 2097152 /huge/third 2>/dev/null || echo refused", "refused")?;
    ensure!(free()? == PAGES - 2, "of {PAGES} pages {} are free after a third one was refused", free()?);
    // A limit of another kind is changed, and this one stays.
    crictl.run(&["update", "--cpu-quota", "50000", "--cpu-period", "100000", &allowed])?;
    prints(&allowed, limits, &format!("{LIMIT}\n{LIMIT}"))?;
    prints(&allowed, "rm /huge/two /huge/third; fallocate -l 4194304 /huge/again && echo has them", "has them")?;

    // As the kubelet asks for a container without huge pages.
    let none = crictl.run_container(&id, &pod, &container("none", 0, volume))?;
    prints(&none, "fallocate -l 2097152 /huge/none 2>/dev/null || echo refused", "refused")?;
    let odd = json!({"resources": {"hugepage_limits": [{"page_size": "3MB", "limit": 3 << 20}]}});
    let odd = Container::shell("odd", "true").with("linux", odd);
    let wanted = ["code = InvalidArgument", "this node has no hugepages of 3MB"];
    crictl.refused(&["create", &id, &odd.file()?, &pod.file()?], &wanted)?;
    crictl.remove_pod(&id)?;
    for name in fs::read_dir(PLACE).doing(&format!("list {PLACE}"))?.flatten() {
        fs::remove_file(name.path()).doing("remove a file of huge pages")?;
    }
    wait_for("the pages to be free again", || Ok(free()? == PAGES))
}

fn of_a_vm_pod(volume: &Value) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("hugevm");
    let id = crictl.run_pod("vm", &pod)?;
    for (asked, wanted) in [
        (container("limit", LIMIT, &json!([])), ["code = InvalidArgument", "2MB", "a vm pod's guest has none", "host"]),
        (container("volume", 0, volume), ["code = InvalidArgument", PLACE, "hugetlbfs", "host"]),
    ] {
        crictl.refused(&["create", &id, &asked.file()?, &pod.file()?], &wanted)?;
    }
    // The kubelet names each page size of the node, with 0.
    let plain = crictl.run_container(&id, &pod, &container("plain", 0, &json!([])))?;
    prints(&plain, "echo runs", "runs")?;
    crictl.remove_pod(&id)
}
