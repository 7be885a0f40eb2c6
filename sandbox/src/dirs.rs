//! Where a pod's things are.
//!
//! ```text
//! <run_dir>/pods/<id>/            0700, on tmpfs: goes with the node's reboot, like the pod
//!     spec.json                   the PodSpec, written first
//!     process.json                process id and start time of the monitor or supervisor
//!     ready.json                  the launch is done: what CNI answered
//!     network.json                what each plugin answered: what CNI wants back while the node runs
//!     stopping                    the end was asked for
//!     quota.json                  the CPU quota of the pod's cgroup, while it is lifted
//!     netns                       the network namespace, bind-mounted (pods of older daemons only)
//!     control.sock vsock.sock exit.json           vm
//!     tree/<container>/<n>        vm: mount points; the root of the pod's own mount namespace, where exports are mounted on them
//!     share/                      vm: the same, mounted on the node (pods of older daemons only)
//!     agent.sock sink.sock roots/                 host
//!     stderr                      what the process had to say
//! <netns_dir>/cni-<uuid>          the network namespace, bind-mounted; the UUID is the first half of the pod's id
//! <state_dir>/pods/<id>/          0700, on disk
//!     network.json                what CNI needs to take the pod off its network after a reboot; synced before the first plugin runs
//!     disk.ext4                   vm: writable layers
//!     containers/                 host: writable layers
//! ```

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, SandboxError};
use crate::spec::{Config, NetworkStatus};

/// The pod's process on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    /// Process id.
    pub(crate) pid: u32,
    /// Start time as `/proc/<pid>/stat` has it: tells the process from a later one with the same id.
    pub(crate) start_time: u64,
}

/// The launch is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyRecord {
    /// What CNI answered.
    pub(crate) network: Option<NetworkStatus>,
}

/// One pod's paths.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// `<run_dir>/pods/<id>`.
    pub(crate) run: PathBuf,
    /// `<state_dir>/pods/<id>`.
    pub(crate) state: PathBuf,
    /// `<netns_dir>/cni-<uuid>`.
    named_netns: PathBuf,
}

impl Dirs {
    /// The paths of pod `id`.
    ///
    /// # Errors
    /// When it is no id.
    pub(crate) fn of(config: &Config, id: &str) -> Result<Self, SandboxError> {
        if id.len() != 64 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(SandboxError::Invalid(format!("pod id {id:?} is not 64 hex digits")));
        }
        Ok(Self {
            run: pods(&config.run_dir).join(id),
            state: pods(&config.state_dir).join(id),
            named_netns: config.netns_dir.join(netns_name(id)),
        })
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.run.join("spec.json")
    }
    pub(crate) fn process(&self) -> PathBuf {
        self.run.join("process.json")
    }
    pub(crate) fn ready(&self) -> PathBuf {
        self.run.join("ready.json")
    }
    pub(crate) fn stopping(&self) -> PathBuf {
        self.run.join("stopping")
    }
    pub(crate) fn lifted_quota(&self) -> PathBuf {
        self.run.join("quota.json")
    }
    /// The network namespace: where it is now, if a daemon before the names in `netns_dir` made it.
    pub(crate) fn netns(&self) -> PathBuf {
        let unnamed = self.run.join("netns");
        if unnamed.exists() { unnamed } else { self.named_netns.clone() }
    }
    pub(crate) fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }
    pub(crate) fn vsock(&self) -> PathBuf {
        self.run.join("vsock.sock")
    }
    pub(crate) fn exit_report(&self) -> PathBuf {
        self.run.join("exit.json")
    }
    pub(crate) fn tree(&self) -> PathBuf {
        self.run.join("tree")
    }
    /// Where pods of older daemons have their exports.
    pub(crate) fn old_share(&self) -> PathBuf {
        self.run.join("share")
    }
    pub(crate) fn agent(&self) -> PathBuf {
        self.run.join("agent.sock")
    }
    pub(crate) fn sink(&self) -> PathBuf {
        self.run.join("sink.sock")
    }
    pub(crate) fn roots(&self) -> PathBuf {
        self.run.join("roots")
    }
    pub(crate) fn stderr(&self) -> PathBuf {
        self.run.join("stderr")
    }
    pub(crate) fn answers(&self) -> PathBuf {
        self.run.join("network.json")
    }
    pub(crate) fn network(&self) -> PathBuf {
        self.state.join("network.json")
    }
    pub(crate) fn disk(&self) -> PathBuf {
        self.state.join("disk.ext4")
    }
    /// All that a vm pod has of its microVM, but for the network namespace.
    pub(crate) fn of_microvm(&self) -> [PathBuf; 7] {
        let (process, stderr, exit) = (self.process(), self.stderr(), self.exit_report());
        [process, stderr, exit, self.control(), self.vsock(), self.tree(), self.disk()]
    }
    pub(crate) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }
}

/// The name of a pod's network namespace, of the form that node agents know. It follows from the pod's id, so whoever finds
/// anything of a pod finds its namespace too, and one of another runtime is never taken for ours.
fn netns_name(id: &str) -> String {
    format!("cni-{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..32])
}

/// Where the pods are below `root`.
pub(crate) fn pods(root: &Path) -> PathBuf {
    root.join("pods")
}

/// Makes a directory that only we may enter; its parents too.
pub(crate) fn make_private(path: &Path) -> Result<(), SandboxError> {
    DirBuilder::new().mode(0o700).recursive(true).create(path).doing(|| format!("make directory {}", path.display()))
}

/// Replaces `path` by `value` as JSON, whole or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), SandboxError> {
    let new = path.with_extension("new");
    let written = serde_json::to_vec(value).map_err(io::Error::from).and_then(|bytes| fs::write(&new, bytes));
    written.and_then(|()| fs::rename(&new, path)).doing(|| format!("write {}", path.display()))
}

/// As [`write`], and on the disk when it returns, whatever happens to the machine then.
pub(crate) fn write_durably<T: Serialize>(path: &Path, value: &T) -> Result<(), SandboxError> {
    let step = || format!("write {}", path.display());
    let new = path.with_extension("new");
    let bytes = serde_json::to_vec(value).doing(step)?;
    let mut file = File::create(&new).doing(step)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).doing(step)?;
    fs::rename(&new, path).doing(step)?;
    // The name, and that of the pod's own directory, which is as new.
    for folder in path.ancestors().skip(1).take(2) {
        File::open(folder).and_then(|folder| folder.sync_all()).doing(step)?;
    }
    Ok(())
}

/// Reads what [`write`] wrote; nothing when there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SandboxError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).doing(|| format!("read {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| format!("read {}", path.display())),
    }
}

/// Deletes a directory with all that is in it; one that is not there is fine.
pub(crate) fn delete(path: &Path) -> Result<(), SandboxError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing(|| format!("delete {}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_where_the_daemon_that_made_it_put_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::testing::config_below(folder.path());
        let id = "0123456789abcdef".repeat(4);
        let dirs = Dirs::of(&config, &id).unwrap();
        let named = folder.path().join("netns/cni-01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(dirs.netns(), named);
        fs::create_dir_all(&dirs.run).unwrap();
        fs::write(dirs.run.join("netns"), "").unwrap();
        assert_eq!(dirs.netns(), dirs.run.join("netns"));
    }
}
