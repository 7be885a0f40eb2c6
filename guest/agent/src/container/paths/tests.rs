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
        ("/up/x", true),
        ("/absolute/x", true),
        ("/dangling", true),
        ("/dangling/x", true),
        ("/loop/x", false),
        ("/loop", false),
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

/// A link to something missing counts as the name of what is missing, wherever on the way it is.
#[test]
fn a_dangling_link_is_the_place_that_it_names() {
    /// Links and where they lead, the path, and where that is.
    type Row = (&'static [(&'static str, &'static str)], &'static str, &'static str);
    let rows: [Row; 12] = [
        (&[("l", "/run/not/there")], "/l", "run/not/there"),
        (&[("l", "run/not/there")], "/l", "run/not/there"),
        (&[("etc/l", "../run/not/there")], "/etc/l", "run/not/there"),
        (&[("etc/l", "not/there")], "/etc/l", "etc/not/there"),
        (&[("l", "/run/not/there")], "/l/below/it", "run/not/there/below/it"),
        (&[("a/l", "../b/not")], "/a/l/below", "b/not/below"),
        (&[("l", "m"), ("m", "/n"), ("n", "o/p")], "/l/x", "o/p/x"),
        (&[("l", "/a/b"), ("a", "c"), ("c", "d")], "/l/x", "d/b/x"),
        (&[("l", "../../../../high/there")], "/l", "high/there"),
        (&[("l", "missing/../other/./x//y")], "/l", "other/x/y"),
        (&[("l", "/real/../real/x")], "/l", "real/x"),
        (&[("l", "..")], "/l/x/../y", "y"),
    ];
    for (links, path, expected) in rows {
        for directory in [true, false] {
            let (folder, fd) = evil();
            let inside = folder.path().join("root");
            for (name, target) in links {
                fs::create_dir_all(inside.join(name).parent().unwrap()).unwrap();
                symlink(target, inside.join(name)).unwrap();
            }
            mount_point(&fd, Path::new(path), directory).unwrap();
            let made = fs::symlink_metadata(inside.join(expected));
            assert!(made.is_ok_and(|m| m.is_dir() == directory), "{links:?} {path}: not at {expected}");
            for (name, target) in links {
                assert_eq!(fs::read_link(inside.join(name)).unwrap(), Path::new(target), "{name} was changed");
            }
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{path} reached outside");
        }
    }
}

#[test]
fn a_way_without_end_is_refused() {
    let (folder, fd) = evil();
    let inside = folder.path().join("root");
    let long = vec!["x"; 2000].join("/");
    for n in 0..10 {
        symlink(format!("l{}/{long}", n + 1), inside.join(format!("l{n}"))).unwrap();
    }
    symlink("/proc-like", inside.join("l10")).unwrap();
    for n in 0..50 {
        symlink(format!("c{}", n + 1), inside.join(format!("c{n}"))).unwrap();
    }
    for path in ["/l0", "/c0/x"] {
        let error = mount_point(&fd, Path::new(path), true).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Invalid, "{error}");
    }
}

/// Others exchange a directory for a link to the outside and rename what the walk goes through.
#[test]
fn a_raced_way_makes_nothing_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (folder, fd) = evil();
    let inside = folder.path().join("root");
    fs::create_dir_all(inside.join("v/deep")).unwrap();
    symlink("deep/d/not/../../there", inside.join("v/l")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let d = inside.join("v/deep/d");
            while !done.load(Ordering::Relaxed) {
                let _ = fs::create_dir(&d);
                let _ = fs::rename(inside.join("v/deep"), inside.join("moved"));
                let _ = fs::rename(inside.join("moved"), inside.join("v/deep"));
                let _ = fs::remove_dir_all(&d);
                for target in ["../../../../outside", folder.path().join("outside").to_str().unwrap()] {
                    let _ = symlink(target, &d);
                    let _ = fs::remove_file(&d);
                }
            }
        });
        let mut made = 0;
        for round in 0..3000 {
            let path = Path::new(if round % 2 == 0 { "/v/l/x" } else { "/v/deep/d/x" });
            made += u32::from(mount_point(&fd, path, round % 3 == 0).is_ok());
            let _ = fs::remove_dir_all(inside.join("v/deep/there"));
        }
        done.store(true, Ordering::Relaxed);
        assert!(made > 0);
    });
    assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 0, "something was made outside");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was made outside");
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
