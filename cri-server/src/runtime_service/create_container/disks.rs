//! Block devices on their way from the node into a microVM.

use std::sync::Arc;

use cofferdam_proto::agent;
use cofferdam_sandbox::{BlockDevice, Pod as Sandbox};

use crate::error::{CriError, During};
use crate::node::{Container, Node};
use crate::translate::devices::Disk;

/// Gives the guest its disks; answers the devices that the agent is asked for. [`Container::undo`]
/// takes them back, also after a failure: the record tells of them before the guest has the first
/// one.
pub(super) async fn plug(
    node: &Node,
    container: &Arc<Container>,
    sandbox: &Sandbox,
    disks: Vec<Disk>,
) -> Result<Vec<agent::Device>, CriError> {
    if disks.is_empty() {
        return Ok(Vec::new());
    }
    let open = |disk: Disk| {
        let opened = BlockDevice::open(&disk.host_path, disk.is_read_only());
        opened.during(|| format!("use device {}", disk.host_path.display())).map(|device| (disk, device))
    };
    let opening = move || disks.into_iter().map(open).collect::<Result<Vec<_>, _>>();
    let opened = tokio::task::spawn_blocking(opening).await;
    let opened = opened.map_err(|e| CriError::internal("open block devices", e))??;
    container.change(|record| {
        record.disks = opened.iter().map(|(_, device)| device.serial().to_owned()).collect();
        true
    });
    container.save(node).await?;
    let mut devices = Vec::with_capacity(opened.len());
    for (disk, device) in opened {
        let source = sandbox.plug(device).await;
        let source = source.during(|| format!("give the pod device {}", disk.host_path.display()))?;
        devices.push(agent::Device { source, ..disk.device });
    }
    Ok(devices)
}
