//! Requests that `fuse_backend_rs` does not know, or not in the form in which Linux sends them; and
//! those that move a file's bytes, which go straight between the file and the checked pieces of
//! guest memory.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, InHeader, InitOut, OpenOut, OutHeader, ReadIn, WRITE_KILL_PRIV, WriteIn, WriteOut,
};
use fuse_backend_rs::api::filesystem::Context;
use vm_memory::ByteValued;

use super::init;
use super::share::{NewAttribute, Share};
use crate::devices::virtio::{Buffers, Slices};

const READ: u32 = 15;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
/// A file without a name (`FUSE_TMPFILE`, Linux 6.2). Its request and reply are those of a file
/// with a name.
pub(super) const TMPFILE: u32 = 51;
/// `FUSE_SETXATTR_ACL_KILL_SGID`.
const ACL_KILL_SGID: u32 = 1;
/// Bytes of an attribute's name and value at most (`XATTR_NAME_MAX`, its end, `XATTR_SIZE_MAX`).
const MAX_ATTRIBUTE: usize = 256 + (64 << 10);

/// Carries `request` out if it is one of these, and answers how many bytes of reply were written.
/// If it is another one, nothing happens to it.
pub(super) fn serve(share: &Share, request: &mut Buffers<'_>) -> Option<u32> {
    let mut header = InHeader::default();
    request.readable.copy_to(header.as_mut_slice());
    let room = match header.opcode {
        READ | SETXATTR => 0,
        WRITE => size_of::<WriteOut>(),
        INIT => size_of::<InitOut>(),
        TMPFILE => size_of::<EntryOut>() + size_of::<OpenOut>(),
        _ => return None,
    };
    if request.writable.len() < size_of::<OutHeader>() + room {
        return Some(0); // only a broken driver makes one
    }
    request.readable.take_front(size_of::<InHeader>())?;
    if header.opcode == READ {
        return Some(read_file(share, &header, request));
    }
    let body = &mut request.readable;
    let result = match header.opcode {
        WRITE => write_file(share, &header, body),
        SETXATTR => set_attribute(share, &header, body),
        INIT => initialize(share, body),
        _ => unnamed(share, &header, body),
    };
    Some(reply(request, &header, result))
}

/// Reads an open file into what follows the reply's header. There is room for that.
fn read_file(share: &Share, header: &InHeader, request: &mut Buffers<'_>) -> u32 {
    let read = |request: &mut Buffers<'_>| {
        let asked: ReadIn = read(&mut request.readable)?;
        let mut rest = Slices::from(&request.writable);
        let _header = rest.take_front(size_of::<OutHeader>());
        let most = rest.len().min(asked.size as usize);
        let data = rest.take_front(most).unwrap_or_default();
        share.read(header.nodeid, asked.fh, asked.offset, &data)
    };
    match read(request) {
        Ok(count) => {
            let len = (size_of::<OutHeader>() + count) as u32;
            let out = OutHeader { len, error: 0, unique: header.unique };
            request.writable.copy_from(out.as_slice());
            len
        }
        Err(error) => reply(request, header, Err(error)),
    }
}

/// Writes what follows to an open file.
fn write_file(share: &Share, header: &InHeader, body: &mut Slices<'_>) -> io::Result<Vec<u8>> {
    let asked: WriteIn = read(body)?;
    let data = body.take_front(asked.size as usize).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let kill_setid = asked.fuse_flags & WRITE_KILL_PRIV != 0;
    let count = share.write(header.nodeid, asked.fh, asked.offset, &data, kill_setid)?;
    Ok(WriteOut { size: count as u32, padding: 0 }.as_slice().to_vec())
}

/// Makes a file without a name; the name that comes with the request is none.
fn unnamed(share: &Share, header: &InHeader, body: &mut Slices<'_>) -> io::Result<Vec<u8>> {
    let arguments: CreateIn = read(body)?;
    let (entry, handle, options) = share.create_unnamed(&Context::from(header), header.nodeid, arguments)?;
    let open = OpenOut { fh: handle, open_flags: options.bits(), ..OpenOut::default() };
    Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
}

fn initialize(share: &Share, body: &mut Slices<'_>) -> io::Result<Vec<u8>> {
    let agreed = init::agree(&read(body)?)?;
    share.begin(agreed.flags & init::SETXATTR_EXT != 0);
    Ok(agreed.as_slice().to_vec())
}

/// Sets an extended attribute: `u32 size | u32 flags`, then `u32 more flags | u32` if that was
/// agreed on, the name, 0, the value.
fn set_attribute(share: &Share, header: &InHeader, body: &mut Slices<'_>) -> io::Result<Vec<u8>> {
    let ([size, flags], mut more) = ([read::<u32>(body)?, read(body)?], 0);
    if share.sets_attributes_extended() {
        (more, _) = (read(body)?, read::<u32>(body)?);
    }
    if body.len() > MAX_ATTRIBUTE {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut bytes = vec![0; body.len()];
    body.copy_to(&mut bytes);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let value = &bytes[name.count_bytes() + 1..];
    if value.len() != size as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let attribute = NewAttribute { name, value, flags, kill_setgid: more & ACL_KILL_SGID != 0 };
    share.set_attribute(&Context::from(header), header.nodeid, &attribute)?;
    Ok(Vec::new())
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
