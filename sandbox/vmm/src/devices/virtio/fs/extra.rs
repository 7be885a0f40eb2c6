//! Requests that `fuse_backend_rs` does not know.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, EntryOut, InHeader, OpenOut, OutHeader};
use fuse_backend_rs::api::filesystem::Context;
use vm_memory::ByteValued;

use super::share::Share;
use crate::devices::virtio::{Buffers, Slices};

/// A file without a name (`FUSE_TMPFILE`, Linux 6.2). Its request and reply are those of a file with a name.
pub(super) const TMPFILE: u32 = 51;
/// Bytes of the longest reply.
const MAX_REPLY: usize = size_of::<OutHeader>() + size_of::<EntryOut>() + size_of::<OpenOut>();

/// Carries `request` out if it is one of these, and answers how many bytes of reply were written. If it is another one, nothing
/// happens to it.
pub(super) fn serve(share: &Share, request: &mut Buffers<'_>) -> Option<u32> {
    let mut header = InHeader::default();
    request.readable.copy_to(header.as_mut_slice());
    if header.opcode != TMPFILE {
        return None;
    }
    if request.writable.len() < MAX_REPLY {
        return Some(0); // only a broken driver makes one
    }
    request.readable.take_front(size_of::<InHeader>())?;
    let result = unnamed(share, &header, &mut request.readable);
    Some(reply(request, &header, result))
}

/// Makes a file without a name; the name that comes with the request is none.
fn unnamed(share: &Share, header: &InHeader, body: &mut Slices<'_>) -> io::Result<Vec<u8>> {
    let arguments: CreateIn = read(body)?;
    let (entry, handle, options) = share.create_unnamed(&Context::from(header), header.nodeid, arguments)?;
    let open = OpenOut { fh: handle, open_flags: options.bits(), ..OpenOut::default() };
    Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
}

/// The next bytes of a request.
fn read<T: ByteValued + Default>(body: &mut Slices<'_>) -> io::Result<T> {
    let mut value = T::default();
    let bytes = body.take_front(size_of::<T>()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    bytes.copy_to(value.as_mut_slice());
    Ok(value)
}

fn reply(request: &Buffers<'_>, header: &InHeader, result: io::Result<Vec<u8>>) -> u32 {
    let (error, body) = match result {
        Ok(body) => (0, body),
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let len = (size_of::<OutHeader>() + body.len()) as u32;
    let out = OutHeader { len, error: -error, unique: header.unique };
    request.writable.copy_from(&[out.as_slice(), &body].concat()) as u32
}
