//! A disk that is full: the pull fails, gives back its space, and everything goes on.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use cofferdam_image_store::{Config, Store, StoreError};

use self::support::image::{Image, Layer, Packing, Tar};
use self::support::{Registry, root};

/// A file system of 64 MiB; `None` where the test may not mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "small"]).arg(dir.path()).output();
        mounted.is_ok_and(|m| m.status.success()).then(|| Self(dir))
    }

    fn fill(&self) {
        let file = File::create(self.0.path().join("fill")).unwrap();
        let (mut at, mut size) = (0, 1 << 20);
        while size >= 4096 {
            match file.write_all_at(&vec![1; size], at) {
                Ok(()) => at += size as u64,
                Err(_) => size /= 2,
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn layer(name: &str, bytes: usize) -> Layer {
    Tar::default().file(name, &vec![b'x'; bytes]).layer(Packing::Gzip)
}

fn blocks(path: &Path) -> u64 {
    rustix::fs::statvfs(path).unwrap().f_bfree
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_the_pull_and_nothing_else() {
    if !root() {
        return;
    }
    let Some(small) = Small::new() else { return };
    let registry = Registry::start().await;
    let fits = registry.add("a/fits:1", &Image::new(vec![layer("a", 1 << 20)]));
    let huge = registry.add("a/huge:1", &Image::new(vec![layer("b", 8 << 20), layer("c", 80 << 20)]));
    let config = Config { root: small.0.path().join("store"), ..registry.config(small.0.path()) };
    let store = Store::open(config).unwrap();
    let id = store.pull(&fits, None).await.unwrap();
    store.lease(&id, "holder").unwrap();
    let free = blocks(small.0.path());
    for _ in 0..2 {
        let error = store.pull(&huge, None).await.unwrap_err();
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
        // Its whole layer too, which is kept otherwise.
        assert!(blocks(small.0.path()) + 16 > free, "{} of {free} blocks", blocks(small.0.path()));
    }
    small.fill();
    let error = store.pull(&huge, None).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    // What makes room goes on while the disk is full, and nothing has to be restarted afterwards.
    store.release("holder");
    store.remove(&id).await.unwrap();
    assert_eq!(store.list().unwrap(), []);
    std::fs::remove_file(small.0.path().join("fill")).unwrap();
    let id = store.pull(&fits, None).await.unwrap();
    store.lease(&id, "holder").unwrap();
    assert_eq!(store.settle(), None);
}
