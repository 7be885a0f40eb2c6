//! Volumes of a container.

use std::path::{Component, Path, PathBuf};

use cofferdam_proto::agent;
use cofferdam_proto::cri::{ImageSpec, Mount, MountPropagation};
use cofferdam_sandbox::mountinfo::{self, MountInfo};
use cofferdam_sandbox::{Access, Kind, UserRange};

use super::text;
use crate::error::CriError;
use crate::node::shorten;
use crate::records::{ImageVolumeRecord, MountRecord};

/// Most volumes of one container.
const MAX_MOUNTS: usize = 1024;

/// The options that a mount may have; all are flags of the mount that `agent::Mount.options` calls so too.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];
/// The option of a mount that shows its owners as the pod's users.
const IDMAP: &str = "idmap";

/// A volume, checked; its source on the node is not looked at yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume {
    pub(crate) source: Source,
    /// What the agent is asked, but for where the source is.
    pub(crate) mount: agent::Mount,
}

/// What a volume shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// A file or directory of the node.
    Node { host_path: PathBuf, access: Access },
    /// An image, by any name.
    Image(String),
}

/// Checks the volumes and puts those that lie in another's folder after it.
pub(crate) fn volumes(asked: &[Mount], kind: Kind, users: Option<UserRange>) -> Result<Vec<Volume>, CriError> {
    if asked.len() > MAX_MOUNTS {
        return Err(CriError::invalid(format!("more than {MAX_MOUNTS} mounts")));
    }
    let wanted = asked.iter().filter(|m| !is_the_guests_own(m, kind));
    let mut volumes: Vec<Volume> = wanted.map(|m| volume(m, kind, users)).collect::<Result<_, _>>()?;
    volumes.sort_by_key(|v| Path::new(&v.mount.destination).components().count());
    Ok(volumes)
}

/// The node's /dev as /dev of a container in a microVM: the devices are the node's, and no number of theirs means the same in the
/// guest. Such a container has the guest's /dev, which its programs can use.
fn is_the_guests_own(m: &Mount, kind: Kind) -> bool {
    let is_dev = |path: &str| Path::new("/").join(path).components().eq(Path::new("/dev").components());
    kind == Kind::Vm && m.image.is_none() && is_dev(&m.host_path) && is_dev(&m.container_path)
}

fn volume(m: &Mount, kind: Kind, users: Option<UserRange>) -> Result<Volume, CriError> {
    let refuse = |why: &str| CriError::invalid(format!("mount at {:?}: {why}", m.container_path));
    text::name("mount's container_path", &m.container_path, 4096)?;
    let destination = Path::new("/").join(&m.container_path);
    if climbs(&destination) || destination.parent().is_none() {
        return Err(refuse("is the root itself, or climbs"));
    }
    if let Some(option) = m.mount_options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
        return Err(refuse(&format!("{option:?} is not one of the mount options {}", OPTIONS.join(", "))));
    }
    let mut options = m.mount_options.clone();
    if super::users::of_mount(&m.uid_mappings, &m.gid_mappings, users).map_err(|e| refuse(&e.to_string()))? {
        options.push(IDMAP.into());
    }
    let mount = agent::Mount {
        destination: destination.to_string_lossy().into_owned(),
        readonly: m.readonly,
        options,
        ..Default::default()
    };
    let volume = match m.image.as_ref().filter(|i| !i.image.is_empty()) {
        Some(image) => image_volume(m, &image.image, mount),
        None => node_volume(m, kind, mount),
    };
    volume.map_err(|why| refuse(&why))
}

fn climbs(path: &Path) -> bool {
    path.components().any(|c| c == Component::ParentDir)
}

