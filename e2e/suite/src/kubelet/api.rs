//! The kubelet as systemd runs it, and its own API. It speaks TLS with a certificate that it made itself, so curl asks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::crictl::{self, run};
use crate::daemon::systemctl;
use crate::failure::{Doing, Failure, Outcome, ensure};

const ADDRESS: &str = "https://127.0.0.1:10250";
const UNIT: &str = "kubelet.service";
/// Where it looks for pods.
pub(super) const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// How long anything may take: the node is emulated, on a machine that others use, and a kubelet clears up once a minute.
const PATIENCE: Duration = Duration::from_secs(600);
/// A question costs a process and a TLS handshake, which an emulated node feels.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits for something that the kubelet is to do.
pub(super) fn wait(what: &str, condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    crictl::wait_within(PATIENCE, PAUSE, what, condition)
}

/// Starts it and waits until it answers.
pub(super) fn start() -> Outcome {
    fs::create_dir_all(MANIFESTS).doing(&format!("make {MANIFESTS}"))?;
    systemctl(&["start", UNIT])?;
    wait_healthy()
}

/// Starts it anew.
pub(super) fn restart() -> Outcome {
    systemctl(&["restart", UNIT])?;
    wait_healthy()
}

fn wait_healthy() -> Outcome {
    wait("the kubelet to be healthy: see 'journalctl -u kubelet'", || {
        ensure!(systemctl(&["is-active", UNIT]).is_ok(), "the kubelet ended: see 'journalctl -u kubelet'");
        Ok(get("/healthz").is_ok_and(|answer| answer == "ok"))
    })
}

/// What it calls itself.
pub(super) fn version() -> Outcome<String> {
    let mut command = Command::new("kubelet");
    command.arg("--version");
    Ok(run(command, "kubelet --version")?.stdout.trim().trim_start_matches("Kubernetes ").to_owned())
}

/// Puts a manifest where the kubelet finds it, whole: one that is being written would be read half.
pub(super) fn place(name: &str, manifest: &str) -> Outcome {
    let draft = Path::new("/etc/kubernetes").join(name);
    fs::write(&draft, manifest).doing(&format!("write {}", draft.display()))?;
    fs::rename(&draft, Path::new(MANIFESTS).join(name)).doing(&format!("put {name} into {MANIFESTS}"))
}

/// Takes a manifest away.
pub(super) fn withdraw(name: &str) -> Outcome {
    fs::remove_file(Path::new(MANIFESTS).join(name)).doing(&format!("remove {name} from {MANIFESTS}"))
}

/// Asks with GET.
pub(super) fn get(path: &str) -> Outcome<String> {
    ask("GET", path)
}

/// Runs a command in a container, and takes both of its outputs. The kubelet splits it at every space: what needs more is a script.
pub(super) fn run_in(pod: &str, container: &str, command: &str) -> Outcome<String> {
    ask("POST", &format!("/run/default/{pod}/{container}?cmd={}", escaped(command)))
}

/// A container's log.
pub(super) fn log(pod: &str, container: &str, query: &str) -> Outcome<String> {
    get(&format!("/containerLogs/default/{pod}/{container}{query}"))
}

/// The lines of the kubelet's own journal that contain `text`, by the kubelet.
pub(super) fn journal(text: &str) -> Outcome<String> {
    get(&format!("/logs/?query=kubelet&pattern={}", escaped(text)))
}

/// Asks with GET for JSON.
pub(super) fn json(path: &str) -> Outcome<Value> {
    serde_json::from_str(&get(path)?).doing(&format!("read the JSON of the kubelet's {path}"))
}

fn ask(method: &str, path: &str) -> Outcome<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--insecure", "--fail-with-body", "--max-time", "300", "-X", method]);
    command.arg(format!("{ADDRESS}{path}"));
    let output = run(command, &format!("{method} {path}"))?;
    ensure!(
        output.code == 0,
        "the kubelet's {method} {path} failed: {} {}",
        output.stdout.trim(),
        output.stderr.trim()
    );
    Ok(output.stdout)
}

fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A pod as the kubelet's `/pods` tells it.
#[derive(Debug)]
pub(super) struct Pod(Value);

impl Pod {
    /// The pod of this name and namespace, once the kubelet knows it.
    pub(super) fn find(namespace: &str, name: &str) -> Outcome<Option<Self>> {
        let pods = json("/pods")?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        let is_it = |pod: &Value| pod["metadata"]["name"] == name && pod["metadata"]["namespace"] == namespace;
        Ok(items.into_iter().find(is_it).map(Self))
    }

    /// Waits until the pod fulfils a condition; after that long without, its status is what the failure tells.
    pub(super) fn wait(namespace: &str, name: &str, what: &str, condition: impl Fn(&Self) -> bool) -> Outcome<Self> {
        let mut last = None;
        let waited = wait(what, || {
            last = Self::find(namespace, name)?;
            Ok(last.as_ref().is_some_and(&condition))
        });
        match (waited, last) {
            (Ok(()), Some(pod)) => Ok(pod),
            (Err(why), Some(pod)) => Err(Failure(format!("{why}; the pod's status: {}", pod.0["status"]))),
            (outcome, None) => Err(Failure(format!("the kubelet does not list pod {namespace}/{name}: {outcome:?}"))),
        }
    }

    /// Whether all of it is ready.
    pub(super) fn is_ready(&self) -> bool {
        let conditions = self.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// A field of the status.
    pub(super) fn status(&self, pointer: &str) -> Value {
        self.0.pointer(&format!("/status{pointer}")).cloned().unwrap_or_default()
    }

    /// The status of one of its containers, init containers included.
    pub(super) fn container(&self, name: &str) -> Outcome<Value> {
        let found = ["containerStatuses", "initContainerStatuses"]
            .iter()
            .find_map(|list| self.0["status"][list].as_array()?.iter().find(|status| status["name"] == name).cloned());
        found.ok_or_else(|| Failure(format!("the pod has no container {name}: {}", self.0["status"])))
    }

    /// What must stay the same when nothing is restarted: for each container its id, count of restarts and start.
    pub(super) fn lives(&self) -> Vec<String> {
        let containers = self.0["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let life = |status: &Value| {
            let started = status.pointer("/state/running/startedAt").cloned().unwrap_or_default();
            format!("{} {} restarts {} since {started}", status["name"], status["containerID"], status["restartCount"])
        };
        containers.iter().map(life).collect()
    }
}
