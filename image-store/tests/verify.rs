//! Damage to layers is found, and images are pinned.

#[path = "support/mod.rs"]
mod support;

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cofferdam_image_store::{LayerState, Store, VerifiedLayer};
use tokio::sync::mpsc;

use support::image::{Image, Packing, Tar};
use support::{Registry, root, scratch};

async fn verify(store: &Arc<Store>) -> Vec<VerifiedLayer> {
    let (sender, mut receiver) = mpsc::channel(1);
    let owned = store.clone();
    let work = tokio::spawn(async move { owned.verify(sender).await });
    let mut layers = Vec::new();
    while let Some(layer) = receiver.recv().await {
        layers.push(layer);
    }
    work.await.unwrap().unwrap();
    layers
}

fn damaged(layers: &[VerifiedLayer]) -> Vec<&VerifiedLayer> {
    layers.iter().filter(|layer| matches!(layer.state, LayerState::Changed(_))).collect()
}

async fn pulled(dir: &Path, registry: &Registry) -> (Arc<Store>, Vec<PathBuf>) {
    let lower = Tar::default().dir("etc", 0o755).file("etc/name", b"lower").file("etc/other", b"x");
    let upper = Tar::default().symlink("etc/link", "name").file("etc/upper", b"upper").whiteout("etc", "other");
    let image = Image::new(vec![lower.layer(Packing::Gzip), upper.layer(Packing::Plain)]);
    registry.add("some/image:1", &image);
    let store = Arc::new(Store::open(registry.config(dir)).unwrap());
    let id = store.pull(&format!("{}/some/image:1", registry.address), None).await.unwrap();
    let dirs = store.lease(&id, "test").unwrap().dirs;
    (store, dirs)
}

/// Two layers, room for the first, and nobody takes it: the store ends all the same.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_takes_nothing_does_not_hold_up_the_end() {
    if !root() {
        return;
    }
    let dir = scratch();
    let registry = Registry::start().await;
    let (store, _) = pulled(dir.path(), &registry).await;
    let (sender, receiver) = mpsc::channel(1);
    let (owned, counted) = (store.clone(), sender.clone());
    let work = tokio::spawn(async move { owned.verify(sender).await });
    while counted.capacity() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    work.abort();
    assert!(work.await.unwrap_err().is_cancelled());
    let store = Arc::into_inner(store).unwrap();
    let end = tokio::task::spawn_blocking(move || drop(store));
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the store does not end").unwrap();
    drop(receiver);
}

