//! A layer's directory as the tar of an OCI layer: overlayfs' marks become whiteouts again.
//!
//! Names are sorted, so that one directory always makes the same bytes.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{self as rfs, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use tar::{EntryType, Header};

use crate::extract::keeps_xattr;
use crate::store::tree::attributes;

/// Directories in each other: beyond what a layer can have.
const DEPTH: usize = 1024;
/// Bytes of the names of one directory, which are sorted in memory.
const NAMES: usize = 64 << 20;
/// Files with several names that are remembered. A file beyond that is written once for each name.
const LINKS: usize = 1 << 18;
const OPAQUE: &[u8] = b"user.overlay.opaque";

/// Writes the layer in `root`.
///
/// # Errors
/// The operating system's and `out`'s, with the path of what was being written.
pub(super) fn write(root: &OwnedFd, out: &mut dyn Write) -> io::Result<()> {
    let mut writer = Writer { tar: tar::Builder::new(out), links: HashMap::new(), path: Vec::new() };
    let written = rfs::fstat(root).map_err(io::Error::from).and_then(|stat| {
        let itself = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
        writer.entry(b"./", &stat, &itself, EntryType::Directory, b"", io::empty())?;
        writer.directory(root.as_fd(), 0)
    });
    written.map_err(|error| io::Error::new(error.kind(), format!("/{}: {error}", lossy(&writer.path))))?;
    writer.tar.finish()
}

struct Writer<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Where it is, without a slash at either end.
    path: Vec<u8>,
}

impl Writer<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        if depth > DEPTH {
            return Err(io::Error::other(format!("more than {DEPTH} directories in each other")));
        }
        for name in names(directory)? {
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            self.child(directory, &name, depth)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn child(&mut self, directory: BorrowedFd<'_>, name: &CString, depth: usize) -> io::Result<()> {
        let stat = rfs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            rfs::openat(directory, name, flags, Mode::empty())
        };
        let entry = self.path.clone();
        let place = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let place = place.join(OsStr::from_bytes(name.to_bytes()));
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let opened = open(OFlags::DIRECTORY)?;
            let opaque = attributes(&place)?.iter().any(|(name, _)| name == OPAQUE);
            self.entry(&[&entry[..], b"/"].concat(), &stat, &place, EntryType::Directory, b"", io::empty())?;
            if opaque {
                self.mark(&[&entry[..], b"/.wh..wh..opq"].concat())?;
            }
            return self.directory(opened.as_fd(), depth + 1);
        }
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let parent = entry.len() - name.to_bytes().len();
            return self.mark(&[&entry[..parent], b".wh.", name.to_bytes()].concat());
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.entry(&entry, &stat, &place, EntryType::Link, &first, io::empty());
            }
            if self.links.len() < LINKS {
                self.links.insert(inode, entry.clone());
            }
        }
        let special = |kind| (kind, Vec::new());
        let (kind, link) = match kind {
            FileType::RegularFile => {
                let file = File::from(open(OFlags::NOATIME)?).take(stat.st_size as u64);
                return self.entry(&entry, &stat, &place, EntryType::Regular, b"", file);
            }
            FileType::Symlink => (EntryType::Symlink, rfs::readlinkat(directory, name, Vec::new())?.into_bytes()),
            FileType::CharacterDevice => special(EntryType::Char),
            FileType::BlockDevice => special(EntryType::Block),
            FileType::Fifo => special(EntryType::Fifo),
            // Layers have no sockets.
            _ => return Ok(()),
        };
        self.entry(&entry, &stat, &place, kind, &link, io::empty())
    }

    /// An empty file whose name says something about others.
    fn mark(&mut self, name: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        self.append(header, name, b"", Vec::new(), io::empty())
    }

    fn entry(
        &mut self,
        name: &[u8],
        stat: &Stat,
        place: &std::path::Path,
        kind: EntryType,
        link: &[u8],
        content: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_size(if kind == EntryType::Regular { stat.st_size as u64 } else { 0 });
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rfs::major(stat.st_rdev))?;
            header.set_device_minor(rfs::minor(stat.st_rdev))?;
        }
        let mut records = Vec::new();
        if stat.st_mtime < 0 || stat.st_mtime_nsec != 0 {
            records.push(("mtime".to_owned(), time(stat.st_mtime, stat.st_mtime_nsec as i64).into_bytes()));
        }
        if kind != EntryType::Link {
            for (name, value) in attributes(place)?.into_iter().filter(|(name, _)| keeps_xattr(name)) {
                let name = String::from_utf8(name)
                    .map_err(|_| io::Error::other("has an extended attribute whose name is not UTF-8"))?;
                records.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        self.append(header, name, link, records, content)
    }

    /// Names that do not fit into the header go before it.
    fn append(
        &mut self,
        mut header: Header,
        name: &[u8],
        link: &[u8],
        mut records: Vec<(String, Vec<u8>)>,
        content: impl Read,
    ) -> io::Result<()> {
        let gnu = header.as_gnu_mut().ok_or_else(|| io::Error::other("not a GNU header"))?;
        for (key, field, text) in [("path", &mut gnu.name, name), ("linkpath", &mut gnu.linkname, link)] {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
            if text.len() > field.len() {
                records.push((key.into(), text.to_vec()));
            }
        }
        self.tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        header.set_cksum();
        self.tar.append(&header, content)
    }
}

/// The names in a directory, sorted.
fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let (mut names, mut bytes) = (Vec::new(), 0);
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        bytes += name.count_bytes() + size_of::<CString>();
        if bytes > NAMES {
            return Err(io::Error::other(format!("more than {NAMES} bytes of names in one directory")));
        }
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

/// `[-]seconds.fraction`, of a time as stat(2) gives it: the fraction counts forwards.
fn time(seconds: i64, nanos: i64) -> String {
    match seconds < 0 && nanos > 0 {
        // As the distance from 1970.
        true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        false => format!("{seconds}.{nanos:09}"),
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_before_1970_count_forwards() {
        assert_eq!(time(1, 5), "1.000000005");
        assert_eq!(time(-2, 500_000_000), "-1.500000000");
        assert_eq!(time(-1, 1), "-0.999999999");
        assert_eq!(time(-3, 0), "-3.000000000");
    }
}
