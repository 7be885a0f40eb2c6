//! Boots a microVM without a pod, and saves it: a template.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_proto::agent::SettleRequest;
use cofferdam_proto::agent::agent_client::AgentClient;
use rustix::fs::MemfdFlags;
use tokio_util::sync::CancellationToken;

use super::{Again, Clock, Launch, vm};
use crate::cgroup::PodCgroup;
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError, blocking};
use crate::runtime::Shared;
use crate::spec::{Kind, PodSpec, VmSize};
use crate::template::Shape;
use crate::{connect, netns, teardown};

/// Boots a guest of `shape` and answers its saved memory and state. What it took is undone whatever
/// happens; after a kill the next daemon finds it as a pod that was never launched.
///
/// # Errors
/// Says which step failed and why.
pub(crate) async fn boot_and_save(shared: &Arc<Shared>, shape: Shape) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let spec = spec(shared, shape)?;
    let dirs = Dirs::of(&shared.config, &spec.id)?;
    let _lock = shared.lock(&spec.id).await;
    let saved = run(shared, &spec, &dirs, shape).await;
    if let Err(error) = teardown::remove(shared, &dirs, &spec.id).await {
        tracing::error!(id = spec.id, error = error.chain(), "cannot remove the microVM that a template was made of");
    }
    saved
}

/// What the monitor is started for: nothing in it is a pod's.
fn spec(shared: &Shared, shape: Shape) -> Result<PodSpec, SandboxError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).doing(|| "name a microVM".into())?;
    let parent = shared.config.vm.template.as_ref().map(|template| template.cgroup_parent.clone());
    Ok(PodSpec {
        id: hex::encode(random),
        kind: Kind::Vm,
        vm: shape.size,
        vm_max: VmSize { vcpus: shape.vcpus_max, memory_mib: shape.size.memory_mib + shape.hotplug_mib },
        // It serves nobody yet.
        oom_score_adj: 1000,
        cgroup_parent: parent.unwrap_or_default(),
        hostname: String::new(),
        resolv_conf: String::new(),
        network: None,
        sysctls: BTreeMap::new(),
        users: None,
        node_pid: false,
        node_ipc: false,
    })
}

async fn run(
    shared: &Arc<Shared>,
    spec: &PodSpec,
    dirs: &Dirs,
    shape: Shape,
) -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let netns = {
        let (spec, dirs) = (spec.clone(), dirs.clone());
        blocking(move || {
            dirs::make_private(&dirs.run)?;
            dirs::make_private(&dirs.state)?;
            dirs::write(&dirs.spec(), &spec)?;
            netns::create(&dirs.netns(), usize::from(shape.cards))
        })
        .await?
    };
    let launch = Arc::new(Launch {
        shared: Arc::clone(shared),
        spec: spec.clone(),
        dirs: dirs.clone(),
        cgroup: PodCgroup::new(&shared.config, &spec.cgroup_parent, &spec.id)?,
        shape,
        template: None,
        netns: Some(netns),
        users: None,
        clock: Clock::new(),
        again: Arc::new(Again::default()),
        failed: CancellationToken::new(),
    });
    let watched = vm::start(&launch).await?;
    {
        // The guest sees this connection end before it is saved.
        let channel = connect::agent(dirs, Kind::Vm);
        launch.answered(&channel, &watched).await?;
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
