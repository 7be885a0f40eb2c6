//! What an earlier daemon left, when the store is opened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::db::{Change, Contents, Db, LayerRecord};
use super::jobs::{Jobs, deadline};
use super::staging::{self, Record};
use super::state::State;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};

/// Whole layers of pulls that failed or were killed: kept by the boot in which they were written,
/// as long as they are not too old.
fn kept(path: &Path, config: &Config, boot_id: &str) -> Option<(Record, SystemTime)> {
    let record = Record::of(path).filter(|record| record.boot == boot_id)?;
    let since = Record::time(path).filter(|since| *since > deadline(config.keep_layers))?;
    Some((record, since))
}

/// Brings directory and database together after whatever ended the last run.
pub(super) fn clean_up(
    config: &Config,
    db: &mut Db,
    contents: Contents,
    boot_id: &str,
    jobs: &Jobs,
) -> StoreResult<State> {
    let root = &config.root;
    let failed = |e| StoreError::io(format!("cleaning up {}", root.display()), e);
    for entry in fs::read_dir(root.join("tmp")).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some((record, since)) = kept(&path, config, boot_id) {
            jobs.adopt(path, record, since);
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            staging::delete(&path);
        } else {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    let Contents { images, layers, leases, unread_leases } = contents;
    let mut on_disk = HashSet::new();
    for entry in fs::read_dir(root.join("layers")).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        on_disk.extend(name.to_str().and_then(Digest::from_hex));
    }
    // What a power cut caught on its way to the disk may be there in part.
    let on_disk_whole = |chain: &Digest, layer: &LayerRecord| {
        on_disk.contains(chain) && layer.unsynced.as_ref().is_none_or(|u| u.boot == boot_id)
    };
    let known: HashSet<_> = layers.keys().copied().collect();
    let mut layers: BTreeMap<_, _> = layers.into_iter().filter(|(c, layer)| on_disk_whole(c, layer)).collect();
    let mut left = HashMap::new();
    for chain in on_disk.difference(&known) {
        if let Some((record, since)) = kept(&root.join("layers").join(chain.hex()), config, boot_id) {
            layers.insert(*chain, LayerRecord::left(&record));
            left.insert(*chain, since);
        }
    }
    let whole = |chains: &[Digest]| chains.iter().all(|chain| layers.contains_key(chain));
    // Better pulled again than started without its files.
    let lost: Vec<_> = images.iter().filter(|(_, image)| !whole(&image.chains)).map(|(id, _)| id.clone()).collect();
    for id in &lost {
        tracing::warn!(image = id, "forgetting an image whose layers did not all reach the disk");
    }
    let mut state = State {
        images: images.into_iter().filter(|(id, _)| !lost.contains(id)).map(|(id, i)| (id, Arc::new(i))).collect(),
        layers,
        leases,
        kept: left,
        ..State::default()
    };
    if unread_leases {
        // Nobody knows which layers are in use: all stay until a start that can tell.
        state.pins = state.layers.keys().map(|chain| (*chain, 1)).collect();
    }
    let unused = state.unused();
    for chain in &unused {
        state.layers.remove(chain);
    }
    if !lost.is_empty() || !unused.is_empty() {
        db.remove(&Change {
            images: lost.iter().map(|id| (id.as_str(), None)).collect(),
            layers: unused.iter().map(|chain| (chain, None)).collect(),
            leases: Vec::new(),
        });
    }
    for chain in on_disk.iter().filter(|chain| !state.layers.contains_key(chain)) {
        staging::delete(&root.join("layers").join(chain.hex()));
    }
    Ok(state)
}
