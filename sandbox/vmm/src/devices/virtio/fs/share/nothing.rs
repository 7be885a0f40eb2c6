//! A folder that is not there, with a link in it that can be renamed over any name of a volume without any effect here.
//!
//! Changes that the node makes to a volume are nothing that a guest's kernel knows of, and FUSE has no message that makes it tell its
//! own watchers (inotify). So the guest's agent, told of such a change, does in the guest what leaves the volume as it is and yet is
//! told of: it renames this link over the name that changed. The kernel then looks the name up again, and finds what is really there.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use cofferdam_proto::monitor::{SHARE_NOTHING, SHARE_NOTHING_LINK};
use fuse_backend_rs::api::filesystem::{Entry, ROOT_ID};

use super::errno;

/// The folder's number; those of nodes count from the other end.
pub(super) const FOLDER: u64 = u64::MAX;
/// Attributes of what does not exist do not change.
const VALID: Duration = Duration::from_secs(24 * 3600);

/// Whether this names the folder.
pub(super) fn is_folder(parent: u64, name: &CStr) -> bool {
    parent == ROOT_ID && name.to_bytes() == SHARE_NOTHING.as_bytes()
}

/// The folder.
pub(super) fn folder() -> Entry {
    entry(FOLDER, libc::S_IFDIR | 0o700)
}

/// What is in the folder. `number` is one that was not used before: a rename of a file over itself is none.
pub(super) fn look_up(name: &CStr, number: impl FnOnce() -> u64) -> io::Result<Entry> {
    if name.to_bytes() != SHARE_NOTHING_LINK.as_bytes() {
        return Err(errno(libc::ENOENT));
    }
    Ok(entry(number(), libc::S_IFLNK | 0o777))
}

/// The names are looked up each time.
fn entry(inode: u64, mode: u32) -> Entry {
    let mut entry = Entry { inode, attr_timeout: VALID, ..Entry::default() };
    entry.attr.st_ino = inode;
    entry.attr.st_mode = mode;
    entry.attr.st_nlink = 1;
    entry
}
