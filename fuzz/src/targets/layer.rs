//! Layers of images: compressed or not, as a registry sends them. Whatever becomes of one, nothing
//! outside of its directory changes.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use cofferdam_image_store::{Limits, fuzzing, testing};
use flate2::Compression;
use flate2::write::GzEncoder;

use self::raw::{dir, entry, file, hard_link, pax, symlink as sym, tar};
use super::{Target, target};
use crate::scratch;
use crate::words::Words;

#[path = "../../../image-store/tests/support/raw.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod raw;

pub(super) const LAYER: Target = Target { name: "layer", most: 16 << 10, run: layer, seeds: layer_seeds };
pub(super) const COMPRESSED: Target = target("compressed", compressed, compressed_seeds);

const BLOCK: usize = 512;
/// Entries of one input.
const MOST: usize = 64;
const KINDS: &[u8] = b"0051234567xgLKSDVM\0";
const PARTS: [&str; 16] = [
    "a",
    "b",
    "c",
    "..",
    ".",
    "",
    "etc",
    ".wh.a",
    ".wh..wh..opq",
    ".wh.",
    "outside",
    "victim",
    "link",
    "root",
    ".wh..wh.x",
    "secret",
];
const KEYS: [&str; 16] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
];
const VALUES: [&str; 12] =
    ["", "0", "1", "-1", "512", "1,2,3,4", "0,512", "../../victim", "/etc/x", "9223372036854775807", "1.5", "a/b"];

/// What must stay as it is, beside the directory that is extracted into.
struct World {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl World {
    fn new() -> Self {
        let dir = scratch::dir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("outside")).expect("a directory");
        fs::write(at("outside/secret"), "secret").expect("a file");
        fs::write(at("victim"), "victim").expect("a file");
        symlink("victim", at("link")).expect("a link");
        // The root is made anew for each layer, one below, so that its own times are nobody's.
        fs::create_dir(at("roots")).expect("a directory");
        let before = scratch::snapshot(dir.path(), &at("roots")).expect("what is there");
        Self { dir, before }
    }

