//! Manifests, indexes and configs as tools really wrote them.

mod support;

use bytes::Bytes;
use cofferdam_image_store::{Digest, Store, StoreError};
use serde_json::{Value, json};

use self::support::image::{Image, Packing, Tar};
use self::support::{Registry, root, scratch};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn image(label: &str) -> Image {
    Image { label: label.into(), ..Image::new(vec![Tar::default().file(label, label.as_bytes()).layer(Packing::Gzip)]) }
}

/// An image with changes to its config and manifest; gives its manifest as it is to be served.
fn put(
    registry: &Registry,
    image: &Image,
    config: impl FnOnce(&mut Value),
    manifest: impl FnOnce(&mut Value),
) -> (Bytes, String) {
    registry.add("a/b:whole", image);
    let mut document: Value = serde_json::from_slice(&image.config()).unwrap();
    config(&mut document);
    let document = Bytes::from(document.to_string());
    registry.content().blobs.insert(Digest::of(&document).to_string(), document.clone());
    let mut value = image.manifest_value();
    value["config"]["digest"] = json!(Digest::of(&document));
    value["config"]["size"] = json!(document.len());
    manifest(&mut value);
    let value = Bytes::from(value.to_string());
    registry.content().put("a/b:c", MANIFEST, value.clone());
    (value, Digest::of(&document).to_string())
}

