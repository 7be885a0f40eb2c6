//! The network's half of a launch.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cofferdam_proto::monitor::MAX_CARDS;
use tracing::field::Empty;
use tracing::info_span;

use super::Launch;
use crate::cni::{self, Attachment, NetworkList};
use crate::dirs;
use crate::error::{Doing, SandboxError, blocking};
use crate::link::{self, GuestNetwork, Joined};
use crate::spec::{Kind, NetworkSpec, NetworkStatus};
use crate::step::{SPANS, step};

/// Runs the CNI chain, and hands its interface over to the guest if there is one.
pub(super) async fn attach(launch: &Arc<Launch>) -> Result<(Option<NetworkStatus>, GuestNetwork), SandboxError> {
    let spec = &launch.spec;
    let Some(network) = &spec.network else { return Ok((None, GuestNetwork::default())) };
    let config = &launch.shared.config.cni;
    let list = {
        let config = config.clone();
        blocking(move || NetworkList::load(&config).doing(|| "use the pod network".into())).await?
    };
    let mut attachment = Attachment::new(list, &spec.id, network, &spec.resolv_conf, &spec.cgroup_parent)?;
    let networks = &launch.shared.networks;
    let alone = networks.enter(&attachment.network.name).await;
    launch.clock.mark("cni_start");
    let (lasting, attached) = (launch.dirs.network(), attachment.clone());
    let looked_in = launch.dirs.clone();
    let netns = blocking(move || {
        dirs::write_durably(&lasting, &attached)?;
        Ok(looked_in.netns())
    })
    .await?;
    // What plugins answer is of use as long as the node runs: it need not outlive that.
    let file = launch.dirs.answers();
    let save = |attachment: &Attachment| {
        let (file, known) = (file.clone(), attachment.clone());
        blocking(move || dirs::write(&file, &known))
    };
    let span = info_span!(
        target: SPANS,
        "CNI ADD",
        otel.status_code = Empty,
        cni.network = attachment.network.name,
        cni.first = alone.is_some()
    );
    step(span, attachment.add(config, &netns, save)).await?;
    launch.clock.mark("cni_end");
    networks.used(&attachment.network.name);
    drop(alone);
    let status = attachment.result.as_ref().map(cni::status).unwrap_or_default();
    if status.addresses.is_empty() {
        let step = format!("add the pod to network {}", attachment.network.name);
        return Err(SandboxError::step(step, "its plugins gave the pod no address"));
    }
    let guest = if spec.kind == Kind::Vm { join(launch, network).await? } else { GuestNetwork::default() };
    Ok((Some(status), guest))
}

/// Gives each interface that CNI made to a network card of the guest. When there are fewer cards, the launch fails with
/// the number that it takes, and is tried again with it.
async fn join(launch: &Arc<Launch>, network: &NetworkSpec) -> Result<GuestNetwork, SandboxError> {
    let joining = Arc::clone(launch);
    let joined = blocking(move || {
        let Some(netns) = &joining.netns else { return Ok(Joined::Done(GuestNetwork::default())) };
        link::join_to_taps(netns.fd.as_fd(), netns.taps.len())
    });
    match joined.await? {
        Joined::Done(guest) => {
            launch.shared.networks.learn(network, guest.interfaces.len().max(1));
            for what in &guest.left {
                tracing::warn!(pod = %launch.spec.id, what, "the pod's network namespace has what its microVM does not get");
            }
            Ok(guest)
        }
        Joined::Needs(cards) if cards <= MAX_CARDS => {
            launch.shared.networks.learn(network, cards);
            launch.again.cards.store(cards, Ordering::Relaxed);
            let have = launch.netns.as_ref().map_or(0, |netns| netns.taps.len());
            Err(SandboxError::step(
                "join the pod's interfaces to its microVM",
                format!("it has {have} network cards for {cards}"),
            ))
        }
        Joined::Needs(cards) => Err(SandboxError::Refused(format!(
            "the pod's network has {cards} interfaces, and a microVM has at most {MAX_CARDS}: use the host handler"
        ))),
    }
}
