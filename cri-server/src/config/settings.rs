//! The configuration as files spell it, with its defaults, and the step from there to [`Config`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cofferdam_image_store::{Reference, RegistryConfig};
use cofferdam_proto::monitor::MAX_VCPUS;
use cofferdam_sandbox::{CniConfig, TemplateConfig, VmConfig, VmSize};
use serde::{Deserialize, Serialize};

use super::traces::Tracing;
use super::{CgroupDriver, CgroupParent, Config, HANDLERS, node_cpus, seconds};

/// The whole file. docs/configuration.md explains each key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(super) run_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    /// Empty: `cofferdam.sock` in `run_dir`.
    pub(super) socket: PathBuf,
    pub(super) default_handler: String,
    pub(super) cgroup_parent: String,
    pub(super) cgroup_driver: String,
    pub(super) log_level: String,
    pub(super) pods: Pods,
    pub(super) vm: Vm,
    pub(super) host: Host,
    pub(super) cni: Cni,
    pub(super) streaming: Streaming,
    pub(super) metrics: Metrics,
    pub(super) tracing: Tracing,
    pub(super) images: Images,
    pub(super) registries: BTreeMap<String, Registry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pods {
    host_namespaces_in: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Vm {
    vcpus: u8,
    /// 0: as many as the node has, at most [`VCPUS_MAX`].
    vcpus_max: u8,
    memory_mib: u32,
    memory_max_mib: u32,
    unlimited_memory_percent: u8,
    unlimited_memory_max_mib: u32,
    /// Empty, as the three other paths: the file of that name in the folder of this build
    /// ([`super::product`]).
    monitor: PathBuf,
    kernel: PathBuf,
    kernel_args: String,
    initramfs: PathBuf,
    disk_template: PathBuf,
    boot_timeout_seconds: u64,
    template: bool,
    pool: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Host {
    /// Empty: the one of this build.
    agent: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cni {
    bin_dirs: Vec<PathBuf>,
    conf_dir: PathBuf,
    plugin_timeout_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Streaming {
    address: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Metrics {
    /// Empty: nowhere.
    listen: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Images {
    max_parallel_layers: usize,
    /// Empty: none.
    certs_dir: PathBuf,
    /// Empty: none.
    docker_config: PathBuf,
    no_progress_seconds: u64,
    pinned: Vec<String>,
    /// Empty: none.
    signature_policy: PathBuf,
    /// 0: two for each processor.
    max_unpacking_layers: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Registry {
    mirrors: Vec<String>,
    mirrors_only: bool,
    plain_http: bool,
    ca_files: Vec<PathBuf>,
    insecure_redirects: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run_dir: "/run/cofferdam".into(),
            state_dir: "/var/lib/cofferdam".into(),
            socket: PathBuf::new(),
            default_handler: "vm".into(),
            cgroup_parent: String::new(),
            cgroup_driver: "cgroupfs".into(),
            log_level: "info".into(),
            pods: Pods::default(),
            vm: Vm::default(),
            host: Host::default(),
            cni: Cni::default(),
            streaming: Streaming::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            images: Images::default(),
            registries: BTreeMap::new(),
        }
    }
}

impl Default for Pods {
    fn default() -> Self {
        Self { host_namespaces_in: vec!["kube-system".into()] }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            vcpus: 1,
            vcpus_max: 0,
            memory_mib: 256,
            memory_max_mib: 8192,
            unlimited_memory_percent: 25,
            unlimited_memory_max_mib: 2048,
            monitor: PathBuf::new(),
            kernel: PathBuf::new(),
            kernel_args: String::new(),
            initramfs: PathBuf::new(),
            disk_template: PathBuf::new(),
            boot_timeout_seconds: 60,
            template: true,
            pool: 0,
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            conf_dir: "/etc/cni/net.d".into(),
            plugin_timeout_seconds: 60,
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self { address: "127.0.0.1:0".into() }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            max_parallel_layers: 3,
            max_unpacking_layers: 0,
            certs_dir: "/etc/cofferdam/certs.d".into(),
            docker_config: PathBuf::new(),
            no_progress_seconds: 300,
            pinned: Vec::new(),
            signature_policy: PathBuf::new(),
        }
    }
}

/// What guests can grow to on a large node unless the configuration says more: each vCPU that can
/// come costs the guest a little memory.
const VCPUS_MAX: u8 = 8;

/// A key and what is wrong with its value.
pub(super) type Wrong = (&'static str, String);

impl Settings {
    /// With what is computed from other keys, or from where the product is (its folder `lib`),
    /// filled in.
    pub(super) fn complete(mut self, lib: &Path) -> Self {
        for (path, name) in [
            (&mut self.vm.monitor, "cofferdam-vmm"),
            (&mut self.vm.kernel, "vmlinux"),
            (&mut self.vm.initramfs, "initramfs.cpio"),
            (&mut self.vm.disk_template, "pod-disk.ext4"),
            (&mut self.host.agent, "cofferdam-agent"),
        ] {
            if path.as_os_str().is_empty() {
                *path = lib.join(name);
            }
        }
        if self.socket.as_os_str().is_empty() {
            self.socket = self.run_dir.join("cofferdam.sock");
        }
        if self.cgroup_parent.is_empty() {
            self.cgroup_parent = if self.cgroup_driver == "systemd" { "cofferdam.slice" } else { "/cofferdam" }.into();
        }
        if self.vm.vcpus_max == 0 {
            self.vm.vcpus_max = node_cpus().min(VCPUS_MAX);
        }
        self
    }

    /// Checks every value.
    pub(super) fn check(&self) -> Result<Config, Wrong> {
        let kind = HANDLERS.iter().find(|(name, _)| *name == self.default_handler).map(|(_, kind)| *kind);
        let level = ["error", "warn", "info", "debug", "trace"].contains(&self.log_level.as_str());
        let level = level.then(|| self.log_level.parse().ok()).flatten();
        let address = loopback("streaming.address", &self.streaming.address, "127.0.0.1:0")?;
        let metrics = match self.metrics.listen.as_str() {
            "" => None,
            text => Some(loopback("metrics.listen", text, "127.0.0.1:9090")?),
        };
        in_range("vm.vcpus", self.vm.vcpus.into(), 1, MAX_VCPUS.into())?;
        in_range("vm.vcpus_max", self.vm.vcpus_max.into(), 1, MAX_VCPUS.into())?;
        in_range("vm.memory_mib", self.vm.memory_mib.into(), 64, 1 << 20)?;
        in_range("vm.memory_max_mib", self.vm.memory_max_mib.into(), 64, 1 << 20)?;
        in_range("vm.unlimited_memory_percent", self.vm.unlimited_memory_percent.into(), 0, 100)?;
        in_range("vm.unlimited_memory_max_mib", self.vm.unlimited_memory_max_mib.into(), 0, 1 << 20)?;
        in_range("vm.pool", self.vm.pool.into(), 0, 100)?;
        if self.vm.pool > 0 && !self.vm.template {
            return Err((
                "vm.pool",
                "needs vm.template = true: microVMs that wait are restored from a template".into(),
            ));
        }
        in_range("vm.boot_timeout_seconds", self.vm.boot_timeout_seconds, 1, 3600)?;
        in_range("cni.plugin_timeout_seconds", self.cni.plugin_timeout_seconds, 1, 3600)?;
        in_range("images.max_parallel_layers", self.images.max_parallel_layers as u64, 1, 64)?;
        in_range("images.no_progress_seconds", self.images.no_progress_seconds, 1, 86_400)?;
        in_range("images.max_unpacking_layers", self.images.max_unpacking_layers as u64, 0, 256)?;
        if self.vm.kernel_args.len() > 1024 || self.vm.kernel_args.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return Err((
                "vm.kernel_args",
                "is longer than 1024 characters or has one that is not printable ASCII".into(),
            ));
        }
        for pattern in &self.images.pinned {
            let valid = match pattern.strip_suffix('*') {
                Some(beginning) => !beginning.contains('*'),
                None => pattern.parse::<Reference>().is_ok(),
            };
            if !valid {
                let reason = format!("has {pattern:?}, neither a reference nor the beginning of one with a * behind");
                return Err(("images.pinned", reason));
            }
        }
        for (key, path) in self.paths() {
            if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
                return Err((key, format!("is {path:?}, not an absolute path without \"..\"")));
            }
        }
        for name in &self.pods.host_namespaces_in {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
                return Err(("pods.host_namespaces_in", format!("has {name:?}, which is not a Kubernetes namespace")));
            }
        }
        // sockaddr_un holds 107 bytes and a NUL.
        if self.socket.as_os_str().len() > 107 {
            return Err(("socket", "is longer than the 107 bytes of a unix socket's path".into()));
        }
        let driver = match self.cgroup_driver.as_str() {
            "cgroupfs" => CgroupDriver::Cgroupfs,
            "systemd" => CgroupDriver::Systemd,
            other => return Err(("cgroup_driver", format!("is {other:?}, neither cgroupfs nor systemd"))),
        };
        let cgroup_parent =
            CgroupParent::parse(driver, &self.cgroup_parent).map_err(|e| ("cgroup_parent", e.to_owned()))?;
        Ok(Config {
            socket: self.socket.clone(),
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
            default_kind: kind
                .ok_or_else(|| ("default_handler", format!("is {:?}, neither vm nor host", self.default_handler)))?,
            host_namespaces_in: self.pods.host_namespaces_in.clone(),
            vm: self.vm.parts(&cgroup_parent),
            cgroup_parent,
            cgroup_driver: driver,
            log_level: level.ok_or_else(|| {
                ("log_level", format!("is {:?}, not error, warn, info, debug or trace", self.log_level))
            })?,
            vm_size: self.vm.size(),
            vm_max: self.vm.most(),
            unlimited_memory_percent: self.vm.unlimited_memory_percent,
            unlimited_memory_max_mib: self.vm.unlimited_memory_max_mib,
            agent: self.host.agent.clone(),
            cni: CniConfig {
                bin_dirs: self.cni.bin_dirs.clone(),
                conf_dir: self.cni.conf_dir.clone(),
                plugin_timeout: seconds(self.cni.plugin_timeout_seconds),
            },
            streaming: address,
            metrics,
            tracing: self.tracing.check()?,
            max_parallel_layers: self.images.max_parallel_layers,
            certs_dir: Some(self.images.certs_dir.clone()).filter(|path| !path.as_os_str().is_empty()),
            docker_config: Some(self.images.docker_config.clone()).filter(|path| !path.as_os_str().is_empty()),
            pinned: self.images.pinned.clone(),
            signature_policy: Some(self.images.signature_policy.clone()).filter(|path| !path.as_os_str().is_empty()),
            no_progress: seconds(self.images.no_progress_seconds),
            max_unpacking_layers: self.images.max_unpacking_layers,
            registries: self.registries.iter().map(|(host, r)| (host.clone(), r.parts())).collect(),
        })
    }

    fn paths(&self) -> Vec<(&'static str, &Path)> {
        let mut paths: Vec<(&'static str, &Path)> = vec![
            ("run_dir", &self.run_dir),
            ("state_dir", &self.state_dir),
            ("socket", &self.socket),
            ("vm.monitor", &self.vm.monitor),
            ("vm.kernel", &self.vm.kernel),
            ("vm.initramfs", &self.vm.initramfs),
            ("vm.disk_template", &self.vm.disk_template),
            ("host.agent", &self.host.agent),
            ("cni.conf_dir", &self.cni.conf_dir),
        ];
        let optional = [
            ("images.certs_dir", &self.images.certs_dir),
            ("images.docker_config", &self.images.docker_config),
            ("images.signature_policy", &self.images.signature_policy),
        ];
        paths.extend(
            optional.map(|(key, path)| (key, path.as_path())).iter().filter(|(_, p)| !p.as_os_str().is_empty()),
        );
        paths.extend(self.cni.bin_dirs.iter().map(|p| ("cni.bin_dirs", p.as_path())));
        paths
            .extend(self.registries.values().flat_map(|r| &r.ca_files).map(|p| ("registries.*.ca_files", p.as_path())));
        paths
    }
}

impl Vm {
    fn size(&self) -> VmSize {
        VmSize { vcpus: self.vcpus, memory_mib: self.memory_mib }
    }

    fn most(&self) -> VmSize {
        VmSize { vcpus: self.vcpus_max.min(node_cpus()), memory_mib: self.memory_max_mib }
    }

    fn parts(&self, cgroup_parent: &CgroupParent) -> VmConfig {
        let (size, most, cgroup_parent) = (self.size(), self.most(), cgroup_parent.as_str().to_owned());
        VmConfig {
            template: self.template.then_some(TemplateConfig { size, most, cgroup_parent, pool: self.pool.into() }),
            monitor: self.monitor.clone(),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            disk_template: self.disk_template.clone(),
            kernel_args: self.kernel_args.clone(),
            boot_timeout: seconds(self.boot_timeout_seconds),
        }
    }
}

impl Settings {
    /// The settings as they may be shown to anybody who helps: without passwords.
    pub(crate) fn without_secrets(mut self) -> Self {
        for mirror in self.registries.values_mut().flat_map(|registry| &mut registry.mirrors) {
            *mirror = cofferdam_image_store::without_login(mirror);
        }
        self
    }
}

impl Registry {
    fn parts(&self) -> RegistryConfig {
        RegistryConfig {
            mirrors: self.mirrors.clone(),
            mirrors_only: self.mirrors_only,
            plain_http: self.plain_http,
            ca_files: self.ca_files.clone(),
            insecure_redirects: self.insecure_redirects,
        }
    }
}

fn loopback(key: &'static str, text: &str, example: &str) -> Result<SocketAddr, Wrong> {
    let address: SocketAddr =
        text.parse().map_err(|_| (key, format!("is {text:?}, not an address and port such as {example}")))?;
    if !address.ip().is_loopback() {
        return Err((key, format!("is {address}, which others can reach; give a loopback address")));
    }
    Ok(address)
}

pub(super) fn in_range(key: &'static str, value: u64, low: u64, high: u64) -> Result<(), Wrong> {
    if (low..=high).contains(&value) { Ok(()) } else { Err((key, format!("is {value}, not {low} to {high}"))) }
}
