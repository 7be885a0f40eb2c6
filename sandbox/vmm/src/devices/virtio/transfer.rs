#![allow(unsafe_code)] // preadv and pwritev straight to and from guest memory
//! Bytes moved between a file and guest memory, without a copy of ours.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::Slices;

/// Which way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From the file to the guest.
    FromFile,
    /// From the guest to the file.
    ToFile,
}

/// Moves `data` until all of it is moved, the file ends, or the kernel refuses; answers how many
/// bytes were moved.
///
/// # Errors
/// When the kernel refuses the first bytes. What it refuses later shows by what is missing.
pub(crate) fn transfer(file: &File, direction: Direction, data: &Slices<'_>, offset: u64) -> io::Result<usize> {
    let guards: Vec<_> = data.pieces().iter().map(|piece| piece.ptr_guard_mut()).collect();
    let mut vectors: Vec<libc::iovec> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let (mut rest, mut done) = (&mut vectors[..], 0);
    while !rest.is_empty() {
        match direction.once(file, rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(moved) => {
                done += moved;
                rest = advance(rest, moved);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

impl Direction {
    /// One system call; answers how many bytes it moved.
    fn once(self, file: &File, vectors: &[libc::iovec], offset: u64) -> io::Result<usize> {
        let count = vectors.len() as i32; // at most MAX_DESCRIPTORS, less than IOV_MAX
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: every vector is a piece of guest memory, whose mapping the guards of `transfer`
        // keep; the kernel checks nothing else of it. The guest may change the bytes meanwhile,
        // which no Rust reference sees.
        let moved = unsafe {
            match self {
                Self::FromFile => libc::preadv64(file.as_raw_fd(), vectors.as_ptr(), count, offset),
                Self::ToFile => libc::pwritev64(file.as_raw_fd(), vectors.as_ptr(), count, offset),
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

/// What is left of `vectors` after `moved` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(moved).cast();
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}
