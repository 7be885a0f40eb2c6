//! What is kept of a pull that failed or was given up: nothing that came once is sent again.

mod support;

use std::fs;
use std::time::Duration;

use cofferdam_image_store::{Config, Store, StoreError};

use self::support::image::{Image, Layer, Packing, Tar};
use self::support::{Fault, Registry, root, scratch};

/// Bytes that do not compress.
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

fn layer(name: &str, bytes: usize) -> Layer {
    let seed = name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
    Tar::default().dir(name, 0o755).file(&format!("{name}/f"), &noise(bytes, seed)).layer(Packing::Gzip)
}

/// A registry that is given up after one failure.
fn impatient(registry: &Registry, dir: &tempfile::TempDir) -> Config {
    let mut config = registry.config(dir.path());
    config.timeouts.retry = Duration::from_millis(1);
    config
}

/// How often a layer was asked for, and from where on the last time.
fn asked(log: &[String], layer: &Layer) -> (usize, Option<usize>) {
    let digest = layer.digest().to_string();
    let lines: Vec<_> = log.iter().filter(|line| line.contains(&digest)).collect();
    let from = lines.last().and_then(|line| line.split_once("bytes=")?.1.trim_end_matches('-').parse().ok());
    (lines.len(), from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_layers_of_a_failed_pull_are_not_sent_again() {
    if !root() {
        return;
    }
    for restart in [false, true] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let layers: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| layer(name, 10_000)).collect();
        let reference = registry.add("a/b:c", &Image::new(layers.clone()));
        registry.content().blobs.remove(&layers[1].digest().to_string());
        let mut config = impatient(&registry, &dir);
        config.max_parallel_layers = 1;
        // Out of order, as it may happen when layers are fetched side by side: those above the
        // broken one are there.
        let above = Image { label: "above".into(), ..Image::new(vec![layers[2].clone(), layers[3].clone()]) };
        let above = registry.add("a/above:1", &above);
        let mut store = Store::open(config.clone()).unwrap();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
        assert_eq!(store.usage().inodes_used, 2, "what is kept counts");
        store.pull(&above, None).await.unwrap();
        if restart {
            drop(store);
            store = Store::open(config).unwrap();
        }
        registry.content().blobs.insert(layers[1].digest().to_string(), layers[1].bytes.clone());
        registry.log();
        let id = store.pull(&reference, None).await.unwrap();
        let log = registry.log();
        let counts: Vec<_> = layers.iter().map(|layer| asked(&log, layer).0).collect();
        assert_eq!(counts, [0, 1, 0, 0], "restart: {restart}");
        for (dir, name) in store.lease(&id, "x").unwrap().dirs.iter().zip(["d", "c", "b", "a"]) {
            assert_eq!(fs::metadata(dir.join(name).join("f")).unwrap().len(), 10_000);
        }
    }
}