    fn extract(&self, layer: &[u8], lowest: bool) {
        let root = self.dir.path().join("roots/root");
        fs::create_dir(&root).expect("a directory");
        let limits = Limits {
            layer_unpacked_bytes: 1 << 22,
            layer_entries: 500,
            path_depth: 64,
            sparse_extents: 100,
            tar_header_bytes: 1 << 16,
            ..Limits::default()
        };
        let open: OwnedFd = fs::File::open(&root).expect("the root").into();
        let _ = testing::extract(layer, open, lowest, &limits);
        let after = scratch::snapshot(self.dir.path(), &self.dir.path().join("roots")).expect("what is there");
        assert!(after == self.before, "something outside changed: {:#?}\nis now {after:#?}", self.before);
        let beside: Vec<_> = fs::read_dir(self.dir.path().join("roots")).expect("it is there").flatten().collect();
        assert_eq!(beside.len(), 1, "something is beside the root: {beside:?}");
        fs::remove_dir_all(&root).expect("a layer can be removed");
    }
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

fn layer(bytes: &[u8]) {
    if !scratch::is_root() {
        return;
    }
    let mut words = Words::new(bytes);
    let how = words.byte();
    let layer = if how & 1 == 0 { sealed(words.rest().to_vec()) } else { entries(&mut words) };
    WORLD.with(|world| world.get_or_init(World::new).extract(&layer, how & 2 == 0));
}

/// Makes the checksums right of what are headers if the one before says the truth.
fn sealed(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + BLOCK <= tar.len() {
        let header = raw::patched(tar[at..at + BLOCK].to_vec(), 0, &[]);
        tar[at..at + BLOCK].copy_from_slice(&header);
        let size = std::str::from_utf8(&header[124..135]).ok().and_then(|text| u64::from_str_radix(text, 8).ok());
        let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        let blocks = size.checked_next_multiple_of(BLOCK).and_then(|size| size.checked_add(BLOCK));
        let Some(next) = blocks.and_then(|size| size.checked_add(at)) else { break };
        at = next;
    }
    tar
}

/// Entries whose headers are whole.
fn entries(words: &mut Words<'_>) -> Vec<u8> {
    let mut entries = Vec::new();
    while words.more() && entries.len() < MOST {
        if words.byte().is_multiple_of(4) {
            let records: Vec<(&str, Vec<u8>)> = (0..1 + words.byte() % 4).map(|_| record(words)).collect();
            entries.push(pax(&records.iter().map(|(key, value)| (*key, &value[..])).collect::<Vec<_>>()));
        }
        let (name, link) = (path(words), path(words));
        let kind = words.one_of(KINDS);
        let data = if matches!(kind, b'0' | b'7' | b'L' | b'K' | b'S') { words.piece() } else { &[] };
        let mut made = entry(name.as_bytes(), kind, link.as_bytes(), data);
        if words.byte().is_multiple_of(8) {
            let at = usize::from(words.half()) % (BLOCK - 16);
            made = raw::patched(made, at, words.bytes(8));
        }
        entries.push(made);
    }
    tar(&entries)
}

fn record(words: &mut Words<'_>) -> (&'static str, Vec<u8>) {
    let key = words.one_of(&KEYS);
    let value = if words.byte().is_multiple_of(4) { words.piece().to_vec() } else { words.one_of(&VALUES).into() };
    (key, value)
}

fn path(words: &mut Words<'_>) -> String {
    let parts: Vec<&str> = (0..words.byte() % 5).map(|_| words.one_of(&PARTS)).collect();
    let slash = if words.byte().is_multiple_of(8) { "/" } else { "" };
    format!("{slash}{}", parts.join("/"))
}

fn layer_seeds() -> Vec<Vec<u8>> {
    let whole = [
        vec![
            dir("a/"),
            file("a/b", b"content"),
            sym("a/c", "../../victim"),
            hard_link("d", "a/b"),
            file("a/c/x", b"x"),
        ],
        vec![
            dir("a"),
            file("a/.wh..wh..opq", b""),
            file(".wh.b", b""),
            entry(b"dev", b'3', b"", b""),
            entry(b"p", b'6', b"", b""),
        ],
        vec![
            pax(&[("path", b"long/name"), ("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"v"), ("uid", b"7")]),
            file("short", b"x"),
            entry(b"././@LongLink", b'L', b"", b"another/long/name\0"),
            file("short", b"y"),
        ],
        vec![
            pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", b"4096"),
            ]),
            file("GNUSparseFile.0/s", &[&b"1\n0\n4\n"[..], &[0; 506], b"data"].concat()),
            pax(&[("GNU.sparse.size", b"1024"), ("GNU.sparse.map", b"0,4,512,4")]),
            file("t", b"datadata"),
        ],
    ];
    let mut seeds: Vec<Vec<u8>> = whole.iter().map(|entries| [vec![2], tar(entries)].concat()).collect();
    seeds.push((0..=255).cycle().skip(1).take(600).collect());
    seeds
}

fn compressed(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let (how, piece) = (words.byte(), usize::from(words.byte()));
    let rest = words.rest();
    match how % 4 {
        0 | 1 => drop(fuzzing::decompress(rest, piece)),
        // What was compressed comes back, in one member or frame, or two.
        2 => {
            let (one, two) = rest.split_at(rest.len() / 2);
            assert_eq!(fuzzing::decompress(&[gzip(one), gzip(two)].concat(), piece).as_deref(), Some(rest));
        }
        _ => {
            let (one, two) = rest.split_at(rest.len() / 2);
            assert_eq!(fuzzing::decompress(&[zstd(one), zstd(two)].concat(), piece).as_deref(), Some(rest));
        }
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).expect("memory")
}

fn compressed_seeds() -> Vec<Vec<u8>> {
    let text = b"a layer, a layer, a layer and 1234567890";
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    vec![
        [&[0, 7][..], &gzip(text), &gzip(b""), &[0; 16]].concat(),
        [&[0, 255][..], &skippable, &zstd(text), &zstd(b"")].concat(),
        [&[0, 3][..], text].concat(),
        [&[2, 5][..], text].concat(),
        [&[3, 5][..], text].concat(),
    ]
}
