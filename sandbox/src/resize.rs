//! A running guest's vCPUs and memory (virtio-mem) grow and shrink with the limits of the whole pod, together or not at all; with those of
//! its containers each grows as far as it can.
//!
//! The vCPUs come first: unlike memory, they can always be put back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cofferdam_proto::agent::{ResizeGuestReply, ResizeGuestRequest};
use cofferdam_proto::monitor::{Memory, Request, Status, Vcpus};
use tonic::Code;

use crate::cgroup::PodCgroup;
use crate::error::{SandboxError, blocking};
use crate::pod::Pod;
use crate::spec::{Kind, VmSize};
use crate::{connect, size};

/// How long the guest may plug or unplug nothing before it is taken to be at its end: pages in use are moved away first.
const STALLED: Duration = Duration::from_secs(10);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(90);
/// How long the guest may take to bring its vCPUs up or take them off; its agent gives up before.
const VCPU_LIMIT: Duration = Duration::from_secs(60);

/// Nobody has said how many vCPUs are online in the guest.
pub(crate) const UNKNOWN: u8 = 0;

impl Pod {
    /// What the guest started with; nothing for [`Kind::Host`].
    pub fn vm_size(&self) -> Option<VmSize> {
        (self.kind() == Kind::Vm).then_some(self.inner.spec.vm)
    }

    /// A guest that was just started has the vCPUs that it started with.
    pub(crate) fn has_as_started(&self) {
        self.inner.online.store(self.inner.spec.vm.vcpus, Ordering::Relaxed);
    }

    /// Gives the guest `wanted` in all, and waits until it has it. All or nothing: what the guest did before it could not go on is
    /// undone.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when that is less memory than it started with, more than it can have, or when the guest cannot give
    /// back or take so much.
    pub async fn resize(&self, wanted: VmSize) -> Result<(), SandboxError> {
        let Some(started) = self.vm_size() else { return Ok(()) };
        let now = self.status().await?;
        let vcpus = vcpus_change(started, now.vcpus, wanted.vcpus)?;
        let memory = memory_change(started, now.memory, wanted.memory_mib)?;
        let before = match vcpus {
            Some(vcpus) => Some(self.set_vcpus(vcpus, wanted.vcpus).await?),
            None => None,
        };
        let Some((now, plugged)) = memory else { return Ok(()) };
        let done = self.change_memory(started, now, plugged).await;
        if let (Err(_), Some(vcpus), Some(before)) = (&done, vcpus, before.filter(|before| *before != wanted.vcpus))
            && let Err(error) = self.set_vcpus(vcpus, before).await
        {
            tracing::error!(pod = self.id(), vcpus = before, %error, "vCPUs not put back");
        }
        done
    }

    /// Has the guest grow to `least` of each, as far as it can have so much; nothing ever shrinks. Each of the two is tried whatever
    /// becomes of the other, and what failed is tried again by the next call.
    ///
    /// # Errors
    /// As [`Pod::resize`]; when both fail, that of the vCPUs.
    pub async fn grow(&self, least: VmSize) -> Result<(), SandboxError> {
        let Some(started) = self.vm_size() else { return Ok(()) };
        if least.vcpus <= started.vcpus && least.memory_mib <= started.memory_mib {
            return Ok(());
        }
        let now = self.status().await?;
        let vcpus = self.grow_vcpus(started.vcpus, now.vcpus, least.vcpus).await;
        let memory = self.grow_memory(started, now.memory, least.memory_mib).await;
        vcpus.and(memory)
    }

    async fn grow_vcpus(&self, started: u8, now: Option<Vcpus>, least: u8) -> Result<(), SandboxError> {
        let Some(now) = now else { return Ok(()) };
        let wanted = least.min(now.most);
        match self.inner.online.load(Ordering::Relaxed) {
            _ if wanted <= started => Ok(()),
            // All that were ever made may be online.
            UNKNOWN => self.set_vcpus(now, wanted.max(now.made)).await.map(drop),
            online if wanted <= online => Ok(()),
            _ => self.set_vcpus(now, wanted).await.map(drop),
        }
    }

    async fn grow_memory(&self, started: VmSize, now: Option<Memory>, least_mib: u32) -> Result<(), SandboxError> {
        let most = self.most().memory_mib;
        let most = self.room_mib().await?.map_or(most, |room| room.min(most));
        let has = started.memory_mib + now.map_or(0, |now| now.requested_mib);
        let wanted = least_mib.min(most).max(has);
        match memory_change(started, now, wanted)? {
            Some((now, plugged)) if wanted > has => self.change_memory(started, now, plugged).await,
            _ => Ok(()),
        }
    }

