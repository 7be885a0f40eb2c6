//! Images that come in archives: OCI layouts and what `docker save` writes, good and bad.

#[path = "support/mod.rs"]
mod support;

use std::io;
use std::path::Path;

use bytes::Bytes;
use cofferdam_image_store::{Config, Digest, ExportPart, Imported, Store, StoreError, StoreResult};
use futures::stream;
use serde_json::{Value, json};

use support::image::{Image, Packing, Tar, gzip};
use support::{Registry, raw, root, scratch};

const REF: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "io.containerd.image.name";

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.join("store"));
    config.platform.architecture = "amd64".into();
    config
}

fn image(label: &str, packing: Packing) -> Image {
    let lower = Tar::default().dir("etc", 0o755).file("etc/name", b"lower").layer(packing);
    let upper = Tar::default().file("etc/label", label.as_bytes()).layer(packing);
    Image { label: label.into(), ..Image::new(vec![lower, upper]) }
}

fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec())
}

fn blobs(image: &Image) -> Vec<(String, Vec<u8>)> {
    let layers = image.layers.iter().map(|layer| blob(&layer.bytes));
    [blob(&image.config()), blob(&image.manifest())].into_iter().chain(layers).collect()
}

fn entry(image: &Image, annotations: Value) -> Value {
    let manifest = image.manifest();
    let digest = Digest::of(&manifest);
    json!({
        "mediaType": image.manifest_type(), "digest": digest, "size": manifest.len(), "annotations": annotations,
    })
}

/// The layout's own files go last, as Docker has them.
fn layout(images: &[&Image], entries: Vec<Value>) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = images.iter().flat_map(|image| blobs(image)).collect();
    files.push(("index.json".into(), json!({"schemaVersion": 2, "manifests": entries}).to_string().into()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Tar::default(), |tar, (name, bytes)| tar.file(name, bytes)).done()
}

async fn import(store: &Store, name: Option<&str>, archive: &[u8]) -> StoreResult<Vec<Imported>> {
    let pieces: Vec<io::Result<Bytes>> = archive.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    store.import(name, stream::iter(pieces)).await
}

fn tags(store: &Store) -> Vec<String> {
    let mut tags: Vec<_> = store.list().unwrap().into_iter().flat_map(|image| image.repo_tags).collect();
    tags.sort();
    tags
}

fn content(store: &Store, id: &str, file: &str) -> String {
    let layers = store.lease(id, "test").unwrap();
    let found = layers.dirs.iter().map(|dir| dir.join(file)).find(|path| path.exists());
    std::fs::read_to_string(found.unwrap()).unwrap()
}

/// What is below the store's directories.
fn left(dir: &Path) -> Vec<String> {
    let names = ["layers", "tmp"].into_iter().flat_map(|sub| std::fs::read_dir(dir.join("store").join(sub)).unwrap());
    names.map(|entry| entry.unwrap().path().display().to_string()).collect()
}

#[tokio::test]
async fn layouts_name_their_images_in_annotations() {
    if !root() {
        return;
    }
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b, c) = (image("a", Packing::Gzip), image("b", Packing::Zstd), image("c", Packing::Plain));
    let entries = vec![
        entry(&a, json!({NAME: "registry.example/a:1", REF: "1"})),
        entry(&b, json!({REF: "busybox:1.36"})),
        entry(&b, json!({REF: "registry.example/also-b"})),
        entry(&c, json!({REF: "latest"})),
        json!({"mediaType": "application/vnd.in-toto+json", "digest": Digest::of(b""), "size": 0}),
    ];
    let imported = import(&store, None, &tar(&layout(&[&a, &b, &c], entries))).await.unwrap();
    let mut ids: Vec<_> = imported.iter().map(|image| image.id.clone()).collect();
    ids.sort();
    let mut expected = [a.id(), b.id()];
    expected.sort();
    assert_eq!(ids, expected, "c has no name but a tag");
    assert_eq!(
        tags(&store),
        ["docker.io/library/busybox:1.36", "registry.example/a:1", "registry.example/also-b:latest"]
    );
    let found = store.status("registry.example/a:1").unwrap().unwrap();
    assert_eq!(found.repo_digests, [format!("registry.example/a@{}", Digest::of(&a.manifest()))]);
    assert_eq!(found.config.cmd, ["/bin/true"]);
    assert_eq!(content(&store, &a.id(), "etc/label"), "a");
    assert_eq!(content(&store, &b.id(), "etc/name"), "lower");
}

