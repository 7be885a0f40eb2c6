//! Records of pods and containers that outlive the daemon: one redb database, one JSON value each.
//!
//! ```text
//!  <state_dir>/records.redb
//!  ├── pods        id → {"v":1,"record":{…}}     PodRecord
//!  ├── containers  id → {"v":1,"record":{…}}     ContainerRecord
//!  └── set_aside   <table>/<id> → bytes          rows that this daemon could not read, as they were
//! ```
//!
//! A record is written before an action (`creating`, `removing`, …) and after it, each in one durable transaction, so a kill at any
//! moment leaves either state, and start-up ([`crate::node::restore`]) finishes or undoes what a record says was begun.
//! The end of something never waits for that: when the disk is full, pods and containers are stopped and removed all the same, and
//! what could not be written is written later ([`kept`]).
//!
//! Within a version fields are only added, with defaults; readers ignore what they do not know. A record that cannot be read, or is of a
//! newer version, is set aside: its pod is shown as not ready, and can be removed ([`salvage`]).

mod container;
mod info;
mod kept;
mod pod;
pub(crate) mod salvage;

use cofferdam_ledger::LedgerError;
use redb::TableDefinition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use container::{
    ContainerPhase, ContainerRecord, ImageVolumeRecord, MountRecord, ResourcesRecord, UserRecord,
};
pub(crate) use info::Info;
pub(crate) use kept::{Records, Unreadable};
pub(crate) use pod::{NamespacesRecord, PodPhase, PodRecord};

const VERSION: u32 = 1;

pub(crate) type Table = TableDefinition<'static, &'static str, &'static [u8]>;
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
    #[error(transparent)]
    Ledger(LedgerError),
    /// A record of a newer daemon.
    #[error("record of {id} has version {version}, this daemon knows {VERSION}: only a newer one can go on with it")]
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
    /// A record that cannot be told in JSON.
    #[error("a record cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// The writing task ended early.
    #[error("the task that writes records ended early")]
    Task(#[source] tokio::task::JoinError),
}

impl From<LedgerError> for RecordError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::InUse(path) => Self::InUse(path.display().to_string()),
            other => Self::Ledger(other),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    record: T,
}

/// A record as it is written.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec(&Versioned { v: VERSION, record }).map_err(RecordError::Encode)
}

/// A record as the next daemon reads it.
#[cfg(test)]
pub(crate) fn reread<T: Serialize + DeserializeOwned>(record: &T) -> T {
    decode("reread", &encode(record).expect("a record is JSON")).expect("a record that was written can be read")
}

pub(crate) fn decode<T: DeserializeOwned>(id: &str, bytes: &[u8]) -> Result<T, RecordError> {
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

#[cfg(test)]
pub(crate) mod tests;
