//! Images as six builders write them, against a model of what they mean: every entry's type, mode,
//! ids, time, attributes, link target, content, and which names are one file; also after they were
//! exported to another store.

#[path = "support/model.rs"]
mod model;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cofferdam_image_store::{ExportPart, Store};
use futures::stream;

use self::model::Say::{Link, Opaque, Put, Whiteout};
use self::model::{Kind, Model, Node, Say, node};
use self::support::image::{Image, Layer, Packing};
use self::support::{Registry, raw, root, scratch};

fn dir(name: &'static str, mode: u32) -> Say {
    Put(name, node(Kind::Dir, mode))
}

fn file(name: &'static str, mode: u32, content: &str) -> Say {
    Put(name, node(Kind::File(content.into()), mode))
}

fn sym(name: &'static str, to: &str) -> Say {
    Put(name, node(Kind::Symlink(to.into()), 0o777))
}

fn with(say: Say, change: impl FnOnce(&mut Node)) -> Say {
    let Put(name, mut node) = say else { panic!("only for what is put") };
    change(&mut node);
    Put(name, node)
}

/// How a builder writes names.
#[derive(Clone, Copy)]
struct Style {
    before: &'static str,
    slash_behind_dirs: bool,
    absolute_targets: bool,
}

/// The layer's tar. A hard link's header has the attributes of its file, as builders write it.
fn tar(layer: &[Say], style: Style, known: &Model) -> Vec<u8> {
    let mut model = known.clone();
    let mut entries = Vec::new();
    for say in layer {
        let name = |name: &str| format!("{}{name}", style.before);
        let beside = |path: &str, mark: &str| {
            let (dir, last) = path.rsplit_once('/').map_or(("", path), |(dir, last)| (dir, last));
            if dir.is_empty() { name(&format!("{mark}{last}")) } else { name(&format!("{dir}/{mark}{last}")) }
        };
        match say {
            Put(path, node) => {
                let slash = if node.kind == Kind::Dir && style.slash_behind_dirs { "/" } else { "" };
                entries.push(entry(&format!("{}{slash}", name(path)), node, None));
            }
            Link(path, target) => {
                let to = format!("{}{target}", if style.absolute_targets { "/" } else { "" });
                let node = model.node(target).clone();
                entries.push(entry(&name(path), &node, Some(&to)));
            }
            Whiteout(path) => entries.push(raw::file(&beside(path, ".wh."), b"")),
            Opaque(path) => entries.push(raw::file(&name(&format!("{path}/.wh..wh..opq")), b"")),
        }
        model.apply(say);
    }
    raw::tar(&entries)
}

fn entry(name: &str, node: &Node, hard_link: Option<&str>) -> Vec<u8> {
    let (kind, link, data): (u8, &str, &[u8]) = match (&node.kind, hard_link) {
        (_, Some(to)) => (b'1', to, b""),
        (Kind::Dir, _) => (b'5', "", b""),
        (Kind::File(content), _) => (b'0', "", content),
        (Kind::Symlink(to), _) => (b'2', to, b""),
        (Kind::Fifo, _) => (b'6', "", b""),
        (Kind::Device(..), _) => (b'3', "", b""),
    };
    let mut entry = raw::entry(name.as_bytes(), kind, link.as_bytes(), data);
    let mut field = |at: usize, text: String| entry = raw::patched(std::mem::take(&mut entry), at, text.as_bytes());
    field(100, format!("{:07o}\0", node.mode));
    field(108, format!("{:07o}\0", node.owner.0 & 0o7777777));
    field(116, format!("{:07o}\0", node.owner.1 & 0o7777777));
    let (seconds, nanos) = node.time.unwrap_or_default();
    field(136, format!("{seconds:011o}\0"));
    if let Kind::Device(major, minor) = node.kind {
        field(329, format!("{major:07o}\0"));
        field(337, format!("{minor:07o}\0"));
    }
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    if nanos > 0 {
        records.push(("mtime".into(), format!("{seconds}.{nanos:09}").into()));
    }
    if node.owner.0.max(node.owner.1) > 0o7777777 {
        records.push(("uid".into(), node.owner.0.to_string().into()));
        records.push(("gid".into(), node.owner.1.to_string().into()));
    }
    if hard_link.is_none() {
        records.extend(node.attributes.iter().map(|(key, value)| (format!("SCHILY.xattr.{key}"), value.clone())));
    }
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    if records.is_empty() { entry } else { [raw::pax(&records), entry].concat() }
}

