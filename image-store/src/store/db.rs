//! The database: what must outlive the daemon. Everything is in memory too; it is read once, when
//! the store is opened.
//!
//! ```text
//! table    key                value (JSON)
//! meta     "version"          1
//! images   sha256:<config>    ImageRecord
//! layers   <chain id, hex>    LayerRecord, of every layer that an image or a lease names
//! leases   <holder>           LeaseRecord
//! ```
//!
//! A database of a newer version is not opened. A directory below `layers/` that no image or lease
//! names is rubbish. A row that cannot be read is left out: an image is pulled again, and layers
//! that nothing names go.
//!
//! Removals do not wait for a disk that is full, since it is removals that make room: what could
//! not be removed from the database is owed, and goes with the next change. A daemon that ends
//! before that finds images whose layers are gone, and forgets them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cofferdam_ledger::{Failing, Ledger};
use redb::{ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::staging::Record;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::ImageConfig;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const VERSION: u32 = 1;
const META: Table = TableDefinition::new("meta");
const IMAGES: Table = TableDefinition::new("images");
const LAYERS: Table = TableDefinition::new("layers");
const LEASES: Table = TableDefinition::new("leases");
/// Bytes of the disk that the database, a few hundred KiB, holds for the time when the disk is
/// full.
const ROOM: u64 = 4 << 20;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    pub(crate) size: u64,
    pub(crate) config: ImageConfig,
    /// The type of an OCI artifact; `None` for an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact: Option<String>,
    /// Chain IDs, lowest first.
    pub(crate) chains: Vec<Digest>,
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Nothing of the layers below it shows.
    pub(crate) hides_below: bool,
    /// Its content, which may be on top of other layers too. Absent in records of earlier versions.
    #[serde(default)]
    pub(crate) diff_id: Option<Digest>,
    /// Not known to be on the disk: good for as long as the machine has not been booted again.
    pub(crate) unsynced: Option<Unsynced>,
}

impl LayerRecord {
    /// Of a layer that an earlier daemon of this boot left, and that the database does not know.
    pub(crate) fn left(record: &Record) -> Self {
        Self {
            bytes: record.bytes,
            inodes: record.inodes,
            hides_below: record.extracted.hides_below,
            diff_id: Some(record.diff_id),
            // No layer of this run has this serial.
            unsynced: Some(Unsynced { boot: record.boot.clone(), serial: u64::MAX }),
        }
    }
}

/// When a layer was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unsynced {
    /// The kernel's boot id.
    pub(crate) boot: String,
    /// Tells the layer from an earlier one of the same name.
    pub(crate) serial: u64,
}

/// Somebody needs layers to stay, whatever becomes of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) image: String,
    pub(crate) chains: Vec<Digest>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) images: BTreeMap<String, ImageRecord>,
    pub(crate) layers: BTreeMap<Digest, LayerRecord>,
    pub(crate) leases: BTreeMap<String, LeaseRecord>,
    /// There are leases that could not be read.
    pub(crate) unread_leases: bool,
}

/// One step from a state to another, written whole or not at all. `None` removes.
#[derive(Default)]
pub(crate) struct Change<'a> {
    pub(crate) images: Vec<(&'a str, Option<&'a ImageRecord>)>,
    pub(crate) layers: Vec<(&'a Digest, Option<&'a LayerRecord>)>,
    pub(crate) leases: Vec<(&'a str, Option<&'a LeaseRecord>)>,
}

pub(crate) struct Db {
    ledger: Ledger,
    owed: Owed,
}

/// Rows that are to go and could not be removed yet.
#[derive(Default)]
struct Owed {
    images: BTreeSet<String>,
    layers: BTreeSet<Digest>,
    leases: BTreeSet<String>,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |e| StoreError::database(what, e)
}

fn refused(error: cofferdam_ledger::LedgerError) -> StoreError {
    match error.is_full() {
        true => StoreError::NoSpace { what: format!("writing the image database: {error}") },
        false => failed("reading or writing")(error),
    }
}

impl Db {
    /// Opens or makes the database.
    pub(crate) fn open(path: &Path) -> StoreResult<(Self, Contents)> {
        let ledger = Ledger::open(path, ROOM).map_err(refused)?;
        let db = Self { ledger, owed: Owed::default() };
        db.check_version()?;
        let contents = db.read()?;
        Ok((db, contents))
    }

    fn check_version(&self) -> StoreResult<()> {
        let found = self.rows(META)?.into_iter().find(|(key, _)| key == "version").map(|(_, value)| value);
        match found {
            None => self
                .ledger
                .write(|write| {
                    write.open_table(META)?.insert("version", VERSION.to_string().as_bytes())?;
                    Ok(())
                })
                .map_err(refused),
            Some(found) if found == VERSION.to_string().as_bytes() => Ok(()),
            Some(found) => Err(StoreError::Config(format!(
                "{} is of version {}; this program knows version {VERSION}: use the one that wrote it, or remove the \
                 store",
                self.ledger.path().display(),
                String::from_utf8_lossy(&found)
            ))),
        }
    }