    /// The largest guest that the pod's cgroup has room for.
    async fn room_mib(&self) -> Result<Option<u32>, SandboxError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let cgroup = PodCgroup::new(inner.config(), &inner.spec.cgroup_parent, &inner.spec.id)?;
            Ok(cgroup.memory_limit().map(|limit| size::guest_mib(u32::try_from(limit >> 20).unwrap_or(u32::MAX))))
        })
        .await
    }

    /// Has the first `count` of the guest's vCPUs online; answers how many were before. When that fails, the guest has those that it had,
    /// or the error says which it has: the monitor's further ones sleep, and its agent puts back what it changed.
    async fn set_vcpus(&self, now: Vcpus, count: u8) -> Result<u8, SandboxError> {
        if now.made < count {
            self.request(Request::Vcpus { count }).await?;
        }
        let mut agent = self.agent();
        let step = format!("have {count} vCPUs online in the guest");
        let known = self.inner.online.swap(UNKNOWN, Ordering::Relaxed);
        let answer = tokio::select! {
            answer = agent.resize_guest(ResizeGuestRequest { vcpus: count.into() }) => answer,
            () = tokio::time::sleep(VCPU_LIMIT) => {
                return Err(SandboxError::TimedOut { step: format!("trying to {step}"), seconds: VCPU_LIMIT.as_secs() });
            }
            _ = self.ended() => return Err(SandboxError::Ended { id: self.id().into() }),
        };
        match answer.map(tonic::Response::into_inner) {
            Ok(ResizeGuestReply { vcpus, vcpus_before }) if vcpus == u32::from(count) => {
                self.inner.online.store(count, Ordering::Relaxed);
                // A guest's word: nothing but a number that it may be asked for again.
                Ok(u8::try_from(vcpus_before).unwrap_or(now.most).clamp(1, now.most))
            }
            Ok(reply) => Err(SandboxError::step(step, format!("its agent says it has {}", reply.vcpus))),
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument) => {
                self.inner.online.store(known, Ordering::Relaxed);
                Err(SandboxError::Refused(format!("the guest cannot have {count} vCPUs: {}", status.message())))
            }
            Err(status) => {
                if status.code() == Code::Internal {
                    // It has put them back; where it could not, the next change sets them all.
                    self.inner.online.store(known, Ordering::Relaxed);
                }
                Err(SandboxError::step(step, status.message()))
            }
        }
    }

    /// Has `plugged` MiB plugged beside what the guest started with.
    async fn change_memory(&self, started: VmSize, before: Memory, plugged: u32) -> Result<(), SandboxError> {
        self.request(Request::Memory { plugged_mib: plugged }).await?;
        let back = Request::Memory { plugged_mib: before.requested_mib };
        match self.settle(plugged, before.plugged_mib).await {
            Ok(reached) if reached == plugged => Ok(()),
            Ok(reached) => {
                self.request(back).await?;
                Err(SandboxError::Refused(format!(
                    "the guest could change its memory to {} MiB only, not to {} MiB: its processes use the rest, or its kernel does",
                    started.memory_mib + reached,
                    started.memory_mib + plugged
                )))
            }
            Err(error) => {
                // Best effort: the monitor that does not answer is about to end.
                self.request(back).await.ok();
                Err(error)
            }
        }
    }

    /// Waits until `wanted` is plugged, or nothing changes any more; answers what is plugged then.
    async fn settle(&self, wanted: u32, mut last: u32) -> Result<u32, SandboxError> {
        let began = Instant::now();
        let mut changed = began;
        let mut pause = Duration::from_millis(2);
        loop {
            let plugged = self.status().await?.memory.unwrap_or_default().plugged_mib;
            if plugged != last {
                (last, changed) = (plugged, Instant::now());
            }
            if plugged == wanted || changed.elapsed() > STALLED || began.elapsed() > LIMIT {
                return Ok(plugged);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    pub(crate) async fn status(&self) -> Result<Status, SandboxError> {
        let inner = Arc::clone(&self.inner);
        self.must_run()?;
        blocking(move || connect::status(&inner.dirs)).await
    }

    async fn request(&self, request: Request) -> Result<(), SandboxError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || connect::request(&inner.dirs, &request)).await
    }
}

/// What to change the vCPUs from; nothing when the guest is to have those that it cannot be without.
fn vcpus_change(started: VmSize, now: Option<Vcpus>, wanted: u8) -> Result<Option<Vcpus>, SandboxError> {
    match now {
        Some(now) if (1..=now.most).contains(&wanted) => Ok(Some(now)),
        // A VM of one vCPU, or a monitor that was started before there was more to have: the cgroup's quota holds it.
        None if wanted <= started.vcpus => Ok(None),
        now => Err(SandboxError::Refused(format!(
            "the guest can have {} vCPUs at most, not {wanted}: start the pod anew, or raise vm.vcpus_max for pods that start later",
            now.map_or(started.vcpus, |now| now.most)
        ))),
    }
}

/// What is plugged beside what the guest started with, and what is to be; nothing when that is the same.
fn memory_change(started: VmSize, now: Option<Memory>, wanted_mib: u32) -> Result<Option<(Memory, u32)>, SandboxError> {
    let least = started.memory_mib;
    let Some(wanted) = wanted_mib.checked_sub(least) else {
        return Err(SandboxError::Refused(format!(
            "the guest started with {least} MiB, which it keeps: it cannot shrink to {wanted_mib} MiB"
        )));
    };
    let wanted = wanted.next_multiple_of(2);
    match now {
        Some(now) if wanted <= now.most_mib => {
            let same = now.requested_mib == wanted && now.plugged_mib == wanted;
            Ok((!same).then_some((now, wanted)))
        }
        None if wanted == 0 => Ok(None),
        now => Err(SandboxError::Refused(format!(
            "the guest can have {} MiB at most, not {wanted_mib} MiB: raise vm.memory_max_mib for pods that start later",
            least + now.map_or(0, |now| now.most_mib)
        ))),
    }
}

#[cfg(test)]
mod tests;
