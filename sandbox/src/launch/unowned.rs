//! A microVM that belongs to no pod: one that becomes a template, or that waits for a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Again, Clock, Launch, vm};
use crate::cgroup::PodCgroup;
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError, blocking};
use crate::pod::Watched;
use crate::runtime::Shared;
use crate::spec::{Kind, PodSpec, VmSize};
use crate::template::{Shape, Template};
use crate::versions::Known;
use crate::{connect, netns, teardown};

/// What a microVM of `shape` is started for: nothing in it is a pod's.
pub(super) fn spec(shared: &Shared, shape: Shape) -> Result<PodSpec, SandboxError> {
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

/// Frees all that a microVM has under the id of its own. The caller holds that id's lock. The next
/// daemon frees what cannot be freed now.
pub(super) async fn remove(shared: &Arc<Shared>, dirs: &Dirs, id: &str) {
    if let Err(error) = teardown::remove(shared, dirs, id).await {
        tracing::error!(id, error = error.chain(), "cannot free all of a microVM without a pod; the next start does");
    }
}

/// A microVM whose agent has answered.
pub(super) struct Up {
    pub(super) launch: Arc<Launch>,
    pub(super) channel: Channel,
    pub(super) watched: Watched,
    pub(super) known: Known,
}

/// Starts it: from `template`, or with a boot. After a failure its remains are the caller's.
pub(super) async fn start(
    shared: &Arc<Shared>,
    spec: &PodSpec,
    dirs: &Dirs,
    shape: Shape,
    template: Option<Arc<Template>>,
) -> Result<Up, SandboxError> {
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
        template,
        taken: None,
        netns: Some(netns),
        users: None,
        clock: Clock::new(),
        again: Arc::new(Again::default()),
        failed: CancellationToken::new(),
    });
    let watched = vm::start(&launch).await?;
    let channel = connect::agent(dirs, Kind::Vm);
    let known = launch.answered(&channel, &watched).await?;
    Ok(Up { launch, channel, watched, known })
}
