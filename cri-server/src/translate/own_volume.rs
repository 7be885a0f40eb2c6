//! emptyDir volumes: files that only the containers of one pod write. A microVM may believe for
//! longer what it knows of them.

use std::path::Path;

use cofferdam_sandbox::mountinfo::{self, MountInfo};

/// The folder of a pod's emptyDirs, below its `volumes`.
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Whether `source`, a path without symlinks, lies in an emptyDir of the pod with the uid `uid`:
/// below `.../pods/UID/volumes/kubernetes.io~empty-dir/NAME`, or in a bind mount of a folder there
/// (the kubelet's subPath).
pub(crate) fn is_alone(source: &Path, uid: &str, mounts: &[MountInfo]) -> bool {
    if names(source, uid) {
        return true;
    }
    let Some(mount) = mountinfo::holding(source, mounts) else { return false };
    // What such a mount shows, as a path on its file system: that may be mounted anywhere.
    source.strip_prefix(&mount.point).is_ok_and(|inside| names(&mount.root.join(inside), uid))
}

fn names(path: &Path, uid: &str) -> bool {
    let wanted = ["pods", uid, "volumes", EMPTY_DIR];
    let parts: Vec<_> = path.iter().collect();
    // The volume's own name follows.
    !uid.is_empty()
        && parts.windows(wanted.len() + 1).any(|part| part.iter().zip(wanted).all(|(part, name)| *part == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_dir_of_the_pod_is_its_own() {
        let info =
            |root: &str, point: &str| MountInfo { root: root.into(), point: point.into(), ..MountInfo::default() };
        let kubelet = "/var/lib/kubelet/pods/u-1";
        let sub_path = format!("{kubelet}/volume-subpaths/cache/c/0");
        let of_other = format!("{kubelet}/volume-subpaths/data/c/0");
        let mounts = [
            info("/", "/"),
            info("/pods/u-1/volumes/kubernetes.io~empty-dir/cache/a", &sub_path),
            info("/exports/data", &of_other),
        ];
        let rows = [
            (format!("{kubelet}/volumes/kubernetes.io~empty-dir/cache"), true),
            (format!("{kubelet}/volumes/kubernetes.io~empty-dir/cache/a/b"), true),
            ("/data/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/cache".into(), true),
            (sub_path, true),
            (of_other, false),
            (format!("{kubelet}/volumes/kubernetes.io~empty-dir"), false),
            (format!("{kubelet}/volumes/kubernetes.io~secret/s"), false),
            ("/var/lib/kubelet/pods/u-2/volumes/kubernetes.io~empty-dir/cache".into(), false),
            ("/srv".into(), false),
        ];
        for (source, wanted) in rows {
            assert_eq!(is_alone(Path::new(&source), "u-1", &mounts), wanted, "{source}");
        }
        assert!(!is_alone(Path::new("/pods//volumes/kubernetes.io~empty-dir/x"), "", &mounts));
    }
}
