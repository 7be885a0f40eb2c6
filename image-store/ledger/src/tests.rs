use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::*;

const TABLE: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("table");

fn put(ledger: &Ledger, key: u64, value: &[u8]) -> Result<(), LedgerError> {
    ledger.write(|write| {
        write.open_table(TABLE)?.insert(key, value)?;
        Ok(())
    })
}

fn keys(ledger: &Ledger) -> Vec<u64> {
    let all = |read: &ReadTransaction| {
        let table = read.open_table(TABLE)?;
        table.iter()?.map(|row| Ok(row?.0.value())).collect()
    };
    ledger.read(all).unwrap()
}

/// The file, on a disk that fails while `BROKEN` is set.
#[derive(Debug)]
struct Breaking(FileBackend);

static BROKEN: AtomicBool = AtomicBool::new(false);

fn works() -> Result<(), io::Error> {
    match BROKEN.load(Ordering::SeqCst) {
        true => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        false => Ok(()),
    }
}

impl StorageBackend for Breaking {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        works()?;
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        works()?;
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        works()?;
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

fn open_breaking(path: &Path) -> Result<Database, redb::DatabaseError> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    Database::builder().create_with_backend(Breaking(FileBackend::new(file)?))
}

#[test]
fn a_failing_disk_costs_what_is_asked_meanwhile_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(&dir.path().join("l.redb"), 0, open_breaking).unwrap();
    put(&ledger, 1, b"before").unwrap();
    assert_eq!(ledger.failing(), None);
    for _ in 0..3 {
        BROKEN.store(true, Ordering::SeqCst);
        let error = put(&ledger, 2, b"lost").unwrap_err();
        assert!(!error.is_full(), "{error:?}");
        let failing = ledger.try_again().expect("it fails still");
        assert!(!failing.full && failing.why.contains("Input/output error"), "{failing:?}");
        BROKEN.store(false, Ordering::SeqCst);
        assert_eq!(keys(&ledger), [1], "it reads again by itself");
    }
    BROKEN.store(true, Ordering::SeqCst);
    put(&ledger, 2, b"lost").unwrap_err();
    BROKEN.store(false, Ordering::SeqCst);
    assert_eq!(ledger.try_again(), None);
    put(&ledger, 3, b"after").unwrap();
    assert_eq!(keys(&ledger), [1, 3]);
}

/// A file system of `size`; None where the test may not mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(dir.path()).output();
        mounted.is_ok_and(|m| m.status.success()).then(|| Self(dir))
    }

    /// Takes all of its space.
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

    fn free(&self) {
        fs::remove_file(self.0.path().join("fill")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn it_writes_again_when_a_full_disk_has_room_again() {
    let Some(small) = Small::new("8m") else { return };
    let ledger = Ledger::open(&small.0.path().join("l.redb"), 0).unwrap();
    put(&ledger, 0, b"before").unwrap();
    for round in 1..4 {
        small.fill();
        let failed = (0..200).find_map(|n| put(&ledger, 1000 + n, &[7; 60_000]).err()).expect("the disk is full");
        assert!(failed.is_full(), "{failed:?}");
        let failing = ledger.failing().unwrap();
        assert!(failing.full && failing.why.contains("free some space"), "{failing:?}");
        small.free();
        assert_eq!(ledger.try_again(), None);
        put(&ledger, round, b"after").unwrap();
        ledger.write(|write| Ok(write.open_table(TABLE)?.retain(|key, _| key < 1000)?)).unwrap();
    }
    drop(ledger);
    assert_eq!(keys(&Ledger::open(&small.0.path().join("l.redb"), 0).unwrap()), [0, 1, 2, 3]);
}

#[test]
fn room_that_is_held_serves_small_changes_on_a_full_disk() {
    let Some(small) = Small::new("16m") else { return };
    let path = small.0.path().join("l.redb");
    let ledger = Ledger::open(&path, 4 << 20).unwrap();
    put(&ledger, 0, b"before").unwrap();
    small.fill();
    for n in 1..100 {
        put(&ledger, n, &[7; 5000]).unwrap();
    }
    for n in 1..100 {
        ledger.write(|write| Ok(write.open_table(TABLE)?.remove(n)?.is_some())).unwrap();
    }
    // A daemon that is killed and starts again on the full disk.
    std::mem::forget(ledger);
    let copy = small.0.path().join("killed.redb");
    small.free();
    fs::copy(&path, &copy).unwrap();
    small.fill();
    assert_eq!(keys(&Ledger::open(&copy, 0).unwrap()), [0]);
}

#[test]
fn a_file_whose_making_was_interrupted_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.redb");
    fs::write(path.with_extension("new"), [0; 100]).unwrap();
    let ledger = Ledger::open(&path, 1 << 20).unwrap();
    put(&ledger, 1, b"").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(!path.with_extension("new").exists());
    assert!(matches!(Ledger::open(&path, 0), Err(LedgerError::InUse(_))));
}
