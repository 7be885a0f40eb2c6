#![allow(unsafe_code)] // the ioctl for a block device's size
//! What a disk shows: a regular file, or a block device of the node.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use rustix::fs::OFlags;

use super::{PHYSICAL, SECTOR};

/// `_IOR(0x12, 114, size_t)` of `linux/fs.h`: the size of a block device in bytes.
pub(crate) const BLKGETSIZE64: u32 = 0x8008_1272;
/// `_IO(0x12, 104)` of `linux/fs.h`: the size of a block device's blocks.
pub(crate) const BLKSSZGET: u32 = 0x1268;

/// What a disk shows.
pub(super) struct Source {
    pub(super) file: File,
    pub(super) bytes: u64,
    /// The least that can be read or written, bytes.
    pub(super) block_size: u32,
    pub(super) writable: bool,
}

/// A regular file.
pub(super) fn file(file: File) -> io::Result<Source> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(invalid("the disk must be a regular file"));
    }
    Ok(Source { bytes: metadata.len(), block_size: SECTOR as u32, writable: is_writable(&file)?, file })
}

/// A block device, of the size that it has now.
pub(super) fn block_device(file: File) -> io::Result<Source> {
    if !file.metadata()?.file_type().is_block_device() {
        return Err(invalid("the descriptor is not that of a block device"));
    }
    let mut bytes = 0_u64;
    // SAFETY: the kernel writes one u64 (its size_t), which `bytes` is, and nothing else.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let block_size = rustix::fs::ioctl_blksszget(&file)?;
    if !block_size.is_power_of_two() || !(SECTOR as u32..=PHYSICAL).contains(&block_size) {
        return Err(invalid("a guest can have devices with blocks of 512 to 4096 bytes only"));
    }
    Ok(Source { bytes, block_size, writable: is_writable(&file)?, file })
}

fn is_writable(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDWR)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
