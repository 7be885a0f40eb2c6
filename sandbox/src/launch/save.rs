//! Boots a microVM without a pod, and saves it: a template.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_proto::agent::SettleRequest;
use cofferdam_proto::agent::agent_client::AgentClient;
use rustix::fs::MemfdFlags;

use super::unowned::{self, Up};
use crate::connect;
use crate::dirs::Dirs;
use crate::error::{Doing, SandboxError, blocking};
use crate::runtime::Shared;
use crate::spec::PodSpec;
use crate::template::Shape;

/// Boots a guest of `shape` and answers its saved memory and state. What it took is undone whatever
/// happens; after a kill the next daemon finds it as a pod that was never launched.
///
/// # Errors
/// Says which step failed and why.
pub(super) async fn boot_and_save(shared: &Arc<Shared>, shape: Shape) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let spec = unowned::spec(shared, shape)?;
    let dirs = Dirs::of(&shared.config, &spec.id)?;
    let _lock = shared.lock(&spec.id).await;
    let saved = run(shared, &spec, &dirs, shape).await;
    unowned::remove(shared, &dirs, &spec.id).await;
    saved
}

async fn run(
    shared: &Arc<Shared>,
    spec: &PodSpec,
    dirs: &Dirs,
    shape: Shape,
) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let Up { channel, watched: _watched, .. } = unowned::start(shared, spec, dirs, shape, None).await?;
    {
        // The guest sees this connection end before it is saved.
        let mut agent = AgentClient::new(channel);
        let limit = shared.config.vm.boot_timeout;
        match tokio::time::timeout(limit, agent.settle(SettleRequest {})).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => return Err(SandboxError::step("wait until the agent has settled", status)),
            Err(_) => {
                let step = "waiting until the agent has settled".into();
                return Err(SandboxError::TimedOut { step, seconds: limit.as_secs() });
            }
        }
    }
    let dirs = dirs.clone();
    blocking(move || {
        let step = || "make the files of a template".to_owned();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know NOEXEC_SEAL.
        let file = |name: &str| {
            rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
                .or_else(|_| rustix::fs::memfd_create(name, flags))
        };
        let (memory, state) = (file("cofferdam-memory").doing(step)?, file("cofferdam-state").doing(step)?);
        connect::save(&dirs, &memory, &state)?;
        Ok((memory, state))
    })
    .await
}
