//! Layers of an attacker, extracted for real. Whatever becomes of one, nothing outside the
//! directory has changed.

#[path = "support/raw.rs"]
mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use cofferdam_image_store::Limits;
use cofferdam_image_store::testing::{ExtractError, Extracted, extract};
use proptest::prelude::*;

use self::raw::{dir, entry, file, hard_link, header, patched, pax, symlink as sym, tar};

/// What must stay as it is: a file, a directory and links, beside the directory that is extracted
/// into.
struct World {
    dir: tempfile::TempDir,
    before: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/secret"), "secret").unwrap();
        fs::write(at("victim"), "victim").unwrap();
        symlink("victim", at("link")).unwrap();
        fs::create_dir(at("root")).unwrap();
        let before = snapshot(dir.path());
        Self { dir, before }
    }

    fn extract(&self, bytes: &[u8]) -> Result<Extracted, ExtractError> {
        let limits = Limits {
            layer_unpacked_bytes: 1 << 30,
            layer_entries: 5000,
            path_depth: 64,
            sparse_extents: 1000,
            ..Limits::default()
        };
        let root: OwnedFd = fs::File::open(self.dir.path().join("root")).unwrap().into();
        let result = extract(bytes, root, false, &limits).map(|(extracted, _)| extracted);
        assert_eq!(snapshot(self.dir.path()), self.before, "something outside changed");
        result
    }

    fn root(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("root").join(name)
    }
}

/// Everything but the inside of `root`: kind, mode, owner, size, times, links, content.
fn snapshot(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(dir).unwrap().display().to_string();
        if name == "root" {
            continue;
        }
        let content = if m.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        let facts = (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime(), m.mtime_nsec(), m.rdev());
        found.insert(name, format!("{facts:?} {content}"));
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    found
}

fn root_user() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: unpacking layers needs root");
    }
    root
}

