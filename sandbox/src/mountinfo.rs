//! What is mounted on the node, as this process sees it (proc(5), `/proc/PID/mountinfo`).

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, SandboxError};

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountInfo {
    /// The kernel's number of it; may be used again when it is gone.
    pub id: u64,
    /// The number of the mount that it lies on.
    pub parent: u64,
    /// Major and minor number of the file system.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The mount or its file system takes no writes.
    pub read_only: bool,
    /// What is mounted on it shows on copies of it, and what is mounted on those on it.
    pub shared: bool,
    /// What is mounted on another one shows on it, or would on its copies.
    pub slave: bool,
    /// No bind mount shows it or what lies on it.
    pub unbindable: bool,
    /// Type of the file system: `tmpfs`.
    pub kind: String,
}

/// All mounts, in the kernel's order: what is mounted on another one comes after it.
///
/// # Errors
/// When /proc cannot be read.
pub fn read() -> Result<Vec<MountInfo>, SandboxError> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").doing(|| "read the node's mounts".into())?;
    Ok(text.lines().filter_map(parse).collect())
}

/// The one of `mounts` that `path` lies on. Of mounts on one place the last is on top.
pub fn holding<'a>(path: &Path, mounts: &'a [MountInfo]) -> Option<&'a MountInfo> {
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`
pub(crate) fn parse(line: &str) -> Option<MountInfo> {
    let (mount, file_system) = line.split_once(" - ")?;
    let fields: Vec<&str> = mount.split(' ').collect();
    let [id, parent, device, root, point, options, ref tags @ ..] = fields[..] else { return None };
    let (major, minor) = device.split_once(':')?;
    let mut rest = file_system.split(' ');
    let kind = rest.next()?.to_owned();
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(MountInfo {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(root),
        point: unescape(point),
        shared: tags.iter().any(|tag| tag.starts_with("shared:")),
        slave: tags.iter().any(|tag| tag.starts_with("master:")),
        unbindable: tags.contains(&"unbindable"),
        read_only: read_only(options) || rest.nth(1).is_some_and(read_only),
        kind,
    })
}

/// Undoes the octal escapes.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Path::new(&std::ffi::OsString::from_vec(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = r"36 35 98:7 /a\040b /mnt/c\134d rw,noatime shared:1 master:2 - ext3 /dev/root ro,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.device, mount.kind.as_str()), (36, (98, 7), "ext3"));
        assert_eq!((mount.root.to_str(), mount.point.to_str()), (Some("/a b"), Some(r"/mnt/c\d")));
        assert!(mount.read_only, "the file system is");
        assert!(mount.parent == 35 && !mount.unbindable && mount.shared && mount.slave);
        let private = parse("36 35 0:7 / /x rw - tmpfs none rw").unwrap();
        assert!(!private.shared && !private.slave);
        assert!(parse("36 35 0:7 / /x rw unbindable - tmpfs none rw").unwrap().unbindable);
        assert!(!parse("36 35 0:7 / /x rw - tmpfs none rw,size=1k").unwrap().read_only);
        assert!(parse("36 35 0:7 / /x ro,nosuid - tmpfs none rw").unwrap().read_only);
        for bad in ["", "36 35 0:7 / /x rw", "x 35 0:7 / /x rw - tmpfs none rw", "36 35 07 / /x rw - tmpfs none rw"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert!(read().unwrap().iter().any(|m| m.point == Path::new("/")));
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c\9"), Path::new(r"/a b\c\9"));
    }
}
