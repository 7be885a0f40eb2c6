//! What a microVM's agent does before it has a pod: it waits to be saved as a template, and makes
//! the guest one of its own afterwards.
//!
//! A VM that was restored has the memory of its template, and so its random numbers and its clock.
//! Nothing of a pod runs before both are its own.

use std::fs;

use cofferdam_proto::agent::MountPodRequest;
use rustix::time::{ClockId, Timespec, clock_settime};
use tokio::sync::{Mutex, oneshot};

use crate::agent::{Agent, Mode};
use crate::error::{Doing, Error, Kind, Result};
use crate::{guest, sys};

/// Bytes of a seed: as many as the kernel's generator has, and no more than a page.
const SEED: std::ops::RangeInclusive<usize> = 32..=4096;

/// How far the guest is.
#[derive(Debug, Default)]
pub struct BeforePod {
    /// The exit code of the process that prepares the cgroups of containers, until it was waited for.
    preparing: Mutex<Option<oneshot::Receiver<i32>>>,
    /// Disk and share are mounted.
    mounted: Mutex<bool>,
}

impl BeforePod {
    /// The agent is not settled before the process ends whose exit code `preparing` tells.
    pub async fn settles_after(&self, preparing: oneshot::Receiver<i32>) {
        *self.preparing.lock().await = Some(preparing);
    }

    /// # Errors
    /// Before [`mount`].
    pub async fn must_be_mounted(&self) -> Result<()> {
        match *self.mounted.lock().await {
            true => Ok(()),
            false => Err(Error::precondition("MountPod comes before ConfigurePod")),
        }
    }
}

/// Waits until nothing is under way that a clone would have to finish.
///
/// # Errors
/// On the node, with a pod, and when the cgroups of containers could not be prepared.
pub async fn settle(agent: &Agent) -> Result<()> {
    must_be_guest(agent)?;
    if *agent.before_pod.mounted.lock().await {
        return Err(Error::precondition("the guest has a pod's disk and share already"));
    }
    let mut preparing = agent.before_pod.preparing.lock().await;
    if let Some(process) = preparing.as_mut() {
        let code = process.await.doing("wait for a process")?;
        *preparing = None;
        if code != 0 {
            return Err(Error::new(Kind::Internal, "the cgroups of containers cannot be prepared"));
        }
    }
    Ok(())
}

/// Gives the guest its random numbers and its clock, and mounts disk and share, once.
///
/// # Errors
/// Says what failed. What was mounted stays, so the guest is of no use then.
pub async fn mount(agent: &Agent, request: &MountPodRequest) -> Result<()> {
    must_be_guest(agent)?;
    let seed = &request.random_seed;
    if !SEED.contains(&seed.len()) {
        let (least, most) = SEED.into_inner();
        return Err(Error::invalid(format!("a random seed has {least} to {most} bytes, not {}", seed.len())));
    }
    let random = fs::File::options().write(true).open("/dev/random").doing("open /dev/random")?;
    sys::add_entropy(&random, seed).doing("add randomness")?;
    sys::reseed(&random).doing("begin anew with random numbers")?;
    let nanos = request.clock_unix_nanos;
    if nanos <= 0 {
        return Err(Error::invalid(format!("{nanos} ns since the epoch is not the node's clock")));
    }
    let time = Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    clock_settime(ClockId::Realtime, time).doing("set the clock")?;
    let mut mounted = agent.before_pod.mounted.lock().await;
    if !*mounted {
        guest::mount_pod()?;
        *mounted = true;
    }
    Ok(())
}

fn must_be_guest(agent: &Agent) -> Result<()> {
    match agent.mode {
        Mode::Vm => Ok(()),
        Mode::Host => Err(Error::precondition("only a microVM has a disk and a share of its pod's")),
    }
}
