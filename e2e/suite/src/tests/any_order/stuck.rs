//! What is said of a call without an answer: whether its connection or the whole daemon is stuck,
//! and where the threads of both sides are. A node is gone when its tests have failed, so this is
//! the only chance to learn it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cofferdam_proto::cri;

use crate::crictl;
use crate::daemon;
use crate::rpc::Client;

/// How long a call that is answered from memory may take here.
const SOON: Duration = Duration::from_secs(20);

/// Asks over the connection that is stuck and over a new one, then looks at the threads and
/// sockets.
pub(super) async fn report(stuck: &Client) -> String {
    let mut report = format!("asked again over the same connection: {}", ask(stuck).await);
    let fresh = match tokio::time::timeout(SOON, Client::connect("fresh", crictl::SOCKET)).await {
        Ok(Ok(client)) => ask(&client).await,
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => format!("no connection within {SOON:?}"),
    };
    let _ = write!(report, "; over a new one: {fresh}");
    let processes = [("daemon", daemon::pid().ok()), ("test", i32::try_from(std::process::id()).ok())];
    for (name, pid) in processes {
        if let Some(pid) = pid {
            let _ = write!(report, "\n{name}'s threads:{}", threads(pid));
        }
    }
    if let Ok(output) = Command::new("ss").args(["-xpn"]).output() {
        let sockets = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in sockets.lines().filter(|l| l.contains("cofferdam.sock") || l.contains("cofferdam-e2e")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let _ = write!(report, "\n{}", words.join(" "));
        }
    }
    report
}

async fn ask(client: &Client) -> String {
    let mut runtime = client.runtime.clone();
    let request = cri::ListPodSandboxRequest { filter: None };
    match tokio::time::timeout(SOON, runtime.list_pod_sandbox(request)).await {
        Ok(Ok(_)) => "answered".into(),
        Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(_) => format!("no answer within {SOON:?}"),
    }
}

/// A line for each thread: its name, where in the kernel it waits, and its system call with
/// arguments.
fn threads(pid: i32) -> String {
    let mut lines = String::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let read = |file: &str| fs::read_to_string(Path::new(&task.path()).join(file)).unwrap_or_default();
        let (name, place, call) = (read("comm"), read("wchan"), read("syscall"));
        let _ = write!(lines, "\n  {}: {} {}", name.trim(), place.trim(), call.trim());
    }
    lines
}
