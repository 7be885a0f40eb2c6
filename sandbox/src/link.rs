//! Joins the interfaces that CNI made to the pod's taps, and finds out what the guest has to know of them.

mod settings;

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use cofferdam_proto::agent::Interface;
use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use crate::cni::INTERFACE;
use crate::error::{Doing, SandboxError};
use crate::netns;

/// What a guest has to know of its network.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct GuestNetwork {
    /// One for each network card, in order.
    pub(crate) interfaces: Vec<Interface>,
    /// Routes of all tables, as rtnetlink messages.
    pub(crate) routes: Vec<Vec<u8>>,
    /// Rules that are not the kernel's own.
    pub(crate) rules: Vec<Vec<u8>>,
    /// Permanent neighbours.
    pub(crate) neighbours: Vec<Vec<u8>>,
    /// What is in the namespace and does not reach the guest, for the log.
    pub(crate) left: Vec<String>,
}

/// How it went.
#[derive(Debug, PartialEq)]
pub(crate) enum Joined {
    /// Every interface has a tap.
    Done(GuestNetwork),
    /// Nothing was joined: it takes so many taps.
    Needs(usize),
}

/// Every frame that comes in on an interface of CNI's goes out of its tap and the other way round, before the namespace's own stack sees
/// it. The guest takes over addresses, routes, rules and MACs. They stay in the namespace too, where they do nothing: plugins look for
/// them there when they take back their rules (bridge's masquerading). Blocks.
#[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
pub(crate) fn join_to_taps(netns: BorrowedFd<'_>, taps: usize) -> Result<Joined, SandboxError> {
    netns::inside(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.doing(|| "speak to the kernel's network".into())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
            let connection = tokio::spawn(connection);
            let outcome = join(&handle, taps).await;
            connection.abort();
            outcome
        })
    })
}

#[derive(Debug, Default)]
struct Link {
    index: u32,
    name: String,
    mac: String,
    mtu: u32,
    up: bool,
    ethernet: bool,
    /// It lies on another interface of the same namespace, or belongs to one.
    stacked: bool,
}

impl Link {
    fn of(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            ..Self::default()
        };
        let (mut below, mut elsewhere) = (false, false);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
                }
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(_) => below = true,
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::Controller(_) => link.stacked = true,
                _ => {}
            }
        }
        link.stacked |= below && !elsewhere;
        link
    }
}

/// The interfaces that the guest gets, the pod's own first, and those that it cannot get. What is down is nobody's.
fn sort(links: Vec<Link>) -> (Vec<Link>, Vec<String>) {
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for link in links.into_iter().filter(|link| link.name != "lo" && !netns::is_tap(&link.name)) {
        let why = match &link {
            Link { up: false, .. } if link.name != INTERFACE => continue,
            Link { ethernet: false, .. } => "is no Ethernet interface",
            Link { stacked: true, .. } => "lies on another interface of the namespace",
            _ => {
                taken.push(link);
                continue;
            }
        };
        left.push(format!("interface {} {why}", link.name));
    }
    taken.sort_by_key(|link| (link.name != INTERFACE, link.index));
    (taken, left)
}

async fn join(handle: &Handle, taps: usize) -> Result<Joined, SandboxError> {
    let step = || "list the interfaces in the pod's network namespace".to_owned();
    let all: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.doing(step)?;
    let links: Vec<Link> = all.into_iter().map(Link::of).collect();
    let indexes: Vec<(String, u32)> = links.iter().map(|link| (link.name.clone(), link.index)).collect();
    let (taken, left) = sort(links);
    if taken.first().is_none_or(|link| link.name != INTERFACE) {
        let step = format!("find interface {INTERFACE} in the pod's network namespace");
        return Err(SandboxError::step(step, "it is not there, or no Ethernet interface of its own"));
    }
    if taken.len() > taps {
        return Ok(Joined::Needs(taken.len()));
    }
    let mut network = GuestNetwork { left, ..GuestNetwork::default() };
    // Read before frames go other ways.
    let known: BTreeSet<u32> = taken.iter().map(|link| link.index).collect();
    settings::read(handle, &known, &mut network).await?;
    for (number, link) in taken.into_iter().enumerate() {
        let tap = netns::tap_name(number);
        let index = indexes.iter().find(|(name, _)| *name == tap).map(|(_, index)| *index);
        let index = index.ok_or("it is not there").doing(|| format!("find {tap} in the pod's network namespace"))?;
        network.interfaces.push(hand_over(handle, &link, &tap, index).await?);
    }
    Ok(Joined::Done(network))
}

/// Joins one interface to its tap.
async fn hand_over(handle: &Handle, link: &Link, tap: &str, tap_index: u32) -> Result<Interface, SandboxError> {
    let addresses = addresses(handle, link).await?.iter().filter_map(with_prefix).collect();
    let step = || format!("join {} and {tap} (tc ingress, u32, mirred); does the kernel have act_mirred?", link.name);
    redirect(handle, link.index, tap_index).await.doing(step)?;
    redirect(handle, tap_index, link.index).await.doing(step)?;
    // The frames of the guest are as long as its MTU allows.
    let longer = rtnetlink::LinkUnspec::new_with_index(tap_index).mtu(link.mtu).build();
    handle.link().set(longer).execute().await.doing(|| format!("set the MTU of {tap}"))?;
    let (name, mac) = (link.name.clone(), link.mac.clone());
    Ok(Interface { name, mac, addresses, mtu: link.mtu, index: link.index })
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    let from = from.cast_signed();
    handle.qdisc().add(from).ingress().execute().await?;
    let all_protocols = 0x0003_u16.to_be();
    let filter = handle.traffic_filter(from).add().parent(0xffff_0000).protocol(all_protocols);
    filter.redirect(to)?.execute().await
}

/// Global addresses of the interface.
async fn addresses(handle: &Handle, link: &Link) -> Result<Vec<AddressMessage>, SandboxError> {
    let all = handle.address().get().set_link_index_filter(link.index).execute();
    let all: Vec<AddressMessage> = all.try_collect().await.doing(|| format!("list the addresses of {}", link.name))?;
    let global = |address: &AddressMessage| {
        address.header.index == link.index && !matches!(address.header.scope, AddressScope::Link | AddressScope::Host)
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

#[cfg(test)]
mod tests;
