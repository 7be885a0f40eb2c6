use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn root(dir: &Path) -> OwnedFd {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// A folder with a root in it, and beside the root what must stay untouched.
fn evil() -> (tempfile::TempDir, OwnedFd) {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("root");
    fs::create_dir_all(inside.join("real")).unwrap();
    fs::create_dir(folder.path().join("outside")).unwrap();
    symlink("../outside", inside.join("up")).unwrap();
    symlink(folder.path().join("outside"), inside.join("absolute")).unwrap();
    symlink("/nowhere/at/all", inside.join("dangling")).unwrap();
    symlink("loop", inside.join("loop")).unwrap();
    symlink("/real", inside.join("fine")).unwrap();
    let fd = root(&inside);
    (folder, fd)
}

#[test]
fn nothing_is_made_outside_the_root() {
    for (path, works) in [
        ("/a/b/c", true),
        ("/fine/x", true),
        ("/up/x", false),
        ("/absolute/x", false),
        ("/dangling", false),
        ("/dangling/x", false),
        ("/loop/x", false),
    ] {
        for directory in [true, false] {
            let (folder, fd) = evil();
            let result = mount_point(&fd, Path::new(path), directory);
            assert_eq!(result.is_ok(), works, "{path}: {result:?}");
            assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 0, "{path} reached outside");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{path} reached outside");
        }
    }
}

#[test]
fn a_link_is_followed_inside_the_root() {
    let (folder, fd) = evil();
    mount_point(&fd, Path::new("/fine/file"), false).unwrap();
    assert!(folder.path().join("root/real/file").is_file());
}

#[test]
fn a_fifo_and_a_huge_file_are_not_read() {
    let (folder, fd) = evil();
    let inside = folder.path().join("root");
    rustix::fs::mknodat(rustix::fs::CWD, inside.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::File::create(inside.join("huge")).unwrap().set_len(10 << 30).unwrap();
    fs::write(inside.join("small"), "x").unwrap();
    assert!(read_image_file(&fd, "/fifo", 10).is_err());
    assert!(read_image_file(&fd, "/huge", 1 << 20).is_err());
    assert_eq!(read_image_file(&fd, "/small", 10).unwrap().unwrap(), b"x");
    assert_eq!(read_image_file(&fd, "/none", 10).unwrap(), None);
}

#[test]
fn destinations_are_absolute_and_do_not_climb() {
    for bad in ["", "relative", "/a/../b", "/a\0b", ".."] {
        assert!(check_absolute(bad).is_err(), "{bad:?}");
    }
    assert_eq!(check_absolute("/a//b/./c/").unwrap(), Path::new("/a/b/c"));
}
