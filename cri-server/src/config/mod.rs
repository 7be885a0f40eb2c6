//! The daemon's configuration: read once, checked whole, before anything binds.
//!
//! ```text
//!  config.toml ─┐  every file alone: syntax, known keys, types   (errors name the file)
//!  conf.d/*.toml┴► merged, later files win ► Settings ► Config   (errors name the key)
//! ```

mod keys;
mod load;
mod product;
mod settings;
mod traces;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_image_store::RegistryConfig;
use cofferdam_sandbox::{CniConfig, Kind, VmConfig, VmSize};

pub(crate) use load::load;
pub(crate) use settings::Settings;
pub(crate) use traces::TracingConfig;

/// Where the configuration is unless the command line says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/cofferdam/config.toml";

/// Names by which a pod may ask for what it runs in (RuntimeClass `handler`).
pub(crate) const HANDLERS: [(&str, Kind); 2] = [("vm", Kind::Vm), ("host", Kind::Host)];

/// The configuration, as the daemon uses it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// CRI socket.
    pub(crate) socket: PathBuf,
    /// Volatile state.
    pub(crate) run_dir: PathBuf,
    /// Lasting state.
    pub(crate) state_dir: PathBuf,
    /// What a pod without a handler runs in.
    pub(crate) default_kind: Kind,
    /// Kubernetes namespaces whose pods may have the node's namespaces without naming a handler.
    pub(crate) host_namespaces_in: Vec<String>,
    /// Parent cgroup of pods that name none.
    pub(crate) cgroup_parent: CgroupParent,
    /// Who makes pods' cgroups.
    pub(crate) cgroup_driver: CgroupDriver,
    /// Least severe events that are written.
    pub(crate) log_level: tracing::Level,
    /// What microVMs are made of.
    pub(crate) vm: VmConfig,
    /// Size of a microVM whose pod asks for no more.
    pub(crate) vm_size: VmSize,
    /// What a microVM can grow to.
    pub(crate) vm_max: VmSize,
    /// What a container without a limit counts as, in percent of the node's memory and of its
    /// processors.
    pub(crate) unlimited_memory_percent: u8,
    /// But no more memory than so much.
    pub(crate) unlimited_memory_max_mib: u32,
    /// Agent of host pods.
    pub(crate) agent: PathBuf,
    /// CNI.
    pub(crate) cni: CniConfig,
    /// Where exec sessions are served.
    pub(crate) streaming: SocketAddr,
    /// Where the daemon's own metrics are served, if at all.
    pub(crate) metrics: Option<SocketAddr>,
    /// Where spans are sent, if anywhere.
    pub(crate) tracing: Option<TracingConfig>,
    /// Layers of one image that are fetched at the same time.
    pub(crate) max_parallel_layers: usize,
    /// A folder in the form of containerd's `certs.d`.
    pub(crate) certs_dir: Option<PathBuf>,
    /// A `config.json` of Docker with the node's credentials.
    pub(crate) docker_config: Option<PathBuf>,
    /// Images that the kubelet is to keep.
    pub(crate) pinned: Vec<String>,
    /// The policy that every pull has to satisfy.
    pub(crate) signature_policy: Option<PathBuf>,
    /// How long a pull may go on without a byte of a layer.
    pub(crate) no_progress: Duration,
    /// Layers of all images that are decompressed at the same time; 0 leaves it to the store.
    pub(crate) max_unpacking_layers: usize,
    /// Registries that need settings.
    pub(crate) registries: BTreeMap<String, RegistryConfig>,
}

impl Config {
    /// What a handler's name means; the empty one is the default.
    pub(crate) fn kind(&self, handler: &str) -> Option<Kind> {
        if handler.is_empty() {
            return Some(self.default_kind);
        }
        HANDLERS.iter().find(|(name, _)| *name == handler).map(|(_, kind)| *kind)
    }

    /// The part that sandboxes need.
    pub(crate) fn sandbox(&self) -> cofferdam_sandbox::Config {
        cofferdam_sandbox::Config {
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
            netns_dir: PathBuf::from("/run/netns"),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            agent: self.agent.clone(),
            vm: self.vm.clone(),
            cni: self.cni.clone(),
        }
    }

