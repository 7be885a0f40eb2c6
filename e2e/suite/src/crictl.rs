//! The real crictl, and the JSON files that it wants. Calls of which tests make hundreds are made by [`direct`], in its words.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use serde_json::{Value, json};

use crate::direct;
use crate::failure::{Doing, Failure, Outcome, ensure};

/// The daemon's socket.
pub(crate) const SOCKET: &str = "/run/cofferdam/cofferdam.sock";
/// Where pods' logs go.
pub(crate) const LOGS: &str = "/var/log/cofferdam-e2e";
/// The image of most tests.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/cofferdam/busybox:1";

static NARRATE: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Prints every command and its output from now on.
pub(crate) fn narrate() {
    NARRATE.store(true, Ordering::Relaxed);
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A crictl that talks to one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Crictl {
    socket: PathBuf,
    /// Whether every call is made by a process of crictl.
    real: bool,
}

impl Default for Crictl {
    fn default() -> Self {
        Self::on(Path::new(SOCKET))
    }
}

impl Crictl {
    /// The crictl for the daemon that listens on `socket`.
    pub(crate) fn on(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), real: false }
    }

    /// One that makes no call by itself: where crictl's own part matters, or people look on.
    pub(crate) fn real() -> Self {
        Self { real: true, ..Self::default() }
    }

    /// A crictl that the caller starts and talks to.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("crictl");
        let endpoint = format!("unix://{}", self.socket.display());
        command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "--timeout", "300s"]);
        command.args(args);
        command
    }

    /// Makes a call, whatever comes of it.
    pub(crate) fn attempt(&self, args: &[&str]) -> Outcome<Output> {
        if !self.real
            && let Some(output) = direct::call(&self.socket, args)?
        {
            return Ok(output);
        }
        self.process(args)
    }

    fn process(&self, args: &[&str]) -> Outcome<Output> {
        let command = self.command(args);
        run(command, &format!("crictl {}", args.join(" ")))
    }

    /// Runs crictl and takes its trimmed standard output; anything but status 0 is a failure.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome<String> {
        let output = self.attempt(args)?;
        ensure!(
            output.code == 0,
            "crictl {} ended with status {}: {}{}",
            args.join(" "),
            output.code,
            output.stderr.trim(),
            output.stdout.trim()
        );
        Ok(output.stdout.trim().to_owned())
    }

    /// Runs the real crictl, which must fail with a message that contains each of `wanted`.
    pub(crate) fn refused(&self, args: &[&str], wanted: &[&str]) -> Outcome {
        let output = self.process(args)?;
        ensure!(output.code != 0, "crictl {} should fail and printed: {}", args.join(" "), output.stdout);
        for text in wanted {
            ensure!(
                output.stderr.contains(text),
                "crictl {} failed without saying {text:?}: {}",
                args.join(" "),
                output.stderr.trim()
            );
        }
        Ok(())
    }

    /// A JSON answer.
    pub(crate) fn json(&self, args: &[&str]) -> Outcome<Value> {
        let text = self.run(args)?;
        serde_json::from_str(&text).doing(&format!("read the JSON of crictl {}", args.join(" ")))
    }

    /// Runs a pod sandbox and returns its id.
    pub(crate) fn run_pod(&self, handler: &str, pod: &Pod) -> Outcome<String> {
        self.run(&["runp", "--runtime", handler, &pod.file()?])
    }

    /// Creates and starts a container and returns its id.
    pub(crate) fn run_container(&self, pod_id: &str, pod: &Pod, container: &Container) -> Outcome<String> {
        let id = self.run(&["create", pod_id, &container.file()?, &pod.file()?])?;
        self.run(&["start", &id])?;
        Ok(id)
    }

    /// Stops and removes a pod with everything in it.
    pub(crate) fn remove_pod(&self, id: &str) -> Outcome {
        self.run(&["stopp", id])?;
        self.run(&["rmp", id]).map(drop)
    }

    /// One string field of a container's status, such as `/status/state`.
    pub(crate) fn container_field(&self, id: &str, pointer: &str) -> Outcome<String> {
        if !self.real
            && let Some(text) = status_field(&direct::container_status(&self.socket, id)?, pointer)
        {
            return Ok(text);
        }
        let status = self.json(&["inspect", "-o", "json", id])?;
        let value =
            status.pointer(pointer).ok_or_else(|| Failure(format!("status of {id} has no {pointer}: {status}")))?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Waits until a container is in `state`.
    pub(crate) fn wait_state(&self, id: &str, state: &str) -> Outcome {
        wait_for(&format!("container {id} to be {state}"), || Ok(self.container_field(id, "/status/state")? == state))
    }

    /// What a container has said so far, on both streams.
    pub(crate) fn log(&self, id: &str) -> Outcome<String> {
        let path = self.container_field(id, "/status/logPath")?;
        Ok(lines(&fs::read_to_string(&path).doing(&format!("read the log {path}"))?))
    }

    /// Waits until a container's log contains `text`.
    pub(crate) fn wait_log(&self, id: &str, text: &str) -> Outcome<String> {
        let path = self.container_field(id, "/status/logPath")?;
        let mut log = String::new();
        wait_for(&format!("{text:?} in the log of {id}"), || {
            log = fs::read_to_string(&path).map(|records| lines(&records)).unwrap_or_default();
            Ok(log.contains(text))
        })?;
        Ok(log)
    }
}

