//! Where containers' output goes: on a node into log files, in a microVM to the monitor.
//!
//! Output is read from a container's pipe only when there is somewhere to put it, so little is held: without a log file the pipe
//! fills and the container waits. What a full or failing disk does not take is lost, so that no container waits for it.

pub mod host;
pub mod tee;
pub mod vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::container::stdio::End;

/// Most that is read at once.
const CHUNK: usize = 32 * 1024;

/// The way out.
#[derive(Debug, Clone)]
pub enum Logs {
    /// Log files whose descriptors the daemon hands over.
    Host(host::Sinks),
    /// Frames to the monitor.
    Vm,
}

impl Logs {
    /// Carries the output of container `id` until it ends, and shows it to those who are attached.
    pub fn pump(&self, id: &str, tee: tee::Tee, stdout: Option<End>, stderr: Option<End>) -> Pump {
        let (done, drained) = watch::channel(false);
        let open = Arc::new(AtomicBool::new(false));
        let (id, logs, opened) = (id.to_owned(), self.clone(), open.clone());
        let task = tokio::spawn(async move {
            match &logs {
                Self::Host(sinks) => host::carry(sinks, &id, &tee, stdout, stderr).await,
                Self::Vm => vm::carry(&id, &tee, stdout, stderr, &opened).await,
            }
            done.send_replace(true);
        });
        Pump { task, drained, open }
    }

    /// Whether output of a container has somewhere to go, so that waiting for its end makes sense.
    pub fn flows(&self, id: &str, pump: &Pump) -> bool {
        match self {
            Self::Host(sinks) => sinks.has(id),
            Self::Vm => pump.open.load(Ordering::Relaxed),
        }
    }
}

/// Output on its way; stops when dropped.
#[derive(Debug)]
pub struct Pump {
    task: JoinHandle<()>,
    drained: watch::Receiver<bool>,
    open: Arc<AtomicBool>,
}

impl Pump {
    /// Becomes true when all is written.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.drained.clone()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}
