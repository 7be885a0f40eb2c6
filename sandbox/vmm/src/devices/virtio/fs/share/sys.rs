#![allow(unsafe_code)] // calls that rustix has not, or only for the whole process
//! System calls of one thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives the calling thread a working directory and umask of its own.
pub(super) fn unshare_fs() -> io::Result<()> {
    // SAFETY: touches no memory; what the thread shares of it with others is only undone.
    check(unsafe { libc::unshare(libc::CLONE_FS) }.into())
}

/// Changes the effective user of the calling thread only.
pub(super) fn set_effective_uid(uid: u32) -> io::Result<()> {
    // SAFETY: touches no memory. The bare call, and not the library's, which would change all threads.
    check(unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX) })
}

/// Changes the effective group of the calling thread only.
pub(super) fn set_effective_gid(gid: u32) -> io::Result<()> {
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresgid, u32::MAX, gid, u32::MAX) })
}

/// Size and use of the file system that `file` is on.
pub(super) fn statvfs(file: BorrowedFd<'_>) -> io::Result<libc::statvfs64> {
    let mut stat = MaybeUninit::zeroed();
    // SAFETY: the call writes one statvfs64 behind the pointer.
    check(unsafe { libc::fstatvfs64(file.as_raw_fd(), stat.as_mut_ptr()) }.into())?;
    // SAFETY: the call succeeded; and all zeros are a valid statvfs64 anyway.
    Ok(unsafe { stat.assume_init() })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