#[tokio::test]
async fn of_several_platforms_the_nodes_is_taken() {
    if !root() {
        return;
    }
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    let ours = image("ours", Packing::Gzip);
    let theirs = Image { architecture: Some("s390x"), ..image("theirs", Packing::Gzip) };
    let on = |image: &Image, architecture: &str, annotations: Value| {
        let mut entry = entry(image, annotations);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    // Two entries of one name, and no names at all.
    for (annotations, name) in [(json!({REF: "a.example/x:1"}), None), (json!({}), Some("a.example/y"))] {
        let entries = vec![on(&theirs, "s390x", annotations.clone()), on(&ours, "amd64", annotations)];
        // The other platform's blobs are not there: Docker writes only what it has.
        let imported = import(&store, name, &tar(&layout(&[&ours], entries))).await.unwrap();
        assert_eq!(imported.iter().map(|image| &*image.id).collect::<Vec<_>>(), [&*ours.id()]);
    }
    assert_eq!(tags(&store), ["a.example/x:1", "a.example/y:latest"]);
    // An index of an index, as buildkit writes it.
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [on(&theirs, "s390x", json!({})), on(&ours, "amd64", json!({}))],
    })
    .to_string();
    let nested = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": Digest::of(index.as_bytes()),
        "size": index.len(), "annotations": {REF: "a.example/z:1"},
    });
    let mut files = layout(&[&ours], vec![nested]);
    files.push(blob(index.as_bytes()));
    import(&store, None, &tar(&files)).await.unwrap();
    let digests = store.status("a.example/z:1").unwrap().unwrap().repo_digests;
    assert!(digests.contains(&format!("a.example/z@{}", Digest::of(index.as_bytes()))), "{digests:?}");
    let wrong = tar(&layout(&[&theirs], vec![on(&theirs, "s390x", json!({REF: "w.example/w:1"}))]));
    let error = import(&store, None, &wrong).await.unwrap_err();
    assert!(error.to_string().contains("no linux/amd64 image, only linux/s390x"), "{error}");
}

fn save(images: &[(&Image, &[&str])]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut list = Vec::new();
    for (image, tags) in images {
        let hex = Digest::of(&image.config()).hex();
        files.push((format!("{hex}.json"), image.config().to_vec()));
        let layers: Vec<_> = (0..image.layers.len()).map(|index| format!("{hex}-{index}/layer.tar")).collect();
        files.extend(layers.iter().cloned().zip(image.layers.iter().map(|layer| layer.bytes.to_vec())));
        list.push(json!({"Config": format!("{hex}.json"), "RepoTags": tags, "Layers": layers}));
    }
    files.push(("manifest.json".into(), Value::from(list).to_string().into()));
    files
}