async fn pulled(registry: &Registry) -> Result<String, StoreError> {
    let dir = scratch();
    let store = Store::open(registry.config(dir.path())).unwrap();
    store.pull(&format!("{}/a/b:c", registry.address), None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_is_one_whatever_its_type_says() {
    if !root() {
        return;
    }
    for config_type in
        [json!("application/octet-stream"), json!("application/json"), json!(""), json!(null), json!("text/x-own")]
    {
        let registry = Registry::start().await;
        let (_, id) = put(&registry, &image("x"), |_| {}, |m| m["config"]["mediaType"] = config_type.clone());
        assert_eq!(pulled(&registry).await.unwrap(), id, "{config_type}");
    }
    let registry = Registry::start().await;
    let (artifact, _) =
        put(&registry, &image("x"), |c| *c = json!({}), |m| m["config"]["mediaType"] = json!("application/x-own"));
    let id = pulled(&registry).await.unwrap();
    assert_eq!(id, Digest::of(&artifact).to_string(), "what says nothing of layers is an artifact");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_of_types_that_say_nothing_are_taken() {
    if !root() {
        return;
    }
    for layer_type in [json!("application/octet-stream"), json!(null), json!("application/x-gzip")] {
        let registry = Registry::start().await;
        put(&registry, &image("x"), |_| {}, |m| m["layers"][0]["mediaType"] = layer_type.clone());
        assert!(pulled(&registry).await.is_ok(), "{layer_type}");
    }
    for layer_type in ["application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar"] {
        let registry = Registry::start().await;
        put(&registry, &image("x"), |_| {}, |m| m["layers"][0]["mediaType"] = json!(layer_type));
        assert!(pulled(&registry).await.is_ok(), "{layer_type} is gzip");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_image_is_for_whoever_pulls_it() {
    if !root() {
        return;
    }
    for (os, architecture) in [
        (json!("linux"), json!("x86_64")),
        (json!("linux"), json!("arm64")),
        (json!(null), json!(null)),
        (json!("linux"), json!("not a word!")),
        (json!(7), json!([])),
    ] {
        let registry = Registry::start().await;
        let change = |c: &mut Value| {
            c["os"] = os.clone();
            c["architecture"] = architecture.clone();
        };
        put(&registry, &image("x"), change, |_| {});
        assert!(pulled(&registry).await.is_ok(), "{os} {architecture}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_s_unused_fields_may_be_anything() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let change = |m: &mut Value| {
        m["annotations"] = json!(["x"]);
        m["schemaVersion"] = json!("2");
        m["subject"] = json!(7);
        m["layers"][0]["platform"] = json!(null);
        m["layers"][0]["annotations"] = json!({"a": null});
    };
    put(&registry, &image("x"), |c| c["history"] = json!("none"), change);
    pulled(&registry).await.unwrap();
}

/// An index of images, each served by the registry; an entry is changed by what is given with it.
fn index(registry: &Registry, entries: &[(Bytes, Value)]) {
    let entries: Vec<_> = entries
        .iter()
        .map(|(manifest, more)| {
            registry.content().put(&format!("a/b:{}", Digest::of(manifest).hex()), MANIFEST, manifest.clone());
            let mut entry = json!({"mediaType": MANIFEST, "digest": Digest::of(manifest), "size": manifest.len()});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    registry.content().put("a/b:c", INDEX, index.into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_s_best_entry_is_found() {
    if !root() {
        return;
    }
    let platform = |os: &str, architecture: &str, variant: Value| json!({"platform": {"os": os, "architecture": architecture, "variant": variant}});
    let cases: [(&str, Vec<Value>); 8] = [
        ("another name", vec![platform("linux", "arm64", json!(null)), platform("Linux", "x86_64", json!(null))]),
        ("the usual variant", vec![platform("linux", "amd64", json!("v3")), platform("linux", "amd64", json!("v1"))]),
        ("32 bits only", vec![platform("linux", "arm64", json!("v8")), platform("linux", "386", json!(""))]),
        ("32 bits last", vec![platform("linux", "386", json!("")), platform("linux", "amd64", json!(""))]),
        ("a variant of a wrong type", vec![platform("linux", "s390x", json!(7)), platform("linux", "amd64", json!(7))]),
        ("no operating system", vec![platform("windows", "amd64", json!("")), platform("", "amd64", json!(""))]),
        (
            "an attestation first",
            vec![json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}), json!({})],
        ),
        ("an artifact first", vec![json!({"artifactType": "application/spdx+json"}), json!({})]),
    ];
    for (case, entries) in cases {
        let registry = Registry::start().await;
        let (wrong, _) = put(&registry, &image("wrong"), |_| {}, |_| {});
        let (right, id) = put(&registry, &image("right"), |_| {}, |_| {});
        index(&registry, &[(wrong, entries[0].clone()), (right, entries[1].clone())]);
        assert_eq!(pulled(&registry).await.unwrap(), id, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_without_a_platform_are_asked_for_theirs() {
    if !root() {
        return;
    }
    let registry = Registry::start().await;
    let odd = |m: &mut Value| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    let (artifact, _) = put(&registry, &image("sbom"), |c| *c = json!({}), odd);
    let (foreign, _) = put(&registry, &image("arm"), |c| c["architecture"] = json!("arm64"), |_| {});
    let (ours, id) = put(&registry, &image("ours"), |c| c["architecture"] = json!("x86_64"), |_| {});
    let missing = Bytes::from_static(b"{}");
    let entries = [(missing, json!({})), (artifact, json!({})), (foreign.clone(), json!({})), (ours, json!({}))];
    index(&registry, &entries);
    assert_eq!(pulled(&registry).await.unwrap(), id);
    index(&registry, &[(foreign, json!({}))]);
    let error = pulled(&registry).await.unwrap_err();
    assert!(matches!(error, StoreError::Unsupported { .. }), "{error:?}");
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha512:{}", hex::encode(sha2::Sha512::digest(bytes)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_may_be_sha512() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let mut both = image("x");
    both.layers.push(Tar::default().file("y", b"y").layer(Packing::Zstd));
    let mut document: Value = serde_json::from_slice(&both.config()).unwrap();
    let tars = [Tar::default().file("x", b"x").done(), Tar::default().file("y", b"y").done()];
    document["rootfs"]["diff_ids"] = tars.iter().map(|tar| sha512(tar)).collect();
    let document = document.to_string();
    let mut manifest = both.manifest_value();
    manifest["config"]["digest"] = json!(sha512(document.as_bytes()));
    manifest["config"]["size"] = json!(document.len());
    for (number, layer) in both.layers.iter().enumerate() {
        manifest["layers"][number]["digest"] = json!(sha512(&layer.bytes));
        registry.content().blobs.insert(sha512(&layer.bytes), layer.bytes.clone());
    }
    registry.content().blobs.insert(sha512(document.as_bytes()), document.clone().into());
    let manifest = Bytes::from(manifest.to_string());
    let name = format!("a/b@{}", sha512(&manifest));
    registry.content().manifests.insert(name.clone(), (MANIFEST.into(), manifest.clone()));
    let reference = format!("{}/{name}", registry.address);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(id, sha512(document.as_bytes()));
    for asked in [&id, &reference] {
        assert_eq!(store.status(asked).unwrap().unwrap().repo_digests, std::slice::from_ref(&reference), "{asked}");
    }
    let dirs = store.lease(&id, "holder").unwrap().dirs;
    assert_eq!(std::fs::read(dirs[1].join("x")).unwrap(), b"x");
    drop(store);
    let store = Store::open(registry.config(dir.path())).unwrap();
    assert_eq!(store.lease(&id, "holder").unwrap().dirs, dirs, "it is there after a restart");
    store.remove(&id).await.unwrap();
    // Bytes that do not have the digest are refused.
    registry.content().blobs.insert(sha512(&both.layers[0].bytes), both.layers[1].bytes.clone());
    store.release("holder");
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
}
