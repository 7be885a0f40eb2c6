//! The database of records, and what it owes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_ledger::{Failing, Ledger};
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableHandle, WriteTransaction};
use serde::de::DeserializeOwned;

use super::{RecordError, Table, decode};

/// Rows that could not be read, by table and id.
const SET_ASIDE: Table = TableDefinition::new("set_aside");
/// Most rows that are set aside; what cannot be read beyond them is only said in the log.
const MOST_SET_ASIDE: u64 = 1024;
/// Bytes of the disk that the database holds for the time when the disk is full: the records of a few thousand containers.
const ROOM: u64 = 16 << 20;

/// Answers what is to be written, at the moment of writing; nothing deletes.
type Latest = dyn Fn() -> Result<Option<Vec<u8>>, RecordError> + Send + Sync;

/// A row that this daemon cannot read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) id: String,
    /// In one line, for people.
    pub(crate) why: String,
    pub(crate) bytes: Vec<u8>,
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    /// What could not be written, by table and id: at most one entry for each pod and container.
    behind: Mutex<BTreeMap<(String, String), Behind>>,
}

#[derive(Clone)]
struct Behind {
    table: Table,
    latest: Arc<Latest>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Records {
    /// Opens or makes the database at `path`. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordError> {
        let inner = Inner { ledger: Ledger::open(path, ROOM)?, behind: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All records of a table, and the rows that are none. Blocks.
    pub(crate) fn all<T: DeserializeOwned>(&self, table: Table) -> Result<(Vec<T>, Vec<Unreadable>), RecordError> {
        let rows = self.inner.ledger.read(|read| {
            let table = match read.open_table(table) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let row = |row: Result<
                (redb::AccessGuard<'_, &'static str>, redb::AccessGuard<'_, &'static [u8]>),
                redb::StorageError,
            >| {
                let (id, bytes) = row?;
                Ok((id.value().to_owned(), bytes.value().to_vec()))
            };
            table.iter()?.map(row).collect::<Result<Vec<_>, redb::Error>>()
        })?;
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for (id, bytes) in rows {
            match decode(&id, &bytes) {
                Ok(record) => records.push(record),
                Err(error) => unreadable.push(Unreadable { why: crate::error::chain(&error), id, bytes }),
            }
        }
        Ok((records, unreadable))
    }

    /// Puts `instead` (nothing: no row) in the place of a row that cannot be read, which is kept beside it. Blocks.
    pub(crate) fn set_aside(&self, table: Table, row: &Unreadable, instead: Option<&[u8]>) -> Result<(), RecordError> {
        let key = format!("{}/{}", table.name(), row.id);
        Ok(self.inner.ledger.write(|write| {
            let mut aside = write.open_table(SET_ASIDE)?;
            if aside.len()? < MOST_SET_ASIDE {
                aside.insert(key.as_str(), row.bytes.as_slice())?;
            }
            let mut table = write.open_table(table)?;
            match instead {
                Some(bytes) => drop(table.insert(row.id.as_str(), bytes)?),
                None => drop(table.remove(row.id.as_str())?),
            }
            Ok(())
        })?)
    }

    /// Writes what `latest` answers once it is this writer's turn, durably. Writers never overtake each other with something older,
    /// since each asks for the newest at its turn; it may be asked twice.
    pub(crate) async fn write(
        &self,
        table: Table,
        id: &str,
        latest: impl Fn() -> Result<Option<Vec<u8>>, RecordError> + Send + Sync + 'static,
    ) -> Result<(), RecordError> {
        self.write_shared(table, id, Arc::new(latest)).await
    }

    async fn write_shared(&self, table: Table, id: &str, latest: Arc<Latest>) -> Result<(), RecordError> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        let written = tokio::task::spawn_blocking(move || {
            // Whatever was owed of it is in what is written now; a failure that comes later owes it again.
            let owed = lock(&inner.behind).remove(&(table.name().to_owned(), id.clone()));
            let written = inner.write_one(table, &id, &*latest);
            if let (Err(_), Some(owed)) = (&written, owed) {
                inner.owe(table, &id, owed.latest);
            }
            written
        });
        written.await.map_err(RecordError::Task)?
    }

    /// As [`Records::write`], for what has happened whether it can be written or not: what the disk does not take now is written as soon
    /// as it can be. A daemon that ends before that leaves an older record, which start-up compares with what there is.
    pub(crate) async fn write_or_later(
        &self,
        table: Table,
        id: &str,
        latest: impl Fn() -> Result<Option<Vec<u8>>, RecordError> + Send + Sync + 'static,
    ) {
        let latest: Arc<Latest> = Arc::new(latest);
        if let Err(error) = self.write_shared(table, id, latest.clone()).await {
            let error = crate::error::chain(&error);
            tracing::error!(table = table.name(), id, error, "record not written yet");
            self.inner.owe(table, id, latest);
        }
    }

    /// Writes what is owed, if that can be written now. Blocks.
    pub(crate) fn catch_up(&self) {
        let owed = std::mem::take(&mut *lock(&self.inner.behind));
        let mut owed = owed.into_iter();
        while let Some((key, behind)) = owed.next() {
            if let Err(error) = self.inner.write_one(behind.table, &key.1, &*behind.latest) {
                tracing::debug!(error = crate::error::chain(&error), "records are still not written");
                for (key, behind) in [(key, behind)].into_iter().chain(owed) {
                    self.inner.owe(behind.table, &key.1, behind.latest);
                }
                return;
            }
        }
        self.inner.ledger.try_again();
    }

    /// How many records are still to be written.
    pub(crate) fn behind(&self) -> usize {
        lock(&self.inner.behind).len()
    }

    /// Why records cannot be written, if so.
    pub(crate) fn failing(&self) -> Option<Failing> {
        self.inner.ledger.failing()
    }
}

impl Inner {
    fn owe(&self, table: Table, id: &str, latest: Arc<Latest>) {
        lock(&self.behind).entry((table.name().to_owned(), id.to_owned())).or_insert(Behind { table, latest });
    }

    fn write_one(&self, table: Table, id: &str, latest: &Latest) -> Result<(), RecordError> {
        let mut unknown = None;
        let change = |write: &WriteTransaction| {
            match latest() {
                Ok(Some(bytes)) => drop(write.open_table(table)?.insert(id, bytes.as_slice())?),
                Ok(None) => {
                    write.open_table(table)?.remove(id)?;
                    write.open_table(SET_ASIDE)?.remove(format!("{}/{id}", table.name()).as_str())?;
                }
                Err(error) => unknown = Some(error),
            }
            Ok(())
        };
        self.ledger.write(change)?;
        unknown.map_or(Ok(()), Err)
    }
}