#[tokio::test]
async fn what_docker_save_writes_is_taken() {
    if !root() {
        return;
    }
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    // Bazel and ko pack the layers of such archives.
    let (a, b) = (image("a", Packing::Plain), image("b", Packing::Gzip));
    let archive = tar(&save(&[(&a, &["web:1", "registry.example/web:1"]), (&b, &["job"])]));
    let imported = import(&store, None, &archive).await.unwrap();
    assert_eq!(imported[0].names, ["docker.io/library/web:1", "registry.example/web:1"]);
    assert_eq!((imported[0].id.clone(), imported[1].id.clone()), (a.id(), b.id()));
    assert_eq!(content(&store, &b.id(), "etc/label"), "b");
    assert!(store.status("web:1").unwrap().unwrap().repo_digests.is_empty(), "no registry has served it");

    // Layers that are the same were links once, and names may begin with "./".
    let c = image("c", Packing::Plain);
    let config = c.config();
    let layers = ["one/layer.tar", "two/layer.tar"];
    let list = json!([{"Config": "./c.json", "RepoTags": null, "Layers": layers}]).to_string();
    let linked = Tar::default()
        .file("./c.json", &config)
        .file("./1.tar", &c.layers[0].bytes)
        .symlink("one/layer.tar", "../1.tar")
        .file("x", &c.layers[1].bytes)
        .hard_link("two/layer.tar", "x")
        .file("manifest.json", list.as_bytes())
        .done();
    let error = import(&store, None, &linked).await.unwrap_err();
    assert!(error.to_string().contains("--name"), "{error}");
    let imported = import(&store, Some("c.example/c:2"), &linked).await.unwrap();
    assert_eq!((imported[0].id.clone(), content(&store, &c.id(), "etc/label")), (c.id(), "c".into()));

    // Both in one: the layout's names count, and tags that only manifest.json has.
    let d = image("d", Packing::Plain);
    let mut files = layout(&[&d], vec![entry(&d, json!({NAME: "docker.io/library/d:1", REF: "1"}))]);
    let path = |bytes: &[u8]| blob(bytes).0;
    let layers: Vec<_> = d.layers.iter().map(|layer| path(&layer.bytes)).collect();
    let list = json!([{"Config": path(&d.config()), "RepoTags": ["d:1", "d:2"], "Layers": layers}]);
    files.push(("manifest.json".into(), list.to_string().into()));
    import(&store, None, &tar(&files)).await.unwrap();
    let found = store.status("d:2").unwrap().unwrap();
    assert_eq!((found.id, found.repo_tags.len(), found.repo_digests.len()), (d.id(), 2, 1));
}

#[tokio::test]
async fn one_name_is_for_one_image() {
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b) = (image("a", Packing::Plain), image("b", Packing::Plain));
    let both = [json!({REF: "a.example/a:1"}), json!({REF: "b.example/b:1"})];
    let two = layout(&[&a, &b], vec![entry(&a, both[0].clone()), entry(&b, both[1].clone())]);
    let unnamed = layout(&[&a, &b], vec![entry(&a, json!({})), entry(&b, json!({}))]);
    let saved = save(&[(&a, &["a:1"]), (&b, &[])]);
    for files in [two, unnamed, saved] {
        let error = import(&store, Some("c.example/c:1"), &tar(&files)).await.unwrap_err();
        assert!(error.to_string().contains("several images"), "{error}");
    }
    let error = import(&store, Some(&format!("c@{}", Digest::of(b""))), b"").await.unwrap_err();
    assert!(matches!(error, StoreError::Unsupported { .. }), "{error}");
    assert!(matches!(import(&store, Some("C:"), b"").await.unwrap_err(), StoreError::InvalidReference(_)));
}

