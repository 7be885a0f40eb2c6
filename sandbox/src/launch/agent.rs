//! What a launch says to the pod's agent: greeting, the pod's disk and share, and who the pod is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::{API_VERSION, ConfigurePodRequest, MountPodRequest, UserRange};
use tonic::transport::Channel;

use super::{Launch, vm};
use crate::error::{Doing, SandboxError};
use crate::link::GuestNetwork;
use crate::pod::Watched;
use crate::spec::{Kind, NetworkStatus};
use crate::versions::{self, Known};

impl Launch {
    /// Waits until the process's agent has answered, and knows versions then.
    pub(super) async fn answered(
        self: &Arc<Self>,
        channel: &Channel,
        watched: &Watched,
    ) -> Result<Known, SandboxError> {
        let seconds = self.shared.config.vm.boot_timeout.as_secs();
        let answered = async {
            let monitor = if self.spec.kind == Kind::Vm { Some(vm::booted(self).await?) } else { None };
            let agent = versions::greet(AgentClient::new(channel.clone()), API_VERSION..=API_VERSION).await?;
            Ok(Known::new(monitor, agent))
        };
        tokio::select! {
            biased;
            () = self.failed.cancelled() => Err(SandboxError::Ended { id: self.spec.id.clone() }),
            end = watched.ended() => Err(SandboxError::step("start the pod", end.detail)),
            answered = tokio::time::timeout(self.shared.config.vm.boot_timeout, answered) => match answered {
                Ok(Ok(known)) => {
                    self.clock.mark("agent_answered");
                    Ok(known)
                }
                Ok(Err(error)) => Err(explain(error, watched).await),
                Err(_) => Err(SandboxError::TimedOut { step: "waiting for the pod's agent".into(), seconds }),
            },
        }
    }

    /// Has the guest become one of its own, with the pod's disk and share. What it needs of the
    /// network comes later.
    pub(super) async fn mount(&self, channel: &Channel, watched: &Watched) -> Result<(), SandboxError> {
        let step = || "mount the pod's disk and share through its agent".to_owned();
        let mut random_seed = vec![0; 64];
        getrandom::fill(&mut random_seed).doing(step)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock_unix_nanos = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let request = MountPodRequest { clock_unix_nanos, random_seed };
        let mut agent = AgentClient::new(channel.clone());
        let limit = self.shared.config.vm.boot_timeout;
        let seconds = limit.as_secs();
        tokio::select! {
            biased;
            () = self.failed.cancelled() => Err(SandboxError::Ended { id: self.spec.id.clone() }),
            answer = tokio::time::timeout(limit, agent.mount_pod(request)) => match answer {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(status)) => Err(explain(SandboxError::step(step(), status), watched).await),
                Err(_) => Err(SandboxError::TimedOut { step: "mounting the pod's disk and share".into(), seconds }),
            },
        }
    }
}

/// `error` in a conversation with a process is often just how its death looks from outside.
async fn explain(error: SandboxError, watched: &Watched) -> SandboxError {
    match tokio::time::timeout(Duration::from_millis(500), watched.ended()).await {
        Ok(end) => SandboxError::step("start the pod", end.detail),
        Err(_) => error,
    }
}

/// Tells the agent who the pod is.
pub(super) async fn configure(
    launch: &Launch,
    channel: &Channel,
    network: Option<&NetworkStatus>,
    guest: GuestNetwork,
    watched: &Watched,
) -> Result<(), SandboxError> {
    let spec = &launch.spec;
    let vm = spec.kind == Kind::Vm;
    let step = || "configure the pod through its agent".to_owned();
    let request = ConfigurePodRequest {
        hostname: spec.hostname.clone(),
        resolv_conf: spec.resolv_conf.clone(),
        hosts: hosts(&spec.hostname, network).await,
        interfaces: guest.interfaces,
        netlink_routes: guest.routes,
        netlink_rules: guest.rules,
        netlink_neighbours: guest.neighbours,
        sysctls: spec.sysctls.clone().into_iter().collect(),
        shm_size: 0,
        users: spec.users.filter(|_| vm).map(|range| UserRange { host_id: range.host_id, length: range.length }),
    };
    let mut agent = AgentClient::new(channel.clone());
    let limit = launch.shared.config.vm.boot_timeout;
    match tokio::time::timeout(limit, agent.configure_pod(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(explain(SandboxError::step(step(), status), watched).await),
        Err(_) => Err(SandboxError::TimedOut { step: "configuring the pod".into(), seconds: limit.as_secs() }),
    }
}

/// `/etc/hosts` of the pod; on the node's network it is the node's.
async fn hosts(hostname: &str, network: Option<&NetworkStatus>) -> String {
    let Some(network) = network else { return tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default() };
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for address in network.addresses.iter().filter(|_| !hostname.is_empty()) {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    text
}
