//! OCI image layout (image-spec, image-layout.md): `index.json` says which images there are.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Archive, Found, OCI_INDEX, malformed, several, tagged};
use crate::config::Limits;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::{self, Item, Loose, go_struct};
use crate::reference::Reference;

/// The whole name, as containerd, Docker and buildkit write it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The whole name (podman, skopeo), or the tag alone (buildkit).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Bytes of `index.json`, which is held in memory as values.
const INDEX_BYTES: u64 = 1 << 20;

go_struct! {
    struct Index {
        manifests: Vec<Item<Entry>> = "manifests",
    }
}

go_struct! {
    struct Entry {
        digest: Loose = "digest",
        platform: Option<serde::de::IgnoredAny> = "platform",
        annotations: BTreeMap<String, Loose> = "annotations",
    }
}

impl Entry {
    fn name(&self) -> Option<Reference> {
        let said = |key: &str| Some(&*self.annotations.get(key)?.text);
        let whole = said(REF_NAME).filter(|name| name.contains(['/', ':']));
        said(IMAGE_NAME).and_then(tagged).or_else(|| whole.and_then(tagged))
    }
}

/// The images of `index.json`; none when it is not there or names none and none is to be named.
pub(super) fn images(archive: &mut Archive, name: Option<&Reference>, limits: &Limits) -> StoreResult<Vec<Found>> {
    let Some(bytes) = archive.file("index.json", limits.manifest_bytes.min(INDEX_BYTES))? else {
        return Ok(Vec::new());
    };
    let bad = |e: serde_json::Error| malformed(&format!("index.json: {e}"));
    let index: Index = json::read(&bytes).map_err(bad)?;
    let raw: serde_json::Map<String, Value> = json::read(&bytes).map_err(bad)?;
    let mut raw = raw.into_iter().filter(|(key, _)| key.eq_ignore_ascii_case("manifests")).map(|(_, list)| list);
    let raw = match raw.next_back() {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    if index.manifests.len() > limits.index_entries {
        return Err(StoreError::TooLarge {
            what: "index.json of the archive".into(),
            limit: format!("{} entries", limits.index_entries),
        });
    }
    let entries: Vec<(Entry, Value)> = index.manifests.into_iter().map(|Item(entry)| entry).zip(raw).collect();
    // Entries of one name are one image for several platforms.
    let mut groups: BTreeMap<Reference, Vec<&(Entry, Value)>> = BTreeMap::new();
    for entry in &entries {
        if let Some(name) = entry.0.name() {
            groups.entry(name).or_default().push(entry);
        }
    }
    if let Some(name) = name {
        let digests = |entries: &mut dyn Iterator<Item = &(Entry, Value)>| {
            let digests: std::collections::BTreeSet<_> = entries.map(|(entry, _)| entry.digest.text.clone()).collect();
            digests.len()
        };
        let unsure = digests(&mut entries.iter().filter(|(entry, _)| entry.platform.is_none()));
        if digests(&mut entries.iter()) > 1 && (groups.len() > 1 || unsure > 1) {
            return Err(several(groups.keys().map(Reference::to_string)));
        }
        groups = BTreeMap::from([(name.clone(), entries.iter().collect())]);
    }
    let mut found: Vec<Found> = Vec::new();
    for (name, mut group) in groups {
        group.dedup_by_key(|(entry, _)| entry.digest.text.clone());
        if group.is_empty() {
            continue;
        }
        let served = match group[..] {
            [(entry, _)] => entry.digest.text.parse::<Digest>().ok(),
            _ => None,
        };
        let manifests: Vec<&Value> = group.iter().map(|(_, value)| value).collect();
        let root = archive.made(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}));
        match found.iter_mut().find(|found| served.is_some() && found.served == served) {
            Some(found) => found.names.push(name),
            None => found.push(Found { names: vec![name], root, served }),
        }
    }
    Ok(found)
}
