#![allow(unsafe_code)] // tests live in namespaces of their own
//! A throwaway node for tests: its own network and mounts, gone with the thread.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::spec::{CniConfig, Config, VmConfig};

/// Where Debian and everybody else have CNI's plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A network as the node VM has it.
pub(crate) const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}], [{"subnet": "fd99::/64"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}]}"#;

/// One node.
pub(crate) struct Node {
    /// Ordinary folders; `run` and `state` are below.
    pub(crate) folder: tempfile::TempDir,
    /// Of this node.
    pub(crate) config: Config,
}

/// Runs `test` on a node of its own. Says so and does nothing where namespaces or the plugins cannot be had.
pub(crate) fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let plugins: Vec<PathBuf> =
        PLUGINS.iter().map(PathBuf::from).filter(|folder| folder.join("bridge").exists()).collect();
    if plugins.is_empty() {
        println!("skipped: CNI's plugins are not in {}", PLUGINS.join(" or "));
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: this thread alone gets a network and mounts of its own (and, for that, its own working directory).
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) } {
            println!("skipped: cannot make namespaces: {error}");
            return;
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        std::fs::create_dir_all("/var/lib/cni").unwrap();
        mount("tmpfs", "/var/lib/cni", "tmpfs", MountFlags::empty(), None).unwrap();
        crate::netns::up("lo").unwrap();
        let folder = tempfile::Builder::new().prefix("cd").tempdir_in("/tmp").unwrap();
        let conf_dir = folder.path().join("net.d");
        std::fs::create_dir(&conf_dir).unwrap();
        std::fs::write(conf_dir.join("10-lab.conflist"), NETWORK).unwrap();
        let config = config_below(folder.path());
        // Its threads are made by this one, so they are on the same node.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(Node { folder, config }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn plugins() -> Vec<PathBuf> {
    PLUGINS.iter().map(PathBuf::from).filter(|folder| folder.join("bridge").exists()).collect()
}

/// The configuration of the node that has its files in `folder`.
pub(crate) fn config_below(folder: &Path) -> Config {
    let (bin_dirs, conf_dir) = (plugins(), folder.join("net.d"));
    Config {
        run_dir: folder.join("r"),
        state_dir: folder.join("s"),
        netns_dir: folder.join("netns"),
        cgroup_root: cgroup2(),
        agent: lib().join("cofferdam-agent"),
        vm: VmConfig {
            monitor: lib().join("cofferdam-vmm"),
            kernel: lib().join("vmlinux"),
            initramfs: lib().join("initramfs.cpio"),
            disk_template: lib().join("pod-disk.ext4"),
            kernel_args: String::new(),
            boot_timeout: Duration::from_secs(120),
            template: None,
        },
        cni: CniConfig { bin_dirs, conf_dir, plugin_timeout: Duration::from_secs(60) },
    }
}

/// Where the product is: `COFFERDAM_LIB`, or where it is installed.
fn lib() -> PathBuf {
    std::env::var_os("COFFERDAM_LIB").map_or("/usr/lib/cofferdam".into(), PathBuf::from)
}

/// Where cgroup v2 is mounted, alone or beside v1.
pub(crate) fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(fields[1]))
    });
    found.unwrap_or_default()
}

/// An id that no other test uses.
pub(crate) fn new_id() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    hex::encode(bytes)
}
