use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};

use super::*;

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

#[test]
fn everything_is_copied_as_it_is() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("sub/deep")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(folder.path().join("secret"), "of the node").unwrap();
    fs::write(from.join("sub/file"), "text").unwrap();
    chown(from.join("sub/file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(from.join("sub/file"), from.join("sub/deep/second")).unwrap();
    symlink("../../secret", from.join("link")).unwrap();
    lchown(from.join("link"), Some(9), Some(9)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _ = rustix::fs::setxattr(from.join("sub"), "user.note", b"x", XattrFlags::empty());
    fs::set_permissions(&from, fs::Permissions::from_mode(0o1770)).unwrap();
    chown(&from, Some(5), Some(6)).unwrap();
    fs::File::open(from.join("sub")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();

    copy(&open(&from), &open(&to)).unwrap();

    let top = fs::metadata(&to).unwrap();
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (5, 6, 0o1770));
    let file = fs::metadata(to.join("sub/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777, file.nlink()), (7, 8, 0o4750, 2));
    assert_eq!(file.ino(), fs::metadata(to.join("sub/deep/second")).unwrap().ino());
    assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../../secret"));
    assert_eq!(fs::symlink_metadata(to.join("link")).unwrap().uid(), 9);
    assert!(fs::symlink_metadata(to.join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(to.join("sub")).unwrap().modified().unwrap(), std::time::UNIX_EPOCH);
    let (mut before, mut after) = ([0u8; 8], [0u8; 8]);
    let note = |path: PathBuf, value: &mut [u8]| rustix::fs::getxattr(path, "user.note", value);
    assert_eq!(note(from.join("sub"), &mut before), note(to.join("sub"), &mut after));
    assert_eq!(before, after);
}

#[test]
fn a_tree_without_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut dir = open(&from);
    for _ in 0..=MAX_DEPTH {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", READ | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let error = copy(&open(&from), &open(&to)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
}
