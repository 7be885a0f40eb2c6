//! A tar stream as a sequence of entries, every one of them bounded.
//!
//! The headers are read here and not by the `tar` crate: it reads extended headers of any size into
//! memory, turns device nodes into empty files and breaks PAX sparse files.

use std::io::{self, Read, Seek};

use super::ExtractError;
use super::header::{self, BLOCK, RawHeader, number};
use super::pax::{self, Pax};
use super::sparse::{self, Extent};
use crate::config::Limits;

/// `PATH_MAX` less its NUL.
const MAX_NAME: usize = 4095;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// One entry's header, whatever format said it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// The file's size; the data may be less (see `extents`).
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The parts of a sparse file that have data.
    pub(crate) extents: Option<Vec<Extent>>,
}

pub(crate) struct TarReader<'a, R> {
    inner: R,
    limits: &'a Limits,
    entries: u64,
    /// Data of the current entry that was not read yet, and the padding after it.
    left: u64,
    padding: u64,
}

impl<'a, R: Read> TarReader<'a, R> {
    pub(crate) fn new(inner: R, limits: &'a Limits) -> Self {
        Self { inner, limits, entries: 0, left: 0, padding: 0 }
    }

    /// The stream below, to be read to its end.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive. What was not read of the last one is
    /// skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ExtractError> {
        let mut pax = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some((block, raw)) = self.header()? else {
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > self.limits.layer_entries {
                return Err(ExtractError::too_large("the layer", format!("{} entries", self.limits.layer_entries)));
            }
            let size = u64::try_from(raw.size).map_err(|_| malformed(&raw.name, "size is negative"))?;
            match raw.kind {
                b'x' | b'X' => {
                    let data = self.small(&raw.name, size)?;
                    pax =
                        pax::parse(&data, self.limits.sparse_extents).map_err(|reason| malformed(&raw.name, reason))?;
                }
                b'g' => {
                    self.small(&raw.name, size)?;
                }
                b'L' => long_name = Some(until_nul(self.small(&raw.name, size)?)),
                b'K' => long_link = Some(until_nul(self.small(&raw.name, size)?)),
                _ => return self.entry(&block, raw, size, pax, long_name, long_link).map(Some),
            }
        }
    }

    /// Reads from the current entry's data.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ExtractError> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let got = read_some(&mut self.inner, &mut buffer[..want])?;
        if got == 0 {
            return Err(ExtractError::malformed("the layer", "ends in the middle of an entry"));
        }
        self.left -= got as u64;
        Ok(got)
    }

    fn header(&mut self) -> Result<Option<([u8; BLOCK], RawHeader)>, ExtractError> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None); // Ends without the two zero blocks, as some writers do.
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let raw = header::parse(&block).map_err(|reason| ExtractError::malformed("a tar header", reason))?;
        Ok(Some((block, raw)))
    }

    /// Fills a block; false at a clean end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ExtractError> {
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.inner, &mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(ExtractError::malformed("the layer", "ends in the middle of a header")),
                n => filled += n,
            }
        }
        Ok(true)
    }

    /// The whole data of a header-like entry.
    fn small(&mut self, name: &[u8], size: u64) -> Result<Vec<u8>, ExtractError> {
        let limit = self.limits.tar_header_bytes;
        if size > limit {
            return Err(ExtractError::too_large(&lossy(name), format!("{limit} bytes of extended header")));
        }
        self.set_data(size);
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        Ok(data)
    }

    fn set_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_rest(&mut self) -> Result<(), ExtractError> {
        let mut scratch = [0; 8192];
        while self.left > 0 {
            self.read_data(&mut scratch)?;
        }
        self.left = std::mem::take(&mut self.padding);
        while self.left > 0 {
            self.read_data(&mut scratch)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        raw: RawHeader,
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ExtractError> {
        let Pax { path, link, size: pax_size, uid, gid, mtime, xattrs, sparse } = pax;
        let name = sparse.name.clone().or(path).or(long_name).unwrap_or(raw.name);
        let link = link.or(long_link).unwrap_or(raw.link);
        check_name(&name, "name")?;
        check_name(&link, "link target").map_err(|_| malformed(&name, "link target is too long or has a NUL"))?;
        let kind = match raw.kind {
            // Old writers mark directories by a slash only.
            0 | b'0' | b'7' if name.ends_with(b"/") && pax_size.unwrap_or(size) == 0 => Kind::Dir,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(malformed(&name, &format!("entry type {:?} is not known", char::from(other)))),
        };
        // Only these have data; what others claim in `size` (hard links of old writers) is not
        // there.
        let data = if matches!(raw.kind, 0 | b'0' | b'7' | b'S') { pax_size.unwrap_or(size) } else { 0 };
        if data > self.limits.layer_unpacked_bytes {
            return Err(ExtractError::too_large(&lossy(&name), format!("{} bytes", self.limits.layer_unpacked_bytes)));
        }
        self.set_data(data);
        let owner = |pax: Option<i64>, raw: i64, field: &str| {
            owner(pax.unwrap_or(raw)).ok_or_else(|| malformed(&name, &format!("{field} is not a 32-bit id")))
        };
        let (uid, gid) = (owner(uid, raw.uid, "uid")?, owner(gid, raw.gid, "gid")?);
        let device = device(&name, &raw.major, &raw.minor)?;
        let (size, extents) = if raw.kind == b'S' {
            let (real, extents) = self.old_gnu_sparse(block, &name)?;
            (real, Some(extents))
        } else if kind == Kind::File && sparse.is_sparse() {
            let (real, extents) = self.pax_sparse(sparse, &name, data)?;
            (real, Some(extents))
        } else {
            (data, None)
        };
        if let Some(extents) = &extents {
            sparse::check(extents, size, self.left).map_err(|reason| malformed(&name, reason))?;
        }
        let mtime = mtime.unwrap_or((raw.mtime, 0));
        Ok(Entry { name, link, kind, mode: raw.mode, uid, gid, mtime, size, device, xattrs, extents })
    }

    /// The map in the header itself and in the blocks that follow it.
    fn old_gnu_sparse(&mut self, block: &[u8; BLOCK], name: &[u8]) -> Result<(u64, Vec<Extent>), ExtractError> {
        let bad = || malformed(name, "sparse map is not numbers");
        let field = |f: &[u8]| number(f).and_then(|n| u64::try_from(n).ok()).ok_or_else(bad);
        let real = field(&block[483..495])?;
        let mut extents = Vec::new();
        let mut take = |entries: &[u8]| -> Result<(), ExtractError> {
            for entry in entries.chunks_exact(24) {
                if entry[0] == 0 || entry[12] == 0 {
                    break;
                }
                extents.push(Extent { offset: field(&entry[..12])?, length: field(&entry[12..])? });
            }
            Ok(())
        };
        take(&block[386..482])?;
        let mut more = block[482] != 0;
        let mut count = 4;
        while more {
            count += 21;
            if count > self.limits.sparse_extents {
                return Err(ExtractError::too_large(&lossy(name), format!("{} extents", self.limits.sparse_extents)));
            }
            let mut extension = [0; BLOCK];
            if !self.block(&mut extension)? {
                return Err(malformed(name, "sparse map is cut off"));
            }
            take(&extension[..504])?;
            more = extension[504] != 0;
        }
        Ok((real, extents))
    }

    /// GNU formats 0.0 and 0.1 (map in the header) and 1.0 (map before the data).
    fn pax_sparse(
        &mut self,
        sparse: pax::PaxSparse,
        name: &[u8],
        data: u64,
    ) -> Result<(u64, Vec<Extent>), ExtractError> {
        let real = sparse.real_size.ok_or_else(|| malformed(name, "sparse file without a size"))?;
        if !sparse.map_in_data {
            return Ok((real, sparse.extents));
        }
        let mut map = SparseMap { reader: self, name, block: [0; BLOCK], at: BLOCK };
        let count = map.number()?;
        if count > map.reader.limits.sparse_extents as u64 {
            let limit = map.reader.limits.sparse_extents;
            return Err(ExtractError::too_large(&lossy(name), format!("{limit} extents")));
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            extents.push(Extent { offset: map.number()?, length: map.number()? });
        }
        debug_assert_eq!(self.left % BLOCK as u64, data % BLOCK as u64);
        Ok((real, extents))
    }
}

impl<R: Seek> TarReader<'_, R> {
    /// Where the rest of the current entry's data begins; goes on behind it without reading it.
    /// Whether the stream goes as far is for the caller to see.
    pub(crate) fn pass(&mut self) -> io::Result<u64> {
        let start = self.inner.stream_position()?;
        let length = self.left.saturating_add(std::mem::take(&mut self.padding));
        self.left = 0;
        let length = i64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.inner.seek_relative(length)?;
        Ok(start)
    }
}

