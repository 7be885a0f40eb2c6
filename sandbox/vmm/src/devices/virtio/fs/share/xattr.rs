//! Extended attributes, ACLs among them. The thread's working directory is `/proc/self/fd`, so a
//! node's name is its descriptor's number.
//!
//! The guest's kernel checks who may change an ACL, and whom an ACL lets in. The node's kernel
//! keeps it, changes it together with the mode, and gives it to what is made in a directory. The
//! numbers of users in an ACL are those that the owners of files have, in the guest and, through a
//! mapped mount, on the node.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::api::filesystem::{Context, GetxattrReply, ListxattrReply};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::credentials::{ActingFor, WithoutSetid};
use super::nodes::Node;
use super::{Share, errno};

/// Linux's limits of a value and of a list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_SIZE: usize = 64 << 10;

/// The two ACLs of a file.
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Bytes of an ACL's version, and of an entry: kind, permissions, user or group.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;

/// An attribute that is to be set.
pub(crate) struct NewAttribute<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) value: &'a [u8],
    /// Those of setxattr(2).
    pub(crate) flags: u32,
    /// If it is an ACL, it takes the set-group bit away: the program is not of the file's group.
    pub(crate) kill_setgid: bool,
}

/// Names that a guest may write. `trusted.` and the rest of `security.` mean something to the node's kernel.
fn check_writable(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    let allowed = name.starts_with(b"user.") || matches!(name, ACL_ACCESS | ACL_DEFAULT | b"security.capability");
    if allowed { Ok(()) } else { Err(errno(libc::EPERM)) }
}

fn path(node: &Node) -> String {
    node.file.as_raw_fd().to_string()
}

/// The guest's kernel asks for the ACL of each file whose permissions it checks, and any error but
/// ENODATA would be the program's. So a file has no ACL where the node's file system knows none;
/// setting one fails there as it does on the node.
pub(super) fn get(node: &Node, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
    let is_acl = matches!(name.to_bytes(), ACL_ACCESS | ACL_DEFAULT);
    match read(node, name, size) {
        Ok(GetxattrReply::Value(acl)) if is_acl => Ok(GetxattrReply::Value(without_strangers(&acl))),
        Err(Errno::OPNOTSUPP) if is_acl => Err(errno(libc::ENODATA)),
        other => Ok(other?),
    }
}

/// An ACL without its entries for users and groups that a mapped mount has no number for: -1 stands
/// for them, with which the guest's kernel would refuse the whole. Nobody in the guest is one of
/// them.
fn without_strangers(acl: &[u8]) -> Vec<u8> {
    let Some((version, entries)) = acl.split_at_checked(ACL_HEADER) else { return acl.to_vec() };
    let is_stranger = |entry: &&[u8]| matches!(entry, [2 | 8, 0, _, _, 0xff, 0xff, 0xff, 0xff]);
    let kept = entries.chunks(ACL_ENTRY).filter(|entry| !is_stranger(entry));
    std::iter::once(version).chain(kept).flatten().copied().collect()
}

fn read(node: &Node, name: &CStr, size: u32) -> rustix::io::Result<GetxattrReply> {
    if size == 0 {
        return Ok(GetxattrReply::Count(rustix::fs::getxattr_query(path(node), name)? as u32));
    }
    let mut value = vec![0; (size as usize).min(MAX_SIZE)];
    let length = rustix::fs::getxattr(path(node), name, &mut value[..])?;
    value.truncate(length);
    Ok(GetxattrReply::Value(value))
}

pub(super) fn list(node: &Node, size: u32) -> io::Result<ListxattrReply> {
    if size == 0 {
        return Ok(ListxattrReply::Count(rustix::fs::listxattr_query(path(node))? as u32));
    }
    let mut names = vec![0; (size as usize).min(MAX_SIZE)];
    let length = rustix::fs::listxattr(path(node), &mut names[..])?;
    names.truncate(length);
    Ok(ListxattrReply::Names(names))
}

impl Share {
    /// Sets an attribute of a file.
    pub(crate) fn set_attribute(&self, context: &Context, number: u64, new: &NewAttribute<'_>) -> io::Result<()> {
        let node = self.node(number)?;
        node.class.check_writable()?;
        check_writable(new.name)?;
        // The node's kernel does it for whoever is not of the file's group, and may not do so in
        // spite of that.
        let _acting = new.kill_setgid.then(|| ActingFor::new(self, 0, context.gid)).transpose()?;
        let _without = WithoutSetid::new(new.kill_setgid)?;
        let flags = XattrFlags::from_bits_truncate(new.flags);
        Ok(rustix::fs::setxattr(path(&node), new.name, new.value, flags)?)
    }
}

pub(super) fn remove(node: &Node, name: &CStr) -> io::Result<()> {
    node.class.check_writable()?;
    check_writable(name)?;
    Ok(rustix::fs::removexattr(path(node), name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_number_is_left_out_of_an_acl() {
        let entry = |kind: u16, id: u32| [&kind.to_le_bytes()[..], &[7, 0], &id.to_le_bytes()].concat();
        let acl = |entries: &[Vec<u8>]| [&2_u32.to_le_bytes()[..], &entries.concat()].concat();
        let [owner, group, mask, other] = [1, 4, 16, 32].map(|kind| entry(kind, u32::MAX));
        let known = [&owner, &entry(2, 5), &group, &entry(8, 6), &mask, &other].map(Clone::clone);
        assert_eq!(without_strangers(&acl(&known)), acl(&known));
        let strangers = [&owner, &entry(2, 5), &entry(2, u32::MAX), &group, &entry(8, 6), &entry(8, u32::MAX)];
        let all = [&strangers.map(Clone::clone)[..], &[mask, other]].concat();
        assert_eq!(without_strangers(&acl(&all)), acl(&known));
        for odd in [&b""[..], b"abc", b"abcd", b"abcdefg"] {
            assert_eq!(without_strangers(odd), odd);
        }
    }
}