/// Layers that were whole before those below them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_above_a_broken_one_are_kept_too() {
    if !root() {
        return;
    }
    for restart in [false, true] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let layers: Vec<_> = ["a", "b", "c"].iter().map(|name| layer(name, 10_000)).collect();
        let reference = registry.add("a/b:c", &Image::new(layers.clone()));
        registry.fault(&layers[0].digest().to_string(), Fault::Stall(100), 1);
        let config = impatient(&registry, &dir);
        let mut store = Store::open(config.clone()).unwrap();
        let mut pull = Box::pin(store.pull(&reference, None));
        let whole = || {
            let entries = fs::read_dir(config.root.join("tmp")).unwrap();
            entries.filter(|entry| entry.as_ref().unwrap().path().join("record").exists()).count()
        };
        let received = |least| store.progress().first().is_some_and(|pull| pull.bytes_done >= least);
        let above = layers[1..].iter().map(|layer| layer.bytes.len() as u64).sum::<u64>();
        while whole() < 2 || !received(above + 100) {
            tokio::select! {
                _ = &mut pull => panic!("the lowest layer cannot be there"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        drop(pull);
        if restart {
            // The aborted pull lets go of the store in a moment.
            drop(store);
            store = loop {
                match Store::open(config.clone()) {
                    Ok(store) => break store,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
        }
        registry.log();
        store.pull(&reference, None).await.unwrap();
        let log = registry.log();
        let first = asked(&log, &layers[0]);
        // The broken layer goes on in the same daemon; the next one starts over.
        assert_eq!(first, if restart { (1, None) } else { (1, Some(100)) });
        assert_eq!((asked(&log, &layers[1]).0, asked(&log, &layers[2]).0), (0, 0), "restart: {restart}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_layer_goes_on_in_the_next_pull() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let big = layer("big", 600_000);
    let reference = registry.add("a/b:c", &Image::new(vec![big.clone()]));
    let store = Store::open(impatient(&registry, &dir)).unwrap();
    // Cut off at 300,000 bytes, and then no more for as long as the pull tries.
    registry.fault(&big.digest().to_string(), Fault::Cut(300_000), 1);
    registry.fault(&big.digest().to_string(), Fault::Status(500), 50);
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    registry.content().faults.clear();
    registry.log();
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(asked(&registry.log(), &big), (1, Some(300_000)));
    assert_eq!(fs::metadata(store.lease(&id, "x").unwrap().dirs[0].join("big/f")).unwrap().len(), 600_000);
    assert_eq!(fs::read_dir(dir.path().join("store/tmp")).unwrap().count(), 0);
}

/// What came before the break was wrong: that shows at the end, and the next pull starts over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_not_gone_on_with() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let big = layer("big", 600_000);
    let reference = registry.add("a/b:c", &Image::new(vec![big.clone()]));
    let store = Store::open(impatient(&registry, &dir)).unwrap();
    let mut bytes = big.bytes.to_vec();
    bytes[200_000] ^= 1;
    registry.content().blobs.insert(big.digest().to_string(), bytes.into());
    let error = store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
    registry.content().blobs.insert(big.digest().to_string(), big.bytes.clone());
    registry.log();
    store.pull(&reference, None).await.unwrap();
    assert_eq!(asked(&registry.log(), &big), (1, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_goes_when_its_time_is_over() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let layers = vec![layer("a", 1000), layer("b", 1000)];
    let reference = registry.add("a/b:c", &Image::new(layers.clone()));
    registry.content().blobs.remove(&layers[1].digest().to_string());
    let mut config = impatient(&registry, &dir);
    config.keep_layers = Duration::ZERO;
    let store = Store::open(config).unwrap();
    store.pull(&reference, None).await.unwrap_err();
    // As the daemon does every now and then.
    let left = |sub: &str| fs::read_dir(dir.path().join("store").join(sub)).unwrap().count();
    while left("layers") + left("tmp") > 0 {
        assert_eq!(store.settle(), None);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.usage().inodes_used, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_sent_once_whoever_wants_it() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let [base, other, twice] = ["base", "other", "twice"].map(|name| layer(name, 50_000));
    // The layer's root has what is below it: 0700 of one base, and nothing special of the other.
    let strict = Layer::new(
        &support::raw::tar(&[support::raw::patched(support::raw::dir("./"), 100, b"0000700\0")]),
        Packing::Gzip,
    );
    let image = |label: &str, layers: &[&Layer]| Image {
        label: label.into(),
        ..Image::new(layers.iter().map(|layer| (*layer).clone()).collect())
    };
    let images = [
        image("twice in one image", &[&base, &twice, &other, &twice]),
        image("on another base", &[&other, &twice]),
        image("on a third", &[&strict, &twice]),
        image("at the bottom", &[&twice, &other]),
    ];
    let references: Vec<_> =
        images.iter().enumerate().map(|(i, image)| registry.add(&format!("a/b:{i}"), image)).collect();
    let store = Store::open(registry.config(dir.path())).unwrap();
    // Two at once, then the others.
    let (one, two) = tokio::join!(store.pull(&references[0], None), store.pull(&references[1], None));
    let mut ids = vec![one.unwrap(), two.unwrap()];
    for reference in &references[2..] {
        ids.push(store.pull(reference, None).await.unwrap());
    }
    let log = registry.log();
    for layer in [&base, &other, &twice] {
        assert_eq!(asked(&log, layer).0, 1);
    }
    for (id, at) in ids.iter().zip([0, 0, 0, 1]) {
        let dirs = store.lease(id, id).unwrap().dirs;
        assert_eq!(fs::read(dirs[at].join("twice/f")).unwrap().len(), 50_000);
        use std::os::unix::fs::MetadataExt;
        let root = fs::metadata(&dirs[at]).unwrap();
        let lowest = fs::metadata(dirs.last().unwrap()).unwrap();
        assert_eq!((root.mode(), root.uid()), (lowest.mode(), lowest.uid()), "{id}");
        let dir = fs::metadata(dirs[at].join("twice")).unwrap();
        assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid(), dir.mtime()), (0o755, 1000, 1001, 1_000_000_000));
    }
    // Each is a layer of its own: what is removed takes nothing from the others.
    store.release(&ids[0]);
    store.remove(&ids[0]).await.unwrap();
    let dirs = store.lease(&ids[1], "x").unwrap().dirs;
    assert_eq!(fs::read(dirs[0].join("twice/f")).unwrap().len(), 50_000);
}

/// Whiteouts make a layer another one at the bottom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_with_whiteouts_is_made_for_its_place() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let base = Tar::default().dir("d", 0o755).file("d/gone", b"x").layer(Packing::Gzip);
    let marks = Tar::default().dir("d", 0o755).whiteout("d", "gone").file("d/f", b"f").layer(Packing::Gzip);
    let above = Image { label: "above".into(), ..Image::new(vec![base.clone(), marks.clone()]) };
    let bottom = Image { label: "bottom".into(), ..Image::new(vec![marks.clone(), base.clone()]) };
    let both = Image { label: "both".into(), ..Image::new(vec![marks.clone(), base, marks]) };
    let store = Store::open(registry.config(dir.path())).unwrap();
    let references =
        [("a/b:1", above), ("a/b:2", bottom), ("a/b:3", both)].map(|(name, image)| registry.add(name, &image));
    let pulls = references.iter().map(|reference| store.pull(reference, None));
    let ids: Vec<_> = futures::future::join_all(pulls).await.into_iter().map(Result::unwrap).collect();
    let whiteout =
        |id: &str, at: usize| store.lease(id, "x").unwrap().dirs[at].join("d/gone").symlink_metadata().is_ok();
    assert!(whiteout(&ids[0], 0), "hides the file below");
    assert!(!whiteout(&ids[1], 1), "nothing is below");
    assert!(whiteout(&ids[2], 0) && !whiteout(&ids[2], 2));
}
