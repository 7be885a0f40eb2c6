//! Large blobs in several parts at once: one stream of a storage service is often slower than the
//! line.
//!
//! ```text
//!  blob   |==== passed on ====|-- part --|-- part --|-- part --|-- part --|      |
//!                              └ in order ┘ these come at the same time, in memory
//! ```

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use reqwest::Response;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::fault::{Fault, of_answer, transport};
use super::receiver::{Ended, Receiver, range_start};
use super::request::Request;
use super::session::{Endpoint, Session};

/// Bytes of one part.
const PART: u64 = 2 << 20;
/// Parts of one blob that come at the same time, and are in memory.
const AT_ONCE: u32 = 4;
/// The same for all blobs of all pulls together. A blob that finds no room comes in one stream.
const ROOM: usize = 4;

/// The room for parts, which all pulls share.
pub(super) struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(ROOM))
    }
}

impl Room {
    /// Never waits: who has room could be waiting for who has not.
    fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.0.try_acquire_many(AT_ONCE).ok()
    }
}

impl Session {
    /// Fetches the rest of a large blob in parts. `None` when it has to come in one stream: it is
    /// not large, there is no room, or the endpoint does not send parts as they are asked for.
    pub(super) async fn in_parts(
        &self,
        endpoint: &Endpoint,
        state: &mut Receiver<'_>,
        time: Duration,
    ) -> Result<Option<Ended>, Fault> {
        let (begin, size) = (state.download.received, state.blob.size);
        if size - begin < self.parallel_from || endpoint.no_parts() {
            return Ok(None);
        }
        let Some(_room) = self.room.take() else { return Ok(None) };
        let path = format!("blobs/{}", state.blob.digest);
        let starts = (begin..size).step_by(PART as usize);
        let parts = starts.map(|start| self.part(endpoint, &path, start, size.min(start + PART), time));
        let mut parts = std::pin::pin!(stream::iter(parts).buffered(AT_ONCE as usize));
        // Only waiting counts: while bytes are passed on, nothing is received.
        while let Ok(next) = tokio::time::timeout(self.timeouts.stall, parts.next()).await {
            let Some(part) = next else { return Ok(Some(Ended::Whole)) };
            let Some(chunks) = part? else { break };
            for chunk in chunks {
                if let Ended::Unwanted = state.take(chunk).await? {
                    return Ok(Some(Ended::Unwanted));
                }
            }
        }
        tracing::debug!(endpoint = endpoint.base, what = state.what, "not in parts: asking for one stream");
        endpoint.set_no_parts();
        Ok(None)
    }

    /// The bytes from `start` up to `end`; `None` when the answer is not exactly those.
    async fn part(
        &self,
        endpoint: &Endpoint,
        path: &str,
        start: u64,
        end: u64,
        time: Duration,
    ) -> Result<Option<Vec<Bytes>>, Fault> {
        let range = Some(format!("bytes={start}-{}", end - 1));
        let request = Request { range, ..Request::get(path, "*/*") };
        let opened = tokio::time::timeout(time, self.exchange(endpoint, &request)).await;
        let mut response = opened.map_err(|_| Fault::Silent(format!("no answer within {time:?}")))??;
        match response.status().as_u16() {
            206 if is_part(&response, start, end) => {}
            401 | 403 | 404 | 408 | 410 | 425 | 429 | 500.. => return Err(of_answer(response).await),
            _ => return Ok(None),
        }
        let (mut chunks, mut length) = (Vec::new(), 0);
        while let Some(chunk) = response.chunk().await.map_err(|e| transport(&e))? {
            length += chunk.len() as u64;
            if length > end - start {
                return Ok(None);
            }
            chunks.push(chunk);
        }
        Ok(Some(chunks).filter(|_| length == end - start))
    }
}

fn is_part(response: &Response, start: u64, end: u64) -> bool {
    range_start(response) == Some(start) && response.content_length().is_none_or(|length| length == end - start)
}
