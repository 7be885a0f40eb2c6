//! Registries that lie, break and stall, and images that are not what they should be: each ends in
//! the right kind of error, in bounded time, with nothing left behind.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cofferdam_image_store::{Digest, Store, StoreError};
use serde_json::json;

use self::support::image::{Image, Layer, Packing, Tar, gzip};
use self::support::{Fault, Registry, root, scratch};

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

fn image(bytes: usize) -> Image {
    let big = Tar::default().dir("d", 0o755).file("d/big", &noise(bytes)).layer(Packing::Gzip);
    Image::new(vec![Tar::default().file("base", b"base").layer(Packing::Gzip), big])
}

/// Nothing of the pull is in the store but what is kept for the next one, which goes here. Waits
/// for deletions that go on behind a given-up pull.
async fn assert_empty(store: &Store, dir: &Path) {
    store.forget_unfinished().await;
    assert!(store.list().unwrap().is_empty());
    assert!(store.progress().is_empty());
    let names = |sub: &str| -> Vec<_> {
        std::fs::read_dir(dir.join("store").join(sub)).unwrap().map(|e| e.unwrap().file_name()).collect()
    };
    let end = Instant::now() + Duration::from_secs(20);
    while !(names("tmp").is_empty() && names("layers").is_empty()) {
        assert!(Instant::now() < end, "left behind: {:?} {:?}", names("tmp"), names("layers"));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(store.usage().inodes_used, 0);
}

async fn fails(registry: &Registry, dir: &Path, reference: &str) -> StoreError {
    let store = Store::open(registry.config(dir)).unwrap();
    let error = store.pull(reference, None).await.unwrap_err();
    assert_empty(&store, dir).await;
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_a_digest_mismatch() {
    if !root() {
        return;
    }
    let image = image(300_000);
    let layer = &image.layers[1];
    let mut flipped = layer.bytes.to_vec();
    flipped[150_000] ^= 1;
    let cases = [
        ("one bit", Bytes::from(flipped)),
        ("same length, not gzip", Bytes::from(vec![b'x'; layer.bytes.len()])),
        ("shorter", layer.bytes.slice(..1000)),
        ("longer", [&layer.bytes[..], b"more"].concat().into()),
        ("another layer", Tar::default().file("evil", b"evil").layer(Packing::Gzip).bytes),
        ("nothing", Bytes::new()),
    ];
    for (case, bytes) in cases {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &image);
        registry.fault(&layer.digest().to_string(), Fault::Instead(bytes), 100);
        let error = fails(&registry, dir.path(), &reference).await;
        assert!(matches!(error, StoreError::DigestMismatch { .. }), "{case}: {error:?}");
        assert!(error.to_string().contains("digest"), "{case}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_documents_are_a_digest_mismatch() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(10);
    registry.add("a/b:c", &image);
    let by_digest = format!("{}/a/b@{}", registry.address, Digest::of(&image.manifest()));
    registry.fault("manifests", Fault::Instead(Bytes::from_static(b"{}")), 1);
    let error = fails(&registry, dir.path(), &by_digest).await;
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
    registry.fault(&image.id(), Fault::Instead(Bytes::from_static(b"{\"rootfs\":{}}")), 1);
    let error = fails(&registry, dir.path(), &by_digest).await;
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_diff_id_is_a_digest_mismatch() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let mut image = image(10);
    image.layers[1].diff_id = Digest::of(b"something else");
    let error = fails(&registry, dir.path(), &registry.add("a/b:c", &image)).await;
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_cut_off_goes_on_where_it_stopped() {
    if !root() {
        return;
    }
    for ranges in [true, false] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let image = image(2_000_000);
        let reference = registry.add("a/b:c", &image);
        let digest = image.layers[1].digest().to_string();
        registry.content().ranges = ranges;
        registry.fault(&digest, Fault::Cut(500_000), 1);
        registry.fault(&digest, Fault::Cut(900_000), 1);
        registry.fault(&digest, Fault::Status(503), 1);
        let store = Store::open(registry.config(dir.path())).unwrap();
        let id = store.pull(&reference, None).await.unwrap();
        let top = store.lease(&id, "x").unwrap().dirs.remove(0);
        assert_eq!(std::fs::read(top.join("d/big")).unwrap(), noise(2_000_000));
        let asked: Vec<_> = registry.log().into_iter().filter(|line| line.contains(&digest)).collect();
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert!(asked[1..].iter().all(|line| line.contains("bytes=")), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_gone_in_mid_blob_is_unavailable() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(2_000_000);
    let reference = registry.add("a/b:c", &image);
    registry.fault(&image.layers[1].digest().to_string(), Fault::Cut(30_000), 1000);
    let error = fails(&registry, dir.path(), &reference).await;
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("bytes"), "{error}");
    // And when nothing listens there any more.
    registry.content().faults.clear();
    registry.fault(&image.layers[1].digest().to_string(), Fault::Stall(300_000), 1);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let pulling = store.pull(&reference, None);
    let stop = async {
        while store.progress().first().is_none_or(|p| p.bytes_done < 300_000) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(registry);
    };
    let (result, ()) = tokio::join!(pulling, stop);
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_empty(&store, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_stalls_is_unavailable() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(500_000);
    let reference = registry.add("a/b:c", &image);
    for (path, bytes) in [("manifests", 10), ("blobs", 3)] {
        registry.content().faults.clear();
        registry.fault(path, Fault::Stall(bytes), 1000);
        let mut config = registry.config(dir.path());
        config.timeouts.stall = Duration::from_millis(100);
        config.timeouts.document = Duration::from_millis(200);
        let store = Store::open(config).unwrap();
        let begun = Instant::now();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_empty(&store, dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_failures_are_tried_again() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image(10));
    registry.fault("manifests", Fault::Status(500), 1);
    registry.fault("manifests", Fault::Status(429), 1);
    registry.fault("blobs", Fault::Status(502), 2);
    let store = Store::open(registry.config(dir.path())).unwrap();
    store.pull(&reference, None).await.unwrap();
    registry.fault("manifests", Fault::Status(500), 100);
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("OOPS on purpose"), "{error}");
    assert!(store.status(&reference).unwrap().is_some(), "what is there stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_not_found() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    let error = fails(&registry, dir.path(), &format!("{}/a/b:other", registry.address)).await;
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
    registry.content().blobs.remove(&image.layers[0].digest().to_string());
    let error = fails(&registry, dir.path(), &reference).await;
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
    let gone = registry.config(dir.path());
    drop(registry);
    let store = Store::open(gone).unwrap();
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(matches!(store.pull("host.example/UPPER", None).await, Err(StoreError::InvalidReference(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_and_huge_documents_are_too_large() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let good = image(10);
    let reference = registry.add("a/b:c", &good);
    registry.fault("manifests", Fault::Endless, 1);
    let error = fails(&registry, dir.path(), &reference).await;
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
    registry.fault("manifests", Fault::Instead(vec![b' '; 5 << 20].into()), 1);
    let error = fails(&registry, dir.path(), &reference).await;
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
    registry.fault(&good.id(), Fault::Endless, 1);
    let error = fails(&registry, dir.path(), &reference).await;
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
}

/// Documents that have the right digest and are wrong nonetheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_manifests_are_refused() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let good = image(10).manifest_value();
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let layer =
        |size: i64, media_type: &str| json!([{"mediaType": media_type, "digest": Digest::of(b"x"), "size": size}]);
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let entry = json!({"digest": Digest::of(b"x"), "size": 5, "platform": {"os": "plan9", "architecture": "vax"}});
    let malformed = |e: &StoreError| matches!(e, StoreError::Malformed { .. });
    let unsupported = |e: &StoreError| matches!(e, StoreError::Unsupported { .. });
    let too_large = |e: &StoreError| matches!(e, StoreError::TooLarge { .. });
    let not_found = |e: &StoreError| matches!(e, StoreError::NotFound { .. });
    type Right<'a> = &'a dyn Fn(&StoreError) -> bool;
    let cases: Vec<(&str, serde_json::Value, Right<'_>)> = vec![
        ("no object", json!([1]), &malformed),
        ("empty", json!({}), &malformed),
        ("schema 1", json!({"schemaVersion": 1, "fsLayers": [], "name": "x"}), &unsupported),
        ("both image and index", with("manifests", json!([])), &malformed),
        ("an image called an index", with("mediaType", json!("application/vnd.oci.image.index.v1+json")), &malformed),
        ("size is negative", with("layers", layer(-1, tar)), &malformed),
        (
            "encrypted layers",
            with("layers", layer(1, "application/vnd.oci.image.layer.v1.tar+encrypted")),
            &unsupported,
        ),
        ("too big a layer", with("layers", layer(i64::MAX, tar)), &too_large),
        ("bad digest", with("layers", json!([{"mediaType": tar, "digest": "sha256:../../x", "size": 1}])), &malformed),
        ("too many layers", with("layers", vec![layer(1, tar)[0].clone(); 501].into()), &too_large),
        (
            "a config of another type that is not there",
            with("config", json!({"mediaType": "application/x-chart", "digest": Digest::of(b"x"), "size": 1})),
            &not_found,
        ),
        ("other count of diff IDs", with("layers", layer(1, tar)), &malformed),
        ("no platform of ours", json!({"manifests": [entry]}), &unsupported),
        ("too many entries", json!({"manifests": vec![entry; 1001]}), &too_large),
    ];
    registry.add("a/b:good", &image(10));
    for (case, manifest, right) in cases {
        registry.content().put("a/b:c", "application/json", manifest.to_string().into());
        let error = fails(&registry, dir.path(), &format!("{}/a/b:c", registry.address)).await;
        assert!(right(&error), "{case}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_within_itself_ends() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let mut inner = json!({"manifests": []}).to_string();
    for _ in 0..10 {
        registry.content().put("a/b:x", "application/vnd.oci.image.index.v1+json", inner.clone().into());
        inner = json!({"manifests": [{"digest": Digest::of(inner.as_bytes()), "size": inner.len()}]}).to_string();
    }
    registry.content().put("a/b:c", "application/vnd.oci.image.index.v1+json", inner.into());
    let error = fails(&registry, dir.path(), &format!("{}/a/b:c", registry.address)).await;
    assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_stopped() {
    if !root() {
        return;
    }
    let zeros = vec![0; 8 << 20];
    let many = || {
        let mut tar = Tar::default();
        for i in 0..300 {
            tar = tar.file(&format!("f{i}"), b"");
        }
        tar.layer(Packing::Gzip)
    };
    let behind_the_end = Layer::new(&[vec![0; 1024], zeros.clone()].concat(), Packing::Gzip);
    for (case, layer) in [
        ("zeros in a file, gzip", Tar::default().file("f", &zeros).layer(Packing::Gzip)),
        ("zeros in a file, zstd", Tar::default().file("f", &zeros).layer(Packing::Zstd)),
        ("zeros behind the end", behind_the_end),
        ("many entries", many()),
    ] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &Image::new(vec![layer]));
        let mut config = registry.config(dir.path());
        config.limits.layer_unpacked_bytes = 1 << 20;
        config.limits.layer_entries = 200;
        let store = Store::open(config).unwrap();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{case}: {error:?}");
        assert_empty(&store, dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_compression_is_malformed() {
    if !root() {
        return;
    }
    let tar = Tar::default().file("f", &noise(100_000)).done();
    let whole = gzip(&tar);
    let mut damaged = whole.clone();
    damaged[50_000] ^= 0xff;
    for (case, bytes) in [
        ("cut gzip", whole[..whole.len() / 2].to_vec()),
        ("damaged gzip", damaged),
        ("rubbish behind gzip", [&whole[..], b"rubbish"].concat()),
        ("cut tar", gzip(&tar[..50_000])),
        ("no tar", gzip(&noise(5000))),
    ] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let layer = Layer { bytes: bytes.into(), diff_id: Digest::of(&tar), packing: Packing::Gzip };
        let error = fails(&registry, dir.path(), &registry.add("a/b:c", &Image::new(vec![layer]))).await;
        assert!(matches!(error, StoreError::Malformed { .. }), "{case}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_followed_and_end() {
    if !root() {
        return;
    }
    let (dir, registry, elsewhere) = (scratch(), Registry::start().await, Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    elsewhere.add("a/b:c", &image);
    registry.content().door = support::Door::Basic("Basic dTpw");
    let digest = image.layers[1].digest();
    let to = format!("http://{}/v2/a/b/blobs/{digest}", elsewhere.address);
    registry.fault(&digest.to_string(), Fault::Redirect(to), 1);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let auth = cofferdam_image_store::Auth::from_cri("u", "p", "", "", "");
    store.pull(&reference, auth.clone()).await.unwrap();
    let seen = elsewhere.log();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].contains("Basic"), "credentials went elsewhere: {seen:?}");
    store.remove(&reference).await.unwrap();
    registry.fault("manifests", Fault::Redirect(format!("http://{}/v2/a/b/manifests/c", registry.address)), 100);
    let error = store.pull(&reference, auth).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
}
