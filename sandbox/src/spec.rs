//! What the callers say: configuration of the node, and of one pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use cofferdam_proto::supervisor::UserRange;
use serde::{Deserialize, Serialize};

/// What a pod runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A microVM of its own.
    Vm,
    /// Namespaces and cgroups on the node's kernel.
    Host,
}

/// The node, as sandboxes need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Volatile state, `/run/cofferdam`: pods are below `pods/`.
    pub run_dir: PathBuf,
    /// Lasting state, `/var/lib/cofferdam`: pods' writable layers and disks are below `pods/`.
    pub state_dir: PathBuf,
    /// Where pods' network namespaces have their names, `/run/netns`: agents of the node and `ip netns` look there.
    pub netns_dir: PathBuf,
    /// Mount point of cgroup v2, `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// The agent, for host pods (static program).
    pub agent: PathBuf,
    /// microVMs.
    pub vm: VmConfig,
    /// Networks.
    pub cni: CniConfig,
}

/// What microVMs are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The monitor program.
    pub monitor: PathBuf,
    /// Uncompressed guest kernel.
    pub kernel: PathBuf,
    /// Initramfs with the agent.
    pub initramfs: PathBuf,
    /// Template of the pod's disk, a sparse file.
    pub disk_template: PathBuf,
    /// Added to the guest's kernel command line.
    pub kernel_args: String,
    /// How long a guest's agent may take to answer first.
    pub boot_timeout: Duration,
    /// Pods' microVMs are restored from templates; absent: each boots.
    pub template: Option<TemplateConfig>,
}

/// What the templates of microVMs are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateConfig {
    /// Of the usual pod. No template is larger, so that each pod can be given one.
    pub size: VmSize,
    /// What a microVM that is restored can grow to.
    pub most: VmSize,
    /// Parent cgroup of a microVM that becomes a template or waits for a pod, as
    /// [`PodSpec::cgroup_parent`].
    pub cgroup_parent: String,
    /// How many microVMs of the usual pod are restored ahead of their pods.
    pub pool: usize,
}

/// Where CNI's plugins and configurations are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// Directories of plugins, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of configurations; the first `.conflist`, `.conf` or `.json` by name counts, read anew each time.
    pub conf_dir: PathBuf,
    /// How long one plugin may take.
    pub plugin_timeout: Duration,
}

/// Size of a microVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmSize {
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
}

impl VmSize {
    /// The larger of each.
    pub fn at_least(self, other: Self) -> Self {
        Self { vcpus: self.vcpus.max(other.vcpus), memory_mib: self.memory_mib.max(other.memory_mib) }
    }
}

/// One pod to launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// 64 hex digits.
    pub id: String,
    /// What it runs in.
    pub kind: Kind,
    /// Size, for [`Kind::Vm`].
    pub vm: VmSize,
    /// What it can grow to while it runs; what is less than in `vm` means no more than that.
    #[serde(default)]
    pub vm_max: VmSize,
    /// How the node's kernel rates the monitor when memory is short (`/proc/<pid>/oom_score_adj`), for [`Kind::Vm`]: all memory of the pod
    /// is the monitor's.
    #[serde(default)]
    pub oom_score_adj: i16,
    /// Parent cgroup below the root (`/kubepods/...`), where the pod's is `<cgroup_parent>/<id>`; or a slice of systemd's
    /// (`kubepods-pod1.slice`), where it is the scope `cofferdam-<id>.scope`.
    pub cgroup_parent: String,
    /// Host name inside.
    pub hostname: String,
    /// Content of `/etc/resolv.conf` in containers; empty leaves the image's.
    pub resolv_conf: String,
    /// Network. Absent: the node's own network namespace ([`Kind::Host`] only).
    pub network: Option<NetworkSpec>,
    /// Sysctls of the pod, name to value; already checked against the allow-list.
    pub sysctls: BTreeMap<String, String>,
    /// Users of the pod's own; then it shares no namespace with the node.
    #[serde(default)]
    pub users: Option<UserRange>,
    /// Share the node's pid namespace ([`Kind::Host`] only).
    pub node_pid: bool,
    /// Share the node's ipc namespace ([`Kind::Host`] only).
    pub node_ipc: bool,
}

/// What CNI is told of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// `CNI_ARGS`, e.g. `K8S_POD_NAME` to its value.
    pub args: BTreeMap<String, String>,
    /// Host ports, for plugins with the `portMappings` capability.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations, for plugins with the `io.kubernetes.cri.pod-annotations` capability.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Limits of its traffic, for plugins with the `bandwidth` capability.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
}

/// Limits of a pod's traffic in bits per second; absent means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What comes into the pod.
    pub ingress: Option<u64>,
    /// What leaves it.
    pub egress: Option<u64>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; empty is any.
    pub host_ip: String,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What CNI answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Addresses of the pod, the primary one first.
    pub addresses: Vec<IpAddr>,
}
