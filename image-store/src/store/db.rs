//! The database: what must outlive the daemon. Everything is in memory too; it is read once, when the store is
//! opened.
//!
//! ```text
//! table    key                value (JSON)
//! meta     "version"          1
//! images   sha256:<config>    ImageRecord
//! layers   <chain id, hex>    LayerRecord, of every layer that an image or a lease names
//! leases   <holder>           LeaseRecord
//! ```
//!
//! A database of a newer version is not opened. A directory below `layers/` that no image or lease names is rubbish.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::ImageConfig;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const VERSION: u32 = 1;
const META: Table = TableDefinition::new("meta");
const IMAGES: Table = TableDefinition::new("images");
const LAYERS: Table = TableDefinition::new("layers");
const LEASES: Table = TableDefinition::new("leases");
/// The database is a few hundred KiB and read once.
const CACHE: usize = 1 << 20;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    pub(crate) size: u64,
    pub(crate) config: ImageConfig,
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
    /// Not known to be on the disk: good for as long as the machine has not been booted again.
    pub(crate) unsynced: Option<Unsynced>,
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
}

/// One step from a state to another, written whole or not at all. `None` removes.
#[derive(Default)]
pub(crate) struct Change<'a> {
    pub(crate) images: Vec<(&'a str, Option<&'a ImageRecord>)>,
    pub(crate) layers: Vec<(&'a Digest, Option<&'a LayerRecord>)>,
    pub(crate) leases: Vec<(&'a str, Option<&'a LeaseRecord>)>,
}

pub(crate) struct Db {
    database: Database,
    path: PathBuf,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |e| StoreError::database(what, e)
}

impl Db {
    /// Opens or makes the database. A new one gets its name when it is whole: redb does not open a file that was
    /// killed while it was made.
    pub(crate) fn open(path: PathBuf) -> StoreResult<(Self, Contents)> {
        if !path.exists() {
            let new = path.with_extension("new");
            let io = |what: &str, e| StoreError::io(format!("{what} {}", new.display()), e);
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("removing", e)),
                _ => {}
            }
            drop(Self::at(&new)?);
            std::fs::rename(&new, &path).map_err(|e| io("renaming", e))?;
        }
        let db = Self::at(&path)?;
        let contents = db.read()?;
        Ok((db, contents))
    }

    fn at(path: &Path) -> StoreResult<Self> {
        let database = Database::builder().set_cache_size(CACHE).create(path).map_err(failed("opening"))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|e| StoreError::io(format!("setting the mode of {}", path.display()), e))?;
        let db = Self { database, path: path.to_owned() };
        db.check_version()?;
        Ok(db)
    }

    fn check_version(&self) -> StoreResult<()> {
        let write = self.database.begin_write().map_err(failed("beginning to write"))?;
        {
            let mut meta = write.open_table(META).map_err(failed("opening a table"))?;
            for table in [IMAGES, LAYERS, LEASES] {
                write.open_table(table).map_err(failed("opening a table"))?;
            }
            let found = meta.get("version").map_err(failed("reading the version"))?.map(|v| v.value().to_vec());
            match found {
                None => {
                    let version = VERSION.to_string();
                    meta.insert("version", version.as_bytes()).map_err(failed("writing the version"))?;
                }
                Some(found) if found == VERSION.to_string().as_bytes() => {
                    drop(meta);
                    return write.abort().map_err(failed("ending a transaction"));
                }
                Some(found) => {
                    return Err(StoreError::Config(format!(
                        "{} is of version {}; this program knows version {VERSION}: use the one that wrote it, or \
                         remove the store",
                        self.path.display(),
                        String::from_utf8_lossy(&found)
                    )));
                }
            }
        }
        write.commit().map_err(failed("committing"))
    }

    fn read(&self) -> StoreResult<Contents> {
        let mut contents = Contents::default();
        self.each(IMAGES, |key, value| {
            contents.images.insert(key.into(), value);
            Ok(())
        })?;
        self.each(LAYERS, |key, value| {
            let chain = Digest::from_hex(key).ok_or_else(|| StoreError::malformed("a layer's record", key))?;
            contents.layers.insert(chain, value);
            Ok(())
        })?;
        self.each(LEASES, |key, value| {
            contents.leases.insert(key.into(), value);
            Ok(())
        })?;
        Ok(contents)
    }

    fn each<T: DeserializeOwned>(
        &self,
        table: Table,
        mut take: impl FnMut(&str, T) -> StoreResult<()>,
    ) -> StoreResult<()> {
        let read = self.database.begin_read().map_err(failed("beginning to read"))?;
        let table = read.open_table(table).map_err(failed("opening a table"))?;
        for entry in table.iter().map_err(failed("reading"))? {
            let (key, value) = entry.map_err(failed("reading"))?;
            take(key.value(), serde_json::from_slice(value.value()).map_err(failed("reading a record"))?)?;
        }
        Ok(())
    }

    /// Durable when this returns.
    pub(crate) fn commit(&mut self, change: &Change<'_>) -> StoreResult<()> {
        let write = self.database.begin_write().map_err(failed("beginning to write"))?;
        put(&write, IMAGES, change.images.iter().map(|(k, v)| ((*k).to_owned(), *v)))?;
        put(&write, LAYERS, change.layers.iter().map(|(k, v)| (k.hex(), *v)))?;
        put(&write, LEASES, change.leases.iter().map(|(k, v)| ((*k).to_owned(), *v)))?;
        write.commit().map_err(failed("committing"))
    }
}

fn put<'a, T: Serialize + 'a>(
    write: &redb::WriteTransaction,
    table: Table,
    entries: impl Iterator<Item = (String, Option<&'a T>)>,
) -> StoreResult<()> {
    let mut table = write.open_table(table).map_err(failed("opening a table"))?;
    for (key, value) in entries {
        match value {
            Some(value) => {
                let json = serde_json::to_vec(value).map_err(failed("writing a record"))?;
                table.insert(key.as_str(), json.as_slice()).map_err(failed("writing"))?;
            }
            None => {
                table.remove(key.as_str()).map_err(failed("removing"))?;
            }
        }
    }
    Ok(())
}