/// The layers' directories as overlayfs shows them, topmost first: where each name comes from.
fn merged(dirs: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut hidden: BTreeSet<String> = BTreeSet::new();
    for layer in dirs {
        let mut todo = vec![layer.clone()];
        let mut hides = Vec::new();
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(layer).unwrap().to_str().unwrap().to_owned();
                if Path::new(&name).ancestors().any(|above| hidden.contains(above.to_str().unwrap())) {
                    continue;
                }
                let m = fs::symlink_metadata(&path).unwrap();
                if m.file_type().is_char_device() && m.rdev() == 0 {
                    let below = dirs.iter().skip_while(|dir| *dir != layer).skip(1);
                    assert!(below.into_iter().any(|dir| dir.join(&name).symlink_metadata().is_ok()), "ghost {name}");
                    hides.push(name);
                    continue;
                }
                if m.is_dir() {
                    todo.push(path.clone());
                    let opaque = rustix::fs::getxattr(&path, "user.overlay.opaque", &mut [0; 8]).is_ok();
                    if opaque {
                        hides.push(format!("{name}/"));
                    }
                } else {
                    hides.push(name.clone());
                }
                found.entry(name).or_insert(path);
            }
        }
        for name in hides {
            match name.strip_suffix('/') {
                // What is in the directory below is hidden, the directory itself is this one.
                Some(dir) => drop(hidden.insert(dir.to_owned())),
                None => drop(hidden.insert(name)),
            }
        }
    }
    found
}

fn look(path: &Path) -> Node {
    let m = fs::symlink_metadata(path).unwrap();
    let kind = if m.is_dir() {
        Kind::Dir
    } else if m.is_symlink() {
        Kind::Symlink(fs::read_link(path).unwrap().to_str().unwrap().into())
    } else if m.file_type().is_fifo() {
        Kind::Fifo
    } else if m.file_type().is_char_device() {
        Kind::Device(rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev()))
    } else {
        Kind::File(fs::read(path).unwrap())
    };
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = std::ffi::OsStr::from_bytes(name);
        if name != "user.overlay.opaque" && name != "security.selinux" {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            attributes.insert(name.to_str().unwrap().to_owned(), value[..length].to_vec());
        }
    }
    Node {
        kind,
        mode: m.mode() & 0o7777,
        owner: (m.uid(), m.gid()),
        time: Some((m.mtime(), m.mtime_nsec())),
        attributes,
    }
}

async fn compare(builder: &str, style: Style, layers: Vec<Vec<Say>>) {
    let mut model = Model::default();
    let mut tars = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        model.layer = number;
        tars.push(tar(layer, style, &model));
        layer.iter().for_each(|say| model.apply(say));
    }
    let (scratch, registry) = (scratch(), Registry::start().await);
    let image = Image::new(tars.iter().map(|tar| Layer::new(tar, Packing::Gzip)).collect());
    let store = Store::open(registry.config(scratch.path())).unwrap();
    let id = store.pull(&registry.add("a/b:c", &image), None).await.unwrap();
    let dirs = store.lease(&id, "x").unwrap().dirs;
    equal(builder, &dirs, &model);
    // What is packed anew for another node is the same tree there, and packed again the same bytes.
    let archive = exported(&store, &id).await;
    let other = Store::open(registry.config(&scratch.path().join("other"))).unwrap();
    let pieces = stream::iter([Ok(archive.clone())]);
    let imported = other.import(None, pieces).await.unwrap();
    let name = format!("{}/a/b:c", registry.address);
    assert_eq!(imported.iter().map(|image| &image.names[..]).collect::<Vec<_>>(), [std::slice::from_ref(&name)]);
    equal(&format!("{builder}, exported"), &other.lease(&imported[0].id, "x").unwrap().dirs, &model);
    let (was, is) = (store.status(&id).unwrap().unwrap(), other.status(&name).unwrap().unwrap());
    assert_eq!(is.config, was.config);
    assert!(exported(&other, &is.id).await == archive, "{builder}: other bytes when it is exported again");
}

