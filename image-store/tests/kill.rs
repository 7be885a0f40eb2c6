//! A daemon that is killed at any moment: what the next one finds is whole.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_image_store::{Config, RegistryConfig, Store};
use redb::ReadableTable;

use self::support::image::{Image, Packing, Tar};
use self::support::{Registry, root, scratch};

const IMAGES: usize = 4;
const FILES: usize = 60;
const KILLS: usize = 200;

fn image(number: usize) -> Image {
    let layer = |name: &str| {
        let mut tar = Tar::default().dir(name, 0o755);
        for i in 0..FILES {
            tar = tar.file(&format!("{name}/{i}"), format!("{name} {i}").repeat(50).as_bytes());
        }
        tar.layer(Packing::Gzip)
    };
    let layers = vec![layer("base"), layer(&format!("own{number}")), layer(&format!("top{number}"))];
    Image { label: number.to_string(), ..Image::new(layers) }
}

/// What the child does: pulls, leases, removes, releases, over and over, until it is killed.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn churn(root: &str, registry: &str) {
    let mut config = Config::new(root);
    let plain = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
    config.registries.insert(registry.into(), plain);
    config.platform.architecture = "amd64".into();
    let store = Store::open(config).unwrap();
    for round in 0.. {
        let names = [round % IMAGES, (round + 1) % IMAGES].map(|n| format!("{registry}/image{n}:x"));
        let (a, b) = tokio::join!(store.pull(&names[0], None), store.pull(&names[1], None));
        store.lease(&a.unwrap(), &format!("holder{}", round % 3)).unwrap();
        store.remove(&b.unwrap()).await.unwrap();
        store.release(&format!("holder{}", (round + 1) % 3));
    }
}

#[test]
fn child() {
    if let Ok(args) = std::env::var("COFFERDAM_TEST_CHURN") {
        let (root, registry) = args.split_once('|').unwrap();
        churn(root, registry);
    }
}

/// Ends the child also when the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_leaves_is_whole() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    for number in 0..IMAGES {
        registry.add(&format!("image{number}:x"), &image(number));
    }
    let config = registry.config(dir.path());
    let store_dir = config.root.clone();
    let (mut with_images, mut with_leases, mut with_rests) = (0, 0, 0);
    let seed = u64::from(std::process::id());
    let mut random = seed;
    for round in 0..KILLS {
        let context = || format!("kill {round} of seed {seed}");
        registry.log();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env("COFFERDAM_TEST_CHURN", format!("{}|{}", store_dir.display(), registry.address))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let child = Killed(child);
        let begun = Instant::now();
        while registry.log().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}: no request", context());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        tokio::time::sleep(Duration::from_micros((random >> 33) % 250_000)).await;
        drop(child);

        // What the next daemon finds beside whole trees is gone when it is open.
        let store = Store::open(config.clone()).unwrap();
        let rests = fs::read_dir(store_dir.join("tmp")).unwrap();
        let rests: Vec<_> = rests.map(|entry| entry.unwrap().path().join("fs")).collect();
        with_rests += usize::from(!rests.is_empty());
        rests.iter().for_each(|tree| assert_whole(tree, &context()));
        for layer in fs::read_dir(store_dir.join("layers")).unwrap() {
            assert_whole(&layer.unwrap().path().join("fs"), &context());
        }
        let images = store.list().unwrap();
        with_images += usize::from(!images.is_empty());
        with_leases += usize::from(!store.leases().is_empty());
        for found in &images {
            let layers = store.lease(&found.id, "check").unwrap();
            assert_eq!(layers.dirs.len(), 3, "{}", context());
            layers.dirs.iter().for_each(|dir| assert_whole(dir, &context()));
        }
        store.release("check");
        if round % 5 > 0 {
            continue;
        }
        for holder in store.leases() {
            store.release(&holder);
        }
        for found in images {
            store.remove(&found.id).await.unwrap();
        }
        store.forget_unfinished().await;
        drop(store);
        for sub in ["layers", "tmp"] {
            assert_eq!(fs::read_dir(store_dir.join(sub)).unwrap().count(), 0, "{}: {sub}", context());
        }
    }
    let seen = (with_images, with_leases, with_rests);
    assert!(with_images > 1 && with_leases > 1 && with_rests > 0, "killed too early to show anything: {seen:?}");
}

