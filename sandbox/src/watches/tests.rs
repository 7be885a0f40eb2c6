use std::fs;
use std::time::Duration;

use super::*;

async fn soon(watch: &Watch) -> bool {
    tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.expect("the change is told")
}

#[tokio::test]
async fn each_watch_is_told_of_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::default();
    let files: Vec<_> = (0..200).map(|number| dir.path().join(number.to_string())).collect();
    files.iter().for_each(|file| fs::write(file, "").unwrap());
    // More than there may be instances.
    let watched: Vec<_> = files.iter().map(|file| watches.watch(file, WatchFlags::MODIFY).unwrap()).collect();
    let second = watches.clone().watch(&files[7], WatchFlags::MODIFY).unwrap();
    fs::write(&files[7], "x").unwrap();
    assert!(soon(&watched[7]).await && soon(&second).await, "two watch one file");
    fs::write(&files[7], "y").unwrap();
    drop(second);
    assert!(soon(&watched[7]).await, "one of them goes on");
    fs::write(&files[8], "x").unwrap();
    assert!(soon(&watched[8]).await);
    let other = tokio::time::timeout(Duration::from_millis(50), watched[9].changed()).await;
    assert!(other.is_err(), "nothing happened to it");
    assert_eq!(watches.instance().unwrap().lock().len(), files.len());
    drop(watched);
    assert!(watches.instance().unwrap().lock().is_empty());
}

#[tokio::test]
async fn what_happens_before_one_waits_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::default();
    let watch = watches.watch(dir.path(), WatchFlags::MOVED_TO | WatchFlags::DELETE).unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    assert!(soon(&watch).await);
}

#[tokio::test]
async fn the_end_of_a_file_ends_its_watch() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::default();
    let path = dir.path().join("volume");
    fs::create_dir(&path).unwrap();
    let watch = watches.watch(&path, WatchFlags::MOVED_TO).unwrap();
    fs::remove_dir(&path).unwrap();
    assert!(!soon(&watch).await);
    assert!(!soon(&watch).await, "it stays so");
    fs::create_dir(&path).unwrap();
    let again = watches.watch(&path, WatchFlags::MOVED_TO).unwrap();
    drop(watch);
    fs::rename(dir.path().join("volume"), dir.path().join("elsewhere")).unwrap();
    fs::write(dir.path().join("x"), "").unwrap();
    fs::rename(dir.path().join("x"), dir.path().join("elsewhere/x")).unwrap();
    assert!(soon(&again).await, "the old watch's end is not the new one's");
    assert!(watches.watch(&path, WatchFlags::MOVED_TO).is_err(), "what is not there cannot be watched");
}
