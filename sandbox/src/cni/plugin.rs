//! One run of one plugin.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::INTERFACE;
use crate::error::{Doing, SandboxError};

/// Longest answer of a plugin, bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// What is kept of its standard error, bytes.
const MAX_STDERR: u64 = 8 << 10;
/// Where plugins find iptables and the like; nothing else of the daemon's environment reaches them.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plugin is called with.
pub(super) struct Call<'a> {
    pub(super) program: &'a Path,
    pub(super) command: &'a str,
    pub(super) container: &'a str,
    pub(super) netns: Option<&'a Path>,
    pub(super) args: &'a str,
    pub(super) path: &'a [PathBuf],
    pub(super) limit: Duration,
}

/// What is left of a run.
struct Ended {
    success: bool,
    status: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Call<'_> {
    /// Runs it; the answer, if there was one. Whatever the plugin started is killed when it takes too long.
    pub(super) async fn run(&self, step: &str, input: &Value) -> Result<Option<Value>, SandboxError> {
        let child = self.spawn().doing(|| step.to_owned())?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let killer = GroupKiller(group);
        let ended = tokio::time::timeout(self.limit, finish(child, input.to_string().into_bytes())).await;
        let Ok(ended) = ended else {
            drop(killer);
            return Err(SandboxError::TimedOut { step: step.to_owned(), seconds: self.limit.as_secs() });
        };
        std::mem::forget(killer); // it ended by itself, and its id may be somebody else's by now
        let ended = ended.doing(|| step.to_owned())?;
        if !ended.success {
            return Err(SandboxError::step(step, complaint(&ended)));
        }
        if ended.stdout.len() as u64 > MAX_ANSWER {
            return Err(SandboxError::step(step, format!("it answered more than {MAX_ANSWER} bytes")));
        }
        if ended.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        serde_json::from_slice(&ended.stdout)
            .map(Some)
            .map_err(|error| SandboxError::step(step, format!("its answer is malformed: {error}")))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let path: Vec<OsString> = self.path.iter().map(|folder| folder.clone().into_os_string()).collect();
        Command::new(self.program)
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", self.netns.unwrap_or(Path::new("")))
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", path.join(&OsString::from(":")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// Kills a process group when dropped: when the call is given up on, or cancelled.
struct GroupKiller(Option<Pid>);

impl Drop for GroupKiller {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn finish(mut child: Child, input: Vec<u8>) -> std::io::Result<Ended> {
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A plugin need not read: its status tells.
            let _ = stdin.write_all(&input).await;
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ((), stdout, stderr) = tokio::join!(feed, drain(stdout, MAX_ANSWER), drain(stderr, MAX_STDERR));
    let status = child.wait().await?;
    Ok(Ended { success: status.success(), status: status.to_string(), stdout: stdout?, stderr: stderr? })
}

/// Reads to the end, and keeps `limit` bytes and one more as a sign that there were more.
async fn drain(from: Option<impl AsyncRead + Unpin>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    (&mut from).take(limit + 1).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(kept)
}

/// What the plugin says of its failure: the error object of the specification, else its standard error.
fn complaint(ended: &Ended) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    if let Ok(Value::Object(error)) = serde_json::from_slice::<Value>(&ended.stdout) {
        let (message, details) = (text(error.get("msg")), text(error.get("details")));
        if !message.is_empty() {
            let details = if details.is_empty() { details } else { format!("; {details}") };
            let code = error.get("code").map_or(String::new(), |code| format!(" (code {code})"));
            return format!("{message}{details}{code}");
        }
    }
    let stderr = String::from_utf8_lossy(&ended.stderr);
    let last = stderr.trim();
    if last.is_empty() { format!("it failed with {} and said nothing", ended.status) } else { last.to_owned() }
}
