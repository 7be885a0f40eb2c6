//! The disk for a vm pod's writable layers: a copy of the template that shares its blocks where the file system can, and
//! has its holes anyhow.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::error::{Doing, SandboxError};

/// Copies `template` to `disk` and opens it. Blocks.
pub(crate) fn create(template: &Path, disk: &Path) -> Result<OwnedFd, SandboxError> {
    let step = || format!("copy the disk template {} to {}", template.display(), disk.display());
    let from = File::open(template).doing(step)?;
    let to = File::options().read(true).write(true).create_new(true).mode(0o600).open(disk).doing(step)?;
    match ioctl_ficlone(&to, &from) {
        Ok(()) => {}
        // Another file system, or one that cannot share blocks.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::TXTBSY) => {
            copy_sparse(&from, &to).doing(step)?;
        }
        Err(error) => return Err(error).doing(step),
    }
    Ok(to.into())
}

/// Copies what is no hole.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    ftruncate(to, length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break, // holes to the end
            Err(error) => return Err(error.into()),
        };
        at = seek(from, SeekFrom::Hole(data))?;
        copy_range(from, to, data, at)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut source, mut target) = (start, start);
    while source < end {
        let wanted = usize::try_from(end - source).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                let mut buffer = vec![0; wanted.min(1 << 20)];
                from.read_exact_at(&mut buffer, source)?;
                to.write_all_at(&buffer, source)?;
                source += buffer.len() as u64;
                target = source;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn the_copy_is_equal_sparse_and_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (template, disk) = (folder.path().join("template"), folder.path().join("disk"));
        let file = File::create(&template).unwrap();
        file.set_len(8 << 30).unwrap();
        file.write_all_at(b"superblock", 1024).unwrap();
        file.write_all_at(&[7; 70_000], 5 << 30).unwrap();
        let copy = File::from(create(&template, &disk).unwrap());
        let metadata = copy.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (8 << 30, 0o600));
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        for (at, expected) in [(1024, &b"superblock"[..]), ((5 << 30) + 69_990, &[7; 10]), (1 << 30, &[0; 10])] {
            let mut found = [1; 10];
            copy.read_exact_at(&mut found, at).unwrap();
            assert_eq!(found, expected);
        }
        copy.write_all_at(b"changed", 1024).unwrap();
        let mut original = [0; 10];
        File::open(&template).unwrap().read_exact_at(&mut original, 1024).unwrap();
        assert_eq!(&original, b"superblock");
        assert!(create(&template, &disk).is_err(), "a disk is never taken over");
    }
}