enum Expected {
    /// Refused, with a text that has this in it (the entry's name).
    Refused(&'static str),
    TooLarge,
    /// Harmless: taken.
    Taken,
}
use Expected::{Refused, Taken, TooLarge};

#[test]
fn the_table() {
    if !root_user() {
        return;
    }
    let deep = "d/".repeat(70) + "f";
    let long = "n".repeat(300);
    let many_components = "x/".repeat(3000);
    let cases: Vec<(&str, Vec<Vec<u8>>, Expected)> = vec![
        ("climbs", vec![file("../victim", b"evil")], Taken),
        ("climbs in the middle", vec![dir("a"), file("a/../../victim", b"evil")], Taken),
        ("climbs back in", vec![dir("a"), file("a/../b", b"x")], Taken),
        ("climbs, a directory", vec![dir("../outside")], Taken),
        ("only dots", vec![dir("..")], Taken),
        ("absolute", vec![file("/etc/cofferdam-evil", b"evil")], Taken),
        ("empty name", vec![file("", b"evil")], Taken),
        ("name of slashes", vec![file("///", b"evil")], Taken),
        ("the root as a file", vec![file(".", b"evil")], Taken),
        ("the root as a link", vec![sym("./", "/"), file("x", b"")], Taken),
        ("the root as a whiteout", vec![file("../.wh..", b"")], Refused(".wh..")),
        ("through a link", vec![sym("a", "../outside"), file("a/new", b"evil")], Taken),
        ("through an absolute link", vec![sym("a", "/tmp"), file("a/cofferdam-evil", b"evil")], Taken),
        ("through a link to a link", vec![sym("a", "b"), sym("b", ".."), file("a/victim", b"evil")], Taken),
        ("through a link deeper", vec![dir("d"), sym("d/a", "../.."), file("d/a/victim", b"evil")], Taken),
        ("through a link to a file", vec![file("f", b""), sym("a", "f"), file("a/b", b"evil")], Refused("a/b")),
        ("through links in a circle", vec![sym("a", "b"), sym("b", "a"), file("a/c", b"evil")], Refused("a/c")),
        (
            "through a link that gets deeper",
            vec![sym("a", &"d/".repeat(45)), sym("b", &"a/".repeat(45)), file("b/c", b"evil")],
            TooLarge,
        ),
        ("through the process's own links", vec![sym("a", "/proc/self/root"), file("a/victim", b"evil")], Taken),
        ("through a link to itself", vec![sym("a", "a"), file("a/b", b"evil")], Refused("a/b")),
        ("a directory through a link", vec![sym("a", "../outside"), dir("a/b/c")], Taken),
        ("a link through a link", vec![sym("a", "../outside"), sym("a/b", "x")], Taken),
        ("a device through a link", vec![sym("a", "../outside"), entry(b"a/dev", b'3', b"", b"")], Taken),
        ("a whiteout through a link", vec![sym("a", "../outside"), file("a/.wh.secret", b"")], Taken),
        ("an opaque mark through a link", vec![sym("a", "../outside"), file("a/.wh..wh..opq", b"")], Taken),
        ("a link to a whiteout's name", vec![sym("a", ".wh.b"), file("a/c", b"evil")], Refused("a/c")),
        ("a file over a link", vec![sym("a", "../victim"), file("a", b"evil")], Taken),
        ("a directory over a link", vec![sym("a", "../outside"), dir("a"), file("a/secret", b"evil")], Taken),
        ("a link over a directory", vec![dir("a"), sym("a", "../outside"), file("a/new", b"evil")], Taken),
        ("a hard link out", vec![hard_link("a", "../victim")], Taken),
        ("a hard link to an absolute name", vec![hard_link("a", "/etc/passwd")], Taken),
        ("a hard link through a link", vec![sym("d", ".."), hard_link("a", "d/victim")], Taken),
        ("a hard link through a circle", vec![sym("d", "d"), hard_link("a", "d/victim")], Refused("\"a\"")),
        ("owner through a hard link", vec![sym("d", "../outside"), hard_link("a", "d/secret")], Taken),
        ("written through a hard link", vec![sym("s", "../victim"), hard_link("h", "s"), file("h", b"evil")], Taken),
        ("mode through a hard link to a link", vec![sym("s", "../victim"), hard_link("h", "s")], Taken),
        ("a hard link to a directory", vec![dir("d"), hard_link("a", "d")], Refused("\"a\"")),
        ("a hard link to the root", vec![hard_link("a", ".")], Refused("\"a\"")),
        ("a hard link to itself", vec![file("a", b"x"), hard_link("a", "a")], Taken),
        ("a hard link to a whiteout", vec![file(".wh.x", b""), hard_link("a", "x")], Refused("\"a\"")),
        ("a hard link to a mark", vec![hard_link("a", ".wh.x")], Refused("\"a\"")),
        ("a whiteout of dots", vec![file(".wh...", b"")], Refused(".wh...")),
        ("a whiteout of a dot", vec![file(".wh..", b"")], Refused(".wh..")),
        ("a whiteout of nothing", vec![file(".wh.", b"")], Refused(".wh.")),
        ("below a whiteout", vec![file(".wh.a/b", b"x")], Refused(".wh.a/b")),
        ("aufs' own", vec![file(".wh..wh.plnk/x", b""), file(".wh..wh.aufs", b"")], Taken),
        ("below a file", vec![file("a", b"x"), file("a/b", b"x")], Refused("a/b")),
        (
            "below a device",
            vec![patched(entry(b"a", b'3', b"", b""), 337, b"0000003\0"), file("a/b", b"x")],
            Refused("a/b"),
        ),
        ("a NUL in a PAX path", vec![pax(&[("path", b"a\0b")]), file("x", b"")], Refused("NUL")),
        ("a PAX path that climbs", vec![pax(&[("path", b"../victim")]), file("x", b"evil")], Taken),
        ("a PAX link that climbs", vec![pax(&[("linkpath", b"../victim")]), hard_link("x", "y")], Taken),
        ("a sparse name that climbs", vec![pax(&[("GNU.sparse.name", b"../victim")]), file("x", b"")], Taken),
        ("a GNU name that climbs", vec![entry(b"l", b'L', b"", b"../victim\0"), file("x", b"evil")], Taken),
        ("a prefix that climbs", vec![patched(file("victim", b"evil"), 345, b"..")], Taken),
        ("a symbolic link to nothing", vec![sym("a", "")], Refused("\"a\"")),
        ("a long component", vec![pax(&[("path", long.as_bytes())]), file("x", b"")], Refused("255")),
        (
            "a long component of a whiteout",
            vec![pax(&[("path", format!(".wh.{}", &long[..253]).as_bytes())]), file("x", b"")],
            Refused("255"),
        ),
        ("too deep", vec![pax(&[("path", deep.as_bytes())]), file("x", b"")], TooLarge),
        ("too long", vec![pax(&[("path", many_components.as_bytes())]), file("x", b"")], TooLarge),
        ("an unknown kind", vec![entry(b"a", b'Z', b"", b"")], Refused("\"a\"")),
        ("a bad checksum", vec![vec![b'x'; 512]], Refused("checksum")),
        ("a negative size", vec![patched(file("a", b""), 124, &[0xff; 12])], Refused("\"a\"")),
        ("a huge size", vec![header(b"a", b'0', b"", 1 << 32)], TooLarge),
        ("a huge PAX size", vec![pax(&[("size", b"18446744073709551615")]), file("a", b"")], TooLarge),
        ("a huge PAX header", vec![header(b"x", b'x', b"", 1 << 31)], TooLarge),
        ("a huge global header", vec![header(b"x", b'g', b"", 1 << 31)], TooLarge),
        ("a huge GNU name", vec![header(b"x", b'L', b"", 1 << 31)], TooLarge),
        ("uid 2^32 - 1", vec![pax(&[("uid", b"4294967295")]), file("a", b"")], Refused("uid")),
        ("uid 2^32", vec![pax(&[("uid", b"4294967296")]), file("a", b"")], Refused("uid")),
        ("uid -1", vec![pax(&[("uid", b"-1")]), file("a", b"")], Refused("uid")),
        ("uid below 32 bits", vec![pax(&[("uid", b"-2147483649")]), file("a", b"")], Refused("uid")),
        ("uid -2", vec![pax(&[("uid", b"-2")]), file("a", b"")], Taken),
        ("a negative gid", vec![patched(file("a", b""), 116, &[0xff; 8])], Refused("gid")),
        ("a device number too large", vec![patched(entry(b"a", b'3', b"", b""), 329, b"7777777\0")], Refused("device")),
        ("an overlay attribute", vec![pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/..")]), dir("a")], Taken),
        (
            "a sparse map that wraps",
            vec![
                pax(&[("GNU.sparse.realsize", b"10"), ("GNU.sparse.map", b"18446744073709551615,2")]),
                file("a", b"xx"),
            ],
            Refused("\"a\""),
        ),
        (
            "a sparse map with more than its data",
            vec![pax(&[("GNU.sparse.realsize", b"10000"), ("GNU.sparse.map", b"0,5000")]), file("a", b"xx")],
            Refused("\"a\""),
        ),
        (
            "a sparse file of a petabyte",
            vec![pax(&[("GNU.sparse.realsize", b"1125899906842624"), ("GNU.sparse.map", b"0,2")]), file("a", b"xx")],
            TooLarge,
        ),
        (
            "many sparse extents",
            vec![
                pax(&[
                    ("GNU.sparse.realsize", b"9"),
                    ("GNU.sparse.map", "0,0,".repeat(1001).trim_end_matches(',').as_bytes()),
                ]),
                file("a", b""),
            ],
            Refused("sparse"),
        ),
        ("many entries", (0..5001).map(|i| file(&format!("f{i}"), b"")).collect(), TooLarge),
        ("cut off in the data", vec![header(b"a", b'0', b"", 4096)], Refused("middle")),
    ];
    assert!(cases.len() > 60);
    for (case, entries, expected) in cases {
        let world = World::new();
        let result = world.extract(&if case.starts_with("cut off") { entries.concat() } else { tar(&entries) });
        match (expected, result) {
            (Taken, Ok(_)) | (TooLarge, Err(ExtractError::TooLarge { .. })) => {}
            (Refused(text), Err(error @ ExtractError::Malformed { .. })) => {
                let shown = format!("{:?} {error}", error.to_string().split(':').next().unwrap());
                assert!(shown.contains(text), "{case}: {shown} lacks {text}");
            }
            (_, other) => panic!("{case}: {other:?}"),
        }
    }
    assert!(!Path::new("/etc/cofferdam-evil").exists() && !Path::new("/tmp/cofferdam-evil").exists());
}

#[test]
fn nothing_of_a_layer_works_as_overlay_metadata() {
    if !root_user() {
        return;
    }
    let world = World::new();
    let attributes: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.user.overlay.redirect", b"/x"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.user.fine", b"kept"),
    ];
    world.extract(&tar(&[pax(&attributes), dir("a")])).unwrap();
    let mut names = vec![0; 4096];
    let length = rustix::fs::listxattr(world.root("a"), &mut names).unwrap();
    assert_eq!(names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).collect::<Vec<_>>(), [b"user.fine"]);
}