/// Decimal numbers, one a line, in whole blocks at the head of an entry's data.
struct SparseMap<'r, 'a, R> {
    reader: &'r mut TarReader<'a, R>,
    name: &'r [u8],
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> SparseMap<'_, '_, R> {
    fn number(&mut self) -> Result<u64, ExtractError> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(malformed(self.name, "sparse map has a long line")),
            }
        }
        pax::decimal(&digits).ok_or_else(|| malformed(self.name, "sparse map is not numbers"))
    }

    fn byte(&mut self) -> Result<u8, ExtractError> {
        if self.at == BLOCK {
            if self.reader.left < BLOCK as u64 {
                return Err(malformed(self.name, "sparse map is cut off"));
            }
            let mut filled = 0;
            while filled < BLOCK {
                filled += self.reader.read_data(&mut self.block[filled..])?;
            }
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

/// A user's or group's id as chown(2) takes it: negative ones count from the top. The last one, -1,
/// is no id.
fn owner(id: i64) -> Option<u32> {
    let id = u32::try_from(id).or_else(|_| i32::try_from(id).map(|id| id as u32)).ok();
    id.filter(|id| *id != u32::MAX)
}

fn device(name: &[u8], major: &i64, minor: &i64) -> Result<(u32, u32), ExtractError> {
    // The kernel's own widths: 12 bits and 20 bits.
    match (u32::try_from(*major), u32::try_from(*minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(malformed(name, "device number is out of range")),
    }
}

fn check_name(name: &[u8], what: &str) -> Result<(), ExtractError> {
    if name.len() > MAX_NAME {
        return Err(ExtractError::too_large(&lossy(&name[..80]), format!("{MAX_NAME} bytes of {what}")));
    }
    if name.contains(&0) {
        return Err(malformed(name, &format!("{what} has a NUL")));
    }
    Ok(())
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ExtractError> {
    loop {
        match reader.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(ExtractError::Read),
        }
    }
}

/// A name for messages: bounded, without control characters.
pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(200)])
        .chars()
        .flat_map(|c| c.escape_debug().collect::<Vec<_>>())
        .collect()
}

fn malformed(name: &[u8], reason: &str) -> ExtractError {
    ExtractError::malformed(&lossy(name), reason)
}
