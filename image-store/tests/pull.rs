//! Pulls from a registry that behaves.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use cofferdam_image_store::Store;

use self::support::image::{Image, Packing, Tar};
use self::support::{Registry, root, scratch};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_layers_of_every_packing() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = Image::new(vec![
        Tar::default().dir("bin", 0o755).file("bin/a", b"one").layer(Packing::Plain),
        Tar::default().dir("etc", 0o700).file("etc/b", b"two").layer(Packing::Gzip),
        Tar::default().file("etc/c", b"three").hard_link("bin/d", "bin/a").layer(Packing::Zstd),
    ]);
    let reference = registry.add("some/image:v1", &image);
    let store = Store::open(registry.config(dir.path())).unwrap();
    let id = store.pull(&reference, None).await.unwrap();
    assert_eq!(id, image.id());
    let found = store.status(&reference).unwrap().unwrap();
    assert_eq!(found.id, id);
    assert_eq!(found.repo_tags, [reference.clone()]);
    assert_eq!(found.config.cmd, ["/bin/true"]);
    let layers = store.lease(&id, "test").unwrap();
    assert_eq!(layers.dirs.len(), 3);
    assert_eq!(fs::read(layers.dirs[2].join("bin/a")).unwrap(), b"one");
    assert_eq!(fs::read(layers.dirs[1].join("etc/b")).unwrap(), b"two");
    assert_eq!(fs::read(layers.dirs[0].join("bin/d")).unwrap(), b"one");
    let dir_below = fs::metadata(layers.dirs[1].join("etc")).unwrap();
    let implied = fs::metadata(layers.dirs[0].join("etc")).unwrap();
    assert_eq!((implied.uid(), implied.mode()), (dir_below.uid(), dir_below.mode()));
}
