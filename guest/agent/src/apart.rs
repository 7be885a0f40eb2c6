//! Work that may keep its thread waiting, in a process of its own: the agent has but one thread.

use std::time::Duration;

use crate::agent::Agent;
use crate::container::channel::{self, Report};
use crate::error::{Doing, Error, Kind, Result};
use crate::sys;

/// Runs `work`, which completes the sentence "the process that `what`", for at most `limit`.
///
/// # Errors
/// Those of `work`, or that it did not end; it is killed then.
pub async fn run(agent: &Agent, what: &str, limit: Duration, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, theirs) = channel::pair()?;
    let child = sys::fork(0, None, || match work() {
        Ok(()) => 0,
        Err(error) => {
            let _ = theirs.report(&Report::Failed(error.kind(), error.chain()), None);
            1
        }
    })
    .doing("start a process")?;
    let ended = agent.reaper.watch(child.pid);
    drop(theirs);
    let done = async {
        ours.running().await?;
        match ended.await {
            Ok(0) => Ok(()),
            code => Err(Error::new(Kind::Internal, format!("the process that {what} ended with {code:?}"))),
        }
    };
    tokio::time::timeout(limit, done).await.unwrap_or_else(|_| {
        let _ = sys::pidfd_kill(&child.pidfd, libc::SIGKILL);
        let seconds = limit.as_secs();
        Err(Error::new(Kind::Internal, format!("the process that {what} did not end in {seconds} s")))
    })
}
