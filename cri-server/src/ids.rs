//! Identities and times.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CriError;

/// A new id: 64 hex digits, no dash, since the kubelet takes what follows the last dash of a log's name for the container's id.
pub(crate) fn new_id() -> Result<String, CriError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| CriError::internal("draw a random id", e))?;
    Ok(hex::encode(bytes))
}

/// Nanoseconds since the epoch, by the node's clock.
pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
