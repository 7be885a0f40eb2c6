//! Extended attributes. The thread's working directory is `/proc/self/fd`, so a node's name is its descriptor's number.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::XattrFlags;

use super::errno;
use super::nodes::Node;

/// Linux's limits of a value and of a list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_SIZE: usize = 64 << 10;

/// Names that a guest may write. `trusted.` and the rest of `security.` mean something to the node's kernel.
fn check_writable(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    let allowed = name.starts_with(b"user.")
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default" | b"security.capability");
    if allowed { Ok(()) } else { Err(errno(libc::EPERM)) }
}

fn path(node: &Node) -> String {
    node.file.as_raw_fd().to_string()
}

pub(super) fn get(node: &Node, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
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

pub(super) fn set(node: &Node, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
    node.class.check_writable()?;
    check_writable(name)?;
    Ok(rustix::fs::setxattr(path(node), name, value, XattrFlags::from_bits_truncate(flags))?)
}

pub(super) fn remove(node: &Node, name: &CStr) -> io::Result<()> {
    node.class.check_writable()?;
    check_writable(name)?;
    Ok(rustix::fs::removexattr(path(node), name)?)
}