#[tokio::test]
async fn bad_archives_are_refused_and_leave_nothing() {
    if !root() {
        return;
    }
    let dir = scratch();
    let mut config = config(dir.path());
    config.limits.image_bytes = 1 << 20;
    config.limits.manifest_bytes = 64 << 10;
    let store = Store::open(config).unwrap();
    let good = image("good", Packing::Gzip);
    let named = |digest: &str| {
        let mut entry = entry(&good, json!({REF: "a.example/a:1"}));
        entry["digest"] = digest.into();
        entry
    };
    let files = layout(&[&good], vec![entry(&good, json!({REF: "a.example/a:1"}))]);
    let changed = |part: &str, bytes: Vec<u8>| {
        let mut files = files.clone();
        files.iter_mut().find(|(name, _)| name.contains(part)).unwrap().1 = bytes;
        tar(&files)
    };
    let layer = good.layers[1].digest().hex();
    let mut other = good.layers[1].bytes.to_vec();
    *other.last_mut().unwrap() ^= 1;
    let without = |part: &str| tar(&files.iter().filter(|(name, _)| !name.contains(part)).cloned().collect::<Vec<_>>());
    let whole = tar(&files);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "neither an index.json nor a manifest.json"),
        ("no tar", b"not a tar".repeat(1000), "cannot be read as a tar"),
        ("compressed", gzip(&whole), "is it compressed or cut off?"),
        ("cut off", whole[..whole.len() / 2].to_vec(), "cut off"),
        ("no index", without("index.json"), "neither an index.json"),
        ("index of rubbish", changed("index.json", b"[1".to_vec()), "index.json"),
        ("index too large", changed("index.json", vec![b' '; 70 << 10]), "limit"),
        ("empty index", changed("index.json", b"{}".to_vec()), "names no image"),
        ("a layer is missing", without(&layer), "not found"),
        ("a layer has other bytes", changed(&layer, other), "digest mismatch"),
        ("a layer is longer", changed(&layer, [&good.layers[1].bytes[..], b"x"].concat()), "its manifest says"),
        ("the manifest is another", changed(&Digest::of(&good.manifest()).hex(), b"{}".to_vec()), "digest mismatch"),
        ("no digest", tar(&layout(&[&good], vec![named("../../etc/passwd")])), "is not a digest"),
        ("too large", tar(&[("x".into(), vec![0; 70 << 20])]), "image archive"),
    ];
    for (what, archive, says) in cases {
        let error = import(&store, None, &archive).await.expect_err(what);
        assert!(error.chain().contains(says), "{what}: {}", error.chain());
    }
    // Names that lead out or around are keys, and no paths.
    let link = |name: &str, to: &str| raw::symlink(name, to);
    let odd = raw::tar(&[
        link("index.json", "index.json"),
        link("manifest.json", "../../../../../../etc/hostname"),
        raw::file("../../escaped", b"x"),
        raw::file("/absolute-escaped", b"x"),
    ]);
    assert!(import(&store, None, &odd).await.is_err());
    assert!(!Path::new("/absolute-escaped").exists());
    let list = json!([{"Config": "/etc/hostname", "RepoTags": ["a:1"], "Layers": ["../../../etc/passwd"]}]);
    let outside = tar(&[("manifest.json".into(), list.to_string().into())]);
    let error = import(&store, None, &outside).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound { what } if what.contains("/etc/hostname")), "{error}");
    // A stream that breaks off after all of the archive is still no archive.
    let pieces = vec![Ok(Bytes::from(whole)), Err(io::ErrorKind::ConnectionReset.into())];
    assert!(store.import(None, stream::iter(pieces)).await.is_err());
    assert!(store.list().unwrap().is_empty());
    store.forget_unfinished().await;
    drop(store);
    assert_eq!(left(dir.path()), [""; 0]);
}

#[tokio::test]
async fn layers_that_are_there_are_not_unpacked_again() {
    if !root() {
        return;
    }
    let dir = scratch();
    let registry = Registry::start().await;
    let store = Store::open(registry.config(dir.path())).unwrap();
    let (a, b) = (image("a", Packing::Gzip), image("b", Packing::Gzip));
    registry.add("some/image:1", &a);
    let pulled = store.pull(&format!("{}/some/image:1", registry.address), None).await.unwrap();
    // The same image, of which the archive has no layer, and another one without the layer that
    // they share.
    let mut files =
        layout(&[], vec![entry(&a, json!({REF: "a.example/a:1"})), entry(&b, json!({REF: "b.example/b:1"}))]);
    files.extend([blob(&a.manifest()), blob(&a.config()), blob(&b.manifest()), blob(&b.config())]);
    files.push(blob(&b.layers[1].bytes));
    let imported = import(&store, None, &tar(&files)).await.unwrap();
    assert!(imported.iter().any(|image| image.id == pulled) && imported.iter().any(|image| image.id == b.id()));
    assert_eq!(store.status("a.example/a:1").unwrap().unwrap().repo_tags.len(), 2);
}

async fn parts(store: &Store, references: &[&str]) -> StoreResult<(Vec<ExportPart>, Vec<u8>)> {
    let references: Vec<_> = references.iter().map(|reference| (*reference).to_owned()).collect();
    let (mut parts, mut images, mut bytes) = (store.export(&references)?, Vec::new(), Vec::new());
    while let Some(part) = parts.recv().await {
        match part? {
            ExportPart::Bytes(piece) => bytes.extend_from_slice(&piece),
            image => images.push(image),
        }
    }
    Ok((images, bytes))
}

