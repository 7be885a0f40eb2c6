//! Reading directories.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, RawDir, SeekFrom};

use super::Share;
use crate::event_loop::lock;

/// Bytes of entries that one request reads at most.
const BATCH: usize = 16 << 10;

impl Share {
    /// Calls `add` for each entry from `offset` on until it answers 0, or enough were read.
    pub(super) fn read_directory(
        &self,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        mut add: impl FnMut(DirEntry<'_>, &CStr) -> io::Result<usize>,
    ) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let handle = lock(&self.handles).get(handle, node)?;
        let (file, _position) = (&handle.file, lock(&handle.position));
        rustix::fs::seek(file, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let mut entries = RawDir::new(file, &mut buffer);
        let mut some = false;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let added = add(
                DirEntry {
                    ino: entry.ino(),
                    offset: entry.next_entry_cookie(),
                    type_: directory_type(entry.file_type()),
                    name: name.to_bytes(),
                },
                name,
            );
            match added {
                Ok(0) => break,
                Ok(_) => some = true,
                Err(error) if !some => return Err(error),
                // What was added stands, or the guest's counts would be wrong.
                Err(_) => break,
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }

    /// An entry that the guest may use without looking it up; a bare name if that cannot be.
    pub(super) fn entry_in(&self, parent: u64, name: &CStr) -> Entry {
        if matches!(name.to_bytes(), b"." | b"..") {
            return Entry::default();
        }
        let found = self.node(parent).and_then(|parent| self.look_up(&parent, name));
        found.unwrap_or_default()
    }
}

/// `DT_*`, which are the type bits of a mode.
fn directory_type(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}
