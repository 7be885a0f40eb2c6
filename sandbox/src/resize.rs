//! A running guest's memory grows and shrinks (virtio-mem).

use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_proto::monitor::Memory;

use crate::connect;
use crate::error::{SandboxError, blocking};
use crate::pod::Pod;
use crate::spec::{Kind, VmSize};

/// How long the guest may plug or unplug nothing before it is taken to be at its end: pages in use are moved away first.
const STALLED: Duration = Duration::from_secs(10);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(90);

impl Pod {
    /// What the guest started with; nothing for [`Kind::Host`].
    pub fn vm_size(&self) -> Option<VmSize> {
        (self.kind() == Kind::Vm).then_some(self.inner.spec.vm)
    }

    /// Gives the guest `memory_mib` in all, and waits until it has them. All or nothing: what the guest cannot do is asked back.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when that is less than it started with, more than was reserved, or more than the guest can give
    /// back.
    pub async fn resize_memory(&self, memory_mib: u32) -> Result<(), SandboxError> {
        let Some(VmSize { memory_mib: least, .. }) = self.vm_size() else { return Ok(()) };
        let Some(wanted) = memory_mib.checked_sub(least) else {
            return Err(SandboxError::Refused(format!(
                "the guest started with {least} MiB, which it keeps: it cannot shrink to {memory_mib} MiB"
            )));
        };
        let wanted = wanted.next_multiple_of(2);
        let before = match self.memory().await? {
            Some(memory) if wanted <= memory.most_mib => memory,
            None if wanted == 0 => return Ok(()),
            memory => {
                return Err(SandboxError::Refused(format!(
                    "the guest can have {} MiB at most, not {memory_mib} MiB: raise vm.memory_max_mib for pods that start later",
                    least + memory.map_or(0, |m| m.most_mib)
                )));
            }
        };
        if before.requested_mib == wanted && before.plugged_mib == wanted {
            return Ok(());
        }
        self.request(wanted).await?;
        let reached = self.settle(wanted, before.plugged_mib).await;
        match reached {
            Ok(plugged) if plugged == wanted => Ok(()),
            Ok(plugged) => {
                self.request(before.requested_mib).await?;
                Err(SandboxError::Refused(format!(
                    "the guest could change its memory to {} MiB only, not to {memory_mib} MiB: its processes use the rest, or its kernel does",
                    least + plugged
                )))
            }
            Err(error) => {
                // Best effort: the monitor that does not answer is about to end.
                self.request(before.requested_mib).await.ok();
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
            let plugged = self.memory().await?.unwrap_or_default().plugged_mib;
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

    async fn memory(&self) -> Result<Option<Memory>, SandboxError> {
        let inner = Arc::clone(&self.inner);
        self.must_run()?;
        blocking(move || connect::memory(&inner.dirs)).await
    }

    async fn request(&self, plugged_mib: u32) -> Result<(), SandboxError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || connect::request_memory(&inner.dirs, plugged_mib)).await
    }
}
