//! Routes, rules and neighbours of a pod's network namespace. They go to the guest as the kernel tells them, so that nothing
//! of them is lost on the way; what cannot go is named.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use rtnetlink::packet_core::Emitable;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::GuestNetwork;
use crate::error::{Doing, SandboxError};

/// Most routes, rules and neighbours of a pod, each.
const MAX_ITEMS: usize = 4096;
/// Loopback has this index in every namespace.
const LOOPBACK: u32 = 1;

/// Reads all into `network`. `interfaces` are those that the guest gets.
pub(super) async fn read(
    handle: &Handle,
    interfaces: &BTreeSet<u32>,
    network: &mut GuestNetwork,
) -> Result<(), SandboxError> {
    let mut routes = Vec::new();
    for message in list_routes(handle).await? {
        if is_the_kernels(&message) {
            continue;
        }
        match through(&message).iter().all(|index| *index == LOOPBACK || interfaces.contains(index)) {
            true => routes.push(portable(message)),
            false => {
                network.left.push(format!("a route through an interface that the guest does not get: {message:?}"))
            }
        }
    }
    // Those on the link first, since gateways are reached through them.
    routes.sort_by_key(has_gateway);
    for version in [IpVersion::V4, IpVersion::V6] {
        let all: Result<Vec<RuleMessage>, _> = handle.rule().get(version.clone()).execute().try_collect().await;
        // A node without rules of this family has none to give.
        let Ok(all) = all else { continue };
        let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_the_kernels_rule);
        let usual = if matches!(version, IpVersion::V4) { 3 } else { 2 };
        if own.len() < usual {
            network
                .left
                .push(format!("that rules of the kernel's own are deleted ({} of {usual} are left)", own.len()));
        }
        network.rules.extend(others.iter().map(bytes));
    }
    let neighbours: Vec<NeighbourMessage> =
        handle.neighbours().get().execute().try_collect().await.doing(|| "list the pod's neighbours".into())?;
    let permanent =
        |n: &&NeighbourMessage| n.header.state == NeighbourState::Permanent && interfaces.contains(&n.header.ifindex);
    network.neighbours = neighbours.iter().filter(permanent).map(bytes).collect();
    network.routes = routes.iter().map(bytes).collect();
    for (what, list) in [("routes", &network.routes), ("rules", &network.rules), ("neighbours", &network.neighbours)] {
        if list.len() > MAX_ITEMS {
            return Err(SandboxError::Refused(format!("the pod's network has more than {MAX_ITEMS} {what}")));
        }
    }
    Ok(())
}

async fn list_routes(handle: &Handle) -> Result<Vec<RouteMessage>, SandboxError> {
    let mut found = Vec::new();
    let families = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for mut family in families {
        // The builder's are the main table's unicast routes; all are wanted.
        family.header.table = 0;
        family.header.kind = RouteType::Unspec;
        family.header.protocol = RouteProtocol::Unspec;
        let all: Vec<RouteMessage> =
            handle.route().get(family).execute().try_collect().await.doing(|| "list the pod's routes".into())?;
        found.extend(all);
    }
    Ok(found)
}

/// What the kernel made itself for an address or an interface: the guest's makes it too.
fn is_the_kernels(message: &RouteMessage) -> bool {
    let own = message.header.protocol == RouteProtocol::Kernel;
    let kind = message.header.kind;
    let local = message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => to.is_unicast_link_local() || to.is_multicast(),
        _ => false,
    });
    own || local || matches!(kind, RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast)
}

fn is_the_kernels_rule(message: &RuleMessage) -> bool {
    message.attributes.iter().any(|a| matches!(a, RuleAttribute::Protocol(RouteProtocol::Kernel)))
}

/// Indexes of the interfaces that a route names.
fn through(message: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) | RouteAttribute::Iif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    message.attributes.iter().flat_map(of).collect()
}

fn has_gateway(message: &RouteMessage) -> bool {
    let far = |a: &RouteAttribute| {
        matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_))
    };
    message.attributes.iter().any(far)
}

/// The route without what only tells of its state here.
fn portable(mut message: RouteMessage) -> RouteMessage {
    message.attributes.retain(|a| !matches!(a, RouteAttribute::NhId(_) | RouteAttribute::CacheInfo(_)));
    message.header.flags &= RouteFlags::Onlink;
    let single = message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(_)));
    let near = matches!(message.header.address_family, AddressFamily::Inet | AddressFamily::Inet6);
    if single && near && has_gateway(&message) {
        // The gateway need not be in the prefix of an address.
        message.header.flags |= RouteFlags::Onlink;
    }
    message
}

fn bytes<M: Emitable>(message: &M) -> Vec<u8> {
    let mut buffer = vec![0; message.buffer_len()];
    message.emit(&mut buffer);
    buffer
}
