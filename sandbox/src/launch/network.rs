//! The network's half of a launch.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Launch;
use crate::cni::{self, Attachment, NetworkList};
use crate::dirs;
use crate::error::{Doing, SandboxError, blocking};
use crate::link::{self, GuestNetwork};
use crate::spec::{Kind, NetworkStatus};

/// Runs the CNI chain, and hands its interface over to the guest if there is one.
pub(super) async fn attach(launch: &Arc<Launch>) -> Result<(Option<NetworkStatus>, GuestNetwork), SandboxError> {
    let spec = &launch.spec;
    let Some(network) = &spec.network else { return Ok((None, GuestNetwork::default())) };
    let config = &launch.shared.config.cni;
    let list = NetworkList::load(config).doing(|| "use the pod network".into())?;
    let mut attachment = Attachment::new(list, &spec.id, network, &spec.resolv_conf, &spec.cgroup_parent)?;
    let networks = &launch.shared.networks;
    let alone = networks.enter(&attachment.network.name).await;
    launch.clock.mark("cni_start");
    let (lasting, attached) = (launch.dirs.network(), attachment.clone());
    blocking(move || dirs::write_durably(&lasting, &attached)).await?;
    // What plugins answer is of use as long as the node runs: it need not outlive that.
    let file = launch.dirs.answers();
    attachment.add(config, &launch.dirs.netns(), |attachment| dirs::write(&file, attachment)).await?;
    launch.clock.mark("cni_end");
    networks.used(&attachment.network.name);
    drop(alone);
    let status = attachment.result.as_ref().map(cni::status).unwrap_or_default();
    if status.addresses.is_empty() {
        let step = format!("add the pod to network {}", attachment.network.name);
        return Err(SandboxError::step(step, "its plugins gave the pod no address"));
    }
    let guest = if spec.kind == Kind::Vm {
        let launch = Arc::clone(launch);
        blocking(move || launch.netns.as_ref().map(|netns| link::join_to_tap(netns.fd.as_fd())).transpose()).await?
    } else {
        None
    };
    Ok((Some(status), guest.unwrap_or_default()))
}
