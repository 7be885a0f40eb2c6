//! emptyDir volumes of medium Memory. The kubelet mounts a tmpfs on the node for each; in a microVM the containers get one of the guest's
//! instead, of the same size, owner and mode, so that what they write is the pod's memory and not the node's.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_proto::agent;
use cofferdam_sandbox::mountinfo::{self, MountInfo};

use super::own_volume::EMPTY_DIR;
use crate::error::CriError;

/// A source that lies in such a volume.
#[derive(Debug, PartialEq)]
struct Found<'a> {
    /// Where the kubelet mounted it.
    volume: &'a MountInfo,
    /// What of it is meant.
    sub_path: PathBuf,
}

/// What the agent is asked for `source`, a path without symlinks, if that is (a folder of) a memory volume; `mounts` are the node's.
/// Blocks.
pub(crate) fn mount(
    source: &Path,
    mount: &agent::Mount,
    mounts: &[MountInfo],
) -> Result<Option<agent::Mount>, CriError> {
    let Some(found) = find(source, mounts) else { return Ok(None) };
    let failed = |e: std::io::Error| CriError::internal(format!("look at memory volume {}", source.display()), e);
    let top = fs::metadata(&found.volume.point).map_err(failed)?;
    let part = fs::metadata(source).map_err(failed)?;
    let size = rustix::fs::statvfs(&found.volume.point).map_err(|e| failed(e.into()))?;
    let Some(sub_path) = found.sub_path.to_str().filter(|_| part.is_dir()) else { return Ok(None) };
    let (major, minor) = found.volume.device;
    let mut options = mount.options.clone();
    options.push(format!("mode={:o}", top.mode() & 0o7777));
    options.extend([format!("uid={}", top.uid()), format!("gid={}", top.gid())]);
    if size.f_blocks > 0 {
        options.push(format!("size={}", size.f_blocks.saturating_mul(size.f_frsize)));
    }
    Ok(Some(agent::Mount {
        r#type: "memory".into(),
        memory: format!("{major}-{minor}"),
        options,
        sub_path: sub_path.to_owned(),
        sub_uid: part.uid(),
        sub_gid: part.gid(),
        sub_mode: part.mode() & 0o7777,
        ..mount.clone()
    }))
}

/// `.../volumes/kubernetes.io~empty-dir/NAME` with a tmpfs on it, or a bind mount of a folder in that (the kubelet's subPath).
fn find<'a>(source: &Path, mounts: &'a [MountInfo]) -> Option<Found<'a>> {
    let holds = mountinfo::holding(source, mounts)?;
    if holds.kind != "tmpfs" {
        return None;
    }
    let volume =
        mounts.iter().find(|m| m.device == holds.device && m.root == Path::new("/") && is_empty_dir(&m.point))?;
    let inside = holds.root.join(source.strip_prefix(&holds.point).ok()?);
    let sub_path: PathBuf = inside.strip_prefix("/").ok()?.components().collect();
    Some(Found { volume, sub_path })
}

fn is_empty_dir(point: &Path) -> bool {
    point.parent().is_some_and(|folder| folder.ends_with(Path::new("volumes").join(EMPTY_DIR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(device: u32, root: &str, point: &str, kind: &str) -> MountInfo {
        let (root, point, kind) = (root.into(), point.into(), kind.into());
        MountInfo { id: 1, device: (0, device), root, point, kind, ..MountInfo::default() }
    }

    #[test]
    fn memory_volumes_are_recognised_by_what_is_mounted() {
        let pod = "/var/lib/kubelet/pods/u";
        let volumes = format!("{pod}/volumes/kubernetes.io~empty-dir");
        let mounts = [
            info(1, "/", "/", "ext4"),
            info(2, "/", "/run", "tmpfs"),
            info(3, "/", &format!("{volumes}/cache"), "tmpfs"),
            info(4, "/", &format!("{pod}/volumes/kubernetes.io~secret/s"), "tmpfs"),
            info(3, "/a/b", &format!("{pod}/volume-subpaths/cache/c/0"), "tmpfs"),
        ];
        let rows = [
            (format!("{volumes}/cache"), Some("")),
            (format!("{volumes}/cache/x/y"), Some("x/y")),
            (format!("{pod}/volume-subpaths/cache/c/0"), Some("a/b")),
            (format!("{volumes}/disk"), None),
            (format!("{volumes}/cachet"), None),
            (format!("{pod}/volumes/kubernetes.io~secret/s"), None),
            ("/run/x".into(), None),
            ("/srv".into(), None),
        ];
        for (source, wanted) in rows {
            let found = find(Path::new(&source), &mounts);
            let got = found.as_ref().map(|f| f.sub_path.to_str().unwrap());
            assert_eq!(got, wanted, "{source}");
            assert!(found.is_none_or(|f| f.volume.device == (0, 3)));
        }
    }

    #[test]
    fn what_is_no_memory_volume_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mounts) = (dir.path().canonicalize().unwrap(), mountinfo::read().unwrap());
        assert_eq!(mount(&path, &agent::Mount::default(), &mounts).unwrap(), None);
    }
}
