use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::spec::{CniConfig, VmConfig};

fn config(folder: &Path) -> Config {
    let file = |name: &str, mode: u32| -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    Config {
        run_dir: folder.into(),
        state_dir: folder.into(),
        netns_dir: "/nowhere".into(),
        cgroup_root: "/sys/fs/cgroup".into(),
        agent: file("agent", 0o755),
        vm: VmConfig {
            template: None,
            monitor: file("monitor", 0o755),
            kernel: file("kernel", 0o644),
            initramfs: file("initramfs", 0o644),
            disk_template: file("disk", 0o644),
            kernel_args: String::new(),
            boot_timeout: Duration::from_secs(1),
        },
        cni: CniConfig { bin_dirs: vec![], conf_dir: folder.into(), plugin_timeout: Duration::from_secs(1) },
    }
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = config(folder.path());
    let gone = |path: &str| PathBuf::from(path);
    let mut without_kernel = good.clone();
    without_kernel.vm.kernel = gone("/nowhere/vmlinux");
    let mut without_monitor = good.clone();
    without_monitor.vm.monitor = folder.path().join("kernel"); // there, and not executable
    let mut without_agent = good.clone();
    without_agent.agent = gone("/nowhere/agent");
    let mut other_cgroup = good.clone();
    other_cgroup.cgroup_root = gone("/proc");
    for (config, kind, expected) in [
        (&without_kernel, Kind::Vm, "cannot run vm pods: cannot use the guest kernel /nowhere/vmlinux"),
        (&without_monitor, Kind::Vm, "it is not executable; install"),
        (&without_agent, Kind::Host, "cannot run host pods: cannot use the agent /nowhere/agent"),
        (&other_cgroup, Kind::Host, "/proc is not cgroup v2: boot"),
    ] {
        let error = probe(config, kind).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Where KVM works this must say so, and where it does not the reason names the device.
#[test]
fn kvm_is_tried() {
    match kvm::check() {
        Ok(()) => println!("KVM works here"),
        Err(reason) => {
            println!("KVM does not work here: {reason}");
            assert!(reason.starts_with("/dev/kvm is not usable: "), "{reason}");
            assert!(reason.contains("VT-x or AMD-V"), "{reason}");
        }
    }
}
