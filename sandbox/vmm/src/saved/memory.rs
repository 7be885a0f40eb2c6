//! The memory file: a guest's RAM, then one page that says which state it goes with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::SealFlags;
use vm_memory::{
    Bytes, FileOffset, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
    MmapRegion,
};

use super::{Pair, SEALS, seal};
use crate::memory::ranges;

const PAGE: usize = 4096;
/// Bytes that are looked at at once.
const CHUNK: usize = 1 << 20;
const MAGIC: [u8; 8] = *b"CFDMMEMO";
/// Magic, pair, bytes of RAM.
const TRAILER: usize = MAGIC.len() + size_of::<Pair>() + 8;

/// Why a memory is not written or mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The descriptor does not read, write or map.
    #[error("the memory file does not {0}")]
    Io(&'static str, #[source] io::Error),
    /// It may change under a guest that runs from it.
    #[error("the memory file is not sealed ({0:?}), so it may change")]
    NotSealed(SealFlags),
    /// The RAM of another shape.
    #[error("the memory file has {size} bytes and should have {expected}, for a guest of {memory_mib} MiB")]
    Size {
        /// What it has.
        size: u64,
        /// What it should have.
        expected: u64,
        /// The guest's RAM.
        memory_mib: u32,
    },
    /// Files that do not belong together.
    #[error("the memory file is not the one that was saved with the state file")]
    NoPair,
    /// The address space has no room.
    #[error("cannot map the memory file")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Writes `ram` to `file`, with holes where it is zero, and seals it.
pub(crate) fn write(file: &File, ram: &GuestMemoryMmap, pair: Pair) -> Result<(), MemoryError> {
    let failed = |error| MemoryError::Io("take the guest's RAM", error);
    let bytes: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(0).and_then(|()| file.set_len(bytes + PAGE as u64)).map_err(failed)?;
    let mut chunk = vec![0; CHUNK];
    let mut base = 0;
    for region in ram.iter() {
        for start in (0..region.len()).step_by(CHUNK) {
            let length = CHUNK.min((region.len() - start) as usize);
            let chunk = &mut chunk[..length];
            region.read_slice(chunk, MemoryRegionAddress(start)).map_err(|error| failed(io::Error::other(error)))?;
            write_used(file, chunk, base + start).map_err(failed)?;
        }
        base += region.len();
    }
    file.write_all_at(&trailer(pair, bytes), bytes).map_err(failed)?;
    seal(file).map_err(|error| MemoryError::Io("let itself be sealed: it must be a memfd that allows it", error))
}

/// Writes the pages of `bytes` that are not zero to their places from `offset` on.
fn write_used(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let is_used = |page: usize| bytes[page * PAGE..(page + 1) * PAGE] != ZEROS;
    let pages = bytes.len() / PAGE;
    let mut page = 0;
    while page < pages {
        let end = (page..pages).find(|page| !is_used(*page)).unwrap_or(pages);
        if end > page {
            file.write_all_at(&bytes[page * PAGE..end * PAGE], offset + (page * PAGE) as u64)?;
        }
        page = end + 1;
    }
    Ok(())
}

fn trailer(pair: Pair, bytes: u64) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..8].copy_from_slice(&MAGIC);
    trailer[8..24].copy_from_slice(&pair.0);
    trailer[24..].copy_from_slice(&bytes.to_le_bytes());
    trailer
}

