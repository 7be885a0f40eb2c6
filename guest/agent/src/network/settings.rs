//! Routes, rules and neighbours, as the node's kernel told them.

use cofferdam_proto::agent::ConfigurePodRequest;
use rtnetlink::Handle;
use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;

use super::index_of;
use crate::error::{Doing, Error, Result};

/// Most routes, rules and neighbours of a pod, each.
const MAX_ITEMS: usize = 4096;
/// Loopback has this index everywhere.
const LOOPBACK: u32 = 1;

/// The interfaces' indexes there and here.
struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    fn here(&self, there: u32) -> Result<u32> {
        let found = self.0.iter().find(|(other, _)| *other == there).map(|(_, here)| *here);
        found.ok_or_else(|| Error::invalid(format!("a route or neighbour of interface {there}, which is not told of")))
    }
}

/// Adds all of them. May be repeated.
pub(super) async fn apply(handle: &Handle, request: &ConfigurePodRequest) -> Result<()> {
    let lists = [&request.netlink_routes, &request.netlink_rules, &request.netlink_neighbours];
    if lists.iter().any(|list| list.len() > MAX_ITEMS) {
        return Err(Error::invalid(format!("more than {MAX_ITEMS} routes, rules or neighbours")));
    }
    let mut indexes = Indexes(vec![(LOOPBACK, LOOPBACK)]);
    for interface in &request.interfaces {
        indexes.0.push((interface.index, index_of(&interface.name)?));
    }
    for bytes in &request.netlink_neighbours {
        neighbour(handle, &indexes, bytes).await?;
    }
    for bytes in &request.netlink_routes {
        let message = route(&indexes, bytes)?;
        let shown = format!("add route {message:?}");
        handle.route().add(message).replace().execute().await.asked(shown)?;
    }
    for bytes in &request.netlink_rules {
        let message = RuleMessage::parse(bytes.as_slice()).map_err(|_| Error::invalid("a rule is malformed"))?;
        let shown = format!("add rule {message:?}");
        let mut add = handle.rule().add();
        *add.message_mut() = message;
        match add.execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
            other => other.asked(shown)?,
        }
    }
    Ok(())
}

/// The route with this machine's indexes.
fn route(indexes: &Indexes, bytes: &[u8]) -> Result<RouteMessage> {
    let mut message = RouteMessage::parse(bytes).map_err(|_| Error::invalid("a route is malformed"))?;
    for attribute in &mut message.attributes {
        match attribute {
            RouteAttribute::Oif(index) | RouteAttribute::Iif(index) => *index = indexes.here(*index)?,
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    hop.interface_index = indexes.here(hop.interface_index)?;
                }
            }
            _ => {}
        }
    }
    Ok(message)
}

async fn neighbour(handle: &Handle, indexes: &Indexes, bytes: &[u8]) -> Result<()> {
    let mut message = NeighbourMessage::parse(bytes).map_err(|_| Error::invalid("a neighbour is malformed"))?;
    message.header.ifindex = indexes.here(message.header.ifindex)?;
    let kept = |a: &NeighbourAttribute| {
        matches!(a, NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_))
    };
    message.attributes.retain(kept);
    let shown = format!("add neighbour {message:?}");
    let mut add = handle.neighbours().add(message.header.ifindex, std::net::IpAddr::from([0, 0, 0, 0])).replace();
    *add.message_mut() = message;
    add.execute().await.asked(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_get_this_machines_indexes() {
        // 10.0.0.0/8 via 10.1.0.1 dev 7, table 100: rtmsg, then RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE.
        let mut bytes = vec![2, 8, 0, 0, 100, 3, 0, 1, 0, 0, 0, 0];
        for (kind, value) in [(1_u8, [10, 0, 0, 0]), (4, [7, 0, 0, 0]), (5, [10, 1, 0, 1]), (15, [100, 0, 0, 0])] {
            bytes.extend([8, 0, kind, 0]);
            bytes.extend(value);
        }
        let message = route(&Indexes(vec![(1, 1), (7, 3)]), &bytes).unwrap();
        assert!(message.attributes.contains(&RouteAttribute::Oif(3)), "{message:?}");
        assert!(message.attributes.contains(&RouteAttribute::Table(100)), "{message:?}");
        assert!(route(&Indexes(vec![(1, 1)]), &bytes).is_err(), "an interface that nobody told of");
        for length in 0..bytes.len() {
            let _ = route(&Indexes(vec![(7, 3)]), &bytes[..length]); // a piece is refused or taken, and never a panic
        }
    }
}