fn image_volume(m: &Mount, image: &str, mount: agent::Mount) -> Result<Volume, String> {
    if !m.readonly {
        return Err("an image volume is read-only, and the mount does not say so".into());
    }
    if !m.host_path.is_empty() {
        return Err("names both an image and a host_path".into());
    }
    if m.propagation != i32::from(MountPropagation::PropagationPrivate) {
        return Err("an image volume has no mounts that could propagate".into());
    }
    let path = Path::new(&m.image_sub_path);
    if path.is_absolute() || climbs(path) || m.image_sub_path.contains('\0') || m.image_sub_path.len() > 4096 {
        return Err(format!("image_sub_path {:?} does not lie in the image", shorten(&m.image_sub_path)));
    }
    // "." and "a//b" mean what they say.
    let sub_path: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let sub_path = sub_path.to_string_lossy().into_owned();
    let mount = agent::Mount { r#type: "image".into(), sub_path, ..mount };
    Ok(Volume { source: Source::Image(image.to_owned()), mount })
}

fn node_volume(m: &Mount, kind: Kind, mount: agent::Mount) -> Result<Volume, String> {
    let host_path = PathBuf::from(&m.host_path);
    text::name("host_path", &m.host_path, 4096).map_err(|e| e.to_string())?;
    if !host_path.is_absolute() {
        return Err("host_path is not absolute".into());
    }
    let propagation = match MountPropagation::try_from(m.propagation) {
        Ok(MountPropagation::PropagationPrivate) => "private",
        Ok(MountPropagation::PropagationHostToContainer) => "slave",
        Ok(MountPropagation::PropagationBidirectional) if kind == Kind::Vm => {
            return Err(
                "a microVM cannot mount on the node: bidirectional propagation needs the runtime handler \"host\""
                    .into(),
            );
        }
        Ok(MountPropagation::PropagationBidirectional) => "shared",
        Err(_) => return Err("unknown propagation".into()),
    };
    if m.recursive_read_only && !m.readonly {
        return Err("recursive_read_only needs readonly".into());
    }
    if m.recursive_read_only && propagation != "private" {
        return Err("recursive_read_only needs private propagation: mounts that come later would be writable".into());
    }
    let access = Access {
        read_only: m.readonly,
        recursive: m.recursive_read_only,
        follow: propagation == "slave",
        mapped: is_mapped(&mount),
        alone: false, // the path will tell, once it is looked at
    };
    let mount = agent::Mount {
        r#type: "bind".into(),
        recursive: true,
        propagation: propagation.into(),
        recursive_readonly: m.recursive_read_only,
        ..mount
    };
    Ok(Volume { source: Source::Node { host_path, access }, mount })
}

/// Whether the mount shows its owners as the pod's users.
pub(crate) fn is_mapped(mount: &agent::Mount) -> bool {
    mount.options.iter().any(|option| option == IDMAP)
}

/// The source of a volume with links resolved; a missing one is made as a directory, as runtimes do. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn source(host_path: &Path) -> Result<PathBuf, CriError> {
    let failed = |e| CriError::internal(format!("use {} as a volume", host_path.display()), e);
    match host_path.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && host_path.symlink_metadata().is_err() => {
            std::fs::create_dir_all(host_path).map_err(failed)?;
            host_path.canonicalize().map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Refuses a volume whose mounts are to propagate and cannot, since its source lies on a mount that has none of it. `source` is a path
/// without symlinks.
pub(crate) fn propagates(source: &Path, mount: &agent::Mount, mounts: &[MountInfo]) -> Result<(), CriError> {
    let Some(on) = mountinfo::holding(source, mounts) else { return Ok(()) };
    let needed = match mount.propagation.as_str() {
        "shared" if !on.shared => "Bidirectional needs a shared mount",
        "slave" if !on.shared && !on.slave => "HostToContainer needs a shared mount or a slave of one",
        _ => return Ok(()),
    };
    let (path, point) = (source.display(), on.point.display());
    Err(CriError::invalid(format!(
        "mount at {:?}: mount propagation {needed}, and {path} is on {point}, which is none: `mount --make-rshared {point}` on the node \
         makes it one",
        mount.destination
    )))
}

/// What is echoed in the status.
pub(crate) fn record(m: &Mount) -> MountRecord {
    MountRecord {
        container_path: m.container_path.clone(),
        host_path: m.host_path.clone(),
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: m.propagation,
        recursive_read_only: m.recursive_read_only,
        mount_options: m.mount_options.clone(),
        image: m.image.as_ref().filter(|i| !i.image.is_empty()).map(|i| ImageVolumeRecord {
            image: i.image.clone(),
            user_image: i.user_specified_image.clone(),
            annotations: i.annotations.clone().into_iter().collect(),
            runtime_handler: i.runtime_handler.clone(),
            id: String::new(),
        }),
        image_sub_path: m.image_sub_path.clone(),
    }
}

/// And back.
pub(crate) fn status(m: &MountRecord) -> Mount {
    Mount {
        container_path: m.container_path.clone(),
        host_path: m.host_path.clone(),
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: m.propagation,
        recursive_read_only: m.recursive_read_only,
        mount_options: m.mount_options.clone(),
        image: m.image.as_ref().map(|i| ImageSpec {
            image: i.image.clone(),
            user_specified_image: i.user_image.clone(),
            annotations: i.annotations.clone().into_iter().collect(),
            runtime_handler: i.runtime_handler.clone(),
            image_ref: i.id.clone(),
        }),
        image_sub_path: m.image_sub_path.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
