//! A redb database in a file that goes on after a full or failing disk.
//!
//! redb refuses all work after the first failed read, write or sync of its file (`PreviousIo`), until the database is
//! opened again. A [`Ledger`] does that by itself: after a failure it closes the database, opens it again (redb then
//! goes back to the last whole transaction) and tries the transaction once more. When that fails too, the caller gets
//! the error, and the next transaction begins with opening the database.
//!
//! A ledger also holds room in advance: blocks of the file system that belong to the file beyond its end, so that
//! small transactions succeed while the disk is full. File systems that cannot do that (and those that never write in
//! place) leave it out.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use rustix::fs::FallocateFlags;

/// Bytes of the database that are kept in memory.
const CACHE: usize = 1 << 20;
/// Where [`Ledger::try_again`] writes.
const TRIED: TableDefinition<'static, &'static str, u64> = TableDefinition::new("tried");

/// Why a ledger could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Somebody else has the file open.
    #[error("another process uses {0}")]
    InUse(PathBuf),
    /// The file system has no room.
    #[error("cannot {what} {path}: free some space on its file system", path = .path.display())]
    Full {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// Anything else.
    #[error("cannot {what} {path}", path = .path.display())]
    Failed {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
}

/// Why the last transaction failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The file system has no room; otherwise it fails.
    pub full: bool,
    /// In one line, for people.
    pub why: String,
}

/// The database.
pub struct Ledger {
    path: PathBuf,
    /// Bytes of room that the file holds.
    room: u64,
    open: fn(&Path) -> Result<Database, redb::DatabaseError>,
    /// None after a failure, until it can be opened again.
    database: Mutex<Option<Database>>,
    failing: Mutex<Option<Failing>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

impl Ledger {
    /// Opens or makes the database at `path`, which holds at least `room` bytes of the disk from then on. A new one gets
    /// its name when it is whole, since redb does not open a file whose making was interrupted. Blocks, like all of this.
    ///
    /// # Errors
    /// When the file cannot be opened or made, or somebody else has it.
    pub fn open(path: &Path, room: u64) -> Result<Self, LedgerError> {
        Self::open_with(path, room, open)
    }

    fn open_with(
        path: &Path,
        room: u64,
        open: fn(&Path) -> Result<Database, redb::DatabaseError>,
    ) -> Result<Self, LedgerError> {
        let ledger = Self { path: path.to_owned(), room, open, database: Mutex::default(), failing: Mutex::default() };
        if !path.exists() {
            ledger.make().map_err(|e| ledger.failed("make", e))?;
        }
        *lock(&ledger.database) = Some(ledger.opened().map_err(|e| ledger.failed("open", e))?);
        Ok(ledger)
    }

    fn make(&self) -> Result<(), redb::Error> {
        let new = self.path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        (self.open)(&new)?.close()?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(folder) => Ok(File::open(folder)?.sync_all()?),
            None => Ok(()),
        }
    }

    fn opened(&self) -> Result<Database, redb::Error> {
        let database = (self.open)(&self.path)?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o600))?;
        self.hold_room();
        Ok(database)
    }

    /// Has the file system set blocks aside for the file. Best effort: without them a full disk is an error sooner.
    fn hold_room(&self) {
        let held = || -> io::Result<()> {
            let file = File::options().write(true).open(&self.path)?;
            if file.metadata()?.blocks().saturating_mul(512) < self.room {
                rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, self.room)?;
            }
            Ok(())
        };
        if let Err(error) = held() {
            tracing::debug!(path = %self.path.display(), %error, "no room can be held for a database");
        }
    }

    fn failed(&self, what: &'static str, error: redb::Error) -> LedgerError {
        let (path, source) = (self.path.clone(), Box::new(error));
        match &*source {
            redb::Error::DatabaseAlreadyOpen => LedgerError::InUse(path),
            error if is_full(error) => LedgerError::Full { what, path, source },
            _ => LedgerError::Failed { what, path, source },
        }
    }

    /// Reads in one transaction.
    ///
    /// # Errors
    /// What `read` answers, or why the database cannot be read, also when it is opened again.
    pub fn read<T>(&self, mut read: impl FnMut(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, LedgerError> {
        self.attempt("read", |database| read(&database.begin_read()?))
    }

    /// Does `change` in one transaction, which is on the disk when this returns. After a failure `change` is called once
    /// more, in a new transaction.
    ///
    /// # Errors
    /// What `change` answers, or why nothing can be written, also when the database is opened again.
    pub fn write<T>(
        &self,
        mut change: impl FnMut(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, LedgerError> {
        self.attempt("write", |database| {
            let write = database.begin_write()?;
            let done = change(&write)?;
            write.commit()?;
            self.hold_room();
            Ok(done)
        })
    }

    fn attempt<T>(
        &self,
        what: &'static str,
        mut work: impl FnMut(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, LedgerError> {
        let mut slot = lock(&self.database);
        let mut answer = Err(redb::Error::PreviousIo);
        for attempt in 0..2 {
            answer = match slot.take().map_or_else(|| self.opened(), Ok) {
                Ok(database) => work(&database).inspect(|_| *slot = Some(database)),
                Err(error) => Err(error),
            };
            match &answer {
                Ok(_) => break,
                // Said once, not with each attempt on a disk that stays full.
                Err(error) if attempt == 0 && lock(&self.failing).is_none() => {
                    tracing::warn!(path = %self.path.display(), what, %error, "database is opened again");
                }
                Err(_) => {}
            }
        }
        let answer = answer.map_err(|e| self.failed(what, e));
        *lock(&self.failing) = answer.as_ref().err().map(LedgerError::failing);
        answer
    }

    /// Why the last transaction failed, if it did.
    pub fn failing(&self) -> Option<Failing> {
        lock(&self.failing).clone()
    }

    /// Finds out whether a ledger that fails can write again; one that does not is left alone.
    pub fn try_again(&self) -> Option<Failing> {
        if self.failing().is_some() {
            let write = |write: &WriteTransaction| {
                let mut table = write.open_table(TRIED)?;
                let times = table.get("times")?.map_or(0, |times| times.value());
                table.insert("times", times.wrapping_add(1))?;
                Ok(())
            };
            if self.write(write).is_ok() {
                tracing::info!(path = %self.path.display(), "database can be written again");
            }
        }
        self.failing()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl LedgerError {
    /// Whether the file system has no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    fn failing(&self) -> Failing {
        let mut why = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            why.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Failing { full: self.is_full(), why }
    }
}

fn is_full(error: &redb::Error) -> bool {
    let full = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    matches!(error, redb::Error::Io(error) if full(error))
}

#[cfg(test)]
mod tests;
