//! What is kept of a container.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::Info;

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerPhase {
    /// CreateContainer is at work: undone at start-up.
    Creating,
    /// Can be started.
    Created,
    /// StartContainer is at work, or got no answer: the agent knows what came of it.
    Starting,
    /// Runs.
    Running,
    /// Ended, or could not be started. Final.
    Exited,
    /// RemoveContainer is at work: finished at start-up.
    Removing,
}

/// A volume, echoed in the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MountRecord {
    pub(crate) container_path: String,
    pub(crate) host_path: String,
    pub(crate) readonly: bool,
    pub(crate) selinux_relabel: bool,
    pub(crate) propagation: i32,
    pub(crate) recursive_read_only: bool,
    pub(crate) mount_options: Vec<String>,
    pub(crate) image: Option<ImageVolumeRecord>,
    pub(crate) image_sub_path: String,
}

/// The image of an image volume, echoed in the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageVolumeRecord {
    /// As CreateContainer named it.
    pub(crate) image: String,
    /// As the pod's author named it.
    pub(crate) user_image: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) runtime_handler: String,
    /// Its id.
    pub(crate) id: String,
}

/// Limits, echoed in the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ResourcesRecord {
    pub(crate) cpu_period: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory_limit: i64,
    pub(crate) memory_swap_limit: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    pub(crate) unified: BTreeMap<String, String>,
}

/// Who the first process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UserRecord {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) pod: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) phase: ContainerPhase,
    /// The image as CreateContainer named it.
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) image_annotations: HashMap<String, String>,
    /// The image as the pod's author named it.
    #[serde(default)]
    pub(crate) user_image: String,
    pub(crate) image_id: String,
    /// The image by its registry's digest; empty when it has none, or in a record of an older version.
    #[serde(default)]
    pub(crate) image_digest: String,
    /// The image as its status names it; empty in a record of an older version.
    #[serde(default)]
    pub(crate) image_name: String,
    /// Nanoseconds since the epoch, by the node's clock; 0: not yet.
    pub(crate) created_at: i64,
    #[serde(default)]
    pub(crate) started_at: i64,
    #[serde(default)]
    pub(crate) finished_at: i64,
    #[serde(default)]
    pub(crate) exit_code: i32,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) message: String,
    /// Byte-exact: the kubelet's database.
    pub(crate) labels: HashMap<String, String>,
    pub(crate) annotations: HashMap<String, String>,
    #[serde(default)]
    pub(crate) mounts: Vec<MountRecord>,
    /// Below the pod's log directory; empty: no log.
    #[serde(default)]
    pub(crate) log_path: String,
    /// The directory of `log_path`, as CreateContainer said; empty: the pod's.
    #[serde(default)]
    pub(crate) log_directory: String,
    #[serde(default)]
    pub(crate) resources: Option<ResourcesRecord>,
    #[serde(default)]
    pub(crate) user: UserRecord,
    pub(crate) stop_signal: u32,
    #[serde(default)]
    pub(crate) terminal: bool,
    /// Its first process as its agent numbers it; 0 in a record of an older version.
    #[serde(default)]
    pub(crate) agent_pid: u32,
    /// For people who inspect it.
    #[serde(default)]
    pub(crate) info: Info,
    /// Why nobody knows what came of its start, which is then taken back. Empty: it is known.
    #[serde(default)]
    pub(crate) unanswered: String,
    /// Serials of the disks that its microVM has for it: written before it gets them.
    #[serde(default)]
    pub(crate) disks: Vec<String>,
}

impl ContainerRecord {
    /// The image's name for the status.
    pub(crate) fn image_name(&self) -> &str {
        [&self.image_name, &self.user_image].into_iter().find(|name| !name.is_empty()).unwrap_or(&self.image)
    }

    /// Where its log is, if it has one: a directory and a path below it. `of_pod` is the pod's log directory.
    pub(crate) fn log<'a>(&'a self, of_pod: &'a str) -> Option<(&'a str, &'a str)> {
        let directory = if self.log_directory.is_empty() { of_pod } else { &self.log_directory };
        (!self.log_path.is_empty() && !directory.is_empty()).then_some((directory, &self.log_path))
    }

    /// It was made and can be started.
    pub(crate) fn made(&mut self, user: UserRecord) -> bool {
        let creating = self.phase == ContainerPhase::Creating;
        if creating {
            self.phase = ContainerPhase::Created;
            self.user = user;
        }
        creating
    }

    /// Claims the one start that a container has; false: it was claimed, or has ended.
    pub(crate) fn begin_start(&mut self) -> bool {
        let created = self.phase == ContainerPhase::Created;
        if created {
            self.phase = ContainerPhase::Starting;
        }
        created
    }

    /// Gives the claim of [`ContainerRecord::begin_start`] back.
    pub(crate) fn start_not_asked(&mut self) -> bool {
        let starting = self.phase == ContainerPhase::Starting;
        if starting {
            self.phase = ContainerPhase::Created;
        }
        starting
    }

    /// It runs, by the answer to the start or by what the agent tells, whichever comes first. Never back from an end.
    pub(crate) fn running(&mut self, now: i64) -> bool {
        let before = matches!(self.phase, ContainerPhase::Created | ContainerPhase::Starting);
        if before {
            self.phase = ContainerPhase::Running;
            self.started_at = now.max(self.created_at);
        }
        before
    }

    /// Its start got no answer, because of `why`: it may run or not. False when that is known, or something else told what came of it.
    pub(crate) fn start_unanswered(&mut self, why: &str) -> bool {
        let starting = self.phase == ContainerPhase::Starting && self.unanswered.is_empty();
        if starting {
            why.clone_into(&mut self.unanswered);
        }
        starting
    }

    /// Whether its start is to be taken back, and has not been yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.is_live() && !self.unanswered.is_empty()
    }

    /// RemoveContainer begins. What is seen until it is gone is a container that has ended.
    pub(crate) fn begin_removal(&mut self, now: i64) {
        if self.is_live() || self.phase == ContainerPhase::Creating {
            self.end(137, "Error", "the container was removed", now);
        }
        self.phase = ContainerPhase::Removing;
    }

    /// Marks the end. Only the first end counts.
    pub(crate) fn end(&mut self, code: i32, reason: &str, message: &str, finished_at: i64) {
        if matches!(self.phase, ContainerPhase::Exited | ContainerPhase::Removing) {
            return;
        }
        self.phase = ContainerPhase::Exited;
        self.exit_code = code;
        // What killed it then is that its start was taken back, and its caller is told as of a start that failed.
        let taken_back = reason == "Error" && !self.unanswered.is_empty();
        self.reason = if taken_back { "StartError" } else { reason }.to_owned();
        self.message = if taken_back && message.is_empty() { &self.unanswered } else { message }.to_owned();
        // The agent's "so long ago" and the moment at which its answer to the start came here are two clocks' readings.
        self.finished_at = finished_at.max(self.created_at).max(self.started_at);
        // A start of 0 would mean "never started" to the kubelet, which then waits for it.
        if self.started_at == 0 {
            self.started_at = self.finished_at;
        }
    }

    /// Whether its program ran, or runs. One that was never started has an end with a message, and no time before it; the end of a
    /// short one may be known before its start, so that there is no time either, but then nothing needs to be said about it.
    pub(crate) fn ran(&self) -> bool {
        let ended = self.finished_at != 0;
        self.started_at != 0 && (!ended || self.started_at < self.finished_at || self.message.is_empty())
    }

    /// Neither ended nor about to go.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, ContainerPhase::Created | ContainerPhase::Starting | ContainerPhase::Running)
    }
}
