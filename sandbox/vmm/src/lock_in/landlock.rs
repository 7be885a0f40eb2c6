#![allow(unsafe_code)] // three system calls without wrappers
//! Landlock: what may be opened from now on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `landlock_create_ruleset`: tell the version.
const VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: u32 = 1;

const EXECUTE: u64 = 1;
const MAKE_CHARACTER_DEVICE: u64 = 1 << 6;
const MAKE_BLOCK_DEVICE: u64 = 1 << 11;
const DEVICE_IOCTL: u64 = 1 << 15;

/// `struct landlock_ruleset_attr`, of which older kernels know only the first fields.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Allows the calling thread what a file server does, below `share` and whatever is mounted there, and nothing elsewhere: no other
/// file is opened any more, no TCP connection made, no signal sent to others. Descriptors that are open stay as they are.
/// False on a kernel without Landlock.
pub(super) fn restrict(share: BorrowedFd<'_>) -> io::Result<bool> {
    let version = version();
    if version < 1 {
        return Ok(false);
    }
    // All that a version knows: 13 kinds of access in the first, then one more in versions 2, 3 and 5.
    let files = (1 << 13) - 1
        + [(2, 13), (3, 14), (5, 15)].iter().map(|(from, bit)| bit_from(version, *from, *bit)).sum::<u64>();
    let network = if version >= 4 { 0b11 } else { 0 };
    let scoped = if version >= 6 { 0b11 } else { 0 };
    let ruleset = create(&Ruleset { files, network, scoped })?;
    let never = EXECUTE | MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE | DEVICE_IOCTL;
    let rule = PathBeneath { allowed: files & !never, parent: share.as_raw_fd() };
    // SAFETY: the call reads one path_beneath_attr behind the pointer.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0_u32)
    })?;
    // SAFETY: touches no memory; restricts this thread and what it starts.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) })?;
    Ok(true)
}

fn bit_from(version: i64, from: i64, bit: u32) -> u64 {
    if version >= from { 1 << bit } else { 0 }
}

/// The version of Landlock; 0 or less without it.
pub(super) fn version() -> i64 {
    // SAFETY: with these arguments the call reads no memory.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) }
}

fn create(ruleset: &Ruleset) -> io::Result<OwnedFd> {
    // SAFETY: the call reads one ruleset_attr behind the pointer, of the size that is said; what a kernel does not know is zero.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *ruleset, size_of::<Ruleset>(), 0_u32)
    })?;
    // SAFETY: the call made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
