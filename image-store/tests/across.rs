//! Layers that lean on layers below them: hard links and directories of which only a lower layer knows.

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
        ("through a link below", vec![base(), link("s/f")]),
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
