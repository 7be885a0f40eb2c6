//! Opens a container's log file: below the sandbox's log directory, through descriptors, following no link (docs/security.md).

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The path is not one below the directory.
    #[error("log path {0:?} must be relative, without .. and not empty")]
    Path(String),
    /// The operating system refused.
    #[error("cannot open log {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// Something else stands at the path.
    #[error("log {} is not a regular file of its own", .0.display())]
    NotOurs(PathBuf),
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Checks a container's log path.
pub(crate) fn check(path: &str) -> Result<(), LogError> {
    let bad = || LogError::Path(path.chars().take(200).collect());
    if path.is_empty() || path.len() > 1024 || path.ends_with('/') || path.contains('\0') {
        return Err(bad());
    }
    if Path::new(path).components().all(|c| matches!(c, Component::Normal(_))) { Ok(()) } else { Err(bad()) }
}

/// Where output of a container without a log goes. Blocks.
pub(crate) fn nowhere() -> Result<OwnedFd, LogError> {
    let null = Path::new("/dev/null");
    let opened = rustix::fs::open(null, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|e| LogError::Open(null.into(), e.into()))
}

/// Makes the directories that are missing and opens the file for appending. Blocks.
pub(crate) fn open(directory: &Path, path: &str) -> Result<OwnedFd, LogError> {
    check(path)?;
    let full = directory.join(path);
    let failed = |e: io::Error| LogError::Open(full.clone(), e);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The directory itself is the kubelet's word; a link in it would be the node's own.
    let mut at = rustix::fs::openat(CWD, directory, folder, Mode::empty()).map_err(|e| failed(e.into()))?;
    let mut names: Vec<&str> = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    let file = names.pop().ok_or_else(|| LogError::Path(path.into()))?;
    for name in names {
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(e.into())),
        }
        at = rustix::fs::openat2(&at, name, folder | OFlags::NOFOLLOW, Mode::empty(), RESOLVE)
            .map_err(|e| failed(e.into()))?;
    }
    // NONBLOCK: a pipe that somebody put there must not make us wait; it means nothing to a regular file.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let log =
        rustix::fs::openat2(&at, file, flags, Mode::from_raw_mode(0o640), RESOLVE).map_err(|e| failed(e.into()))?;
    let stat = rustix::fs::fstat(&log).map_err(|e| failed(e.into()))?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    if !regular || stat.st_nlink != 1 {
        return Err(LogError::NotOurs(full));
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn appends_and_makes_directories() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pod");
        for text in ["a\n", "b\n"] {
            fs::File::from(open(&root, "web/0.log").unwrap()).write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(root.join("web/0.log")).unwrap(), "a\nb\n");
    }

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a/", "a\0b", ".."] {
            assert!(matches!(open(dir.path(), bad), Err(LogError::Path(_))), "{bad:?}");
        }
    }

    #[test]
    fn nothing_is_written_through_links_pipes_or_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let (root, victim) = (dir.path().join("pod"), dir.path().join("victim"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, root.join("link.log")).unwrap();
        symlink(dir.path().join("elsewhere"), root.join("linked")).unwrap();
        symlink(dir.path().join("new"), root.join("dangling.log")).unwrap();
        fs::hard_link(&victim, root.join("hard.log")).unwrap();
        rustix::fs::mknodat(CWD, root.join("pipe.log"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        fs::create_dir(root.join("folder.log")).unwrap();
        for bad in ["link.log", "linked/0.log", "dangling.log", "hard.log", "pipe.log", "folder.log"] {
            assert!(open(&root, bad).is_err(), "{bad} was opened");
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!dir.path().join("new").exists());
        assert_eq!(fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 0);
    }
}