async fn exported(store: &Store, id: &str) -> Bytes {
    let mut parts = store.export(&[id.to_owned()]).unwrap();
    let mut archive = Vec::new();
    while let Some(part) = parts.recv().await {
        if let ExportPart::Bytes(bytes) = part.unwrap() {
            archive.extend_from_slice(&bytes);
        }
    }
    archive.into()
}

fn equal(builder: &str, dirs: &[PathBuf], model: &Model) {
    let found = merged(dirs);
    let names: Vec<&String> = found.keys().collect();
    assert_eq!(names, model.names.keys().collect::<Vec<_>>(), "{builder}");
    let mut same: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for (name, path) in &found {
        let file = model.names[name].0;
        let (mut is, should) = (look(path), &model.files[file]);
        if should.time.is_none() {
            is.time = None;
        }
        assert_eq!(&is, should, "{builder}: {name}");
        same.entry(file).or_default().insert(fs::symlink_metadata(path).unwrap().ino());
    }
    for (file, inodes) in same {
        assert_eq!(inodes.len(), 1, "{builder}: {:?} is one file", model.files[file]);
    }
}

const PLAIN: Style = Style { before: "", slash_behind_dirs: true, absolute_targets: false };

/// A base that has what awkward layers meet: merged `/usr`, `/var/run`, hard links, attributes.
fn base() -> Vec<Say> {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    vec![
        dir("usr", 0o755),
        dir("usr/bin", 0o755),
        dir("usr/lib", 0o751),
        file("usr/bin/tool", 0o4755, "tool"),
        Link("usr/bin/same", "usr/bin/tool"),
        with(file("usr/bin/ping", 0o755, "ping"), |n| {
            drop(n.attributes.insert("security.capability".into(), capability))
        }),
        file("usr/lib/libc", 0o644, "libc"),
        file("usr/lib/old", 0o644, "old"),
        sym("bin", "usr/bin"),
        sym("lib", "usr/lib"),
        with(dir("var", 0o755), |n| n.time = Some((1_500_000_000, 123_456_789))),
        dir("run", 0o755),
        sym("var/run", "/run"),
        dir("etc", 0o755),
        with(file("etc/app", 0o640, "app"), |n| n.owner = (1000, 3_000_000_000)),
        dir("data", 0o1777),
        file("data/a", 0o600, "a"),
        file("data/b", 0o600, "b"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_six_builders_are_what_they_mean() {
    if !root() {
        return;
    }
    let ko = Style { before: "/", ..PLAIN };
    let app = vec![
        dir("var/run/ko", 0o555),
        file("var/run/ko/LICENSE", 0o444, "mit"),
        dir("ko-app", 0o555),
        file("ko-app/app", 0o555, "elf"),
    ];
    compare("ko", ko, vec![base(), app]).await;

    let kaniko = Style { before: "/", slash_behind_dirs: true, absolute_targets: true };
    let one = vec![Whiteout("usr/lib/old"), dir("usr/bin", 0o755), Link("usr/bin/third", "usr/lib/libc")];
    let two = vec![Whiteout("data"), file("data", 0o644, "a file now"), file("etc/new/deep/x", 0o600, "x")];
    compare("kaniko", kaniko, vec![base(), one, two]).await;

    let odd = with(file("usr/bin/note", 0o6755, "n"), |n| {
        n.attributes.insert("user.note".into(), b"kept".to_vec());
        n.attributes.insert("user.empty".into(), Vec::new());
        n.time = Some((1_700_000_000, 987_654_321));
    });
    let top = vec![
        Opaque("data"),
        file("data/new", 0o600, "new"),
        Whiteout("data/a"),
        odd,
        Put("run/pipe", node(Kind::Fifo, 0o620)),
        Put("run/null", node(Kind::Device(1, 3), 0o666)),
    ];
    compare("buildah", PLAIN, vec![base(), top]).await;

    let first = vec![dir("srv", 0o750), file("srv/a", 0o640, "a"), Link("srv/b", "srv/a"), sym("srv/c", "b")];
    let second = vec![Link("srv/d", "srv/c"), file("srv/a", 0o600, "replaced"), Whiteout("etc"), Whiteout("no/such")];
    let third = vec![dir("etc", 0o700), file("etc/again", 0o600, "again"), Link("etc/libc", "usr/lib/libc")];
    compare("buildkit", PLAIN, vec![base(), first, second, third]).await;

    let nix = Style { before: "./", slash_behind_dirs: false, absolute_targets: false };
    let early = |say: Say| with(say, |n| n.time = Some((1, 0)));
    let store = vec![
        early(dir("nix/store/abc-app", 0o555)),
        early(dir("nix/store/abc-app/bin", 0o555)),
        early(file("nix/store/abc-app/bin/app", 0o555, "app")),
        early(sym("app", "/nix/store/abc-app/bin")),
    ];
    let more =
        vec![early(file("app/extra", 0o444, "through a link below")), early(sym("nix/current", "store/abc-app"))];
    compare("nix", nix, vec![store, more]).await;

    let packages = vec![
        file("lib/libssl", 0o644, "ssl"),
        file("lib/engines/one", 0o644, "1"),
        file("var/run/app.pid", 0o644, "1"),
        Whiteout("lib/old"),
        sym("opt/current", "../srv/app"),
        file("opt/current/file", 0o644, "f"),
        file("a/../usr/bin/./cleaned", 0o755, "c"),
    ];
    compare("bazel", PLAIN, vec![base(), packages]).await;
}

/// What creating a file gives it is not set again, so what a directory hands down must not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_down_by_directories_or_cut_by_the_umask() {
    if !root() {
        return;
    }
    let owned = |say: Say, owner| with(say, |node| node.owner = owner);
    let handing_down = vec![
        file("early", 0o644, "e"),
        owned(dir("shared", 0o2775), (0, 50)),
        file("shared/file", 0o644, "f"),
        dir("shared/dir", 0o755),
        file("shared/dir/file", 0o644, "f"),
        sym("shared/link", "file"),
        owned(file("shared/own", 0o600, "o"), (7, 50)),
        // Becomes one that hands down while it is the current one.
        dir("late", 0o755),
        file("late/before", 0o644, "b"),
        owned(dir("late", 0o2755), (0, 60)),
        file("late/after", 0o644, "a"),
        dir("late/dir", 0o755),
        sym("late/link", "after"),
    ];
    let modes = [0, 0o2, 0o200, 0o444, 0o622, 0o666, 0o777, 0o1644, 0o2755, 0o4711, 0o7777];
    let mut of_modes = vec![dir("modes", 0o777), dir("sticky", 0o1777), file("sticky/file", 0o640, "s")];
    for mode in modes {
        of_modes.push(file(format!("modes/file-{mode:o}").leak(), mode, "m"));
        of_modes.push(dir(format!("modes/dir-{mode:o}").leak(), mode));
        of_modes.push(file(format!("modes/dir-{mode:o}/file").leak(), 0o644, "m"));
    }
    let owners = [(0, 1), (1, 0), (1000, 1000), (u32::MAX - 1, u32::MAX - 1)];
    for (number, owner) in owners.into_iter().enumerate() {
        of_modes.push(owned(file(format!("modes/of-{number}").leak(), 0o4755, "o"), owner));
        of_modes.push(owned(sym(format!("modes/link-{number}").leak(), "x"), owner));
        of_modes.push(Link(format!("modes/twin-{number}").leak(), format!("modes/of-{number}").leak()));
    }
    compare("handing down", PLAIN, vec![handing_down, of_modes]).await;
}
