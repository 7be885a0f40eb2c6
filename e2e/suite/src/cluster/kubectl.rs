//! kubectl, as its users run it: the program, with the kubeconfig of the environment.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::crictl::wait_within;
use crate::failure::{Doing, Outcome, ensure};

/// The longest that anything takes in an emulated node.
const LIMIT: Duration = Duration::from_secs(420);
const PAUSE: Duration = Duration::from_millis(500);

/// Runs kubectl and answers what it printed.
pub(super) fn kubectl(arguments: &[&str]) -> Outcome<String> {
    kubectl_in(arguments, "")
}

/// Runs kubectl with `input` as its standard input.
pub(super) fn kubectl_in(arguments: &[&str], input: &str) -> Outcome<String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing("run kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A kubectl that has already failed reads nothing; its message says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().doing("run kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a condition as long as an emulated node may need for it.
pub(super) fn wait(what: &str, condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    wait_within(LIMIT, PAUSE, what, condition)
}

/// Ends a program that goes on beside a test, whichever way the test ends.
pub(super) struct Beside(pub(super) Child);

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace of the cluster, and what a test does in it.
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    /// Makes it, and waits for its service account, without which no pod can be made.
    pub(super) fn new(name: &str) -> Outcome<Self> {
        kubectl(&["create", "namespace", name])?;
        let namespace = Self { name: name.to_owned() };
        wait("the namespace's service account", || Ok(namespace.run(&["get", "serviceaccount", "default"]).is_ok()))?;
        Ok(namespace)
    }

    /// Deletes it and waits until nothing of it is left.
    pub(super) fn delete(&self) -> Outcome {
        kubectl(&["delete", "namespace", &self.name, "--timeout=420s"]).map(drop)
    }

    /// What its pods are and what happened to them, for a failure's report.
    pub(super) fn described(&self) -> String {
        let pods = self.run(&["get", "pods", "-o", "wide"]).unwrap_or_default();
        let events = self.run(&["get", "events", "--sort-by=.lastTimestamp"]).unwrap_or_default();
        format!("{pods}\n{events}")
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["--namespace", &self.name];
        all.extend(arguments);
        all
    }

    /// Runs kubectl here.
    pub(super) fn run(&self, arguments: &[&str]) -> Outcome<String> {
        kubectl(&self.arguments(arguments))
    }

    /// Runs kubectl here with an input.
    pub(super) fn run_in(&self, arguments: &[&str], input: &str) -> Outcome<String> {
        kubectl_in(&self.arguments(arguments), input)
    }

    /// A kubectl of here that goes on beside the test.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(self.arguments(arguments));
        command
    }

    /// Applies a manifest whose `${NAME}` are replaced.
    pub(super) fn apply(&self, manifest: &str, values: &[(&str, &str)]) -> Outcome {
        let mut text = manifest.to_owned();
        for (name, value) in values {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        self.run_in(&["apply", "-f", "-"], &text).map(drop)
    }

    /// An object as JSON.
    pub(super) fn get(&self, object: &str) -> Outcome<Value> {
        serde_json::from_str(&self.run(&["get", object, "-o", "json"])?).doing("read what kubectl printed")
    }

    /// One field of an object, by a JSON pointer (RFC 6901); empty if it is not there.
    pub(super) fn field(&self, object: &str, pointer: &str) -> Outcome<String> {
        Ok(match self.get(object)?.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        })
    }

    /// Waits until a field of an object has a value.
    pub(super) fn wait_field(&self, object: &str, pointer: &str, wanted: &str) -> Outcome {
        let mut last = String::new();
        let waited = wait(&format!("{object}'s {pointer} to be {wanted:?}"), || {
            last = self.field(object, pointer)?;
            Ok(last == wanted)
        });
        waited.map_err(|failure| format!("{failure}; it is {last:?}").into())
    }

    /// Waits until a pod is Ready.
    pub(super) fn wait_ready(&self, pod: &str) -> Outcome {
        self.run(&["wait", "--for=condition=Ready", "--timeout=420s", &format!("pod/{pod}")]).map(drop)
    }

    /// Waits until the rollout of an object is done.
    pub(super) fn wait_rollout(&self, object: &str) -> Outcome {
        self.run(&["rollout", "status", object, "--timeout=420s"]).map(drop)
    }

    /// Runs a shell's command in a pod's (first) container.
    pub(super) fn sh(&self, pod: &str, script: &str) -> Outcome<String> {
        self.run(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Waits until a shell's command in a pod prints `wanted`.
    pub(super) fn wait_sh(&self, pod: &str, script: &str, wanted: &str) -> Outcome {
        let mut last = String::new();
        let waited = wait(&format!("{script:?} in {pod} to print {wanted:?}"), || {
            last = self.sh(pod, script).unwrap_or_else(|failure| failure.0).trim().to_owned();
            Ok(last == wanted)
        });
        waited.map_err(|failure| format!("{failure}; it prints {last:?}").into())
    }
}