/// A layer's one directory has all of its files.
fn assert_whole(tree: &Path, context: &str) {
    let inner = fs::read_dir(tree).unwrap().next().unwrap_or_else(|| panic!("{context}: {tree:?} is empty")).unwrap();
    for i in 0..FILES {
        let path = inner.path().join(i.to_string());
        let wanted = format!("{} {i}", inner.file_name().to_str().unwrap()).repeat(50);
        assert_eq!(fs::read_to_string(&path).ok(), Some(wanted), "{context}: {path:?}");
    }
}

/// A killed daemon can leave one whole layer in two directories: one that it was about to delete and
/// one that it had just unpacked. The next daemon keeps one of them, and has deleted the other one
/// when it is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_equal_layers_one_is_kept() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("image0:x", &image(0));
    let config = registry.config(dir.path());
    let tmp = config.root.join("tmp");
    let names = || fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let store = Store::open(config.clone()).unwrap();
    let id = store.pull(&reference, None).await.unwrap();
    let whole = fs::read_dir(config.root.join("layers")).unwrap().next().unwrap().unwrap().path();
    assert!(whole.join("record").exists());
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    let saved = dir.path().join("saved");
    copy(&whole, &saved);
    store.remove(&id).await.unwrap();
    store.forget_unfinished().await;
    drop(store); // Waits for deletions.
    assert!(names().is_empty());
    for name in ["rubbish-1", "layer-2"] {
        copy(&saved, &tmp.join(name));
    }
    let store = Store::open(config).unwrap();
    let found = names();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_whole(&found[0].join("fs"), "two equal layers");
    drop(store);
}

/// A layer that was not yet synced when the machine went down may be there in part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_synced_ends_with_the_boot() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let old = registry.add("image0:x", &image(0));
    let new = registry.add("image1:x", &image(1));
    let config = registry.config(dir.path());
    let store = Store::open(config.clone()).unwrap();
    let old_id = store.pull(&old, None).await.unwrap();
    drop(store); // Waits for the sync.
    let known = change_layers(&config, |_| None);
    assert!(known.values().all(|layer| layer["unsynced"].is_null()), "{known:?}");
    let store = Store::open(config.clone()).unwrap();
    store.pull(&new, None).await.unwrap();
    drop(store);
    // As if the machine had gone down before the second pull's sync.
    let another_boot = |key: &str| (!known.contains_key(key)).then(|| "another boot".to_owned());
    assert_eq!(change_layers(&config, another_boot).len(), 5);
    let store = Store::open(config.clone()).unwrap();
    let images: Vec<_> = store.list().unwrap().into_iter().map(|i| i.id).collect();
    assert_eq!(images, [old_id]);
    assert_eq!(fs::read_dir(config.root.join("layers")).unwrap().count(), 3);
    store.pull(&new, None).await.unwrap();
}

/// Sets what the store's database says about layers' sync; gives what it said before.
fn change_layers(
    config: &Config,
    unsynced: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, serde_json::Map<String, serde_json::Value>> {
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("layers");
    let database = redb::Database::create(config.root.join("images.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let mut before = BTreeMap::new();
    {
        let mut layers = write.open_table(table).unwrap();
        for entry in layers.iter().unwrap() {
            let (key, value) = entry.unwrap();
            before.insert(key.value().to_owned(), serde_json::from_slice(value.value()).unwrap());
        }
        for (key, record) in &before {
            let mut record: serde_json::Map<_, _> = Clone::clone(record);
            if let Some(boot) = unsynced(key) {
                record.insert("unsynced".into(), serde_json::json!({"boot": boot, "serial": 0}));
                layers.insert(key.as_str(), serde_json::to_vec(&record).unwrap().as_slice()).unwrap();
            }
        }
    }
    write.commit().unwrap();
    before
}

#[test]
fn a_second_daemon_is_kept_out() {
    let dir = scratch();
    let first = Store::open(Config::new(dir.path().join("store"))).unwrap();
    assert!(Store::open(Config::new(dir.path().join("store"))).is_err());
    drop(first);
    Store::open(Config::new(dir.path().join("store"))).unwrap();
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let dir = scratch();
    let root = dir.path().join("store");
    drop(Store::open(Config::new(&root)).unwrap());
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let database = redb::Database::create(root.join("images.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert("version", b"2".as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = Store::open(Config::new(&root)).map(drop).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
}
