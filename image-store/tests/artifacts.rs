//! OCI artifacts, which back image volumes: what becomes of their blobs.

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cofferdam_image_store::{Digest, Image, Store, StoreError, StoreResult};
use serde_json::{Value, json};

use support::image::{Packing, Tar, gzip};
use support::{Fault, Registry, root, scratch};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// A blob as a manifest names it.
fn blob(registry: &Registry, media_type: &str, title: Option<&str>, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    registry.content().blobs.insert(digest.to_string(), Bytes::copy_from_slice(bytes));
    let annotations = title.map_or(json!({}), |title| json!({TITLE: title}));
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations})
}

fn artifact(registry: &Registry, layers: Vec<Value>) -> Value {
    let config = blob(registry, EMPTY, None, b"{}");
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x-model", "config": config,
        "layers": layers,
    })
}

/// Serves a manifest; gives its reference and digest.
fn serve(registry: &Registry, manifest: &Value) -> (String, String) {
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::of(&bytes).to_string();
    registry.content().put("a/model:1", MANIFEST, bytes);
    (format!("{}/a/model:1", registry.address), digest)
}

fn open(registry: &Registry, dir: &Path) -> Store {
    Store::open(registry.config(dir)).unwrap()
}

/// The paths of an image's files with their bytes, as overlayfs would show them.
fn files(store: &Store, id: &str) -> Vec<(String, Vec<u8>)> {
    let mut seen = std::collections::BTreeMap::new();
    for dir in store.lease(id, "test").unwrap().dirs {
        let mut todo: Vec<PathBuf> = vec![dir.clone()];
        while let Some(path) = todo.pop() {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    todo.push(path);
                } else {
                    let name = path.strip_prefix(&dir).unwrap().display().to_string();
                    seen.entry(name).or_insert_with(|| std::fs::read(&path).unwrap());
                }
            }
        }
    }
    store.release("test");
    seen.into_iter().collect()
}

