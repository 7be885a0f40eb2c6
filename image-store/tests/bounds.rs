//! What all pulls share: no registry and no layer holds up the others for ever, and the memory of
//! all is bounded.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use cofferdam_image_store::{Store, StoreError};

use self::support::image::{Image, Layer, Packing, Tar};
use self::support::{Fault, Registry, root, scratch};

fn layer(name: &str) -> Layer {
    let text = format!("{name} ").repeat(200);
    Tar::default().dir(name, 0o755).file(&format!("{name}/f"), text.as_bytes()).layer(Packing::Gzip)
}

fn image(label: &str, layers: usize) -> Image {
    let layers = (0..layers).map(|i| layer(&format!("{label}-{i}"))).collect();
    Image { label: label.into(), ..Image::new(layers) }
}

/// A runtime with as few threads for blocking calls as there can be.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap()
}

#[test]
fn pulls_that_stall_hold_up_nothing_else() {
    if !root() {
        return;
    }
    runtime().block_on(async {
        let (dir, registry, silent) = (scratch(), Registry::start().await, Registry::start().await);
        let mut config = registry.config(dir.path());
        config.registries.extend(silent.config(dir.path()).registries);
        config.max_unpacking_layers = 1;
        let store = Store::open(config).unwrap();
        // Half of them stall before the first byte of their layers, half in the middle.
        let stalled: Vec<_> = (0..25).map(|i| silent.add(&format!("a/b:{i}"), &image(&format!("s{i}"), 4))).collect();
        silent.content().faults = (0..25)
            .flat_map(|i| {
                let image = image(&format!("s{i}"), 4);
                let stall = move |layer: &Layer| (layer.digest().to_string(), Fault::Stall(i % 2 * 50), 10);
                image.layers.iter().map(stall).collect::<Vec<_>>()
            })
            .collect();
        let mut pulls = futures::future::join_all(stalled.iter().map(|reference| store.pull(reference, None)));
        let all_wait = || {
            let asked = silent.content().log.iter().filter(|line| line.contains("/blobs/")).count();
            asked >= 25 + 25 * 3
        };
        while !all_wait() {
            tokio::select! {
                _ = &mut pulls => panic!("they cannot end"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        let work = async {
            let reference = registry.add("good/image:1", &image("good", 12));
            let id = store.pull(&reference, None).await.unwrap();
            // The one thread on which the daemon would ask for lists and leases is free.
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            assert_eq!(store.list().unwrap().len(), 1);
            assert_eq!(store.lease(&id, "x").unwrap().dirs.len(), 12);
            store.release("x");
            store.remove(&id).await.unwrap();
        };
        tokio::select! {
            _ = &mut pulls => panic!("they cannot end"),
            () = work => {}
        }
        // Given up, they end at once and leave nothing that runs.
        drop(pulls);
        while !store.progress().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// The lowest layer is slow: those above it do not wait for each other.
#[test]
fn a_slow_lowest_layer_holds_up_no_other() {
    if !root() {
        return;
    }
    runtime().block_on(async {
        let (dir, registry) = (scratch(), Registry::start().await);
        let image = image("x", 30);
        let reference = registry.add("a/b:c", &image);
        registry.fault(&image.layers[0].digest().to_string(), Fault::Stall(10), 1);
        let store = Store::open(registry.config(dir.path())).unwrap();
        let mut pull = Box::pin(store.pull(&reference, None));
        let asked = || {
            let log = &registry.content().log;
            image
                .layers
                .iter()
                .filter(|layer| log.iter().any(|line| line.contains(&layer.digest().to_string())))
                .count()
        };
        while asked() < 30 {
            tokio::select! {
                _ = &mut pull => panic!("the lowest layer cannot be there"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    });
}

/// A frame that asks for 128 MiB before its content, which is small.
fn wide(layer: &Layer, tar: &[u8]) -> Layer {
    use std::io::Write;
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.include_contentsize(false).unwrap();
    // Flushed before its end: the frame's header cannot say that it is short.
    encoder.write_all(tar).unwrap();
    encoder.flush().unwrap();
    let bytes = encoder.finish().unwrap();
    assert_eq!(bytes[4] & 0x20, 0, "not one segment");
    Layer { bytes: bytes.into(), packing: Packing::Zstd, ..layer.clone() }
}

/// Whoever has the memory of all and gets nowhere gives it to those who wait.
#[test]
fn a_layer_that_gets_nowhere_gives_its_memory_to_others() {
    if !root() {
        return;
    }
    runtime().block_on(async {
        let (dir, registry) = (scratch(), Registry::start().await);
        let wide = |name: &str| {
            let tar = Tar::default().file(name, name.repeat(10_000).as_bytes()).done();
            wide(&Layer::new(&tar, Packing::Gzip), &tar)
        };
        let (greedy, good) = (wide("greedy"), wide("good"));
        let greedy_reference = registry.add("a/greedy:1", &Image::new(vec![greedy.clone()]));
        let good_reference = registry.add("a/good:1", &Image::new(vec![good]));
        // It stalls each time, behind its header.
        registry.fault(&greedy.digest().to_string(), Fault::Stall(40), 1000);
        let mut config = registry.config(dir.path());
        config.timeouts.patience = Duration::from_millis(300);
        let store = Store::open(config).unwrap();
        let mut stalled = Box::pin(store.pull(&greedy_reference, None));
        while store.progress().first().is_none_or(|pull| pull.bytes_done < 40) {
            tokio::select! {
                _ = &mut stalled => panic!("it cannot end"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        let begun = Instant::now();
        tokio::select! {
            result = &mut stalled => panic!("it cannot end before the other: {result:?}"),
            pulled = store.pull(&good_reference, None) => drop(pulled.unwrap()),
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        // A pull that nobody waits for gives it at once.
        store.remove(&good_reference).await.unwrap();
        drop(stalled);
        store.pull(&good_reference, None).await.unwrap();
    });
}

/// The high-water mark of this process's memory, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the child does: pulls an image of many layers, each of which fills a window of 128 MiB.
#[test]
fn child() {
    if std::env::var_os("COFFERDAM_TEST_WINDOWS").is_none() {
        return;
    }
    runtime().block_on(async {
        let (dir, registry) = (scratch(), Registry::start().await);
        let zeros = vec![0; 132 << 20];
        let layers = (0..2).map(|i| {
            let tar = Tar::default().file(&format!("zeros{i}"), &zeros).done();
            let layer = Layer { diff_id: cofferdam_image_store::Digest::of(b"never known"), ..layer("x") };
            wide(&layer, &tar)
        });
        let layers: Vec<_> = layers.collect();
        drop(zeros);
        let images: Vec<_> = (0..2)
            .map(|i| {
                let layers = layers.iter().map(|layer| {
                    let diff_id = cofferdam_image_store::Digest::of(&[i]);
                    Layer { diff_id, ..layer.clone() }
                });
                registry.add(&format!("a/b:{i}"), &Image::new(layers.collect()))
            })
            .collect();
        let store = Store::open(registry.config(dir.path())).unwrap();
        // What making the images took is not the store's.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak();
        let pulls = futures::future::join_all(images.iter().map(|image| store.pull(image, None))).await;
        assert!(pulls.iter().all(|pull| matches!(pull, Err(StoreError::DigestMismatch { .. }))), "{pulls:?}");
        let grown = peak().saturating_sub(before);
        println!("4 layers with windows of 128 MiB: {} MiB", grown >> 10);
        assert!(grown < 150 << 10, "{} MiB", grown >> 10);
        assert!(grown > 100 << 10, "the windows were not filled: {} MiB", grown >> 10);
    });
}

#[test]
fn the_largest_windows_are_had_one_at_a_time() {
    if !root() {
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env("COFFERDAM_TEST_WINDOWS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    println!("{said}");
}
