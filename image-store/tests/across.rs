//! Layers that lean on layers below them: hard links and directories of which only a lower layer
//! knows.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use cofferdam_image_store::{Store, StoreError};

use self::support::image::{Image, Layer, Packing, Tar};
use self::support::{Registry, raw, root, scratch};

struct Pulled {
    _dir: tempfile::TempDir,
    _store: Store,
    /// Topmost first.
    dirs: Vec<PathBuf>,
}

async fn pull(layers: Vec<Vec<u8>>) -> Result<Pulled, StoreError> {
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = Image::new(layers.iter().map(|tar| Layer::new(tar, Packing::Gzip)).collect());
    let reference = registry.add("a/b:c", &image);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let id = store.pull(&reference, None).await?;
    let dirs = store.lease(&id, "x").unwrap().dirs;
    Ok(Pulled { _dir: dir, _store: store, dirs })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hard_links_find_their_targets_below() {
    if !root() {
        return;
    }
    let sparse: [(&str, &[u8]); 2] = [("GNU.sparse.realsize", b"1073741824"), ("GNU.sparse.map", b"1048576,2")];
    let attribute: [(&str, &[u8]); 2] = [("SCHILY.xattr.user.note", b"kept"), ("uid", b"12345")];
    let lowest = raw::tar(&[
        raw::dir("usr"),
        raw::dir("usr/bin"),
        raw::pax(&attribute),
        raw::patched(raw::file("usr/bin/tool", b"tool"), 100, b"0004751\0"),
        raw::symlink("usr/bin/alias", "tool"),
        raw::entry(b"usr/fifo", b'6', b"", b""),
        raw::pax(&sparse),
        raw::file("holes", b"xy"),
        raw::file("shadowed", b"old"),
    ]);
    let middle = Tar::default().file("shadowed", b"new").done();
    let top = raw::tar(&[
        raw::dir("opt"),
        raw::hard_link("opt/tool", "usr/bin/tool"),
        raw::hard_link("opt/tool2", "opt/tool"),
        raw::hard_link("opt/alias", "/usr/bin/alias"),
        raw::hard_link("opt/fifo", "usr/fifo"),
        raw::hard_link("opt/holes", "holes"),
        raw::hard_link("opt/shadowed", "shadowed"),
        raw::hard_link("opt/replaced", "usr/bin/tool"),
        raw::file("opt/replaced", b"later"),
    ]);
    let pulled = pull(vec![lowest, middle, top]).await.unwrap();
    let at = |name: &str| pulled.dirs[0].join(name);
    let tool = fs::symlink_metadata(at("opt/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.nlink()), (0o4751, 12345, 3));
    for other in ["opt/tool2", "usr/bin/tool"] {
        assert_eq!(fs::symlink_metadata(at(other)).unwrap().ino(), tool.ino(), "{other}");
    }
    let below = fs::symlink_metadata(pulled.dirs[2].join("usr/bin/tool")).unwrap();
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (below.mtime(), below.mtime_nsec()));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(at("opt/tool"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"kept");
    assert_eq!(fs::read_link(at("opt/alias")).unwrap(), PathBuf::from("tool"));
    assert!(fs::symlink_metadata(at("opt/fifo")).unwrap().file_type().is_fifo());
    let holes = fs::metadata(at("opt/holes")).unwrap();
    assert!(holes.len() == 1 << 30 && holes.blocks() < 100, "{holes:?}");
    assert_eq!(fs::read(at("opt/shadowed")).unwrap(), b"new");
    assert_eq!(fs::read(at("opt/replaced")).unwrap(), b"later");
    // Listed directories keep their times although links were made in them afterwards.
    assert_eq!(fs::metadata(at("opt")).unwrap().mtime(), 0o7346545000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hard_links_to_what_does_not_show_are_refused() {
    if !root() {
        return;
    }
    let base = || Tar::default().dir("d", 0o755).file("d/f", b"f").symlink("s", "d").symlink("out", "/etc").done();
    let link = |target: &str| Tar::default().file("first", b"").hard_link("link", target).done();
    let cases = [
        ("nowhere", vec![base(), link("nothing")]),
        ("whited out", vec![base(), Tar::default().whiteout("d", "f").done(), link("d/f")]),
        ("its directory whited out", vec![base(), Tar::default().whiteout("", "d").done(), link("d/f")]),
        ("hidden by an opaque directory", vec![base(), Tar::default().opaque("d").done(), link("d/f")]),
        ("hidden by a file", vec![base(), Tar::default().file("d", b"").done(), link("d/f")]),
        ("through a circle of links below", vec![base(), Tar::default().symlink("t", "t").done(), link("t/f")]),
        ("through a link out of the image", vec![base(), link("out/passwd")]),
        ("a directory below", vec![base(), link("d")]),
        ("whited out by itself", vec![base(), Tar::default().whiteout("d", "f").hard_link("link", "d/f").done()]),
        ("made opaque by itself", vec![base(), Tar::default().opaque("d").hard_link("link", "d/f").done()]),
    ];
    for (case, layers) in cases {
        match pull(layers).await.map(|p| p.dirs) {
            Err(StoreError::Malformed { detail, .. }) => assert!(detail.contains("\"link\""), "{case}: {detail}"),
            other => panic!("{case}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_that_are_not_listed_are_as_below() {
    if !root() {
        return;
    }
    let lowest = Tar::default().dir("a", 0o700).dir("a/b", 0o2775).dir("gone", 0o700).done();
    let top = Tar::default().file("a/b/c/f", b"x").whiteout("", "gone").file("gone/f", b"x").done();
    let pulled = pull(vec![lowest, top]).await.unwrap();
    let facts = |name: &str| {
        let m = fs::metadata(pulled.dirs[0].join(name)).unwrap();
        (m.mode() & 0o7777, m.uid(), m.gid(), m.mtime())
    };
    assert_eq!(facts("a"), (0o700, 1000, 1001, 1_000_000_000));
    assert_eq!(facts("a/b"), (0o2775, 1000, 1001, 1_000_000_000));
    let new = facts("a/b/c");
    assert_eq!((new.0, new.1), (0o755, 0), "nobody below has it");
    let new = facts("gone");
    assert_eq!((new.0, new.1), (0o755, 0), "the one below was deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_go_through_links_of_lower_layers() {
    if !root() {
        return;
    }
    let lowest = Tar::default()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o750)
        .file("usr/lib/libc", b"c")
        .file("usr/lib/gone", b"g")
        .symlink("lib", "usr/lib")
        .dir("var", 0o755)
        .symlink("var/run", "/run")
        .symlink("circle", "circle")
        .symlink("out", "../../../etc")
        .symlink("tofile", "usr/lib/libc")
        .done();
    let middle = Tar::default().symlink("usr/lib/x86", "../../lib64").done();
    let top = Tar::default()
        .file("lib/foo", b"foo")
        .whiteout("lib", "gone")
        .file("lib/x86/ld", b"ld")
        .file("usr/lib/foo", b"by its own path")
        .file("lib/sub/deep", b"one")
        .file("usr/lib/sub/other", b"two")
        .file("var/run/app/pid", b"1")
        .file("circle/x", b"x")
        .file("out/passwd", b"inside")
        .file("tofile/x", b"x")
        .hard_link("linked", "lib/libc")
        .hard_link("linked2", "lib/sub/deep")
        .done();
    let pulled = pull(vec![lowest, middle, top]).await.unwrap();
    let at = |name: &str| pulled.dirs[0].join(name);
    for (name, content) in [
        ("usr/lib/foo", "by its own path"),
        ("lib64/ld", "ld"),
        ("usr/lib/sub/deep", "one"),
        ("usr/lib/sub/other", "two"),
        ("run/app/pid", "1"),
        // Where a link leads nowhere, a directory takes its place.
        ("circle/x", "x"),
        ("tofile/x", "x"),
        ("etc/passwd", "inside"),
        ("linked", "c"),
        ("linked2", "one"),
    ] {
        assert_eq!(fs::read_to_string(at(name)).unwrap(), content, "{name}");
    }
    for link in ["lib", "var/run", "out", "usr/lib/x86"] {
        assert!(fs::symlink_metadata(at(link)).is_err(), "{link}: the link below shows");
    }
    assert!(fs::symlink_metadata(at("usr/lib/gone")).unwrap().file_type().is_char_device());
    let facts = |name: &str| {
        let m = fs::metadata(at(name)).unwrap();
        (m.mode() & 0o7777, m.uid(), m.mtime())
    };
    assert_eq!(facts("usr/lib"), (0o750, 1000, 1_000_000_000), "as below");
    assert_eq!(facts("run").0, 0o755);
    let (one, two) = (fs::metadata(at("linked")).unwrap(), fs::metadata(at("usr/lib/libc")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_directory_or_a_deletion_replaces_the_link_below() {
    if !root() {
        return;
    }
    let lowest = || Tar::default().dir("run", 0o755).symlink("a", "run").symlink("b", "run").symlink("c", "run").done();
    let top = Tar::default()
        .dir("a", 0o700)
        .file("a/x", b"1")
        .whiteout("", "b")
        .file("b/x", b"2")
        .opaque("c")
        .file("c/x", b"3")
        .done();
    let pulled = pull(vec![lowest(), top]).await.unwrap();
    for (dir, content) in [("a", "1"), ("b", "2"), ("c", "3")] {
        let found = fs::read_to_string(pulled.dirs[0].join(dir).join("x")).unwrap();
        assert_eq!(found, content);
    }
    assert!(!pulled.dirs[0].join("run").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whiteouts_that_hide_nothing_are_left_out() {
    if !root() {
        return;
    }
    let lowest = Tar::default()
        .dir("a", 0o755)
        .file("a/gone", b"")
        .file("a/kept", b"")
        .dir("keep", 0o755)
        .file("keep/gone", b"")
        .dir("d", 0o755)
        .file("d/f", b"")
        .done();
    let middle = Tar::default().whiteout("d", "f").done();
    let top = Tar::default()
        .opaque("a")
        .whiteout("a", "gone")
        .whiteout("a/sub", "gone")
        .file("a/new", b"n")
        .dir("fresh", 0o755)
        .whiteout("fresh", "never")
        .whiteout("fresh", "x")
        .file("fresh/x", b"x")
        .whiteout("keep", "gone")
        .whiteout("keep", "never")
        .whiteout("d", "f")
        .whiteout("no", "such")
        .done();
    let pulled = pull(vec![lowest, middle, top]).await.unwrap();
    let names = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(pulled.dirs[0].join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("a"), ["new", "sub"]);
    assert!(names("a/sub").is_empty());
    assert_eq!(names("fresh"), ["x"]);
    assert_eq!(names("keep"), ["gone"]);
    assert!(names("d").is_empty(), "the layer between hides it");
    assert_eq!(fs::metadata(pulled.dirs[0].join("fresh")).unwrap().mtime(), 1_000_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_below_a_deleted_directory_are_not_taken_over() {
    if !root() {
        return;
    }
    let lowest = Tar::default().dir("a", 0o700).dir("a/b", 0o700).done();
    let top = Tar::default().whiteout("", "a").file("a/b/f", b"x").done();
    let pulled = pull(vec![lowest, top]).await.unwrap();
    let m = fs::metadata(pulled.dirs[0].join("a/b")).unwrap();
    assert_eq!((m.mode() & 0o7777, m.uid()), (0o755, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hard_links_may_come_before_their_targets() {
    if !root() {
        return;
    }
    let pulled = pull(vec![Tar::default().hard_link("b", "a").file("a", b"a").done()]).await.unwrap();
    assert_eq!(fs::read(pulled.dirs[0].join("b")).unwrap(), b"a");
}
