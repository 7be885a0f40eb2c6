//! A layer on its way from the registry to its tree, fed by whichever pull has its turn.

use std::sync::atomic::AtomicU64;

use tokio::sync::oneshot;

use super::background::lost;
use super::jobs::Staged;
use crate::error::{StoreError, StoreResult};
use crate::registry::{Descriptor, Download, Session};

/// Its bytes, as far as they came, and what becomes of them.
pub(super) struct Fetching {
    download: Option<Download>,
    /// The bytes that came are wrong.
    wrong: Option<StoreError>,
    outcome: oneshot::Receiver<StoreResult<Staged>>,
}

/// How feeding a job ended.
pub(super) enum Fed {
    Whole(Staged),
    /// It can go on.
    Cut(StoreError),
    /// It cannot.
    Broken(StoreError),
}

impl Fetching {
    pub(super) fn new(download: Download, outcome: oneshot::Receiver<StoreResult<Staged>>) -> Self {
        Self { download: Some(download), wrong: None, outcome }
    }

    /// Sends it what is missing of its bytes, and waits for its end.
    pub(super) async fn feed(&mut self, session: &Session, blob: &Descriptor, meter: &AtomicU64) -> Fed {
        if let Some(download) = &mut self.download {
            let fetched = tokio::select! {
                biased;
                outcome = &mut self.outcome => {
                    // It ended before its bytes did.
                    let error = outcome.unwrap_or_else(|_| Err(lost())).err().unwrap_or_else(lost);
                    return Fed::Broken(error);
                }
                fetched = session.blob(blob, download, meter) => fetched,
            };
            match fetched {
                Ok(_) => {}
                Err(error @ (StoreError::DigestMismatch { .. } | StoreError::Malformed { .. })) => {
                    // Whoever goes on when this is given up here must know it too.
                    self.wrong = Some(error);
                }
                Err(error) => return Fed::Cut(error),
            }
        }
        // The queue ends, and with it the unpacking.
        self.download = None;
        let outcome = (&mut self.outcome).await;
        if let Some(error) = self.wrong.take() {
            return Fed::Broken(error);
        }
        match outcome {
            Ok(Ok(staged)) => Fed::Whole(staged),
            Ok(Err(error)) => Fed::Broken(error),
            Err(_) => Fed::Broken(lost()),
        }
    }
}