/// Maps the RAM in `file`, which goes with the state of `pair`. Pages are shared with all others
/// that map it, until the guest writes to them.
pub(crate) fn map(file: File, memory_mib: u32, pair: Pair) -> Result<GuestMemoryMmap, MemoryError> {
    let failed = |error| MemoryError::Io("give its content", error);
    // Other files have no seals.
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if !seals.contains(SEALS) {
        return Err(MemoryError::NotSealed(seals));
    }
    let bytes = u64::from(memory_mib) << 20;
    let (size, expected) = (file.metadata().map_err(failed)?.len(), bytes + PAGE as u64);
    if size != expected {
        return Err(MemoryError::Size { size, expected, memory_mib });
    }
    let mut found = [0; TRAILER];
    file.read_exact_at(&mut found, bytes).map_err(failed)?;
    if found != trailer(pair, bytes) {
        return Err(MemoryError::NoPair);
    }
    let (file, mut offset, mut regions) = (Arc::new(file), 0, Vec::new());
    for (start, length) in ranges(bytes) {
        let place = FileOffset::from_arc(file.clone(), offset);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = MmapRegion::build(Some(place), length, access, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        let region = GuestRegionMmap::new(mapping.map_err(|error| MemoryError::Map(error.into()))?, start);
        let outside = || MemoryError::Map("it does not fit the guest's address space".into());
        regions.push(region.ok_or_else(outside)?);
        offset += length as u64;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::Map(error.into()))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory;

    fn memfd() -> File {
        memfd_create("memory", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap().into()
    }

    /// RAM of 32 MiB with a few pages that are used, and its file.
    fn saved(pair: Pair) -> (GuestMemoryMmap, File) {
        let ram = memory::map(32).unwrap();
        for (at, byte) in [(0, 1), (4095, 2), (8192, 3), ((1 << 20) - 1, 4), ((32 << 20) - 1, 5_u8)] {
            ram.write_obj(byte, GuestAddress(at)).unwrap();
        }
        let file = memfd();
        write(&file, &ram, pair).unwrap();
        (ram, file)
    }

    #[test]
    fn clones_read_what_was_saved_and_keep_what_they_write() {
        let pair = Pair::new().unwrap();
        let (ram, file) = saved(pair);
        let clones = [0, 1].map(|_| map(file.try_clone().unwrap(), 32, pair).unwrap());
        let all = |memory: &GuestMemoryMmap| {
            let mut bytes = vec![0; 32 << 20];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            bytes
        };
        assert!(all(&clones[0]) == all(&ram));
        clones[0].write_slice(&vec![0xff; 32 << 20], GuestAddress(0)).unwrap();
        assert!(all(&clones[1]) == all(&ram), "another clone sees nothing of it");
        let late = map(file, 32, pair).unwrap();
        assert!(all(&late) == all(&ram), "and neither does a later one");
    }

    #[test]
    fn pages_of_zeros_are_holes() {
        let (_, file) = saved(Pair::new().unwrap());
        let mut used = Vec::new();
        let mut at = 0;
        while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
            at = seek(&file, SeekFrom::Hole(start)).unwrap();
            used.extend((start / 4096)..at.div_ceil(4096));
        }
        assert_eq!(used, [0, 2, 255, 8191, 8192]);
    }

    #[test]
    fn nobody_can_change_it() {
        let pair = Pair::new().unwrap();
        let (_, file) = saved(pair);
        assert!(file.write_all_at(&[1], 0).is_err() && file.set_len(1).is_err() && file.set_len(1 << 30).is_err());
        let other = memfd();
        other.set_len((32 << 20) + 4096).unwrap();
        other.write_all_at(&trailer(pair, 32 << 20), 32 << 20).unwrap();
        assert!(matches!(map(other.try_clone().unwrap(), 32, pair), Err(MemoryError::NotSealed(_))));
        let plain = tempfile::tempfile().unwrap();
        assert!(matches!(map(plain.try_clone().unwrap(), 32, pair), Err(MemoryError::NotSealed(_))));
        let ram = memory::map(32).unwrap();
        let why = write(&plain, &ram, pair).unwrap_err().to_string();
        assert!(why.contains("must be a memfd"), "{why}");
    }

    #[test]
    fn another_memory_is_refused() {
        let (one, other) = (Pair::new().unwrap(), Pair::new().unwrap());
        let (_, file) = saved(one);
        assert!(matches!(map(file.try_clone().unwrap(), 32, other), Err(MemoryError::NoPair)));
        let why = map(file, 64, one).unwrap_err().to_string();
        assert!(why.contains("33558528 bytes and should have 67112960, for a guest of 64 MiB"), "{why}");
    }
}