#[tokio::test]
async fn what_changed_is_found_whatever_it_is() {
    if !root() {
        return;
    }
    let dir = scratch();
    let registry = Registry::start().await;
    let (store, dirs) = pulled(dir.path(), &registry).await;
    // The first look may be the one that seals them.
    assert!(damaged(&verify(&store).await).is_empty());
    let second = verify(&store).await;
    assert!(second.len() == 2 && second.iter().all(|layer| layer.state == LayerState::Intact), "{second:?}");
    assert_eq!(second[0].images, [format!("{}/some/image:1", registry.address)]);

    let file = dirs[0].join("etc/upper");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    let folder = dirs[0].join("etc");
    let folder_time = fs::metadata(&folder).unwrap().modified().unwrap();
    let set_time = |path: &Path, time: SystemTime| {
        fs::File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    };
    let write = |text: &str| {
        fs::write(&file, text).unwrap();
        set_time(&file, time);
    };
    let link = |target: &str| {
        let path = folder.join("link");
        let old = rustix::fs::lstat(&path).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(target, &path).unwrap();
        std::os::unix::fs::lchown(&path, Some(old.st_uid), Some(old.st_gid)).unwrap();
        let stamp = rustix::fs::Timespec { tv_sec: old.st_mtime as i64, tv_nsec: old.st_mtime_nsec as i64 };
        let stamps = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &stamps, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        set_time(&folder, folder_time);
    };
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>, Box<dyn Fn() + 'a>);
    let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    let attribute = |value: Option<&[u8]>| match value {
        Some(value) => rustix::fs::setxattr(&file, "user.x", value, rustix::fs::XattrFlags::empty()).unwrap(),
        None => rustix::fs::removexattr(&file, "user.x").unwrap(),
    };
    let owner = |id| std::os::unix::fs::chown(&file, Some(id), None).unwrap();
    let new = folder.join("new");
    let changes: Vec<Change<'_>> = vec![
        ("a byte", Box::new(|| write("uqper")), Box::new(|| write("upper"))),
        ("the mode", Box::new(|| mode(0o600)), Box::new(|| mode(0o644))),
        ("the owner", Box::new(|| owner(7)), Box::new(|| owner(1000))),
        ("the time", Box::new(|| set_time(&file, time + Duration::from_nanos(1))), Box::new(|| set_time(&file, time))),
        ("an attribute", Box::new(|| attribute(Some(b"1"))), Box::new(|| attribute(None))),
        ("a link", Box::new(|| link("nama")), Box::new(|| link("name"))),
        (
            "a new file",
            Box::new(|| {
                fs::write(&new, "").unwrap();
                set_time(&folder, folder_time);
            }),
            Box::new(|| {
                fs::remove_file(&new).unwrap();
                set_time(&folder, folder_time);
            }),
        ),
    ];
    for (what, change, back) in &changes {
        change();
        let layers = verify(&store).await;
        assert_eq!(damaged(&layers).len(), 1, "{what}: {layers:?}");
        back();
        assert!(damaged(&verify(&store).await).is_empty(), "{what} and back");
    }
    fs::remove_file(&file).unwrap();
    let layers = verify(&store).await;
    let [layer] = damaged(&layers)[..] else { panic!("{layers:?}") };
    assert_eq!(layer.images.len(), 1);
}

#[tokio::test]
async fn what_layers_were_outlives_the_daemon_and_goes_with_them() {
    if !root() {
        return;
    }
    let dir = scratch();
    let registry = Registry::start().await;
    let (store, dirs) = pulled(dir.path(), &registry).await;
    verify(&store).await;
    drop(store);
    fs::write(dirs[1].join("etc/name"), "other").unwrap();
    let store = Arc::new(Store::open(registry.config(dir.path())).unwrap());
    assert_eq!(damaged(&verify(&store).await).len(), 1);
    // A client that has gone ends it.
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    store.verify(sender).await.unwrap();
    // Removed and pulled again, it is right.
    let name = format!("{}/some/image:1", registry.address);
    store.release("test");
    store.remove(&name).await.unwrap();
    store.forget_unfinished().await;
    assert!(verify(&store).await.is_empty());
    store.pull(&name, None).await.unwrap();
    assert!(damaged(&verify(&store).await).is_empty());
    assert_eq!(verify(&store).await.len(), 2);
    fs::remove_dir_all(dirs[0].parent().unwrap().join("fs")).unwrap();
    let layers = verify(&store).await;
    assert!(matches!(&damaged(&layers)[..], [layer] if format!("{:?}", layer.state).contains("cannot be read")));
}

#[tokio::test]
async fn images_are_pinned_by_their_names() {
    if !root() {
        return;
    }
    let dir = scratch();
    let registry = Registry::start().await;
    for pattern in ["some/image:1", "some/*", "other/*"] {
        let mut config = registry.config(dir.path());
        config.pinned = vec![format!("{}/{pattern}", registry.address)];
        let image = Image::new(vec![Tar::default().file("a", b"a").layer(Packing::Plain)]);
        registry.add("some/image:1", &image);
        let store = Store::open(config).unwrap();
        let id = store.pull(&format!("{}/some/image:1", registry.address), None).await.unwrap();
        let pinned = pattern != "other/*";
        assert_eq!(store.status(&id).unwrap().unwrap().pinned, pinned, "{pattern}");
        assert!(store.list().unwrap().iter().all(|image| image.pinned == pinned));
    }
    let mut config = registry.config(dir.path());
    config.pinned = vec!["Not A Name".into()];
    assert!(Store::open(config).err().unwrap().to_string().contains("Not A Name"));
}
