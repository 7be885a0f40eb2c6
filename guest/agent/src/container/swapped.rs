//! Volumes whose content the node swaps as a whole, as the kubelet does with ConfigMaps, Secrets and projected volumes:
//!
//! ```text
//! ..2026_11_27_10_00_00.1/key   a version's files
//! ..data -> ..2026_11_27_10_00_00.1   renamed to point to the next version, then the old one is deleted
//! key -> ..data/key
//! ```
//!
//! The guest's kernel does not see what happens on the node. So that those who watch such a volume (inotify) are told as on the node,
//! the agent does here what leaves the volume as it is, but is told of: it renames the share's [`SHARE_NOTHING_LINK`] over `..data`, and
//! gives the old version's files, which it kept known to the kernel for that, the mode that they have and lets them go. The kernel
//! learns on the way that they have no name any more, and says so to who watches them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use cofferdam_proto::monitor::{SHARE_NOTHING, SHARE_NOTHING_LINK};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};

use crate::error::{Doing, Error, Result};
use crate::lock;

/// The link that the kubelet swaps.
const DATA: &str = "..data";
/// Most files of a version that are kept known. A ConfigMap holds 1 MiB in all; who watches single files watches a few.
const MAX_FILES: usize = 1024;
/// Deepest folder of a version that is looked into: a projected volume may have some.
const MAX_DEPTH: usize = 16;
/// Files that are told of before others of this thread have a turn.
const BATCH: usize = 16;

/// All of the pod: containers that show the same volume share what is known of it.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<HashMap<PathBuf, Weak<Volume>>>);

/// One volume.
#[derive(Debug)]
pub struct Volume {
    source: PathBuf,
    version: tokio::sync::Mutex<Version>,
}

/// What the link points to, and its files.
#[derive(Debug)]
struct Version {
    link: String,
    files: Vec<Known>,
}

/// A file that the kernel must not forget while its version lasts.
#[derive(Debug)]
struct Known {
    folder: Arc<OwnedFd>,
    name: std::ffi::CString,
    file: OwnedFd,
}

impl Volumes {
    /// The volume that is at `source`; `link` is where its link points, if it is not known yet.
    pub fn get(&self, source: &Path, link: &str) -> Arc<Volume> {
        let mut all = lock(&self.0);
        if let Some(volume) = all.get(source).and_then(Weak::upgrade) {
            return volume;
        }
        all.retain(|_, volume| volume.strong_count() > 0);
        let version = Version::know(source, link);
        let volume = Arc::new(Volume { source: source.to_owned(), version: tokio::sync::Mutex::new(version) });
        all.insert(source.to_owned(), Arc::downgrade(&volume));
        volume
    }
}

impl Volume {
    /// Tells those who watch the volume that its link points to `link` now, unless they were told. `share` is the share's root.
    ///
    /// # Errors
    /// When the volume's folder is gone, or the share is another one than this agent knows.
    pub async fn swapped(&self, share: &Path, link: &str) -> Result<()> {
        let mut version = self.version.lock().await;
        if version.link == link {
            return Ok(());
        }
        let step = || format!("tell of a change in {}", self.source.display());
        let nothing = open_dir(CWD, &share.join(SHARE_NOTHING)).doing(step())?;
        let folder = open_dir(CWD, &self.source).doing(step())?;
        renameat(&nothing, SHARE_NOTHING_LINK, &folder, DATA).doing(step())?;
        let old = std::mem::replace(&mut *version, Version::know(&self.source, link));
        old.end().await;
        Ok(())
    }
}

impl Version {
    /// A version that a link points to. What of it is not there any more, the next swap is about.
    fn know(source: &Path, link: &str) -> Self {
        let mut files = Vec::new();
        let known = open_dir(CWD, source).and_then(|volume| open_dir(&volume, Path::new(link)));
        if let Err(error) = known.and_then(|folder| collect(folder, MAX_DEPTH, &mut files)) {
            tracing::warn!(volume = %source.display(), link, %error, "not all of a volume's files are known: the end of the others is not told of");
        }
        Self { link: link.to_owned(), files }
    }

    /// Tells of the files that have no name any more.
    async fn end(self) {
        let mut failed = None;
        for (number, known) in self.files.into_iter().enumerate() {
            failed = known.end().err().or(failed);
            if number % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
        }
        // One line for all: a guest's console is slow.
        if let Some(error) = failed {
            tracing::warn!(version = self.link, %error, "the end of files of a volume is not told of");
        }
    }
}

impl Known {
    fn end(&self) -> io::Result<()> {
        let mode = statat(&self.file, c"", AtFlags::EMPTY_PATH)?.st_mode & 0o7777;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        if statat(&self.file, c"", AtFlags::EMPTY_PATH)?.st_nlink != 0 {
            return Err(io::Error::other("it is still there"));
        }
        // There is no such name on the node. Asking for its removal makes the kernel forget it at once.
        match unlinkat(&*self.folder, &self.name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open_dir(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, path, flags, Mode::empty())?)
}

fn collect(folder: OwnedFd, depth: usize, files: &mut Vec<Known>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(&folder, c".", flags, Mode::empty())?)?;
    let folder = Arc::new(folder);
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if files.len() >= MAX_FILES {
            return Err(io::Error::other(format!("it has more than {MAX_FILES}")));
        }
        let file = openat(&*folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        match FileType::from_raw_mode(statat(&file, c"", AtFlags::EMPTY_PATH)?.st_mode) {
            FileType::RegularFile => {
                files.push(Known { folder: folder.clone(), name: name.to_owned(), file });
            }
            FileType::Directory if depth > 0 => collect(file, depth - 1, files)?,
            _ => {}
        }
    }
    Ok(())
}

