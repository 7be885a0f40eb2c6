//! The agent as host pods run it: one copy in memory, sealed, made once for all of them.
//!
//! A container may reach the program of its first process through /proc; what cannot be written to by anybody cannot be changed
//! for the next process of root that runs it (docs/security.md). The agent looks for the seals itself, and makes a copy of its own without them.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::error::{Doing, SandboxError};

/// Which file a copy is of: an upgrade puts another in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        let changed = (data.ctime(), data.ctime_nsec());
        Ok(Self { device: data.dev(), inode: data.ino(), size: data.size(), changed })
    }
}

/// The copy, once it was needed.
#[derive(Debug, Default)]
pub(crate) struct Sealed(Mutex<Option<(Identity, Arc<OwnedFd>)>>);

impl Sealed {
    /// A descriptor of the sealed copy of the program at `path`, as the file is now. Blocks.
    pub(crate) fn get(&self, path: &Path) -> Result<Arc<OwnedFd>, SandboxError> {
        let step = || format!("copy {} into memory", path.display());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let program = File::open(path).doing(step)?;
        let identity = Identity::of(&program).doing(step)?;
        if let Some((known, copy)) = &*kept
            && *known == identity
        {
            return Ok(Arc::clone(copy));
        }
        let copy = Arc::new(copy(&program, identity.size).doing(step)?);
        *kept = Some((identity, Arc::clone(&copy)));
        Ok(copy)
    }
}

fn copy(program: &File, size: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know EXEC, and allow execution.
    let copy = rustix::fs::memfd_create("cofferdam-agent", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("cofferdam-agent", flags))?;
    let mut done = 0;
    while done < size {
        let rest = usize::try_from(size - done).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(&copy, program, None, rest)? {
            0 => return Err(io::Error::other("it became shorter meanwhile")),
            n => done += n as u64,
        }
    }
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::{AsFd, AsRawFd};
    use std::process::Command;

    use super::*;

    #[test]
    fn one_copy_that_runs_and_that_nobody_can_write_to_until_the_program_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy("/bin/true", &path).unwrap();
        let sealed = Sealed::default();
        let first = sealed.get(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &sealed.get(&path).unwrap()), "made once");
        let through_proc = format!("/proc/self/fd/{}", first.as_raw_fd());
        assert!(Command::new(&through_proc).status().unwrap().success());
        // Root may open it for writing; nothing comes of it.
        if let Ok(mut file) = File::options().write(true).open(&through_proc) {
            assert!(file.write_all(b"evil").is_err() && file.set_len(0).is_err());
        }
        assert!(rustix::fs::fcntl_add_seals(first.as_fd(), SealFlags::FUTURE_WRITE).is_err(), "the seals are sealed");
        std::fs::copy("/bin/false", folder.path().join("new")).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        let second = sealed.get(&path).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(!Command::new(format!("/proc/self/fd/{}", second.as_raw_fd())).status().unwrap().success());
        assert!(sealed.get(&folder.path().join("missing")).is_err());
    }
}
