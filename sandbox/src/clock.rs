#![allow(unsafe_code)] // AsyncFd::register
//! A microVM's clock follows the node's.
//!
//! A guest is told the time when its pod is configured, and its clock then runs by itself. The node's may be set, sleep with the
//! node, or be steered by NTP. So each pod's clock is looked at from time to time, and at once when the node's clock was set; the agent
//! puts right what is more than the way to it can explain.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent::{CLOCK_SINCE, ClockReply, ClockRequest};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tonic::Status;

use crate::pod::Pod;
use crate::runtime::Shared;
use crate::spec::Kind;

/// How often a clock is looked at.
const EVERY: Duration = Duration::from_secs(60);
/// When it is for the first time, in a pod that has just been told the time.
const AFTER_LAUNCH: Duration = Duration::from_secs(20);
/// How long an agent may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// What is right enough, in nanoseconds.
const TOLERANCE: u64 = 5_000_000;
/// How often one look may set the clock: the second time tells whether it is right now.
const ROUNDS: usize = 3;

/// Tells when the node's clock was set.
#[derive(Default)]
pub(crate) struct Steps {
    sender: OnceLock<watch::Sender<()>>,
}

impl Steps {
    /// Changes at each time that the node's clock is set from now on, or that the node has slept.
    fn subscribe(&self) -> watch::Receiver<()> {
        let sender = self.sender.get_or_init(|| {
            let sender = watch::Sender::new(());
            let steps = sender.clone();
            tokio::spawn(async move {
                if let Err(error) = watch_node(&steps).await {
                    tracing::warn!(%error, seconds = EVERY.as_secs(), "cannot hear that the node's clock is set; \
                        the clocks of microVMs will follow it when they are looked at");
                }
            });
            sender
        });
        sender.subscribe()
    }
}

/// Tells `steps` of each time that the node's clock is set.
async fn watch_node(steps: &watch::Sender<()>) -> io::Result<()> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = Arc::new(timerfd_create(TimerfdClockId::Realtime, flags)?);
    // SAFETY: the Arc keeps one OwnedFd open, which is the same descriptor for all its life.
    let timer = unsafe { AsyncFd::register(timer) }.map_err(io::Error::from)?;
    // It never ends by itself.
    let never = Timespec { tv_sec: i64::from(i32::MAX) << 10, tv_nsec: 0 };
    let never = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    loop {
        match timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never) {
            Ok(_) => {}
            // The clock was set since the last time; the timer is started all the same.
            Err(Errno::CANCELED) => steps.send_replace(()),
            Err(error) => return Err(error.into()),
        }
        loop {
            let mut ready = timer.readable().await?;
            match rustix::io::read(&timer, &mut [0_u8; 8]) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::CANCELED) | Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        steps.send_replace(());
    }
}

/// Has the clock of a microVM follow the node's until the pod ends. `adopted`: nobody may have looked for long.
pub(crate) fn follow(shared: &Arc<Shared>, pod: &Pod, adopted: bool) {
    if pod.kind() != Kind::Vm {
        return;
    }
    let (pod, mut steps) = (pod.clone(), shared.clock_steps.subscribe());
    tokio::spawn(async move {
        let mut wait = if adopted { Duration::ZERO } else { AFTER_LAUNCH };
        loop {
            tokio::select! {
                _ = pod.ended() => return,
                _ = steps.changed() => {} // the sender is never dropped
                () = tokio::time::sleep(wait) => {}
            }
            wait = EVERY;
            match tokio::time::timeout(LIMIT, put_right(&pod)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    tracing::info!(pod = pod.id(), "the pod's agent is of a version that does not set its clock");
                    return;
                }
                Ok(Err(error)) => tracing::debug!(pod = pod.id(), %error, "the pod's clock was not looked at"),
                Err(_) => tracing::debug!(pod = pod.id(), "the pod's agent does not answer what time it is"),
            }
        }
    });
}

/// Whether the agent is one that does.
async fn put_right(pod: &Pod) -> Result<bool, Status> {
    let api = pod.agent_api().await.map_err(|error| Status::unavailable(error.to_string()))?;
    if api < CLOCK_SINCE {
        return Ok(false);
    }
    let mut agent = pod.agent();
    for _ in 0..ROUNDS {
        let (before, node) = (Instant::now(), SystemTime::now());
        let ClockReply { unix_nanos, .. } = agent.clock(ClockRequest { adjust_nanos: 0 }).await?.into_inner();
        let Some(adjust_nanos) = correction(node, before.elapsed(), unix_nanos) else { return Ok(true) };
        let ClockReply { stepped, .. } = agent.clock(ClockRequest { adjust_nanos }).await?.into_inner();
        tracing::info!(pod = pod.id(), adjust_ms = adjust_nanos / 1_000_000, stepped, "the pod's clock was put right");
        if !stepped {
            return Ok(true); // it comes right by and by
        }
    }
    Ok(true)
}

/// By how much a guest's clock is to be changed that read `guest` at some time in the `took` since the node's clock read `node`. Nothing
/// when it may be right.
fn correction(node: SystemTime, took: Duration, guest: i64) -> Option<i64> {
    let half = took / 2;
    let node = node.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_add(half);
    let node = i64::try_from(node.as_nanos()).unwrap_or(i64::MAX);
    let wanted = node.saturating_sub(guest);
    let unsure = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).saturating_add(TOLERANCE);
    (wanted.unsigned_abs() > unsure).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600 * 1_000_000_000;

    #[test]
    fn only_what_the_way_does_not_explain_is_put_right() {
        let node = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let at = 1_800_000_000 * 1_000_000_000_i64;
        let ms = |count: i64| count * 1_000_000;
        let quick = Duration::from_millis(2);
        // The guest's clock was read in the middle, as far as anyone knows.
        assert_eq!(correction(node, quick, at + ms(1)), None);
        assert_eq!(correction(node, quick, at + ms(7)), None);
        assert_eq!(correction(node, quick, at + ms(8)), Some(-ms(7)));
        assert_eq!(correction(node, quick, at + ms(1) - HOUR), Some(HOUR));
        assert_eq!(correction(node, quick, at + ms(1) + HOUR), Some(-HOUR));
        // A slow answer says little.
        let slow = Duration::from_secs(2);
        assert_eq!(correction(node, slow, at), None);
        assert_eq!(correction(node, slow, at + ms(2000)), None);
        assert_eq!(correction(node, slow, at - ms(100)), Some(ms(1100)));
        // Whatever a guest says is a number.
        assert!(correction(node, quick, i64::MIN).is_some_and(|by| by == i64::MAX));
        assert!(correction(node, Duration::MAX, i64::MAX).is_none());
    }

    #[tokio::test]
    async fn a_clock_that_is_not_set_is_not_told_of() {
        let steps = Steps::default();
        let mut first = steps.subscribe();
        let second = steps.subscribe();
        assert!(tokio::time::timeout(Duration::from_millis(50), first.changed()).await.is_err());
        assert!(!second.has_changed().unwrap());
    }
}