#[tokio::test]
async fn exported_images_are_imported_by_their_names() {
    if !root() {
        return;
    }
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b) = (image("a", Packing::Gzip), image("b", Packing::Zstd));
    let entries = vec![
        entry(&a, json!({REF: "a.example/a:1"})),
        entry(&a, json!({REF: "a.example/also-a:2"})),
        entry(&b, json!({REF: "b.example/b:1"})),
    ];
    import(&store, None, &tar(&layout(&[&a, &b], entries))).await.unwrap();
    let (images, archive) = parts(&store, &["a.example/a:1", "b.example/b:1", &b.id()]).await.unwrap();
    let names = |part: &ExportPart| match part {
        ExportPart::Image { names, id, new_id } => (names.clone(), id.clone(), new_id.clone()),
        ExportPart::Bytes(_) => panic!("an image"),
    };
    let mut images: Vec<_> = images.iter().map(names).collect();
    images.sort();
    assert_eq!((&images[0].0[..], &images[0].1), (&["a.example/a:1".to_owned()][..], &a.id()), "only as asked for");
    assert_eq!((&images[1].0[..], &images[1].1), (&["b.example/b:1".to_owned()][..], &b.id()));
    // Both have the same lowest layer, which is in the archive once.
    let mut files = Vec::new();
    for entry in ::tar::Archive::new(&archive[..]).entries().unwrap() {
        files.push(entry.unwrap().path().unwrap().display().to_string());
    }
    assert_eq!(files.iter().filter(|name| name.starts_with("blobs/")).count(), 2 + 2 + 3, "{files:?}");
    for documents in [&["index.json"][..], &["manifest.json"]] {
        // Either form is enough.
        let mut kept = ::tar::Builder::new(Vec::new());
        for entry in ::tar::Archive::new(&archive[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name.starts_with("blobs/") || documents.contains(&name.as_str()) {
                kept.append(&entry.header().clone(), entry).unwrap();
            }
        }
        let dir = scratch();
        let other = Store::open(config(dir.path())).unwrap();
        import(&other, None, &kept.into_inner().unwrap()).await.unwrap();
        assert_eq!(tags(&other), ["a.example/a:1", "b.example/b:1"]);
        assert_eq!(content(&other, &images[0].2, "etc/label"), "a");
        assert_eq!(content(&other, &images[1].2, "etc/label"), "b");
    }
    // Removed meanwhile: an export keeps its layers until it ends.
    let mut begun = store.export(&["a.example/a:1".into()]).unwrap();
    store.remove(&a.id()).await.unwrap();
    while let Some(part) = begun.recv().await {
        part.unwrap();
    }
    let error = parts(&store, &["a.example/a:1"]).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound { what } if what.contains("a.example/a:1")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_nobody_takes_holds_up_no_end() {
    if !root() {
        return;
    }
    let dir = scratch();
    let store = Store::open(config(dir.path())).unwrap();
    let noise: Vec<u8> = (0..8u32 << 20).map(|n| (n >> 3) as u8).collect();
    let large = Image::new(vec![Tar::default().file("large", &noise).layer(Packing::Gzip)]);
    import(&store, None, &tar(&layout(&[&large], vec![entry(&large, json!({REF: "a:1"}))]))).await.unwrap();
    let mut parts = store.export(&["a:1".into()]).unwrap();
    assert!(matches!(parts.recv().await, Some(Ok(ExportPart::Image { .. }))));
    // The rest is more than waits to be taken.
    tokio::task::spawn_blocking(move || drop(store)).await.unwrap();
    let mut last = None;
    while let Some(part) = parts.recv().await {
        last = Some(part);
    }
    assert!(!matches!(last, Some(Ok(ExportPart::Bytes(bytes))) if bytes.ends_with(&[0; 1024])), "it is not whole");
    // One that is given up ends by itself.
    let store = Store::open(config(dir.path())).unwrap();
    drop(store.export(&["a:1".into()]).unwrap());
    drop(store);
}
