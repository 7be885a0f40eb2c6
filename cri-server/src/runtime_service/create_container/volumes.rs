//! Volumes on their way from the node into the pod.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_proto::agent;
use cofferdam_sandbox::{Access, Kind, Pod as Sandbox, mountinfo};

use crate::error::{CriError, During};
use crate::node::swaps::{self, Swapped};
use crate::node::{Node, shorten, volume_holder};
use crate::translate::container::ContainerPlan;
use crate::translate::mounts::{self, Source, Volume};
use crate::translate::{memory_volume, own_volume};

/// Replaces the names of images by their ids, in the plan's volumes and in its record.
pub(super) fn find_images(node: &Node, plan: &mut ContainerPlan) -> Result<(), CriError> {
    let id = |name: &str| match node.store.status(name)? {
        Some(image) => Ok(image.id),
        None => Err(CriError::NotFound(format!("image {:?} of a volume", shorten(name)))),
    };
    for volume in &mut plan.volumes {
        if let Source::Image(name) = &mut volume.source {
            *name = id(name)?;
        }
    }
    for image in plan.record.mounts.iter_mut().filter_map(|m| m.image.as_mut()) {
        image.id = id(&image.image)?;
    }
    Ok(())
}

/// A volume that the pod sees.
pub(super) struct Shown {
    /// What the agent mounts: the volume itself, then what is mounted below it on the node.
    pub(super) mounts: Vec<agent::Mount>,
    /// What to follow, if the kubelet swaps it.
    pub(super) swapped: Option<Swapped>,
}

/// Makes a volume visible to the pod, whose uid is `uid`.
pub(super) async fn show(
    node: &Arc<Node>,
    sandbox: &Sandbox,
    (container, uid): (&str, &str),
    volume: Volume,
) -> Result<Shown, CriError> {
    match volume.source {
        Source::Image(image) => {
            let mounts = vec![show_image(node, sandbox, container, &image, volume.mount).await?];
            Ok(Shown { mounts, swapped: None })
        }
        Source::Node { host_path, access } => {
            show_path(sandbox, (container, uid), (host_path, access), volume.mount).await
        }
    }
}

async fn show_image(
    node: &Arc<Node>,
    sandbox: &Sandbox,
    container: &str,
    image: &str,
    mount: agent::Mount,
) -> Result<agent::Mount, CriError> {
    let (store, id, holder) = (node.store.clone(), image.to_owned(), volume_holder(container, image));
    let layers = tokio::task::spawn_blocking(move || store.lease(&id, &holder)).await;
    let layers = layers
        .map_err(|e| CriError::internal("lease the layers of an image volume", e))?
        .during(|| format!("use the layers of image {image} as a volume"))?;
    let mut lower = Vec::with_capacity(layers.dirs.len());
    for dir in &layers.dirs {
        let shown = sandbox.export_layer(container, dir, mounts::is_mapped(&mount)).await;
        lower.push(shown.during(|| format!("show layer {} to the pod", dir.display()))?);
    }
    Ok(agent::Mount { lower, ..mount })
}

async fn show_path(
    sandbox: &Sandbox,
    (container, uid): (&str, &str),
    (host_path, mut access): (PathBuf, Access),
    mount: agent::Mount,
) -> Result<Shown, CriError> {
    let (asked, in_vm, mapped, wanted) = (host_path.clone(), sandbox.kind() == Kind::Vm, access.mapped, mount.clone());
    let uid = uid.to_owned();
    let look = move || {
        let source = mounts::source(&asked)?;
        let of_node = if in_vm || wanted.propagation != "private" { mountinfo::read()? } else { Vec::new() };
        if wanted.propagation != "private" {
            mounts::propagates(&source, &wanted, &of_node)?;
        }
        let alone = own_volume::is_alone(&source, &uid, &of_node);
        // Of a pod with users of its own it stays the node's, whose owners the share maps.
        let memory = if in_vm && !mapped { memory_volume::mount(&source, &wanted, &of_node)? } else { None };
        let link = if in_vm && wanted.readonly { swaps::data_link(&source) } else { None };
        Ok::<_, CriError>((source, memory, link, alone))
    };
    let looked = tokio::task::spawn_blocking(look).await;
    let (source, memory, link, alone) = looked.map_err(|e| CriError::internal("resolve a volume", e))??;
    if let Some(mount) = memory {
        return Ok(Shown { mounts: vec![mount], swapped: None });
    }
    access.alone = alone;
    let exported = sandbox
        .export(container, &source, access)
        .await
        .during(|| format!("show volume {} to the pod", host_path.display()))?;
    let text = |path: &PathBuf| path.to_str().map(str::to_owned).ok_or_else(|| not_text(&source.join(path)));
    let writable_below = exported.writable_below.iter().map(text).collect::<Result<_, _>>()?;
    let mut below = Vec::with_capacity(exported.submounts.len());
    for submount in exported.submounts {
        below.push(agent::Mount {
            destination: format!("{}/{}", mount.destination.trim_end_matches('/'), text(&submount.below)?),
            source: submount.path,
            readonly: submount.read_only,
            ..mount.clone()
        });
    }
    let swapped = link.map(|link| Swapped { destination: mount.destination.clone(), host_path, link });
    let data_link = swapped.as_ref().map(|s| s.link.clone()).unwrap_or_default();
    let mut mounts = vec![agent::Mount { source: exported.path, writable_below, data_link, ..mount }];
    mounts.append(&mut below);
    Ok(Shown { mounts, swapped })
}

fn not_text(path: &Path) -> CriError {
    CriError::invalid(format!("path {} is not UTF-8", path.display()))
}
