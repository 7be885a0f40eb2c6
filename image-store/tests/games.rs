//! Layers on layers that play with symbolic links, hard links, renames and whiteouts. Whatever they
//! do, nothing beside the directories that they are unpacked into changes, and no lower layer does.

#[path = "support/raw.rs"]
#[allow(dead_code, reason = "this test uses a part")]
mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_image_store::Limits;
use cofferdam_image_store::testing::{complete, extract};
use proptest::prelude::*;

use self::raw::{entry, pax, tar};

/// Everything below a directory: kind, mode, owner, links, times, content.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let content = match (m.is_file(), m.is_symlink()) {
            (true, _) => fs::read_to_string(&path).unwrap(),
            (_, true) => fs::read_link(&path).unwrap().display().to_string(),
            _ => String::new(),
        };
        let facts = (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime(), m.mtime_nsec(), m.rdev());
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        found.insert(path, format!("{facts:?} {content}"));
    }
    found
}

/// Names and targets that meet: few, and many of them lead out.
fn layer() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "a",
        "b",
        "c",
        "a/b",
        "b/a",
        "a/b/c",
        "c/a/b",
        "a/canary",
        "/b/c",
        "../canary/f",
        "a/../../canary/f",
        "b/../c",
        ".wh.a",
        "a/.wh.b",
        "b/.wh.c",
        "a/.wh..wh..opq",
        ".",
        "c/./a",
    ];
    let targets = [
        "a",
        "b",
        "c",
        "..",
        ".",
        "/",
        "a/b",
        "../canary",
        "../../canary",
        "/proc/self/root",
        "b/..",
        "/b",
        "../b/c",
        "/proc/self/cwd/canary",
        "../canary/f",
        "a/../../canary/f",
        "",
    ];
    let kind = prop::sample::select(b"00112222555536".to_vec());
    let one = (prop::sample::select(names.to_vec()), kind, prop::sample::select(targets.to_vec()), any::<bool>());
    let one = one.prop_map(|(name, kind, target, owned)| {
        let data: &[u8] = if kind == b'0' { b"evil" } else { b"" };
        let entry = entry(name.as_bytes(), kind, target.as_bytes(), data);
        if owned { [pax(&[("uid", b"7"), ("mtime", b"5")]), entry].concat() } else { entry }
    });
    prop::collection::vec(one, 1..14).prop_map(|entries| tar(&entries))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_stack_of_layers_reaches_outside(layers in prop::collection::vec(layer(), 1..5)) {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let world = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let canary = world.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("f"), "sings").unwrap();
        symlink("f", canary.join("link")).unwrap();
        let before = snapshot(&canary);
        let mut roots: Vec<PathBuf> = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let below: Vec<_> = roots.iter().map(|root| snapshot(root)).collect();
            let root = world.path().join(format!("layer{number}"));
            fs::create_dir(&root).unwrap();
            let open = |path: &PathBuf| OwnedFd::from(fs::File::open(path).unwrap());
            let limits = Limits { path_depth: 32, ..Limits::default() };
            if let Ok((mut extracted, _)) = extract(&layer[..], open(&root), number == 0, &limits) {
                let lowers: Vec<_> = roots.iter().rev().map(open).collect();
                let _ = complete(open(&root).as_fd(), &lowers, &mut extracted);
            }
            for (lower, before) in roots.iter().zip(below) {
                prop_assert_eq!(snapshot(lower), before, "a lower layer changed");
            }
            roots.push(root);
        }
        prop_assert_eq!(snapshot(&canary), before, "something outside changed");
        let beside = fs::read_dir(world.path()).unwrap().count();
        prop_assert_eq!(beside, roots.len() + 1);
    }
}
