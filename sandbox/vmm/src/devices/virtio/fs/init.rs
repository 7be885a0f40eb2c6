//! What a guest's kernel and the file server agree on before anything else (`FUSE_INIT`).

use std::io;

use fuse_backend_rs::abi::fuse_abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};
use fuse_backend_rs::api::filesystem::FsOptions;

/// Requests to set an attribute say whether an ACL takes the set-group bit away (Linux 5.13).
pub(super) const SETXATTR_EXT: u32 = 1 << 29;
/// Pages of one request, and bytes.
const MAX_PAGES: u16 = 256;
const MAX_WRITE: u32 = 1 << 20;

/// What the file server can do, as far as the guest's kernel wants it.
///
/// - `POSIX_ACL`: the guest's kernel reads the ACLs of files and checks permissions by them.
/// - `DONT_MASK`: a program's umask comes with its request and is the node's kernel's to apply,
///   since a default ACL of the directory takes its place.
fn offered() -> u32 {
    let options = FsOptions::ASYNC_READ
        | FsOptions::ATOMIC_O_TRUNC
        | FsOptions::BIG_WRITES
        | FsOptions::DONT_MASK
        | FsOptions::MAX_PAGES
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::DO_READDIRPLUS
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::ASYNC_DIO
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::POSIX_ACL
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::HANDLE_KILLPRIV_V2;
    options.bits() as u32 | SETXATTR_EXT
}

/// The answer to `asked`.
pub(super) fn agree(asked: &InitIn) -> io::Result<InitOut> {
    if asked.major < KERNEL_VERSION {
        return Err(io::Error::from_raw_os_error(libc::EPROTO));
    }
    // A newer kernel asks again, in this version.
    let mut flags = if asked.major == KERNEL_VERSION { asked.flags & offered() } else { 0 };
    if flags & SETXATTR_EXT == 0 {
        // Without it nobody would say when an ACL takes the set-group bit away.
        flags &= !(FsOptions::POSIX_ACL.bits() as u32);
    }
    Ok(InitOut {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead: asked.max_readahead,
        flags,
        max_background: u16::MAX,
        congestion_threshold: u16::MAX / 4 * 3,
        max_write: MAX_WRITE,
        time_gran: 1, // nanoseconds
        max_pages: MAX_PAGES,
        ..InitOut::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_can_is_agreed_on() {
        let acl = FsOptions::POSIX_ACL.bits() as u32;
        let ask = |major, flags| agree(&InitIn { major, minor: 41, max_readahead: 1 << 17, flags });
        let agreed = ask(7, u32::MAX).unwrap();
        assert_eq!((agreed.major, agreed.flags, agreed.flags2), (7, offered(), 0));
        assert_ne!(agreed.flags & acl, 0);
        assert_eq!(ask(7, 1).unwrap().flags, 1);
        assert_eq!(ask(7, !SETXATTR_EXT).unwrap().flags & acl, 0);
        assert_eq!(ask(8, u32::MAX).unwrap().flags, 0);
        assert_eq!(ask(6, u32::MAX).unwrap_err().raw_os_error(), Some(libc::EPROTO));
    }
}