    /// The part that the image store needs.
    pub(crate) fn store(&self) -> cofferdam_image_store::Config {
        let mut config = cofferdam_image_store::Config::new(self.state_dir.join("images"));
        config.registries = self.registries.clone();
        config.certs_dir = self.certs_dir.clone();
        config.docker_config = self.docker_config.clone();
        config.pinned = self.pinned.clone();
        config.signature_policy = self.signature_policy.clone();
        config.timeouts.progress = self.no_progress;
        config.max_parallel_layers = self.max_parallel_layers;
        if self.max_unpacking_layers > 0 {
            config.max_unpacking_layers = self.max_unpacking_layers;
        }
        config
    }
}

/// Who makes the cgroups of pods: must be what the kubelet takes, which asks RuntimeConfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupDriver {
    /// We do, by path.
    Cgroupfs,
    /// systemd does, as scopes in slices.
    Systemd,
}

/// Where a pod's cgroup is: an absolute path below the root, `/kubepods/burstable/pod…`, or a
/// slice, `kubepods-burstable-pod….slice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupParent(String);

impl CgroupParent {
    /// Checks what a driver takes as a parent.
    pub(crate) fn parse(driver: CgroupDriver, text: &str) -> Result<Self, &'static str> {
        match driver {
            CgroupDriver::Cgroupfs => Self::path(text),
            CgroupDriver::Systemd => Self::slice(text),
        }
    }

    /// A slice: its name, or its path (`/kubepods.slice/kubepods-burstable.slice`) as the kubelet
    /// says it, which its name tells as well.
    fn slice(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_prefix('/').unwrap_or(text);
        let (above, name) = path.rsplit_once('/').map_or((None, path), |(above, name)| (Some(above), name));
        let Some(stem) = name.strip_suffix(".slice") else {
            return Err("is no systemd slice, such as kubepods.slice, which cgroup_driver = \"systemd\" needs");
        };
        let plain =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.\\".contains(&b));
        if name.len() > 255 || (stem != "-" && !stem.split('-').all(plain)) {
            return Err("is no name that a systemd slice can have");
        }
        let parents = stem.match_indices('-').filter(|(at, _)| *at > 0).map(|(at, _)| format!("{}.slice", &stem[..at]));
        if above.is_some_and(|above| !parents.eq(above.split('/').map(str::to_owned))) {
            return Err("is no path of a systemd slice: the slice's name says which slices are above it");
        }
        Ok(Self(name.to_owned()))
    }

    /// Checks a path: absolute, plain components, none that climbs.
    fn path(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_suffix('/').unwrap_or(text);
        let Some(rest) = path.strip_prefix('/') else {
            return Err("is not an absolute cgroup path, such as /kubepods");
        };
        let plain = |c: &str| {
            !c.is_empty()
                && c.len() <= 255
                && c != "."
                && c != ".."
                && c.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b))
        };
        if rest.len() > 2048 || !rest.split('/').all(plain) {
            return Err("has a component that no cgroup should be called");
        }
        Ok(Self(path.to_owned()))
    }

    /// The path, with its slash.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read configuration {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML, or a value has another type.
    #[error("configuration {}: {text}", .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What and where.
        text: String,
    },
    /// A key that there is not.
    #[error("configuration {}: unknown key {key:?}; the nearest known one is {nearest:?}", .path.display())]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// A known one.
        nearest: String,
    },
    /// A value that cannot be used.
    #[error("configuration key {key:?} {reason}{}", from(.path.as_deref()))]
    Value {
        /// The key, dotted.
        key: String,
        /// Reads as in "{key} {reason}".
        reason: String,
        /// The file that set it last.
        path: Option<PathBuf>,
    },
}

fn from(path: Option<&Path>) -> String {
    path.map(|p| format!(" (set in {})", p.display())).unwrap_or_default()
}

/// Memory of this node, MiB.
#[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
pub(crate) fn node_memory_mib() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
    u32::try_from(kib >> 10).unwrap_or(u32::MAX)
}

/// Processors of this node.
pub(crate) fn node_cpus() -> u8 {
    std::thread::available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX))
}

pub(super) fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

#[cfg(test)]
mod tests;

/// The defaults, for tests elsewhere.
#[cfg(test)]
pub(crate) fn tests_config() -> Config {
    load::merge(&[], Path::new(product::USUAL)).expect("the defaults are good").1
}
