//! Which files a tar has, and where their bytes are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek};

use super::malformed;
use crate::config::Limits;
use crate::error::{StoreError, StoreResult};
use crate::extract::{ExtractError, Kind, TarReader};

/// Entries of an archive. An image has about three for each layer.
const ENTRIES: u64 = 100_000;
/// Bytes of all names.
const NAMES: usize = 16 << 20;
/// Links in a row. `docker save` of old has one where two images share a layer.
const LINKS: usize = 4;

/// The table of a tar. Of equal names the last one counts.
#[derive(Debug)]
pub(super) struct Scan(HashMap<String, Entry>);

#[derive(Debug)]
enum Entry {
    File(Member),
    /// The name of another entry.
    Link(String),
}

/// A file's bytes within the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Member {
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Scan {
    /// Reads the headers; the bytes between them are passed over. Blocks.
    pub(super) fn read(file: &File, limits: &Limits, wanted: &dyn Fn() -> bool) -> StoreResult<Self> {
        let length = file.metadata().map_err(|e| StoreError::io("looking at the archive", e))?.len();
        // A file is as large as the archive allows.
        let limits = Limits { layer_entries: ENTRIES, layer_unpacked_bytes: length, ..limits.clone() };
        let mut start = file;
        start.rewind().map_err(|e| StoreError::io("reading the archive", e))?;
        let mut reader = TarReader::new(BufReader::with_capacity(4096, file), &limits);
        let (mut table, mut names) = (HashMap::new(), 0);
        while let Some(entry) = reader.next().map_err(failed)? {
            if !wanted() {
                return Err(StoreError::io("reading the archive", std::io::Error::other("the import was given up")));
            }
            let offset = reader.pass().map_err(|e| StoreError::io("reading the archive", e))?;
            // Names that are not text are nobody's.
            let Some(name) = clean("", &entry.name) else { continue };
            let entry = match entry.kind {
                Kind::File if entry.extents.is_none() => {
                    if offset.checked_add(entry.size).is_none_or(|end| end > length) {
                        return Err(malformed(&format!("ends in the middle of {name:?}: it is cut off")));
                    }
                    Entry::File(Member { offset, size: entry.size })
                }
                Kind::Symlink => match clean(folder(&name), &entry.link) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                },
                Kind::HardLink => match clean("", &entry.link) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            names += name.len() + if let Entry::Link(target) = &entry { target.len() } else { 0 };
            if names > NAMES {
                return Err(StoreError::TooLarge {
                    what: "image archive".into(),
                    limit: format!("{NAMES} bytes of names"),
                });
            }
            table.insert(name, entry);
        }
        Ok(Self(table))
    }

    /// The file of a name, also through links.
    pub(super) fn member(&self, name: &str) -> Option<Member> {
        let mut name = clean("", name.as_bytes())?;
        for _ in 0..=LINKS {
            match self.0.get(&name)? {
                Entry::File(member) => return Some(*member),
                Entry::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// `name` as seen from `folder`, without what means nothing. It is a key, and never a path of the
/// node.
fn clean(folder: &str, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts: Vec<&str> = if name.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    Some(parts.join("/")).filter(|name| !name.is_empty())
}

fn failed(error: ExtractError) -> StoreError {
    match error {
        ExtractError::Malformed { entry, reason } => {
            malformed(&format!("cannot be read as a tar: {entry:?}: {reason}; is it compressed or cut off?"))
        }
        ExtractError::TooLarge { entry, limit } => {
            StoreError::TooLarge { what: format!("image archive: {entry:?}"), limit }
        }
        ExtractError::Io { source, .. } | ExtractError::Read(source) => StoreError::io("reading the archive", source),
    }
}
