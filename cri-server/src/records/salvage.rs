//! What stands in for a record that this daemon cannot read, so that its pod is seen and can be removed.
//!
//! Whatever fields can be read are taken: a record of a newer daemon keeps its names and labels, and so the kubelet knows whose it is.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{ContainerPhase, ContainerRecord, PodPhase, PodRecord, Unreadable};

/// A pod that is not ready, for the reason that nobody knows what it was. One whose uid cannot be read has one that no pod of the
/// kubelet has, which makes it a pod to be removed.
pub(crate) fn pod(row: &Unreadable, now: i64) -> Option<PodRecord> {
    // The fields that a record must have; all others have defaults.
    let blank = json!({
        "id": row.id, "name": "unreadable-record", "namespace": "", "uid": format!("unreadable-{}", row.id), "attempt": 0,
        "handler": "", "kind": "vm", "phase": "not_ready", "created_at": now, "labels": {}, "annotations": {},
        "log_directory": "", "namespaces": {},
    });
    let mut record: PodRecord = overlay(blank, &row.bytes)?;
    record.id.clone_from(&row.id);
    (record.phase, record.freed, record.ended) = (PodPhase::NotReady, false, row.why.clone());
    Some(record)
}

/// A container that has ended, for the same reason; nothing when nobody knows of which pod it is.
pub(crate) fn container(row: &Unreadable, now: i64) -> Option<ContainerRecord> {
    let blank = json!({
        "id": row.id, "pod": "", "name": "unreadable-record", "attempt": 0, "phase": "running", "image": "", "image_id": "",
        "created_at": now, "labels": {}, "annotations": {}, "stop_signal": 15,
    });
    let mut record: ContainerRecord = overlay(blank, &row.bytes)?;
    record.id.clone_from(&row.id);
    if record.phase != ContainerPhase::Exited {
        record.phase = ContainerPhase::Running;
        record.end(255, "Unknown", &row.why, now);
    }
    (!record.pod.is_empty()).then_some(record)
}

/// `blank` with every field of the record in `bytes` that fits.
fn overlay<T: DeserializeOwned>(blank: Value, bytes: &[u8]) -> Option<T> {
    let found: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let nothing = Map::new();
    let found = found.get("record").and_then(Value::as_object).unwrap_or(&nothing);
    let mut best = T::deserialize(&blank).ok()?;
    let Value::Object(mut fields) = blank else { return None };
    for (name, value) in found {
        let before = fields.insert(name.clone(), value.clone());
        match (serde_json::from_value(Value::Object(fields.clone())), before) {
            (Ok(fitting), _) => best = fitting,
            (Err(_), Some(before)) => drop(fields.insert(name.clone(), before)),
            (Err(_), None) => drop(fields.remove(name)),
        }
    }
    Some(best)
}
