//! One request, from its chain to its status byte (virtio 1.3 §5.2.6).

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;

use super::state::BlkState;
use super::{MAX_RANGE_SECTORS, MAX_RANGES, MAX_TRANSFER, SECTOR};
use crate::devices::virtio::{Buffers, Direction, Slices, transfer};

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

const HEADER: usize = 16;
/// One range: u64 sector, u32 sectors, u32 flags.
const RANGE: usize = 16;
const RANGE_UNMAP: u32 = 1;

/// Why a request got no OK.
#[derive(Debug)]
enum Refused {
    /// The request makes no sense, or the node's disk failed.
    Io,
    /// The request is of no kind that was offered.
    Unsupported,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            _ => Self::Io,
        }
    }
}

/// The file and what a request may do with it.
pub(super) struct Disk<'f> {
    file: &'f File,
    state: &'f BlkState,
    lasts: bool,
}

impl<'f> Disk<'f> {
    /// The disk of an active device; `lasts`: its bytes are of use after the VM.
    pub(super) fn new(file: &'f File, state: &'f BlkState, lasts: bool) -> Self {
        Self { file, state, lasts }
    }

    /// Serves one request; answers how many bytes were written to its chain.
    pub(super) fn serve(&self, mut buffers: Buffers<'_>) -> u32 {
        let Some(status) = buffers.writable.take_last_byte() else {
            return 0; // no place to say anything
        };
        let (byte, written) = match self.run(buffers) {
            Ok(written) => (STATUS_OK, written),
            Err(Refused::Io) => (STATUS_IOERR, 0),
            Err(Refused::Unsupported) => (STATUS_UNSUPPORTED, 0),
        };
        status.copy_from(&[byte]);
        written as u32 + 1
    }

    /// Answers how many bytes were written to the data part.
    fn run(&self, buffers: Buffers<'_>) -> Result<usize, Refused> {
        let Buffers { mut readable, writable } = buffers;
        let mut header = [0; HEADER];
        readable.take_front(HEADER).ok_or(Refused::Io)?.copy_to(&mut header);
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = read_u64(&header[8..]);
        match kind {
            // Whatever the driver accepted (virtio 1.3 §5.2.6.2).
            TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES if self.state.read_only => Err(Refused::Io),
            TYPE_IN => {
                self.transfer(Direction::FromFile, &writable, self.offset(sector, writable.len())?)?;
                Ok(writable.len())
            }
            TYPE_OUT => {
                self.transfer(Direction::ToFile, &readable, self.offset(sector, readable.len())?)?;
                self.written()
            }
            TYPE_FLUSH => {
                self.file.sync_data()?;
                Ok(0)
            }
            TYPE_GET_ID => Ok(writable.copy_from(&self.state.id)),
            TYPE_DISCARD | TYPE_WRITE_ZEROES => self.ranges(kind, &readable),
            _ => Err(Refused::Unsupported),
        }
    }

    /// Without a flush command every write is durable when it completes, unless the disk ends with its VM anyway.
    fn written(&self) -> Result<usize, Refused> {
        if self.lasts && !self.state.write_back() {
            self.file.sync_data()?;
        }
        Ok(0)
    }

    /// Where `length` bytes from `sector` on are; whole sectors, inside the disk.
    fn offset(&self, sector: u64, length: usize) -> Result<u64, Refused> {
        let length = length as u64;
        let end = sector.checked_add(length.div_ceil(SECTOR)).ok_or(Refused::Io)?;
        if length == 0 || !length.is_multiple_of(SECTOR) || length > MAX_TRANSFER as u64 || end > self.state.capacity {
            return Err(Refused::Io);
        }
        Ok(sector * SECTOR)
    }

    /// Moves all of `data`.
    fn transfer(&self, direction: Direction, data: &Slices<'_>, offset: u64) -> Result<(), Refused> {
        if transfer(self.file, direction, data, offset)? == data.len() { Ok(()) } else { Err(Refused::Io) }
    }

    /// Discard and write-zeroes: a list of ranges.
    fn ranges(&self, kind: u32, list: &Slices<'_>) -> Result<usize, Refused> {
        let length = list.len();
        if length == 0 || !length.is_multiple_of(RANGE) || length > RANGE * MAX_RANGES as usize {
            return Err(Refused::Io);
        }
        let mut bytes = vec![0; length];
        list.copy_to(&mut bytes);
        for range in bytes.chunks_exact(RANGE) {
            let sector = read_u64(range);
            let sectors = u32::from_le_bytes([range[8], range[9], range[10], range[11]]);
            let flags = u32::from_le_bytes([range[12], range[13], range[14], range[15]]);
            self.range(kind, sector, sectors, flags)?;
        }
        self.written()
    }

    fn range(&self, kind: u32, sector: u64, sectors: u32, flags: u32) -> Result<(), Refused> {
        let allowed = if kind == TYPE_WRITE_ZEROES { RANGE_UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Err(Refused::Unsupported);
        }
        let end = sector.checked_add(u64::from(sectors)).ok_or(Refused::Io)?;
        if sectors > MAX_RANGE_SECTORS || end > self.state.capacity {
            return Err(Refused::Io);
        }
        if sectors == 0 {
            return Ok(());
        }
        let (offset, length) = (sector * SECTOR, u64::from(sectors) * SECTOR);
        let mut done = Err(rustix::io::Errno::OPNOTSUPP);
        for mode in modes(kind, flags) {
            done = rustix::fs::fallocate(self.file, *mode | FallocateFlags::KEEP_SIZE, offset, length);
            if done != Err(rustix::io::Errno::OPNOTSUPP) {
                break;
            }
        }
        Ok(done.map_err(io::Error::from)?)
    }
}

/// Ways to do what a range asks for, the best one first. tmpfs knows only holes, which read as
/// zeros too; a block device without discard can be zeroed only.
fn modes(kind: u32, flags: u32) -> &'static [FallocateFlags] {
    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE;
    const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;
    match kind {
        TYPE_WRITE_ZEROES if flags & RANGE_UNMAP == 0 => &[ZERO, PUNCH],
        TYPE_WRITE_ZEROES => &[PUNCH, ZERO],
        _ => &[PUNCH],
    }
}

fn read_u64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}
