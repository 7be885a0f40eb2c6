//! Which pages of a template its clones write to before they serve a pod.
//!
//! Learned from one clone that never has a pod, so that no tenant has any say in it. Later clones
//! get their own copies of these pages at once (`Restore::written`).

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

use super::SEALS;
use crate::error::{Doing, SandboxError};

const PAGE: u64 = 4096;
/// Most pages that are copied beforehand: 24 MiB.
const MOST_PAGES: u32 = 6144;
/// Most runs of pages: they are passed on in a configuration of at most 64 KiB.
const MOST_RUNS: usize = 3000;
/// Their longest text, bytes.
const MOST_BYTES: usize = 64 << 10;
/// Bits of an entry of pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const OF_A_FILE: u64 = 1 << 61;

/// The pages of `memory` of which the process `pid` has copies of its own: each run's first page, by
/// its number in the file, and how many there are. Blocks for a moment.
pub(super) fn find(pid: u32, memory: &OwnedFd) -> Result<Vec<(u32, u32)>, SandboxError> {
    let step = || format!("look at the memory of process {pid}");
    let memory = File::from(memory.try_clone().doing(step)?).metadata().doing(step)?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).doing(step)?;
    let mut pages = Vec::new();
    for mapping in fs::read_to_string(format!("/proc/{pid}/maps")).doing(step)?.lines().filter_map(Mapping::parse) {
        if mapping.inode != memory.ino() {
            continue;
        }
        let mut entries = vec![0; usize::try_from((mapping.end - mapping.start) / PAGE * 8).unwrap_or(0)];
        pagemap.read_exact_at(&mut entries, mapping.start / PAGE * 8).doing(step)?;
        let (entries, _) = entries.as_chunks::<8>();
        let own = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & (PRESENT | OF_A_FILE) == PRESENT;
        let first = mapping.offset / PAGE;
        pages.extend((first..).zip(entries).filter(|(_, entry)| own(entry)).map(|(page, _)| page));
    }
    pages.sort_unstable();
    Ok(runs(pages.into_iter().filter_map(|page| u32::try_from(page).ok())))
}

/// A sealed file that says them.
pub(super) fn to_file(runs: &[(u32, u32)]) -> Result<OwnedFd, SandboxError> {
    let step = || "write down which pages clones write to".to_owned();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("cofferdam-written", flags).doing(step)?);
    file.write_all(&serde_json::to_vec(runs).doing(step)?).doing(step)?;
    fcntl_add_seals(&file, SEALS).doing(step)?;
    Ok(file.into())
}

/// What [`to_file`] wrote.
pub(super) fn of_file(file: OwnedFd) -> Result<Vec<(u32, u32)>, SandboxError> {
    let step = || "read which pages clones write to".to_owned();
    let (file, mut text) = (File::from(file), vec![0; MOST_BYTES]);
    let length = file.read_at(&mut text, 0).doing(step)?;
    serde_json::from_slice(&text[..length]).doing(step)
}

/// Runs of pages that follow each other, as many as are passed on.
fn runs(pages: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for page in pages.take(MOST_PAGES as usize) {
        if let Some((first, count)) = runs.last_mut()
            && *first + *count == page
        {
            *count += 1;
        } else if runs.len() < MOST_RUNS {
            runs.push((page, 1));
        } else {
            break;
        }
    }
    runs
}

/// One line of `/proc/pid/maps` (proc(5)): `start-end access offset device inode path`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = fields.next()?.split_once('-')?;
        let (offset, inode) = (fields.nth(1)?, fields.nth(1)?);
        Some(Self { start: hex(start)?, end: hex(end)?, offset: hex(offset)?, inode: inode.parse().ok()? })
    }
}

#[cfg(test)]
#[allow(unsafe_code)] // mmap
mod tests {
    use rustix::fs::ftruncate;

    use super::*;

    #[test]
    fn pages_that_a_process_wrote_to_are_found() {
        let memory = memfd_create("written", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 64 * PAGE).unwrap();
        let (length, access) = (32 * PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
        let raw = std::os::fd::AsRawFd::as_raw_fd(&memory);
        // SAFETY: a new mapping of 32 pages, unmapped below, in which three pages are written to and
        // one is read.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_PRIVATE, raw, 16 * PAGE as i64);
            assert_ne!(start, libc::MAP_FAILED);
            let page = |number: usize| start.cast::<u8>().add(number * PAGE as usize);
            for number in [3, 4, 31] {
                page(number).write_volatile(1);
            }
            page(9).read_volatile();
            assert_eq!(find(std::process::id(), &memory).unwrap(), [(19, 2), (47, 1)]);
            libc::munmap(start, length);
        }
        assert_eq!(find(std::process::id(), &memory).unwrap(), []);
    }

    #[test]
    fn a_mapping_is_read() {
        let line = "7f1c2d400000-7f1c3d400000 rw-p 00100000 00:01 4711                       /memfd:m (deleted)";
        let mapping = Mapping { start: 0x7f1c_2d40_0000, end: 0x7f1c_3d40_0000, offset: 0x10_0000, inode: 4711 };
        assert_eq!(Mapping::parse(line), Some(mapping));
        assert_eq!(Mapping::parse("no mapping"), None);
    }

    #[test]
    fn runs_are_as_many_as_can_be_passed_on() {
        assert_eq!(runs([1, 2, 3, 7, 9, 10].into_iter()), [(1, 3), (7, 1), (9, 2)]);
        assert_eq!(runs((0..).step_by(2)).len(), MOST_RUNS);
        assert_eq!(runs(0..u32::MAX), [(0, MOST_PAGES)]);
    }
}
