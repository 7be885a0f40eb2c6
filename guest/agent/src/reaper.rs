//! Ended children. The agent is PID 1 (of the guest or of the pod) or a subreaper, so orphans are its children too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{Doing, Result};
use crate::lock;

/// Hands out exit codes.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    waiting: Arc<Mutex<HashMap<i32, oneshot::Sender<i32>>>>,
}

impl Reaper {
    /// Starts to reap whatever ends.
    ///
    /// # Errors
    /// When the signal cannot be watched.
    pub fn start() -> Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child()).doing("watch SIGCHLD")?;
        let this = reaper.clone();
        tokio::spawn(async move {
            loop {
                this.reap();
                if children.recv().await.is_none() {
                    break;
                }
            }
        });
        Ok(reaper)
    }

    /// The exit code of a child that was forked just now: no other task has run since, so it was not reaped yet.
    pub fn watch(&self, pid: Pid) -> oneshot::Receiver<i32> {
        let (send, receive) = oneshot::channel();
        lock(&self.waiting).insert(pid.as_raw_nonzero().get(), send);
        receive
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            if let Some(waiting) = lock(&self.waiting).remove(&pid.as_raw_nonzero().get()) {
                let _ = waiting.send(code);
            }
        }
    }
}