    fn read(&self) -> StoreResult<Contents> {
        let images = self.each(IMAGES)?.collect();
        let chain = |(key, layer): (String, LayerRecord)| Some((Digest::from_hex(&key)?, layer));
        let layers = self.each(LAYERS)?.filter_map(chain).collect();
        let leases: BTreeMap<_, _> = self.each(LEASES)?.collect();
        let unread_leases = leases.len() < self.rows(LEASES)?.len();
        Ok(Contents { images, layers, leases, unread_leases })
    }

    fn rows(&self, table: Table) -> StoreResult<Vec<(String, Vec<u8>)>> {
        let read = self.ledger.read(|read| {
            let table = match read.open_table(table) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let row = |row: Result<
                (redb::AccessGuard<'_, &'static str>, redb::AccessGuard<'_, &'static [u8]>),
                redb::StorageError,
            >| {
                let (key, value) = row?;
                Ok((key.value().to_owned(), value.value().to_vec()))
            };
            table.iter()?.map(row).collect()
        });
        read.map_err(refused)
    }

    /// The rows of a table that can be read.
    fn each<T: DeserializeOwned>(&self, table: Table) -> StoreResult<impl Iterator<Item = (String, T)>> {
        let rows = self.rows(table)?;
        Ok(rows.into_iter().filter_map(move |(key, value)| match serde_json::from_slice(&value) {
            Ok(value) => Some((key, value)),
            Err(error) => {
                tracing::error!(%table, key, %error, "a row of the image database cannot be read and is left out");
                None
            }
        }))
    }

    /// Durable when this returns, with all that was owed.
    pub(crate) fn commit(&mut self, change: &Change<'_>) -> StoreResult<()> {
        let images = rows(change.images.iter().map(|(k, v)| ((*k).to_owned(), *v)))?;
        let layers = rows(change.layers.iter().map(|(k, v)| (k.hex(), *v)))?;
        let leases = rows(change.leases.iter().map(|(k, v)| ((*k).to_owned(), *v)))?;
        let owed = &self.owed;
        let written = self.ledger.write(|write| {
            remove(write, IMAGES, owed.images.iter().cloned())?;
            remove(write, LAYERS, owed.layers.iter().map(Digest::hex))?;
            remove(write, LEASES, owed.leases.iter().cloned())?;
            put(write, IMAGES, &images)?;
            put(write, LAYERS, &layers)?;
            put(write, LEASES, &leases)
        });
        written.map_err(refused)?;
        self.owed = Owed::default();
        Ok(())
    }

    /// As [`Db::commit`] of a change that only removes; what cannot be removed now is owed.
    pub(crate) fn remove(&mut self, change: &Change<'_>) {
        if let Err(error) = self.commit(change) {
            tracing::warn!(error = error.chain(), "removed from memory, and from the image database later");
            self.owed.images.extend(change.images.iter().map(|(id, _)| (*id).to_owned()));
            self.owed.layers.extend(change.layers.iter().map(|(chain, _)| **chain));
            self.owed.leases.extend(change.leases.iter().map(|(holder, _)| (*holder).to_owned()));
        }
    }

    /// Removes what is owed.
    pub(crate) fn settle(&mut self) -> StoreResult<()> {
        let owed = &self.owed;
        match owed.images.is_empty() && owed.layers.is_empty() && owed.leases.is_empty() {
            true => Ok(()),
            false => self.commit(&Change::default()),
        }
    }

    /// Why the database cannot be written, if so; finds out anew.
    pub(crate) fn failing(&self) -> Option<Failing> {
        self.ledger.try_again()
    }
}

/// A row as it is written; nothing removes it.
type Row = (String, Option<Vec<u8>>);

fn rows<'a, T: Serialize + 'a>(entries: impl Iterator<Item = (String, Option<&'a T>)>) -> StoreResult<Vec<Row>> {
    let row = |(key, value): (String, Option<&T>)| {
        let json = value.map(serde_json::to_vec).transpose().map_err(failed("writing a record"))?;
        Ok((key, json))
    };
    entries.map(row).collect()
}

fn put(write: &redb::WriteTransaction, table: Table, rows: &[Row]) -> Result<(), redb::Error> {
    let mut table = write.open_table(table)?;
    for (key, value) in rows {
        match value {
            Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
            None => drop(table.remove(key.as_str())?),
        }
    }
    Ok(())
}

fn remove(write: &redb::WriteTransaction, table: Table, keys: impl Iterator<Item = String>) -> Result<(), redb::Error> {
    let mut table = write.open_table(table)?;
    for key in keys {
        table.remove(key.as_str())?;
    }
    Ok(())
}