async fn pulled(registry: &Registry, manifest: &Value) -> StoreResult<(Image, Vec<(String, Vec<u8>)>)> {
    let (dir, (reference, _)) = (scratch(), serve(registry, manifest));
    let store = open(registry, dir.path());
    let id = store.pull(&reference, None).await?;
    Ok((store.status(&id)?.unwrap(), files(&store, &id)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_blob_is_one_file() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let weights = vec![7; 1 << 20];
    let layers = vec![blob(&registry, "application/vnd.cncf.model.weight.v1.raw", Some("m/weights.bin"), &weights)];
    let (reference, digest) = serve(&registry, &artifact(&registry, layers));
    let store = open(&registry, dir.path());
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(id, digest, "its id is the manifest's digest");
    let image = store.status(&reference).unwrap().unwrap();
    assert_eq!(image.artifact.as_deref(), Some("application/x-model"));
    assert_eq!((&image.id, image.repo_tags.len(), image.repo_digests.len()), (&id, 1, 1));
    assert!(image.size >= 1 << 20 && image.disk_bytes >= 1 << 20, "{image:?}");
    assert_eq!(files(&store, &id), [("m/weights.bin".to_owned(), weights.clone())]);
    let file = store.lease(&id, "h").unwrap().dirs[0].join("m/weights.bin");
    let stat = std::fs::metadata(&file).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o644, 0, 0, 0));
    assert_eq!(store.pull(&reference, None).await.unwrap(), id, "it is known");
    let export = store.export(std::slice::from_ref(&reference)).unwrap_err();
    assert!(matches!(&export, StoreError::Unsupported { .. }), "{export:?}");
    drop(store);
    let store = open(&registry, dir.path());
    assert_eq!(files(&store, &id).len(), 1, "it is there after a restart");
    store.release("h");
    store.remove(&id).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("store/layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_blobs_are_files_beside_each_other() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let tar = Tar::default().dir("d", 0o755).file("d/inner", b"inner").done();
    let layers = vec![
        blob(&registry, "text/plain", Some("readme"), b"first"),
        blob(&registry, "text/plain", Some("d/odd size"), &[b'x'; 513]),
        blob(&registry, "application/vnd.cncf.model.weight.v1.tar", Some("d"), &tar),
        blob(
            &registry,
            "application/vnd.cncf.model.code.v1.tar+gzip",
            None,
            &gzip(&Tar::default().file("c", b"c").done()),
        ),
        // As it is: only the type tells that something is to be unpacked.
        blob(&registry, "application/gzip", Some("kept.gz"), &gzip(b"x")),
        blob(&registry, "text/plain", Some("empty"), b""),
        blob(&registry, "text/plain", None, b"no title"),
        blob(&registry, "text/plain", Some("./readme"), b"second"),
    ];
    let (_, files) = pulled(&registry, &artifact(&registry, layers)).await.unwrap();
    let mut expected = vec![
        ("c".to_owned(), b"c".to_vec()),
        ("d/inner".into(), b"inner".to_vec()),
        ("d/odd size".into(), vec![b'x'; 513]),
        ("empty".into(), vec![]),
        ("kept.gz".into(), gzip(b"x")),
        ("readme".into(), b"second".to_vec()),
        (format!("sha256-{}", Digest::of(b"no title").hex()), b"no title".to_vec()),
    ];
    expected.sort();
    assert_eq!(files, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_is_the_config_tells() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let layer = || blob(&registry, "application/vnd.wasm.content.layer.v1+wasm", Some("a.wasm"), b"\0asm");
    let tar = Tar::default().file("x", b"x").done();
    let diff_ids =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [Digest::of(&tar)]}}).to_string();
    // The config's type, its bytes, artifactType, the layer; then what it is.
    let cases = [
        ("application/vnd.wasm.config.v0+json", "{}", "", layer(), Some("application/vnd.wasm.config.v0+json")),
        (CONFIG, "{}", "application/x-thing", layer(), Some("application/x-thing")),
        ("text/plain", "no JSON", "", layer(), Some("text/plain")),
        (CONFIG, &diff_ids, "application/x-thing", layer(), Some("application/x-thing")),
        // Images that tools gave a type of their own.
        ("text/plain", &diff_ids, "", blob(&registry, "application/x-tar", None, &tar), None),
        (CONFIG, &diff_ids, "application/x-image", blob(&registry, "application/x-tar", None, &tar), None),
    ];
    for (config_type, config, artifact_type, layer, is) in cases {
        let config = blob(&registry, config_type, None, config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type, "config": config, "layers": [layer],
        });
        let (image, _) = pulled(&registry, &manifest).await.unwrap();
        assert_eq!(image.artifact.as_deref(), is, "{manifest}");
    }
    // An image's config beside layers that are none: no image that could run, and nobody says that
    // it is an artifact.
    let config = blob(&registry, CONFIG, None, diff_ids.as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer()]});
    assert!(matches!(pulled(&registry, &manifest).await, Err(StoreError::Unsupported { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_artifacts_gives_the_nodes() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let entry = |title: &str, architecture: &str| {
        let manifest = artifact(&registry, vec![blob(&registry, "text/plain", Some(title), b"x")]);
        let bytes = Bytes::from(manifest.to_string());
        registry.content().put("a/model:part", MANIFEST, bytes.clone());
        json!({
            "mediaType": MANIFEST, "digest": Digest::of(&bytes), "size": bytes.len(), "artifactType": "application/x-model",
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index = |manifests: Vec<Value>| {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        registry.content().put("a/model:1", media_type, index.to_string().into());
    };
    let reference = format!("{}/a/model:1", registry.address);
    let store = open(&registry, dir.path());
    index(vec![entry("theirs", "s390x"), entry("ours", "amd64")]);
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(files(&store, &id), [("ours".to_owned(), b"x".to_vec())]);
    index(vec![entry("theirs", "s390x")]);
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Unsupported { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_artifacts_are_refused_by_name_and_leave_nothing() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let titled = |title: &str| vec![blob(&registry, "text/plain", Some(title), b"bytes")];
    let cases = [
        (titled("../../etc/cron.d/x"), "leads out of the volume"),
        (titled("/etc/passwd"), "leads out of the volume"),
        (titled("a/.wh.b"), "no name for a file"),
        (vec![blob(&registry, "application/x.tar", None, b"no tar at all")], "malformed"),
    ];
    for (layers, reason) in cases {
        let (dir, (reference, _)) = (scratch(), serve(&registry, &artifact(&registry, layers.clone())));
        let store = open(&registry, dir.path());
        let error = store.pull(&reference, None).await.unwrap_err().chain();
        let digest = layers[0]["digest"].as_str().unwrap();
        assert!(error.contains(reason) && error.contains(digest), "{error}");
        assert_eq!(store.list().unwrap(), []);
        store.forget_unfinished().await;
        drop(store);
        for sub in ["layers", "tmp"] {
            assert_eq!(std::fs::read_dir(dir.path().join("store").join(sub)).unwrap().count(), 0, "{reason}");
        }
    }
    // Other bytes than the digest says.
    let manifest = artifact(&registry, titled("x"));
    let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    registry.fault(&digest, Fault::Instead(Bytes::from_static(b"other")), 9);
    let error = pulled(&registry, &manifest).await.unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_cut_off_goes_on_where_it_stopped() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
    let manifest = artifact(&registry, vec![blob(&registry, "text/plain", Some("x"), &bytes)]);
    let (reference, _) = serve(&registry, &manifest);
    registry.fault(manifest["layers"][0]["digest"].as_str().unwrap(), Fault::Cut(1_000_000), 1);
    let store = open(&registry, dir.path());
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(files(&store, &id), [("x".to_owned(), bytes)]);
    assert!(registry.log().iter().any(|line| line.contains("bytes=1000000-")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_blob_under_two_names_is_two_files() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let tar = Tar::default().file("x", b"x").layer(Packing::Plain);
    let layers = vec![
        blob(&registry, "text/plain", Some("a"), &tar.bytes),
        blob(&registry, "text/plain", Some("b"), &tar.bytes),
        blob(&registry, "application/x.tar", None, &tar.bytes),
    ];
    let (_, files) = pulled(&registry, &artifact(&registry, layers)).await.unwrap();
    assert_eq!(files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b", "x"]);
    assert_eq!(files[0].1, files[1].1);
}
