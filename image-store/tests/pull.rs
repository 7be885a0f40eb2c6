//! Pulls from a registry that behaves.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_image_store::{Auth, Digest, RegistryConfig, Store, StoreError};
use serde_json::json;

use self::support::image::{Image, Layer, Packing, Tar};
use self::support::{Door, Fault, Registry, root, scratch};

fn small(text: &str) -> Layer {
    Tar::default().dir("d", 0o755).file("d/f", text.as_bytes()).layer(Packing::Gzip)
}

fn image(label: &str, layers: &[&str]) -> Image {
    Image { label: label.into(), ..Image::new(layers.iter().map(|text| small(text)).collect()) }
}

fn count(dir: &Path, sub: &str) -> usize {
    fs::read_dir(dir.join("store").join(sub)).unwrap().count()
}

/// Deletions go on behind a `release` and behind a pull that was given up.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..4000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_layers_of_every_packing() {
    if !root() {
        return;
    }
    for docker in [false, true] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let mut image = Image::new(vec![
            Tar::default().dir("bin", 0o755).file("bin/a", b"one").layer(Packing::Plain),
            Tar::default().dir("etc", 0o700).file("etc/b", b"two").layer(Packing::Gzip),
            Tar::default().file("etc/c", b"three").hard_link("bin/d", "bin/a").layer(Packing::Zstd),
        ]);
        image.docker = docker;
        let reference = registry.add("some/image:v1", &image);
        let store = Store::open(registry.config(dir.path())).unwrap();
        let id = store.pull(&reference, None).await.unwrap();
        assert_eq!(id, image.id());
        let found = store.status(&reference).unwrap().unwrap();
        assert_eq!(found.id, id);
        assert_eq!(found.repo_tags, std::slice::from_ref(&reference));
        let digest = Digest::of(&image.manifest());
        assert_eq!(found.repo_digests, [format!("{}/some/image@{digest}", registry.address)]);
        let sizes: usize = image.layers.iter().map(|l| l.bytes.len()).sum();
        assert_eq!(found.size, (sizes + image.config().len()) as u64);
        assert!(found.disk_bytes >= 4096 * 5, "each file and directory takes a block: {}", found.disk_bytes);
        assert_eq!(found.config.cmd, ["/bin/true"]);
        let layers = store.lease(&id, "test").unwrap();
        assert_eq!(layers.dirs.len(), 3);
        assert_eq!(fs::read(layers.dirs[2].join("bin/a")).unwrap(), b"one");
        assert_eq!(fs::read(layers.dirs[1].join("etc/b")).unwrap(), b"two");
        // A hard link to a file of a lower layer, in a directory that only the lower layer lists.
        let (linked, target) = (layers.dirs[0].join("bin/d"), layers.dirs[0].join("bin/a"));
        assert_eq!(fs::read(&linked).unwrap(), b"one");
        assert_eq!(fs::metadata(&linked).unwrap().ino(), fs::metadata(&target).unwrap().ino());
        for sub in ["etc", "bin"] {
            let below = layers.dirs.iter().rev().find(|d| d.join(sub).exists()).unwrap();
            let (below, above) = (below.join(sub).metadata().unwrap(), layers.dirs[0].join(sub).metadata().unwrap());
            assert_eq!((above.uid(), above.gid(), above.mode()), (below.uid(), below.gid(), below.mode()), "{sub}");
            assert_eq!(above.mtime(), below.mtime(), "{sub}");
        }
        assert_eq!(fs::metadata(layers.dirs[0].parent().unwrap().parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_searched_for_the_platform() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let (ours, other) = (image("ours", &["a"]), image("other", &["b"]));
    registry.add("a/b:ours", &ours);
    registry.add("a/b:other", &other);
    let entry = |image: &Image, platform: serde_json::Value| {
        let bytes = image.manifest();
        json!({"mediaType": image.manifest_type(), "digest": Digest::of(&bytes), "size": bytes.len(), "platform": platform})
    };
    let index = json!({"schemaVersion": 2, "manifests": [
        entry(&other, json!({"os": "unknown", "architecture": "unknown"})),
        entry(&other, json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        entry(&other, json!({"os": "linux", "architecture": "amd64", "variant": "v3"})),
        entry(&ours, json!({"os": "linux", "architecture": "amd64"})),
    ]})
    .to_string();
    for media_type in
        ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
    {
        registry.content().put("a/b:list", media_type, index.clone().into());
        let store = Store::open(registry.config(dir.path())).unwrap();
        let name = format!("{}/a/b", registry.address);
        assert_eq!(store.pull(&format!("{name}:list"), None).await.unwrap(), ours.id());
        // The digest is the one that was served for the tag: the index's.
        let by_digest = format!("{name}@{}", Digest::of(index.as_bytes()));
        let found = store.status(&by_digest).unwrap().unwrap();
        assert_eq!(found.repo_digests, std::slice::from_ref(&by_digest));
        store.remove(&found.id).await.unwrap();
        store.pull(&by_digest, None).await.unwrap();
        let found = store.status(&ours.id()).unwrap().unwrap();
        assert!(found.repo_tags.is_empty());
        assert_eq!(found.repo_digests, [by_digest]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_in() {
    if !root() {
        return;
    }
    let password = || Auth::from_cri("u", "p", "", "", "");
    let wrong = || Auth::from_cri("u", "wrong", "", "", "");
    let cases: Vec<(&str, Door, Option<Auth>, bool)> = vec![
        ("anonymous token", Door::Bearer(None), None, true),
        ("token for a password", Door::Bearer(Some("Basic dTpw")), password(), true),
        ("token, no password", Door::Bearer(Some("Basic dTpw")), None, false),
        ("token, wrong password", Door::Bearer(Some("Basic dTpw")), wrong(), false),
        ("basic", Door::Basic("Basic dTpw"), password(), true),
        ("basic, wrong", Door::Basic("Basic dTpw"), wrong(), false),
        ("basic, nothing", Door::Basic("Basic dTpw"), None, false),
        ("given token", Door::Bearer(None), Auth::from_cri("", "", "", "", "good-token"), true),
        ("given wrong token", Door::Bearer(None), Auth::from_cri("", "", "", "", "bad"), false),
        ("refresh token", Door::Refresh("r3fresh"), Auth::from_cri("", "", "", "r3fresh", ""), true),
        ("wrong refresh token", Door::Refresh("r3fresh"), Auth::from_cri("", "", "", "x", ""), false),
    ];
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image("", &["a", "b"]));
    let store = Store::open(registry.config(dir.path())).unwrap();
    for (case, door, auth, works) in cases {
        registry.content().door = door;
        registry.log();
        let result = store.pull(&reference, auth).await;
        if works {
            result.unwrap();
            let tokens = registry.log().iter().filter(|line| line.contains(" /token")).count();
            assert!(tokens <= 1, "{case}: {tokens} tokens");
        } else {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Unauthorized { .. }), "{case}: {error:?}");
            assert!(!error.chain().contains("wrong"), "{case}: {error:?}");
        }
        store.remove(&reference).await.unwrap();
    }
    // Also for an image that is there: it may be somebody else's.
    registry.content().door = Door::Bearer(Some("Basic dTpw"));
    store.pull(&reference, password()).await.unwrap();
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Unauthorized { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_come_first_and_see_no_credentials() {
    if !root() {
        return;
    }
    let (dir, registry, mirror) = (scratch(), Registry::start().await, Registry::start().await);
    let here = image("", &["a"]);
    let reference = registry.add("x/y:z", &here);
    mirror.add("x/y:z", &here);
    mirror.add("cache/x/y:z", &here);
    registry.content().door = Door::Basic("Basic dTpw");
    let auth = || Auth::from_cri("u", "p", "", "", "");
    let mut config = registry.config(dir.path());
    let dead = "http://127.0.0.1:1".to_owned();
    let mut settings = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
    settings.mirrors = vec![dead.clone(), format!("http://{}/cache", mirror.address)];
    config.registries.insert(registry.address.clone(), settings.clone());
    let store = Store::open(config.clone()).unwrap();
    store.pull(&reference, auth()).await.unwrap();
    assert_eq!(store.list().unwrap()[0].repo_tags, std::slice::from_ref(&reference));
    assert!(registry.log().is_empty(), "the registry itself was asked");
    let seen = mirror.log();
    assert!(seen.iter().all(|line| line.contains("/v2/cache/x/y/") && !line.contains("Basic")), "{seen:?}");
    store.remove(&reference).await.unwrap();

    // A mirror that wants a login, lacks the image, or lies: the registry itself is asked.
    mirror.content().door = Door::Basic("Basic dTpw");
    store.pull(&reference, auth()).await.unwrap();
    assert!(mirror.log().iter().all(|line| !line.contains("Basic")));
    store.remove(&reference).await.unwrap();
    mirror.content().door = Door::Open;
    mirror.fault("manifests", Fault::Status(404), 1);
    mirror.fault(&here.id(), Fault::Instead(b"{}".as_slice().into()), 1);
    store.pull(&reference, auth()).await.unwrap();
    store.remove(&reference).await.unwrap();
    // A blob that a mirror breaks off is finished by the registry.
    mirror.content().ranges = false;
    mirror.fault(&here.layers[0].digest().to_string(), Fault::Cut(20), 100);
    store.pull(&reference, auth()).await.unwrap();
    assert!(registry.log().iter().any(|line| line.contains("bytes=20-")));
    drop(store);

    settings.mirrors_only = true;
    settings.mirrors = vec![dead];
    config.registries.insert(registry.address.clone(), settings);
    let store = Store::open(config.clone()).unwrap();
    assert!(matches!(store.pull(&reference, auth()).await, Err(StoreError::Unavailable { .. })));
    drop(store);
    for bad in ["127.0.0.1:5000", "ftp://x", "http://", "http://h?x"] {
        config.registries.entry("x".into()).or_default().mirrors = vec![bad.into()];
        assert!(matches!(Store::open(config.clone()), Err(StoreError::Config(_))), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_shared_and_sent_once() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let one = registry.add("a/one:1", &image("one", &["base", "one"]));
    let two = registry.add("a/two:1", &image("two", &["base", "two"]));
    // The same bytes on top of something else are another layer to stack, and another chain, but
    // are not sent again.
    let three = registry.add("a/three:1", &image("three", &["one", "base"]));
    let store = Store::open(registry.config(dir.path())).unwrap();
    let (a, b, c) = tokio::join!(store.pull(&one, None), store.pull(&two, None), store.pull(&three, None));
    let (one_id, two_id, _) = (a.unwrap(), b.unwrap(), c.unwrap());
    let base = small("base").digest().to_string();
    let sent = registry.log().iter().filter(|line| line.contains(&base)).count();
    assert_eq!(sent, 1);
    assert_eq!(count(dir.path(), "layers"), 5);
    assert_eq!(store.lease(&one_id, "x").unwrap().dirs[1], store.lease(&two_id, "y").unwrap().dirs[1]);
    // An image that is there: the registry is asked, the layers are not sent.
    store.pull(&one, None).await.unwrap();
    let log = registry.log();
    assert!(log.len() == 1 && log[0].contains("manifests"), "{log:?}");
    store.remove(&three).await.unwrap();
    assert_eq!(count(dir.path(), "layers"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_pulls_become_one() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image("", &["a", "b"]));
    let store = Store::open(registry.config(dir.path())).unwrap();
    let pulls = futures::future::join_all((0..20).map(|_| store.pull(&reference, None))).await;
    assert!(pulls.iter().all(|p| p.is_ok()));
    let log = registry.log();
    assert_eq!(log.iter().filter(|line| line.contains("manifests")).count(), 1, "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image("", &["a", "b", "c"]);
    let reference = registry.add("a/b:c", &image);
    registry.fault(&image.layers[2].digest().to_string(), Fault::Stall(20), 1);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let mut one = Box::pin(store.pull(&reference, None));
    let two = store.pull(&reference, None);
    let stuck = || store.progress().first().is_some_and(|p| p.layers_done == 2 && p.layers_total == 3);
    tokio::select! {
        _ = &mut one => panic!("it cannot end"),
        () = until("two layers are there", stuck) => {}
    }
    // One waiter less is no reason to stop.
    drop(two);
    assert_eq!(store.progress().len(), 1);
    drop(one);
    assert!(store.progress().is_empty());
    // What it had stays for the next pull, until it is asked back.
    for _ in 0..2000 {
        store.forget_unfinished().await;
        if count(dir.path(), "tmp") + count(dir.path(), "layers") == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(count(dir.path(), "tmp") + count(dir.path(), "layers"), 0);
    store.pull(&reference, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_move_and_go_together() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let old = image("old", &["a"]);
    let tag = registry.add("a/b:latest", &old);
    let other = registry.add("other/name:x", &old);
    store.pull(&tag, None).await.unwrap();
    store.pull(&other, None).await.unwrap();
    let found = store.status(&old.id()[..20]).unwrap().unwrap();
    assert_eq!(found.repo_tags.len(), 2);
    assert_eq!(found.repo_digests.len(), 2);
    assert_eq!(store.status(&old.id()["sha256:".len()..]).unwrap().unwrap(), found);
    assert_eq!(store.status(&found.repo_digests[0]).unwrap().unwrap(), found);

    // The tag moves to a newer image; the old one keeps its digests.
    let new = image("new", &["a", "n"]);
    registry.add("a/b:latest", &new);
    assert_eq!(store.pull(&tag, None).await.unwrap(), new.id());
    assert_eq!(store.status(&tag).unwrap().unwrap().id, new.id());
    assert_eq!(store.status(&old.id()).unwrap().unwrap().repo_tags, std::slice::from_ref(&other));
    assert_eq!(store.list().unwrap().len(), 2);

    // Removing by one name removes all of the image's; again is no error.
    store.remove(&other).await.unwrap();
    assert_eq!(store.status(&old.id()).unwrap(), None);
    store.remove(&other).await.unwrap();
    store.remove(&old.id()).await.unwrap();
    assert_eq!(count(dir.path(), "layers"), 2);
    assert!(matches!(store.status("not//a name"), Err(StoreError::InvalidReference(_))));
    assert_eq!(store.status("abc").unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_keep_layers_until_released() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image("", &["a", "b"]));
    let config = registry.config(dir.path());
    let store = Store::open(config.clone()).unwrap();
    let empty = store.usage();
    let id = store.pull(&reference, None).await.unwrap();
    assert!(store.usage().inodes_used >= 4);
    let layers = store.lease(&id, "container-1").unwrap();
    assert_eq!(store.lease(&reference, "container-2").unwrap(), layers);
    assert!(matches!(store.lease("absent", "x"), Err(StoreError::NotFound { .. })));
    store.remove(&id).await.unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert!(layers.dirs.iter().all(|d| d.join("d/f").exists()));
    drop(store);
    // The next daemon knows them still.
    let store = Store::open(config).unwrap();
    assert_eq!(store.leases(), ["container-1", "container-2"]);
    assert!(layers.dirs.iter().all(|d| d.join("d/f").exists()));
    store.release("container-1");
    store.release("container-1");
    assert!(layers.dirs.iter().all(|d| d.join("d/f").exists()));
    store.release("container-2");
    until("all is deleted", || count(dir.path(), "layers") + count(dir.path(), "tmp") == 0).await;
    assert_eq!(store.usage().inodes_used, empty.inodes_used);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_without_layers_has_an_empty_directory() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &Image::default());
    let store = Store::open(registry.config(dir.path())).unwrap();
    let id = store.pull(&reference, None).await.unwrap();
    let layers = store.lease(&id, "x").unwrap();
    assert_eq!(layers.dirs.len(), 1);
    assert_eq!(fs::read_dir(&layers.dirs[0]).unwrap().count(), 0);
    assert!(store.status(&id).unwrap().unwrap().size > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opaque_root_hides_all_layers_below() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = Image::new(vec![
        small("hidden"),
        Tar::default().file(".wh..wh..opq", b"").file("only", b"this").layer(Packing::Gzip),
        Tar::default().file("and", b"that").layer(Packing::Gzip),
    ]);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let id = store.pull(&registry.add("a/b:c", &image), None).await.unwrap();
    let layers = store.lease(&id, "x").unwrap();
    assert_eq!(layers.dirs.len(), 2);
    assert!(layers.dirs[1].join("only").exists());
}