#[test]
fn names_in_messages_are_printable() {
    if !root_user() {
        return;
    }
    let name = b"a\n\x1b[31m/\xff";
    let error = World::new().extract(&tar(&[entry(name, b'Z', b"", b"")])).unwrap_err().to_string();
    assert!(!error.chars().any(char::is_control), "{error:?}");
}

#[test]
fn a_sparse_file_of_a_gigabyte_takes_no_space() {
    if !root_user() {
        return;
    }
    let world = World::new();
    let sparse: [(&str, &[u8]); 2] = [("GNU.sparse.realsize", b"1073741824"), ("GNU.sparse.map", b"1048576,2")];
    let extracted = world.extract(&tar(&[pax(&sparse), file("a", b"xy")])).unwrap();
    let found = fs::metadata(world.root("a")).unwrap();
    assert_eq!(found.len(), 1 << 30);
    assert!(found.blocks() < 100, "{}", found.blocks());
    assert!(extracted.bytes < 1 << 16);
}

/// Entries that an attacker would combine: few names, so that they meet.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        ".",
        "..",
        "a/..",
        "../victim",
        "a/../../victim",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "/a",
        "a/",
        "./a/./b",
    ];
    let targets = ["a", "b", "..", "../victim", "../outside", "/", "a/b", ".", "", "../root/a"];
    let kind = prop::sample::select(b"0123456".to_vec());
    let one = (prop::sample::select(names.to_vec()), kind, prop::sample::select(targets.to_vec()), 0usize..3);
    let one = one.prop_map(|(name, kind, target, size)| {
        let data = if kind == b'0' { vec![b'x'; size * 300] } else { Vec::new() };
        entry(name.as_bytes(), kind, target.as_bytes(), &data)
    });
    prop::collection::vec(one, 1..12).prop_map(|entries| tar(&entries))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mixture_reaches_outside(bytes in entries()) {
        if root_user() {
            let world = World::new();
            let _ = world.extract(&bytes);
        }
    }

    #[test]
    fn no_damage_reaches_outside(bytes in entries(), at in any::<prop::sample::Index>(), to in any::<u8>(), seal in any::<bool>()) {
        if root_user() {
            let mut bytes = bytes;
            let at = at.index(bytes.len());
            bytes[at] = to;
            if seal && at < 512 {
                bytes = patched(bytes, at, &[to]);
            }
            let world = World::new();
            let _ = world.extract(&bytes);
        }
    }

    #[test]
    fn noise_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        if root_user() {
            let world = World::new();
            let result = world.extract(&bytes);
            prop_assert!(bytes.iter().take(512).all(|b| *b == 0) || result.is_err());
        }
    }
}

