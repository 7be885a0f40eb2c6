//! The digest of an unpacked layer's tree, by which damage is found later.
//!
//! ```text
//!  entry = sha256(name, type and mode, owner, size, time, device, attributes, what it holds)
//!  what it holds = a file's sha256 · a link's target · the sum of a directory's entries
//! ```
//!
//! A sum (modulo 2^64 in each of four words) has no order, so that no list of names is held in
//! memory. It finds damage and not malice: who can write a layer can write the digest beside it.
//! Left out is what is not the layer's: change and access times, numbers of inodes and of links,
//! and attributes that the node's kernel keeps for itself.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Bytes of one read.
const PIECE: usize = 256 << 10;
/// Files with several names whose digests are remembered, so that each is read once.
const REMEMBERED: usize = 1 << 18;
/// Directories in each other: beyond what a layer can have.
const DEPTH: usize = 1024;
/// The largest value, and the largest list, of extended attributes (xattr(7)).
const ATTRIBUTES: usize = 64 << 10;

type Sum = [u64; 4];

/// The digest of the tree below `root`. `go_on` is asked now and then; the walk ends with an error
/// when it says no.
///
/// # Errors
/// The operating system's, with the path of what could not be read.
pub(super) fn digest(root: &OwnedFd, go_on: &dyn Fn() -> bool) -> io::Result<Digest> {
    let mut walk = Walk { go_on, links: HashMap::new(), piece: vec![0; PIECE], path: PathBuf::new() };
    let attributes = rustix::fs::fstat(root).map_err(io::Error::from).and_then(|stat| {
        let held = walk.directory(root.as_fd(), 0)?;
        let itself = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
        walk.entry(b"", &stat, &itself, &words(held))
    });
    let hash = attributes.map_err(|error| {
        let path = walk.path.display();
        io::Error::new(error.kind(), format!("/{path}: {error}"))
    })?;
    Ok(Digest::of(&hash))
}

struct Walk<'a> {
    go_on: &'a dyn Fn() -> bool,
    links: HashMap<(u64, u64), [u8; 32]>,
    piece: Vec<u8>,
    /// Where it is, for errors.
    path: PathBuf,
}

impl Walk<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<Sum> {
        if depth > DEPTH {
            return Err(io::Error::other(format!("more than {DEPTH} directories in each other")));
        }
        let mut sum = Sum::default();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            let hash = self.child(directory, name, depth)?;
            self.path.pop();
            for (word, bytes) in sum.iter_mut().zip(hash.chunks_exact(8)) {
                *word = word.wrapping_add(bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
            }
        }
        Ok(sum)
    }

    fn child(&mut self, directory: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<[u8; 32]> {
        self.wanted()?;
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            rustix::fs::openat(directory, name, flags, Mode::empty())
        };
        let held = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => words(self.directory(open(OFlags::DIRECTORY)?.as_fd(), depth + 1)?).to_vec(),
            FileType::RegularFile => self.file(open(OFlags::NOATIME)?, &stat)?.to_vec(),
            FileType::Symlink => rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        self.entry(name.to_bytes(), &stat, &path.join(OsStr::from_bytes(name.to_bytes())), &held)
    }

    fn file(&mut self, file: OwnedFd, stat: &Stat) -> io::Result<[u8; 32]> {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.links.get(&inode) {
            return Ok(*known);
        }
        let (mut file, mut hasher) = (File::from(file), Sha256::new());
        loop {
            self.wanted()?;
            match file.read(&mut self.piece) {
                Ok(0) => break,
                Ok(read) => hasher.update(&self.piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let hash = hasher.finalize().into();
        if stat.st_nlink > 1 && self.links.len() < REMEMBERED {
            self.links.insert(inode, hash);
        }
        Ok(hash)
    }

    fn entry(&self, name: &[u8], stat: &Stat, path: &Path, held: &[u8]) -> io::Result<[u8; 32]> {
        // The sizes of directories are the file system's.
        let size = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { 0 } else { stat.st_size as u64 };
        let mut hasher = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        field(name);
        for number in [
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            size,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_rdev,
        ] {
            field(&number.to_be_bytes());
        }
        for (name, value) in attributes(path)? {
            field(&name);
            field(&value);
        }
        field(held);
        Ok(hasher.finalize().into())
    }

    fn wanted(&self) -> io::Result<()> {
        if (self.go_on)() { Ok(()) } else { Err(io::Error::other("it was given up")) }
    }
}

fn words(sum: Sum) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(sum) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// The extended attributes that a layer can have, sorted.
pub(super) fn attributes(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0u8; 256];
    let length = loop {
        match rustix::fs::llistxattr(path, &mut list) {
            Ok(length) => break length,
            Err(Errno::RANGE) if list.len() < ATTRIBUTES => list.resize(ATTRIBUTES, 0),
            Err(Errno::NOTSUP) => break 0,
            Err(error) => return Err(error.into()),
        }
    };
    let ours = |name: &&[u8]| {
        name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || *name == b"security.capability"
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).filter(ours);
    let mut attributes = Vec::new();
    for name in names {
        let mut value = vec![0u8; ATTRIBUTES];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        value.truncate(length);
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}
