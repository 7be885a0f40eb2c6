//! Joins the interface that CNI made to the pod's tap, and finds out what the guest has to know of it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use cofferdam_proto::agent::{Interface, Route};
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::cni::INTERFACE;
use crate::error::{Doing, SandboxError};
use crate::netns::{self, TAP};

/// What a guest has to know of its network.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct GuestNetwork {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) routes: Vec<Route>,
}

/// Every frame that comes in on CNI's interface goes out of the tap and the other way round, before the namespace's own stack sees it. The
/// guest takes over addresses, routes and MAC. They stay on the interface too, where they do nothing: plugins look for
/// them there when they take back their rules (bridge's masquerading). Blocks.
pub(crate) fn join_to_tap(netns: BorrowedFd<'_>) -> Result<GuestNetwork, SandboxError> {
    netns::inside(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.doing(|| "speak to the kernel's network".into())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
            let connection = tokio::spawn(connection);
            let outcome = join(&handle).await;
            connection.abort();
            outcome
        })
    })
}

struct Link {
    index: u32,
    mac: String,
    mtu: u32,
}

async fn link(handle: &Handle, name: &str) -> Result<Link, SandboxError> {
    let step = || format!("find interface {name} in the pod's network namespace");
    let found = handle.link().get().match_name(name).execute().try_next().await.doing(step)?;
    let message = found.ok_or("it is not there").doing(step)?;
    let mut link = Link { index: message.header.index, mac: String::new(), mtu: 0 };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
            }
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    Ok(link)
}

async fn join(handle: &Handle) -> Result<GuestNetwork, SandboxError> {
    let (inside, tap) = (link(handle, INTERFACE).await?, link(handle, TAP).await?);
    let routes = routes(handle, inside.index).await?;
    let interface = Interface {
        name: INTERFACE.into(),
        mac: inside.mac.clone(),
        addresses: addresses(handle, inside.index).await?.iter().filter_map(with_prefix).collect(),
        mtu: inside.mtu,
    };
    redirect(handle, inside.index, tap.index).await?;
    redirect(handle, tap.index, inside.index).await?;
    // The frames of the guest are as long as its MTU allows.
    let longer = rtnetlink::LinkUnspec::new_with_index(tap.index).mtu(inside.mtu).build();
    handle.link().set(longer).execute().await.doing(|| format!("set the MTU of {TAP}"))?;
    Ok(GuestNetwork { interfaces: vec![interface], routes })
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), SandboxError> {
    let step = || format!("join {INTERFACE} and {TAP} (tc ingress, u32, mirred); does the kernel have act_mirred?");
    let from = from.cast_signed();
    handle.qdisc().add(from).ingress().execute().await.doing(step)?;
    let all_protocols = 0x0003_u16.to_be();
    let filter = handle.traffic_filter(from).add().parent(0xffff_0000).protocol(all_protocols);
    filter.redirect(to).doing(step)?.execute().await.doing(step)
}

/// Global addresses of the interface.
async fn addresses(handle: &Handle, index: u32) -> Result<Vec<AddressMessage>, SandboxError> {
    let all = handle.address().get().set_link_index_filter(index).execute();
    let all: Vec<AddressMessage> = all.try_collect().await.doing(|| format!("list the addresses of {INTERFACE}"))?;
    let global = |address: &AddressMessage| {
        address.header.index == index && !matches!(address.header.scope, AddressScope::Link | AddressScope::Host)
    };
    Ok(all.into_iter().filter(global).collect())
}

fn with_prefix(message: &AddressMessage) -> Option<String> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(address),
            AddressAttribute::Address(address) if !local => Some(address),
            _ => None,
        })
    };
    // On point-to-point links the local address is the one that is ours.
    find(true).or_else(|| find(false)).map(|address| format!("{address}/{}", message.header.prefix_len))
}

/// Routes of the main table through the interface, those on the link first, since gateways are reached through them.
async fn routes(handle: &Handle, index: u32) -> Result<Vec<Route>, SandboxError> {
    let mut found = Vec::new();
    let families = [
        (RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), "0.0.0.0/0"),
        (RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(), "::/0"),
    ];
    for (family, default) in families {
        let step = || format!("list the routes through {INTERFACE}");
        let all: Vec<RouteMessage> = handle.route().get(family).execute().try_collect().await.doing(step)?;
        found.extend(all.iter().filter_map(|message| route(message, index, default)));
    }
    found.sort_by_key(|route| !route.gateway.is_empty());
    Ok(found)
}

fn route(message: &RouteMessage, index: u32, default: &str) -> Option<Route> {
    let header = &message.header;
    let ours =
        message.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(oif) if *oif == index));
    // What the kernel made itself for an address, the guest's makes too.
    let own = header.protocol == RouteProtocol::Kernel;
    if !ours || own || header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut destination, mut gateway) = (default.to_owned(), String::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                let to = address(to)?;
                if matches!(to, IpAddr::V6(to) if to.is_unicast_link_local() || to.is_multicast()) {
                    return None; // the guest's kernel makes its own
                }
                destination = format!("{to}/{}", header.destination_prefix_length);
            }
            RouteAttribute::Gateway(by) => gateway = address(by)?.to_string(),
            _ => {}
        }
    }
    Some(Route { destination, gateway, interface: INTERFACE.into() })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
