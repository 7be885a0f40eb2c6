//! Volumes of a container.

use std::path::{Component, Path, PathBuf};

use cofferdam_proto::agent;
use cofferdam_proto::cri::{Mount, MountPropagation};
use cofferdam_sandbox::Kind;

use super::text;
use crate::error::CriError;
use crate::records::MountRecord;

/// Most volumes of one container.
const MAX_MOUNTS: usize = 1024;

/// A volume, checked; its source on the node is not looked at yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume {
    /// On the node.
    pub(crate) host_path: PathBuf,
    /// No writes.
    pub(crate) readonly: bool,
    /// What the agent is asked, but for `source`.
    pub(crate) mount: agent::Mount,
}

/// Checks the volumes and puts those that lie in another's folder after it.
pub(crate) fn volumes(asked: &[Mount], kind: Kind) -> Result<Vec<Volume>, CriError> {
    if asked.len() > MAX_MOUNTS {
        return Err(CriError::invalid(format!("more than {MAX_MOUNTS} mounts")));
    }
    let mut volumes: Vec<Volume> = asked.iter().map(|m| volume(m, kind)).collect::<Result<_, _>>()?;
    volumes.sort_by_key(|v| Path::new(&v.mount.destination).components().count());
    Ok(volumes)
}

fn volume(m: &Mount, kind: Kind) -> Result<Volume, CriError> {
    let refuse = |why: &str| Err(CriError::invalid(format!("mount at {:?}: {why}", m.container_path)));
    text::name("mount's container_path", &m.container_path, 4096)?;
    if m.image.as_ref().is_some_and(|i| !i.image.is_empty()) {
        return refuse("image volumes are not supported");
    }
    text::name("mount's host_path", &m.host_path, 4096)?;
    if m.recursive_read_only {
        return refuse("recursive read-only is not supported");
    }
    if !m.uid_mappings.is_empty() || !m.gid_mappings.is_empty() {
        return refuse("mapped owners are not supported");
    }
    let destination = Path::new("/").join(&m.container_path);
    let climbs = |p: &Path| p.components().any(|c| c == Component::ParentDir);
    if climbs(&destination) || destination.parent().is_none() {
        return refuse("is the root itself, or climbs");
    }
    let host_path = PathBuf::from(&m.host_path);
    if !host_path.is_absolute() {
        return refuse("host_path is not absolute");
    }
    let propagation = match MountPropagation::try_from(m.propagation) {
        Ok(MountPropagation::PropagationPrivate) => "private",
        Ok(MountPropagation::PropagationHostToContainer) => "slave",
        Ok(MountPropagation::PropagationBidirectional) if kind == Kind::Vm => {
            return refuse("a microVM cannot mount on the host: bidirectional propagation needs a host pod");
        }
        Ok(MountPropagation::PropagationBidirectional) => "shared",
        Err(_) => return refuse("unknown propagation"),
    };
    let mount = agent::Mount {
        destination: destination.to_string_lossy().into_owned(),
        r#type: "bind".into(),
        readonly: m.readonly,
        recursive: true,
        propagation: propagation.into(),
        ..Default::default()
    };
    Ok(Volume { host_path, readonly: m.readonly, mount })
}

/// The source of a volume with links resolved; a missing one is made as a directory, as runtimes do. Blocks.
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

/// What is echoed in the status.
pub(crate) fn record(m: &Mount) -> MountRecord {
    MountRecord {
        container_path: m.container_path.clone(),
        host_path: m.host_path.clone(),
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: m.propagation,
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
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(container: &str, host: &str) -> Mount {
        Mount { container_path: container.into(), host_path: host.into(), ..Default::default() }
    }

    #[test]
    fn folders_come_before_what_lies_in_them() {
        let asked = [mount("/data/deep/er", "/a"), mount("relative", "/b"), mount("/data", "/c")];
        let volumes = volumes(&asked, Kind::Vm).unwrap();
        let order: Vec<_> = volumes.iter().map(|v| v.mount.destination.as_str()).collect();
        assert_eq!(order, ["/relative", "/data", "/data/deep/er"]);
    }

    #[test]
    fn crooked_volumes_are_refused() {
        type Spoil = fn(&mut Mount);
        let rows: [(&str, Spoil); 11] = [
            ("root", |m| m.container_path = "/".into()),
            ("empty", |m| m.container_path.clear()),
            ("climbs", |m| m.container_path = "/a/../../etc".into()),
            ("newline", |m| m.container_path = "/a\n/b".into()),
            ("NUL", |m| m.host_path = "/a\0b".into()),
            ("no source", |m| m.host_path.clear()),
            ("relative source", |m| m.host_path = "a".into()),
            ("recursive read-only", |m| m.recursive_read_only = true),
            ("mapped", |m| m.uid_mappings.push(Default::default())),
            ("unknown propagation", |m| m.propagation = 9),
            ("image", |m| m.image = Some(cofferdam_proto::cri::ImageSpec { image: "a".into(), ..Default::default() })),
        ];
        for (name, spoil) in rows {
            let mut m = mount("/data", "/srv");
            spoil(&mut m);
            assert!(volumes(&[m], Kind::Host).is_err(), "{name}");
        }
        let mut both = mount("/data", "/srv");
        both.propagation = MountPropagation::PropagationBidirectional.into();
        assert!(volumes(std::slice::from_ref(&both), Kind::Vm).is_err());
        assert_eq!(volumes(&[both], Kind::Host).unwrap()[0].mount.propagation, "shared");
    }

    #[test]
    fn sources_are_resolved_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(source(&dir.path().join("link")).unwrap(), real);
        assert!(source(&dir.path().join("new/folder")).unwrap().is_dir());
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("dangling")).unwrap();
        assert!(source(&dir.path().join("dangling")).is_err());
    }
}