#[test]
fn what_is_taken_is_what_was_meant() {
    if !root_user() {
        return;
    }
    let world = World::new();
    let fifo = patched(entry(b"dev/fifo", b'6', b"", b""), 100, b"0000640\0");
    let device = patched(patched(entry(b"dev/null", b'3', b"", b""), 329, b"0000001\0"), 337, b"0000003\0");
    let suid = patched(file("bin/su", b"#!"), 100, b"0004755\0");
    let times: [(&str, &[u8]); 3] = [("mtime", b"1234567890.125"), ("uid", b"70000"), ("gid", b"80000")];
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("long/{}", "x".repeat(240));
    world
        .extract(&tar(&[
            patched(dir("."), 100, b"0000751\0"),
            dir("bin"),
            suid,
            patched(hard_link("bin/sudo", "/bin/su"), 100, b"0004755\0"),
            pax(&[("SCHILY.xattr.security.capability", capability)]),
            file("bin/ping", b"ping"),
            fifo,
            device,
            pax(&times),
            file("f", b"data"),
            pax(&times),
            dir("bin"),
            sym("link", "/nowhere"),
            entry(b"l", b'L', b"", format!("{long}\0").as_bytes()),
            file("short", b"long name"),
            file("twice", b"first"),
            file("twice", b"second"),
        ]))
        .unwrap();
    let at = |name: &str| fs::symlink_metadata(world.root(name)).unwrap();
    assert_eq!(at("").mode() & 0o7777, 0o751);
    assert_eq!(at("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(at("bin/su").ino(), at("bin/sudo").ino());
    assert_eq!(
        (at("f").uid(), at("f").gid(), at("f").mtime(), at("f").mtime_nsec()),
        (70000, 80000, 1234567890, 125_000_000)
    );
    assert_eq!((at("bin").uid(), at("bin").mtime()), (70000, 1234567890));
    assert!(at("dev/fifo").file_type().is_fifo());
    assert_eq!(at("dev/fifo").permissions().mode() & 0o7777, 0o640);
    assert!(at("dev/null").file_type().is_char_device());
    assert_eq!(at("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(fs::read_link(world.root("link")).unwrap(), Path::new("/nowhere"));
    assert_eq!(fs::read(world.root(&long)).unwrap(), b"long name");
    assert_eq!(fs::read(world.root("twice")).unwrap(), b"second");
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(world.root("bin/ping"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
}

#[test]
fn whiteouts_and_opaque_marks_take_overlayfs_form() {
    if !root_user() {
        return;
    }
    let world = World::new();
    world
        .extract(&tar(&[
            file("d/.wh.gone", b""),
            file("d/.wh..wh..opq", b""),
            // Files of the same layer stay, whichever order they come in.
            file("d/kept", b"x"),
            file("d/.wh.kept", b""),
            file(".wh.new", b""),
            dir("new"),
        ]))
        .unwrap();
    let gone = fs::symlink_metadata(world.root("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    assert_eq!(fs::read(world.root("d/kept")).unwrap(), b"x");
    let opaque = |name: &str| {
        let mut value = [0; 8];
        matches!(rustix::fs::getxattr(world.root(name), "user.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
    };
    assert!(opaque("d"));
    assert!(opaque("new"), "a directory over a whiteout of its layer hides what is below");
}

#[test]
fn real_gnu_tar_comes_back_whole() {
    if !root_user() {
        return;
    }
    let source = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| source.path().join(name);
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"coast", (10 << 20) - 5).unwrap();
    fs::write(at("plain"), vec![7; 100_000]).unwrap();
    fs::hard_link(at("plain"), at("same")).unwrap();
    fs::create_dir(at("t".repeat(150).as_str())).unwrap();
    fs::write(at(&format!("{}/{}", "t".repeat(150), "u".repeat(150))), "deep").unwrap();
    let formats: [&[&str]; 5] = [
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix"],
    ];
    for format in formats {
        let output = std::process::Command::new("tar")
            .args(format)
            .args(["-cf", "-", "-C"])
            .arg(source.path())
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success());
        let world = World::new();
        world.extract(&output.stdout).unwrap();
        for name in ["sparse", "plain", "same"] {
            assert!(fs::read(at(name)).unwrap() == fs::read(world.root(name)).unwrap(), "{format:?}: {name}");
        }
        let deep = format!("{}/{}", "t".repeat(150), "u".repeat(150));
        assert_eq!(fs::read(world.root(&deep)).unwrap(), b"deep", "{format:?}");
        if format.len() > 1 {
            assert!(fs::metadata(world.root("sparse")).unwrap().blocks() < 2000, "{format:?}");
        }
    }
}
