//! Devices of the node, by path: all of them in a host pod, block devices in a microVM.

use std::path::PathBuf;

use cofferdam_proto::agent;
use cofferdam_proto::cri::Device;
use cofferdam_sandbox::{Kind, leads_to_block_device};

use super::text;
use crate::error::{CriError, During, message};

/// Most devices of one container.
const MAX_DEVICES: usize = 4096;

/// A block device of the node for a container in a microVM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Disk {
    /// Where it is, or a link to it.
    pub(crate) host_path: PathBuf,
    /// What the agent is asked, but for where the disk is in the guest.
    pub(crate) device: agent::Device,
}

impl Disk {
    /// Whether the container may only read.
    pub(crate) fn is_read_only(&self) -> bool {
        !self.device.permissions.contains('w')
    }
}

/// Devices that the agent finds by itself, and those that the guest has to be given first. Blocks.
pub(crate) fn given(kind: Kind, asked: &[Device]) -> Result<(Vec<agent::Device>, Vec<Disk>), CriError> {
    if asked.len() > MAX_DEVICES {
        return Err(CriError::invalid(format!("more than {MAX_DEVICES} devices")));
    }
    let (mut nodes, mut disks) = (Vec::new(), Vec::new());
    for device in asked {
        for path in [&device.container_path, &device.host_path] {
            text::name("device path", path, 4096)?;
        }
        if !device.permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(CriError::invalid(format!("device permissions {:?} are not of r, w, m", device.permissions)));
        }
        let node = agent::Device {
            path: device.container_path.clone(),
            source: device.host_path.clone(),
            permissions: device.permissions.clone(),
        };
        match kind {
            Kind::Host => nodes.push(node),
            Kind::Vm => disks.push(disk(node)?),
        }
    }
    Ok((nodes, disks))
}

/// Has a microVM's guest know a device of the node as a disk, if it is one.
fn disk(device: agent::Device) -> Result<Disk, CriError> {
    let host_path = PathBuf::from(&device.source);
    let looked = leads_to_block_device(&host_path).during(|| format!("use device {}", host_path.display()));
    // What is not there is not the daemon's fault.
    if looked.map_err(|error| CriError::invalid(message(&error)))? {
        return Ok(Disk { host_path, device: agent::Device { source: String::new(), ..device } });
    }
    Err(CriError::invalid(format!(
        "device {} of the node cannot be given to a microVM, which can have block devices only: use the runtime \
         handler \"host\"",
        host_path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host_path: &str, permissions: &str) -> Device {
        Device { container_path: "/dev/a".into(), host_path: host_path.into(), permissions: permissions.into() }
    }

    #[test]
    fn a_host_pod_gets_any_device_and_a_microvm_block_devices_only() {
        let asked = [device("/dev/null", "rwm")];
        let (nodes, disks) = given(Kind::Host, &asked).unwrap();
        assert_eq!((nodes[0].path.as_str(), nodes[0].source.as_str(), disks.len()), ("/dev/a", "/dev/null", 0));
        for (path, wanted) in [("/dev/null", "handler \"host\""), ("/no/such/device", "No such file"), ("/", "only")] {
            let error = given(Kind::Vm, &[device(path, "r")]).unwrap_err();
            let text = message(&error);
            assert!(matches!(error, CriError::Invalid(_)), "{text}");
            assert!(text.contains(path) && text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn crooked_devices_are_refused() {
        for kind in [Kind::Host, Kind::Vm] {
            assert!(given(kind, &[device("/dev/null", "rx")]).is_err());
            assert!(given(kind, &[device("", "r")]).is_err());
            assert!(given(kind, &[device("/dev/a\nb", "r")]).is_err());
        }
    }

    #[test]
    fn who_may_not_write_only_reads() {
        for (permissions, read_only) in [("r", true), ("rm", true), ("", true), ("rw", false), ("mrw", false)] {
            let device = agent::Device { permissions: permissions.into(), ..Default::default() };
            assert_eq!(Disk { host_path: PathBuf::new(), device }.is_read_only(), read_only, "{permissions}");
        }
    }
}
