//! The guest's interfaces, with the MAC, addresses and routes that CNI gave.

mod settings;

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use cofferdam_proto::agent::{ConfigurePodRequest, Interface};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkUnspec};

use crate::error::{Doing, Error, Kind, Result};

/// Most interfaces of a pod, and addresses of an interface.
const MAX_ITEMS: usize = 256;

fn connect() -> Result<(Handle, tokio::task::JoinHandle<()>)> {
    let (connection, handle, _) = rtnetlink::new_connection().doing("open a netlink socket")?;
    Ok((handle, tokio::spawn(connection)))
}

/// Brings up loopback.
///
/// # Errors
/// When the kernel refuses.
pub async fn loopback() -> Result<()> {
    let (handle, task) = connect()?;
    let result = handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await;
    task.abort();
    result.doing("bring up loopback")
}

/// Gives all network cards to the network namespace `to`.
///
/// # Errors
/// Says which it could not.
pub async fn hand_over(to: &OwnedFd) -> Result<()> {
    let cards = cards()?;
    if cards.is_empty() {
        return Ok(());
    }
    let (handle, task) = connect()?;
    let mut result = Ok(());
    for (index, name) in cards {
        let link = LinkUnspec::new_with_index(index).setns_by_fd(to.as_raw_fd()).build();
        result = handle.link().set(link).execute().await.doing(format!("give interface {name} to the pod's users"));
        if result.is_err() {
            break;
        }
    }
    task.abort();
    result
}

/// Sets interfaces, then routes, rules and neighbours.
///
/// # Errors
/// Says which.
pub async fn configure(request: &ConfigurePodRequest) -> Result<()> {
    let interfaces = &request.interfaces;
    if interfaces.is_empty() {
        return Ok(());
    }
    if interfaces.len() > MAX_ITEMS {
        return Err(Error::invalid(format!("more than {MAX_ITEMS} interfaces")));
    }
    let checked: Vec<Checked> = interfaces.iter().map(Checked::parse).collect::<Result<_>>()?;
    let (handle, task) = connect()?;
    let result = async {
        apply(&handle, &checked).await?;
        settings::apply(&handle, request).await
    };
    let result = result.await;
    task.abort();
    result
}

/// An interface of a request, in types.
struct Checked {
    name: String,
    mac: Option<Vec<u8>>,
    addresses: Vec<(IpAddr, u8)>,
    mtu: u32,
}

impl Checked {
    fn parse(i: &Interface) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
        if i.name.is_empty() || i.name.len() > 15 || !i.name.bytes().all(plain) || i.name.starts_with('.') {
            return Err(Error::invalid(format!("{:?} is not an interface's name", i.name)));
        }
        if i.addresses.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("more than {MAX_ITEMS} addresses")));
        }
        Ok(Self {
            name: i.name.clone(),
            mac: if i.mac.is_empty() { None } else { Some(mac(&i.mac)?) },
            addresses: i.addresses.iter().map(|a| prefix(a)).collect::<Result<_>>()?,
            mtu: i.mtu,
        })
    }
}

fn mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|b| u8::from_str_radix(b, 16).ok().filter(|_| b.len() == 2)).collect();
    bytes.filter(|b| b.len() == 6).ok_or_else(|| Error::invalid(format!("{text:?} is not a MAC")))
}

/// An address and the length of its prefix.
fn prefix(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length: u8 = length.parse().ok()?;
        (length <= most).then_some((address, length))
    });
    parsed.ok_or_else(|| Error::invalid(format!("{text:?} is not an address with the length of its prefix")))
}

/// Names of the machine's network cards, in the kernel's order; dummies and tunnels are none.
fn cards() -> Result<Vec<(u32, String)>> {
    let mut cards = Vec::new();
    for entry in fs::read_dir("/sys/class/net").doing("list the network cards")?.flatten() {
        if !entry.path().join("device").exists() {
            continue;
        }
        cards.push((index_at(&entry.path())?, entry.file_name().to_string_lossy().into_owned()));
    }
    cards.sort();
    Ok(cards)
}

fn index_at(path: &Path) -> Result<u32> {
    let text = fs::read_to_string(path.join("ifindex")).doing(format!("read the index of {}", path.display()))?;
    text.trim().parse().doing(format!("read the index of {}", path.display()))
}

fn index_of(name: &str) -> Result<u32> {
    index_at(&Path::new("/sys/class/net").join(name))
}

async fn apply(handle: &Handle, interfaces: &[Checked]) -> Result<()> {
    let cards = cards()?;
    if cards.len() < interfaces.len() {
        return Err(Error::new(
            Kind::Precondition,
            format!("the guest has {} network cards for {} interfaces", cards.len(), interfaces.len()),
        ));
    }
    for (interface, (index, _)) in interfaces.iter().zip(&cards) {
        let name = &interface.name;
        let mut link = LinkUnspec::new_with_index(*index).down().name(name.clone());
        if let Some(mac) = &interface.mac {
            link = link.address(mac.clone());
        }
        if interface.mtu > 0 {
            link = link.mtu(interface.mtu);
        }
        handle.link().set(link.build()).execute().await.asked(format!("set up interface {name}"))?;
        handle
            .link()
            .set(LinkUnspec::new_with_index(*index).up().build())
            .execute()
            .await
            .doing(format!("bring up interface {name}"))?;
        for (address, length) in &interface.addresses {
            let mut request = handle.address().add(*index, *address, *length).replace();
            if address.is_ipv6() {
                // CNI gave it to this pod alone, and nobody waits for the check.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute().await.asked(format!("add address {address}/{length} to {name}"))?;
        }
    }
    for (_, name) in cards.iter().skip(interfaces.len()) {
        unbind(name)?;
    }
    Ok(())
}

/// Takes a card away that no interface needs.
fn unbind(name: &str) -> Result<()> {
    let device = Path::new("/sys/class/net").join(name).join("device");
    let step = || format!("take away network card {name}");
    let target = fs::read_link(&device).doing(step())?;
    let id = target.file_name().unwrap_or_default().as_encoded_bytes();
    fs::write(device.join("driver/unbind"), id).doing(step())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_macs() {
        assert_eq!(prefix("10.88.0.5/16").unwrap(), ("10.88.0.5".parse().unwrap(), 16));
        assert_eq!(prefix("fd00::5/64").unwrap(), ("fd00::5".parse().unwrap(), 64));
        for bad in ["", "10.0.0.1", "10.0.0.1/33", "fd00::/129", "x/8", "10.0.0.1/-1"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
        assert_eq!(mac("0a:58:0A:58:00:05").unwrap(), [0x0a, 0x58, 0x0a, 0x58, 0, 5]);
        for bad in ["", "0a:58", "0a:58:0a:58:00:0g", "0a58:0a:58:00:05:1"] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_interfaces() {
        for (name, good) in [("eth0", true), ("", false), ("a/b", false), ("..", false), ("a234567890123456", false)] {
            let interface = Interface { name: name.into(), ..Interface::default() };
            assert_eq!(Checked::parse(&interface).is_ok(), good, "{name}");
        }
    }
}
