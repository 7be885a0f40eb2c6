//! Images and registries that are hostile or broken, one row each: the pull fails, the error names
//! the image, the layer or the URL and says why, and nothing is left in the store.
//!
//! 60 rows. Beside them, `faults.rs` has 33 more pulls of the kind (wrong bytes, manifests, bombs,
//! compression), `evil.rs` 76 layers for the extractor alone, `artifacts.rs` 5 artifacts,
//! `signatures.rs` 16 images that a policy refuses, and `archives.rs` what comes in archives.

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cofferdam_image_store::{Digest, Store, StoreError};
use serde_json::{Value, json};

use support::image::{Image, Layer, Packing, Tar, gzip};
use support::{Answer, Door, Fault, Registry, raw, root, scratch};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Sets the registry up; gives the reference to pull.
type Setup = Box<dyn Fn(&Registry) -> String>;

/// What the error is, and texts that it has.
struct Row {
    case: &'static str,
    kind: &'static str,
    says: Vec<&'static str>,
    setup: Setup,
}

fn row(
    case: &'static str,
    kind: &'static str,
    says: &[&'static str],
    setup: impl Fn(&Registry) -> String + 'static,
) -> Row {
    Row { case, kind, says: says.to_vec(), setup: Box::new(setup) }
}

fn kind(error: &StoreError) -> String {
    format!("{error:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

fn image() -> Image {
    let upper = Tar::default().file("d/upper", b"upper").layer(Packing::Gzip);
    Image::new(vec![Tar::default().file("base", b"base").layer(Packing::Gzip), upper])
}

/// Serves a document as the manifest.
fn document(registry: &Registry, media_type: &str, bytes: impl Into<Bytes>) -> String {
    registry.content().put("a/b:c", media_type, bytes.into());
    format!("{}/a/b:c", registry.address)
}

/// The usual image with a changed manifest.
fn manifest(case: &'static str, kind: &'static str, says: &[&'static str], change: fn(&mut Value)) -> Row {
    row(case, kind, says, move |registry| {
        registry.add("a/b:whole", &image());
        let mut manifest = image().manifest_value();
        change(&mut manifest);
        document(registry, MANIFEST, manifest.to_string())
    })
}

/// The usual image with this config.
fn config(case: &'static str, kind: &'static str, says: &[&'static str], config: impl Fn() -> String + 'static) -> Row {
    row(case, kind, says, move |registry| {
        registry.add("a/b:whole", &image());
        let bytes = Bytes::from(config());
        let mut manifest = image().manifest_value();
        manifest["config"]["digest"] = json!(Digest::of(&bytes));
        manifest["config"]["size"] = json!(bytes.len());
        registry.content().blobs.insert(Digest::of(&bytes).to_string(), bytes);
        document(registry, MANIFEST, manifest.to_string())
    })
}

/// The usual config with one field changed.
fn field(case: &'static str, kind: &'static str, says: &[&'static str], change: fn(&mut Value)) -> Row {
    config(case, kind, says, move || {
        let mut config: Value = serde_json::from_slice(&image().config()).unwrap();
        change(&mut config);
        config.to_string()
    })
}

/// An image whose one layer is these bytes, with the diff ID of that tar.
fn layer(case: &'static str, kind: &'static str, says: &[&'static str], make: fn() -> (Vec<u8>, Vec<u8>)) -> Row {
    row(case, kind, says, move |registry| {
        let (bytes, tar) = make();
        let layer = Layer { bytes: bytes.into(), diff_id: Digest::of(&tar), packing: Packing::Gzip };
        registry.add("a/b:c", &Image::new(vec![layer]))
    })
}

/// A layer that is a tar of these entries.
fn entries(case: &'static str, kind: &'static str, says: &[&'static str], make: fn() -> Vec<Vec<u8>>) -> Row {
    row(case, kind, says, move |registry| {
        registry.add("a/b:c", &Image::new(vec![Layer::new(&raw::tar(&make()), Packing::Gzip)]))
    })
}

/// The usual image, and a registry that misbehaves for the paths with this in them.
fn fault(
    case: &'static str,
    kind: &'static str,
    says: &[&'static str],
    path: &'static str,
    fault: fn() -> Fault,
) -> Row {
    row(case, kind, says, move |registry| {
        let reference = registry.add("a/b:c", &image());
        let upper = image().layers[1].digest().to_string();
        registry.fault(if path == "UPPER" { &upper } else { path }, fault(), 1000);
        reference
    })
}

/// The usual image, and a registry that answers what a hook says.
fn hook(
    case: &'static str,
    kind: &'static str,
    says: &[&'static str],
    answer: fn(&str, &str) -> Option<Answer>,
) -> Row {
    row(case, kind, says, move |registry| {
        let (reference, address) = (registry.add("a/b:c", &image()), registry.address.clone());
        registry.hook(move |request| answer(request.uri().path(), &address));
        reference
    })
}

fn configs() -> Vec<Row> {
    let malformed = "Malformed";
    vec![
        config("config: no JSON", malformed, &["image config of {ref}"], || "no JSON".into()),
        config("config: empty", malformed, &["image config of {ref}"], String::new),
        config("config: cut off", malformed, &["image config of {ref}", "EOF"], || r#"{"os": "linux", "#.into()),
        config("config: a list", malformed, &["image config of {ref}"], || "[]".into()),
        config("config: null", malformed, &["no rootfs"], || "null".into()),
        config("config: 100,000 brackets", malformed, &["image config of {ref}"], || "[".repeat(100_000)),
        config("config: nested objects", malformed, &["image config of {ref}"], || {
            format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000))
        }),
        field("config: no rootfs", malformed, &["no rootfs"], |c| drop(c.as_object_mut().unwrap().remove("rootfs"))),
        field("config: diff IDs that are none", malformed, &["diff_ids"], |c| {
            c["rootfs"]["diff_ids"] = json!(["sha256:../../../etc", "x"])
        }),
        field("config: diff IDs that are numbers", malformed, &["image config of {ref}"], |c| {
            c["rootfs"]["diff_ids"] = json!([1, 2])
        }),
        field("config: a diff ID too many", malformed, &["3 diff IDs for 2 layers"], |c| {
            c["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(Digest::of(b"")))
        }),
        field("config: a diff ID too few", malformed, &["1 diff IDs for 2 layers"], |c| {
            drop(c["rootfs"]["diff_ids"].as_array_mut().unwrap().pop())
        }),
        field("config: diff IDs in another order", "DigestMismatch", &["(unpacked)", "layer sha256:"], |c| {
            c["rootfs"]["diff_ids"].as_array_mut().unwrap().reverse()
        }),
        field("config: Env is text", malformed, &["image config of {ref}"], |c| c["config"]["Env"] = json!("A=b")),
        field("config: Cmd is a number", malformed, &["image config of {ref}"], |c| c["config"]["Cmd"] = json!(1)),
        field("config: 5000 variables", "TooLarge", &["Env", "4096 entries", "{ref}"], |c| {
            c["config"]["Env"] = json!(vec!["A=b"; 5000])
        }),
        field("config: a user of 200 KB", "TooLarge", &["User", "{ref}"], |c| {
            c["config"]["User"] = json!("u".repeat(200_000))
        }),
        field("config: an architecture of 100 letters", "TooLarge", &["architecture", "{ref}"], |c| {
            c["architecture"] = json!("a".repeat(100))
        }),
    ]
}

fn manifests() -> Vec<Row> {
    let malformed = "Malformed";
    vec![
        row("manifest: no JSON", malformed, &["image manifest of {ref}"], |r| document(r, MANIFEST, "no JSON")),
        row("manifest: a page of HTML", malformed, &["{ref}", "HTML"], |r| document(r, "text/html", "<html></html>")),
        row("manifest: 100,000 brackets", malformed, &["{ref}"], |r| document(r, MANIFEST, "[".repeat(100_000))),
        row("manifest: 5 MiB", "TooLarge", &["a/b manifest c"], |r| document(r, MANIFEST, vec![b' '; 5 << 20])),
        manifest("manifest: a layer without a digest", malformed, &["{ref}", "a layer"], |m| {
            drop(m["layers"][0].as_object_mut().unwrap().remove("digest"))
        }),
        manifest("manifest: a layer without a size", malformed, &["{ref}", "a layer has no size"], |m| {
            drop(m["layers"][0].as_object_mut().unwrap().remove("size"))
        }),
        manifest("manifest: an md5 digest", malformed, &["{ref}", "md5"], |m| {
            m["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e")
        }),
        manifest("manifest: a config without a digest", malformed, &["{ref}", "the config"], |m| {
            drop(m["config"].as_object_mut().unwrap().remove("digest"))
        }),
        manifest("manifest: layers are an object", malformed, &["{ref}"], |m| m["layers"] = json!({"0": 1})),
        manifest("manifest: the config is text", malformed, &["{ref}"], |m| m["config"] = json!("config")),
        manifest("manifest: layers of 80 GiB together", "TooLarge", &["image of {ref}"], |m| {
            (m["layers"][0]["size"], m["layers"][1]["size"]) = (json!(40u64 << 30), json!(40u64 << 30))
        }),
        manifest("manifest: a config of 5 MiB", "TooLarge", &["image config of {ref}"], |m| {
            m["config"]["size"] = json!(5 << 20)
        }),
        manifest("manifest: a layer that is an attestation", "Unsupported", &["image of {ref}", "in-toto"], |m| {
            m["layers"][1]["mediaType"] = json!("application/vnd.in-toto+json")
        }),
        row("index: only attestations", "Unsupported", &["image of {ref}", "artifacts"], |registry| {
            let annotations = json!({"vnd.docker.reference.type": "attestation-manifest"});
            let entry =
                json!({"mediaType": MANIFEST, "digest": Digest::of(b"x"), "size": 1, "annotations": annotations});
            document(registry, INDEX, json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
        }),
        row("index: the image is not there", "NotFound", &["a/b manifest sha256:", "not found"], |registry| {
            document(registry, INDEX, index(&Digest::of(b"x"), 1))
        }),
        row("index: its image is larger than a manifest", "TooLarge", &["image manifest of {ref}"], |registry| {
            document(registry, INDEX, index(&Digest::of(b"x"), 5 << 20))
        }),
        row("index: its image is another document", "DigestMismatch", &["a/b manifest sha256:"], |registry| {
            registry.add("a/b:part", &image());
            registry.fault("manifests/sha256:", Fault::Instead(Bytes::from_static(b"{}")), 1000);
            document(registry, INDEX, index(&Digest::of(&image().manifest()), image().manifest().len()))
        }),
        row(
            "index: says that it is an image",
            malformed,
            &["{ref}", "is an index and says that it is an image"],
            |registry| {
                let index = json!({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []});
                document(registry, INDEX, index.to_string())
            },
        ),
    ]
}

fn index(digest: &Digest, size: usize) -> String {
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform});
    json!({"schemaVersion": 2, "manifests": [entry]}).to_string()
}

fn tar() -> Vec<u8> {
    Tar::default().file("f", &[7; 3000]).done()
}

fn layers() -> Vec<Row> {
    let malformed = "Malformed";
    let named = "layer sha256:";
    vec![
        layer("layer: cut zstd", malformed, &["layer sha256:", "decompressed"], || {
            let whole = zstd::encode_all(&tar()[..], 1).unwrap();
            (whole[..whole.len() - 5].to_vec(), tar())
        }),
        layer("layer: rubbish behind zstd", malformed, &["layer sha256:"], || {
            ([&zstd::encode_all(&tar()[..], 1).unwrap()[..], b"rubbish"].concat(), tar())
        }),
        layer("layer: gzip of another method", malformed, &["layer sha256:", "decompressed"], || {
            let mut bytes = gzip(&tar());
            bytes[2] = 7;
            (bytes, tar())
        }),
        layer("layer: a wrong sum at the end of gzip", malformed, &["layer sha256:", "decompressed"], || {
            let mut bytes = gzip(&tar());
            let at = bytes.len() - 8;
            bytes[at] ^= 1;
            (bytes, tar())
        }),
        layer("layer: a page of HTML", malformed, &["layer sha256:"], || {
            (b"<html>not found</html>".to_vec(), b"<html>not found</html>".to_vec())
        }),
        layer("layer: a program", malformed, &["layer sha256:"], || {
            let elf = [b"\x7fELF\x02\x01\x01".to_vec(), vec![1; 5000]].concat();
            (elf.clone(), elf)
        }),
        layer("layer: the diff ID is the blob's digest", "DigestMismatch", &["layer sha256:", "(unpacked)"], || {
            (gzip(&tar()), gzip(&tar()))
        }),
        layer("layer: gzip in gzip", malformed, &["layer sha256:"], || (gzip(&gzip(&tar())), gzip(&tar()))),
        entries("layer: a hard link to nothing", malformed, &[named, "\"a\""], || vec![raw::hard_link("a", "none")]),
        entries("layer: a PAX record longer than its header", malformed, &[named, "PAX"], || {
            vec![raw::entry(b"x", b'x', b"", b"99 path=a\n"), raw::file("f", b"")]
        }),
        entries("layer: a PAX record without =", malformed, &[named, "PAX"], || {
            vec![raw::entry(b"x", b'x', b"", b"8 path1\n"), raw::file("f", b"")]
        }),
    ]
}

fn registries() -> Vec<Row> {
    vec![
        row("registry: nobody there", "Unavailable", &["127.0.0.1:1/"], |_| "127.0.0.1:1/a/b:c".into()),
        row("registry: wants a login", "Unauthorized", &["a/b manifest c", "a user name"], |registry| {
            registry.content().door = Door::Basic("Basic dTpw");
            registry.add("a/b:c", &image())
        }),
        row("registry: its token service wants one", "Unauthorized", &["{host}"], |registry| {
            registry.content().door = Door::Bearer(Some("Basic dTpw"));
            registry.add("a/b:c", &image())
        }),
        row("registry: no such tag", "NotFound", &["a/b manifest none"], |registry| {
            registry.add("a/b:c", &image());
            format!("{}/a/b:none", registry.address)
        }),
        row("registry: a layer is not there", "NotFound", &["layer sha256:"], |registry| {
            let reference = registry.add("a/b:c", &image());
            registry.content().blobs.remove(&image().layers[1].digest().to_string());
            reference
        }),
        fault("registry: forbidden", "Unauthorized", &["{host}", "on purpose"], "manifests", || Fault::Status(403)),
        fault("registry: always 500", "Unavailable", &["a/b manifest c", "500"], "manifests", || Fault::Status(500)),
        fault("registry: a layer is always 503", "Unavailable", &["{host}", "503"], "UPPER", || Fault::Status(503)),
        fault("registry: an answer without end", "TooLarge", &["a/b manifest c"], "manifests", || Fault::Endless),
        fault("registry: a layer without end", "DigestMismatch", &["layer sha256:"], "UPPER", || Fault::Endless),
        fault("registry: redirects to a file", "Unavailable", &["{host}"], "UPPER", || {
            Fault::Redirect("file:///etc/passwd".into())
        }),
        hook("registry: a 401 without a challenge", "Unauthorized", &["{host}"], |_, _| Some(Answer::new(401, ""))),
        hook("registry: a token service that is a file", "Unavailable", &["{host}", "file:///etc/passwd"], |_, _| {
            let challenge = "Bearer realm=\"file:///etc/passwd\",service=\"x\"";
            Some(Answer::new(401, "").with("www-authenticate", challenge))
        }),
    ]
}

async fn assert_empty(case: &str, store: &Store, dir: &Path) {
    store.forget_unfinished().await;
    assert!(store.list().unwrap().is_empty() && store.progress().is_empty(), "{case}");
    let names = |sub: &str| std::fs::read_dir(dir.join("store").join(sub)).unwrap().count();
    // Deletions go on behind a pull that failed. They move layers to tmp, so that is looked at last.
    for _ in 0..2000 {
        if names("layers") + names("tmp") == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((names("layers"), names("tmp"), store.usage().inodes_used), (0, 0, 0), "{case}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_images() {
    if !root() {
        return;
    }
    let rows: Vec<Row> = [configs(), manifests(), layers(), registries()].into_iter().flatten().collect();
    assert_eq!(rows.len(), 60, "the number at the head of this file");
    let mut wrong = Vec::new();
    for Row { case, kind: expected, says, setup } in rows {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = setup(&registry);
        let store = Store::open(registry.config(dir.path())).unwrap();
        let pull = tokio::time::timeout(Duration::from_secs(30), store.pull(&reference, None));
        let Ok(pulled) = pull.await else {
            wrong.push(format!("{case}: no end"));
            continue;
        };
        let Err(error) = pulled else {
            wrong.push(format!("{case}: it was pulled"));
            continue;
        };
        let text = error.chain();
        let lacks = says.iter().map(|text| text.replace("{ref}", &reference).replace("{host}", &registry.address));
        let lacks: Vec<_> = lacks.filter(|part| !text.contains(part.as_str())).collect();
        if kind(&error) != expected || !lacks.is_empty() || text.len() > 1500 {
            wrong.push(format!("{case}: {} in place of {expected}, lacks {lacks:?}: {text}", kind(&error)));
        }
        assert_empty(case, &store, dir.path()).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