/// What crictl shows at `pointer`, of the fields that tests ask for.
fn status_field(status: &cri::ContainerStatus, pointer: &str) -> Option<String> {
    Some(match pointer {
        "/status/state" => status.state().as_str_name().to_owned(),
        "/status/exitCode" => status.exit_code.to_string(),
        "/status/reason" => status.reason.clone(),
        "/status/message" => status.message.clone(),
        "/status/logPath" => status.log_path.clone(),
        _ => return None,
    })
}

/// What the records of a log in CRI's format say: `TIME STREAM TAG TEXT`, where a line's last record is tagged `F`.
fn lines(records: &str) -> String {
    let mut text = String::new();
    for record in records.lines() {
        let mut fields = record.splitn(4, ' ').skip(2);
        let (tag, part) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        text.push_str(part);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

/// Waits for a condition with a limit that suits an emulated node.
pub(crate) fn wait_for(what: &str, condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    wait_within(Duration::from_secs(180), Duration::from_millis(100), what, condition)
}

/// Waits for a condition at most for `limit`, looking again after each `pause`.
pub(crate) fn wait_within(
    limit: Duration,
    pause: Duration,
    what: &str,
    mut condition: impl FnMut() -> Outcome<bool>,
) -> Outcome {
    let started = Instant::now();
    loop {
        if condition()? {
            return Ok(());
        }
        ensure!(started.elapsed() < limit, "waited {} s for {what}", limit.as_secs());
        std::thread::sleep(pause);
    }
}

/// Runs any command, shown as `shown` when the tour is on.
pub(crate) fn run(mut command: Command, shown: &str) -> Outcome<Output> {
    let narrate = NARRATE.load(Ordering::Relaxed);
    if narrate {
        println!("  \x1b[1m$ {shown}\x1b[0m");
    }
    let output = command.stdin(Stdio::null()).output().doing(&format!("run {shown}"))?;
    let output = Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    if narrate {
        let mut text = String::new();
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            let _ = writeln!(text, "    {line}");
        }
        print!("{text}");
    }
    Ok(output)
}

fn write_config(kind: &str, value: &Value) -> Outcome<String> {
    let folder = PathBuf::from("/run/cofferdam-e2e");
    fs::create_dir_all(&folder).doing("make /run/cofferdam-e2e")?;
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("unnamed");
    let path = folder.join(format!("{name}.{kind}.json"));
    fs::write(&path, value.to_string()).doing("write a crictl configuration")?;
    Ok(path.display().to_string())
}

/// A pod's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Pod(pub(crate) Value);

impl Pod {
    /// A pod of its own uid, with the cluster's usual fields.
    pub(crate) fn new(name: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{name}-{}-{number}", std::process::id());
        Self(json!({
            "metadata": {"name": name, "namespace": "e2e", "uid": uid, "attempt": 0},
            "hostname": name,
            "log_directory": format!("{LOGS}/{uid}"),
            "dns_config": {"servers": ["10.88.0.1"], "searches": ["e2e.local"], "options": ["ndots:2"]},
            "linux": {},
        }))
    }

    /// With a JSON value at a pointer's last key.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.0[key] = value;
        self
    }

    /// Writes it for crictl and returns the path.
    pub(crate) fn file(&self) -> Outcome<String> {
        write_config("pod", &self.0)
    }
}

/// A container's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Container(pub(crate) Value);

impl Container {
    /// A container of `image` that runs `command`.
    pub(crate) fn new(name: &str, image: &str, command: &[&str]) -> Self {
        Self(json!({
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image},
            "command": command,
            "log_path": format!("{name}.log"),
            "linux": {},
        }))
    }

    /// A shell script in busybox.
    pub(crate) fn shell(name: &str, script: &str) -> Self {
        Self::new(name, BUSYBOX, &["sh", "-c", script])
    }

    /// With a JSON value at a key.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.0[key] = value;
        self
    }

    /// Writes it for crictl and returns the path.
    pub(crate) fn file(&self) -> Outcome<String> {
        write_config("container", &self.0)
    }
}
