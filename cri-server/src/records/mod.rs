//! Records of pods and containers that outlive the daemon: one redb database, one JSON value each.
//!
//! ```text
//!  <state_dir>/records.redb
//!  ├── pods        id → {"v":1,"record":{…}}     PodRecord
//!  └── containers  id → {"v":1,"record":{…}}     ContainerRecord
//! ```
//!
//! A record is written before an action (`creating`, `removing`, …) and after it, each in one durable transaction, so a kill at any
//! moment leaves either state, and start-up ([`crate::node::restore`]) finishes or undoes what a record says was begun.
//!
//! Within a version fields are only added, with defaults; readers ignore what they do not know. A record of a newer version
//! is refused at start-up, since an older daemon cannot know what it must not break.

mod container;
mod pod;

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use container::{
    ContainerPhase, ContainerRecord, ImageVolumeRecord, MountRecord, ResourcesRecord, UserRecord,
};
pub(crate) use pod::{NamespacesRecord, PodPhase, PodRecord};

const VERSION: u32 = 1;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;
/// Pods by id.
pub(crate) const PODS: Table = TableDefinition::new("pods");
/// Containers by id.
pub(crate) const CONTAINERS: Table = TableDefinition::new("containers");

/// Why a record cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Another daemon has the database.
    #[error("another daemon uses {0}: give each its own state_dir")]
    InUse(String),
    /// The database refused.
    #[error("cannot {what} records")]
    Database {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record that this daemon cannot read.
    #[error(
        "record of {id} has version {version}, this daemon knows {VERSION}: start a newer one, or remove the pod with that one first"
    )]
    Newer {
        /// Whose.
        id: String,
        /// Its version.
        version: u32,
    },
    /// A record that nobody wrote.
    #[error("record of {id} cannot be read")]
    Malformed {
        /// Whose.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The writing task ended early.
    #[error("the task that writes records ended early")]
    Task(#[source] tokio::task::JoinError),
}

fn database<E: Into<redb::Error>>(what: &'static str) -> impl FnOnce(E) -> RecordError {
    move |e| RecordError::Database { what, source: Box::new(e.into()) }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    record: T,
}

/// A record as it is written.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Strings, numbers and maps with string keys: nothing that JSON cannot hold.
    serde_json::to_vec(&Versioned { v: VERSION, record }).unwrap_or_default()
}

/// A record as the next daemon reads it.
#[cfg(test)]
pub(crate) fn reread<T: Serialize + DeserializeOwned>(record: &T) -> T {
    decode("reread", &encode(record)).expect("a record that was written can be read")
}

fn decode<T: DeserializeOwned>(id: &str, bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let malformed = |source| RecordError::Malformed { id: id.to_owned(), source };
    let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
    if version.v > VERSION {
        return Err(RecordError::Newer { id: id.to_owned(), version: version.v });
    }
    let versioned: Versioned<T> = serde_json::from_slice(bytes).map_err(malformed)?;
    Ok(versioned.record)
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Records {
    db: Arc<Database>,
}

impl Records {
    /// Opens or makes the database at `path`. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordError> {
        let db = Database::builder().set_cache_size(1 << 20).create(path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => RecordError::InUse(path.display().to_string()),
            other => database("open the database of")(other),
        })?;
        let write = db.begin_write().map_err(database("begin to write"))?;
        for table in [PODS, CONTAINERS] {
            write.open_table(table).map_err(database("make the tables of"))?;
        }
        write.commit().map_err(database("make the tables of"))?;
        Ok(Self { db: Arc::new(db) })
    }

    /// All records of a table. Blocks.
    pub(crate) fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, RecordError> {
        let read = self.db.begin_read().map_err(database("begin to read"))?;
        let table = read.open_table(table).map_err(database("read"))?;
        let mut found = Vec::new();
        for row in table.iter().map_err(database("read"))? {
            let (id, bytes) = row.map_err(database("read"))?;
            found.push(decode(id.value(), bytes.value())?);
        }
        Ok(found)
    }

    /// Writes what `latest` answers once it is this writer's turn, durably; `None` deletes. Writers never overtake each other
    /// with something older, since each asks for the newest at its turn.
    pub(crate) async fn write(
        &self,
        table: Table,
        id: &str,
        latest: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<(), RecordError> {
        let (db, id) = (self.db.clone(), id.to_owned());
        let written = tokio::task::spawn_blocking(move || write_one(&db, table, &id, latest)).await;
        written.map_err(RecordError::Task)?
    }
}

fn write_one(
    db: &Database,
    table: Table,
    id: &str,
    latest: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<(), RecordError> {
    let write = db.begin_write().map_err(database("begin to write"))?;
    {
        let mut table = write.open_table(table).map_err(database("write"))?;
        match latest() {
            Some(bytes) => drop(table.insert(id, bytes.as_slice()).map_err(database("write"))?),
            None => drop(table.remove(id).map_err(database("delete"))?),
        }
    }
    write.commit().map_err(database("write"))
}

#[cfg(test)]
pub(crate) mod tests;
