//! Which requests are worth decoding: the file server's own bounds, before `fuse_backend_rs` sees a
//! byte.

use super::extra;
use crate::devices::virtio::Buffers;

/// Bytes of a request at most: the longest write (1 MiB), and a page for everything before its
/// data.
pub(super) const MAX_REQUEST: usize = (1 << 20) + 4096;
/// Bytes of `struct fuse_in_header` and `struct fuse_out_header`.
const HEADER: usize = 40;
const REPLY: usize = 16;

/// Requests that [`super::share::Share`] answers, by their number in `enum fuse_opcode`. Any other
/// one is refused without a look at what it carries, so that no code for features that are not
/// offered reads what a guest sends.
const ANSWERED: &[u32] = &[
    1,  // LOOKUP
    2,  // FORGET
    3,  // GETATTR
    4,  // SETATTR
    5,  // READLINK
    6,  // SYMLINK
    8,  // MKNOD
    9,  // MKDIR
    10, // UNLINK
    11, // RMDIR
    12, // RENAME
    13, // LINK
    14, // OPEN
    15, // READ
    16, // WRITE
    17, // STATFS
    18, // RELEASE
    20, // FSYNC
    21, // SETXATTR
    22, // GETXATTR
    23, // LISTXATTR
    24, // REMOVEXATTR
    26, // INIT
    27, // OPENDIR
    28, // READDIR
    29, // RELEASEDIR
    30, // FSYNCDIR
    35, // CREATE
    36, // INTERRUPT
    38, // DESTROY
    42, // BATCH_FORGET
    43, // FALLOCATE
    44, // READDIRPLUS
    45, // RENAME2
    46, // LSEEK
    extra::TMPFILE,
];
/// Linux takes ENOSYS from this one for a broken server.
const IOCTL: u32 = 39;

/// Whether `request` may be decoded; answers its opcode. If not, the reply that refuses it is
/// written, and the error is how many bytes that are.
pub(super) fn check(request: &Buffers<'_>) -> Result<u32, u32> {
    let mut header = [0; HEADER];
    if request.readable.copy_to(&mut header) < HEADER {
        return Err(0); // nobody to answer
    }
    let opcode = u32::from_le_bytes(std::array::from_fn(|at| header[4 + at]));
    let error = match opcode {
        IOCTL => libc::ENOTTY,
        opcode if !ANSWERED.contains(&opcode) => libc::ENOSYS,
        _ if request.readable.len() > MAX_REQUEST => libc::E2BIG,
        opcode => return Ok(opcode),
    };
    let mut reply = [0; REPLY];
    reply[..4].copy_from_slice(&(REPLY as u32).to_le_bytes());
    reply[4..8].copy_from_slice(&(-error).to_le_bytes());
    reply[8..].copy_from_slice(&header[8..16]); // the request's number
    if request.writable.len() < REPLY {
        return Err(0); // such as a FORGET, which has no reply
    }
    Err(request.writable.copy_from(&reply) as u32)
}