/// Refuses what is not one name.
///
/// # Errors
/// Says so.
pub fn check_link(link: &str) -> Result<()> {
    let name = Path::new(link).file_name().is_some_and(|name| name.as_bytes() == link.as_bytes());
    if !name || link.len() > 255 || link.contains('\0') {
        return Err(Error::invalid(format!("{link:?} is not the name of a volume's version")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::inotify;

    use super::*;

    /// A volume as the kubelet makes it, and a share beside it whose link is a real one: it can be renamed once.
    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let node = Self { dir: tempfile::tempdir().unwrap() };
            fs::create_dir_all(node.share().join(SHARE_NOTHING)).unwrap();
            fs::create_dir(node.volume()).unwrap();
            node.version("..1");
            symlink("..1", node.volume().join(DATA)).unwrap();
            node.link();
            node
        }

        fn share(&self) -> PathBuf {
            self.dir.path().join("share")
        }

        fn volume(&self) -> PathBuf {
            self.dir.path().join("volume")
        }

        fn version(&self, name: &str) {
            let folder = self.volume().join(name);
            fs::create_dir_all(folder.join("sub")).unwrap();
            fs::write(folder.join("key"), name).unwrap();
            fs::write(folder.join("sub/key"), name).unwrap();
        }

        fn link(&self) {
            symlink("nowhere", self.share().join(SHARE_NOTHING).join(SHARE_NOTHING_LINK)).unwrap();
        }

        fn link_is_there(&self) -> bool {
            self.share().join(SHARE_NOTHING).join(SHARE_NOTHING_LINK).symlink_metadata().is_ok()
        }
    }

    fn watch(path: &Path) -> OwnedFd {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, path, inotify::WatchFlags::ALL_EVENTS).unwrap();
        watch
    }

    fn heard(watch: &OwnedFd) -> Vec<(inotify::ReadFlags, String)> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        let mut all = Vec::new();
        while let Ok(event) = reader.next() {
            all.push((event.events(), event.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()));
        }
        all
    }

    #[tokio::test]
    async fn a_swap_is_told_once() {
        let node = Node::new();
        let volumes = Volumes::default();
        let volume = volumes.get(&node.volume(), "..1");
        assert!(
            Arc::ptr_eq(&volume, &volumes.get(&node.volume(), "..2")),
            "one volume, however many containers show it"
        );
        volume.swapped(&node.share(), "..1").await.unwrap();
        assert!(node.link_is_there(), "nothing had changed");

        node.version("..2");
        let folder = watch(&node.volume());
        let file = watch(&node.volume().join("..1/key"));
        fs::remove_dir_all(node.volume().join("..1")).unwrap();
        heard(&file);
        heard(&folder);
        volume.swapped(&node.share(), "..2").await.unwrap();
        let events = heard(&folder);
        assert!(events.contains(&(inotify::ReadFlags::MOVED_TO, DATA.into())), "{events:?}");
        assert!(volume.version.lock().await.files.len() == 2);
        volume.swapped(&node.share(), "..2").await.unwrap();
        assert_eq!(heard(&folder), [], "told again");

        drop(volume);
        assert_eq!(volumes.get(&node.volume(), "..3").version.lock().await.link, "..3", "nobody shows it any more");
    }

    #[tokio::test]
    async fn what_is_still_there_stays() {
        let node = Node::new();
        let volume = Volumes::default().get(&node.volume(), "..1");
        node.version("..2");
        let key = watch(&node.volume().join("..1/key"));
        volume.swapped(&node.share(), "..2").await.unwrap();
        assert_eq!(fs::read(node.volume().join("..1/key")).unwrap(), b"..1");
        let events = heard(&key);
        assert!(events.iter().any(|(event, _)| *event == inotify::ReadFlags::ATTRIB), "{events:?}");
        assert!(events.iter().all(|(event, _)| *event != inotify::ReadFlags::DELETE_SELF), "{events:?}");
    }

    #[tokio::test]
    async fn a_share_that_cannot_do_it_changes_nothing() {
        let node = Node::new();
        let volume = Volumes::default().get(&node.volume(), "..1");
        fs::remove_dir_all(node.share()).unwrap();
        let error = volume.swapped(&node.share(), "..2").await.unwrap_err();
        assert!(error.chain().contains("tell of a change"), "{}", error.chain());
        assert_eq!(volume.version.lock().await.link, "..1");
    }

    #[test]
    fn versions_are_single_names() {
        assert!(check_link("..2026_11_27_10_00_00.123").is_ok());
        for bad in ["", ".", "..", "/", "a/b", "a/", "/a", "a\0b", &"x".repeat(256)] {
            assert!(check_link(bad).is_err(), "{bad:?}");
        }
    }
}
