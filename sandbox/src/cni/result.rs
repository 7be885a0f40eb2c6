//! What plugins answer.

use std::net::IpAddr;

use serde_json::Value;

use crate::spec::NetworkStatus;

/// Addresses of the pod in a result, in its order. Those of interfaces on the node's side are left out.
pub(crate) fn status(result: &Value) -> NetworkStatus {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let list = |name: &str| result.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let interfaces = list("interfaces");
    for ip in list("ips") {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let of_the_pod = index.and_then(|index| interfaces.get(index)).is_none_or(|interface| {
            interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
        });
        let address = ip.get("address").and_then(Value::as_str).and_then(without_prefix);
        addresses.extend(address.filter(|address| of_the_pod && !addresses.contains(address)));
    }
    // Before 0.3.0 there was one address of each family.
    for family in ["ip4", "ip6"] {
        let address = result.get(family).and_then(|of| of.get("ip")).and_then(Value::as_str);
        addresses.extend(address.and_then(without_prefix));
    }
    NetworkStatus { addresses }
}

fn without_prefix(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}
