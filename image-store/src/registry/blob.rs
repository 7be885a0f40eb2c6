//! One blob as a verified stream.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use reqwest::Response;
use reqwest::header::CONTENT_RANGE;
use sha2::{Digest as _, Sha256};

use super::client::{Endpoint, Fault, Session, transport};
use super::manifest::Descriptor;
use crate::config::Timeouts;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::flow::Sink;

/// Bytes that a registry may send between two failures and still be taken for one that gets nowhere.
const NO_PROGRESS: u64 = 64 << 10;
/// Tries without progress: with the pauses between them some seconds, in which a registry can restart.
const ATTEMPTS: u32 = 4;
/// Failures of one blob, however much came between them.
const MAX_FAILURES: u32 = 50;

/// What came of a blob so far. It outlives the connection that it came over, and the pull that asked
/// for it: the next one goes on from here.
pub(crate) struct Download {
    pub(crate) received: u64,
    hasher: Sha256,
    sink: Sink,
}

impl Download {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { received: 0, hasher: Sha256::new(), sink }
    }
}

/// A download, as one pull goes on with it.
struct Receiver<'a> {
    blob: &'a Descriptor,
    what: String,
    download: &'a mut Download,
    meter: &'a AtomicU64,
    /// Of all pulls.
    all: &'a AtomicU64,
}

/// How one connection ended.
enum Ended {
    Whole,
    /// Nobody wants the bytes any more.
    Unwanted,
}

impl Session {
    /// Streams the rest of a blob into the download's sink and checks size and digest. True when it came whole; false
    /// when the receiver went away. The receiver must not trust anything before this has said true. After an error, or
    /// when the future was dropped, the download can go on where it stopped, unless the error says that the bytes are
    /// wrong.
    ///
    /// A broken connection is taken up again where it broke, at the next endpoint when this one keeps failing.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        download: &mut Download,
        meter: &AtomicU64,
    ) -> StoreResult<bool> {
        let what = self.name_of(&blob.digest);
        meter.fetch_add(download.received, Relaxed);
        let mut state = Receiver { blob, what, download, meter, all: &self.received };
        if state.download.received == blob.size {
            // An earlier pull was given up between the last byte and this.
            return state.finish().map(|()| true);
        }
        let mut faults: Vec<(&Endpoint, Fault)> = Vec::new();
        let mut failures = 0;
        for endpoint in &self.endpoints {
            let mut attempt = 1;
            let mut wait = self.timeouts.retry;
            loop {
                let before = state.download.received;
                let fault = match self.attempt(endpoint, &mut state).await {
                    Ok(Ended::Whole) => return state.finish().map(|()| true),
                    Ok(Ended::Unwanted) => return Ok(false),
                    Err(Fault::Bad(error)) => return Err(error),
                    Err(fault) => fault,
                };
                failures += 1;
                if state.download.received - before > NO_PROGRESS {
                    attempt = 1;
                    wait = self.timeouts.retry;
                }
                // A registry that restarts refuses connections for a moment: worth waiting for in the middle.
                let again = match fault {
                    Fault::Passing(_) => true,
                    Fault::Down(_) => state.download.received > 0,
                    _ => false,
                };
                tracing::debug!(
                    endpoint = endpoint.base,
                    what = state.what,
                    fault = fault.text(),
                    again,
                    "blob cut off"
                );
                if !again || attempt >= ATTEMPTS || failures >= MAX_FAILURES {
                    faults.push((endpoint, fault));
                    break;
                }
                attempt += 1;
                tokio::time::sleep(wait).await;
                wait *= 4;
            }
        }
        Err(self.verdict(&format!("{} (after {} of {} bytes)", state.what, state.download.received, blob.size), faults))
    }

    async fn attempt(&self, endpoint: &Endpoint, state: &mut Receiver<'_>) -> Result<Ended, Fault> {
        let path = format!("blobs/{}", state.blob.digest);
        let from = Some(state.download.received).filter(|n| *n > 0);
        let opening = self.get(endpoint, &path, "*/*", from);
        let response = match tokio::time::timeout(self.timeouts.document, opening).await {
            Ok(response) => response?,
            Err(_) => return Err(Fault::Passing(format!("no answer within {:?}", self.timeouts.document))),
        };
        let skip = state.agree(&response, from)?;
        state.receive(response, skip, &self.timeouts).await
    }
}

impl Receiver<'_> {
    /// Whether the answer is of the right length; gives how much of it we have already.
    fn agree(&self, response: &Response, from: Option<u64>) -> Result<u64, Fault> {
        let start = if response.status() == 206 {
            let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(range_start);
            range.filter(|start| Some(*start) == from).ok_or_else(|| Fault::Down("answered another range".into()))?
        } else {
            0
        };
        match response.content_length() {
            Some(length) if start.checked_add(length) != Some(self.blob.size) => Err(self.wrong_size(start + length)),
            _ => Ok(self.download.received - start),
        }
    }

    async fn receive(&mut self, mut response: Response, mut skip: u64, timeouts: &Timeouts) -> Result<Ended, Fault> {
        let mut pace = Pace::default();
        loop {
            let asked = Instant::now();
            let chunk = match tokio::time::timeout(timeouts.stall, response.chunk()).await {
                Ok(chunk) => chunk.map_err(|e| transport(&e))?,
                Err(_) => return Err(Fault::Passing(format!("stalled: no byte within {:?}", timeouts.stall))),
            };
            let Some(mut chunk) = chunk else {
                break;
            };
            if !pace.enough(asked.elapsed(), chunk.len() as u64, timeouts.stall) {
                return Err(Fault::Passing(format!(
                    "stalled: less than {} bytes within {:?}",
                    Timeouts::STALL_BYTES,
                    timeouts.stall
                )));
            }
            if skip > 0 {
                let known = skip.min(chunk.len() as u64);
                let _ = chunk.split_to(known as usize);
                skip -= known;
                if chunk.is_empty() {
                    continue;
                }
            }
            let length = chunk.len() as u64;
            if self.download.received + length > self.blob.size {
                return Err(self.wrong_size(self.download.received + length));
            }
            // Counted and sent together, so that a pull that is given up here leaves a download that can go on.
            let Some(room) = self.download.sink.room(chunk.len()).await else {
                return Ok(Ended::Unwanted);
            };
            self.download.hasher.update(&chunk);
            self.download.received += length;
            room.send(chunk);
            self.meter.fetch_add(length, Relaxed);
            self.all.fetch_add(length, Relaxed);
        }
        if self.download.received < self.blob.size {
            return Err(Fault::Passing("ended too early".into()));
        }
        Ok(Ended::Whole)
    }

    fn wrong_size(&self, at_least: u64) -> Fault {
        Fault::Bad(StoreError::DigestMismatch {
            what: self.what.clone(),
            expected: format!("{} of {} bytes", self.blob.digest, self.blob.size),
            actual: format!("a blob of {at_least} bytes or more"),
        })
    }

    fn finish(self) -> StoreResult<()> {
        let actual = Digest::from_hasher(self.download.hasher.clone());
        if actual == self.blob.digest {
            return Ok(());
        }
        Err(StoreError::DigestMismatch {
            what: self.what,
            expected: self.blob.digest.to_string(),
            actual: actual.to_string(),
        })
    }
}

/// Time spent waiting for the network (our own back-pressure is not the registry's fault) against bytes.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn enough(&mut self, waited: Duration, bytes: u64, window: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.bytes >= Timeouts::STALL_BYTES {
            *self = Self::default();
        }
        self.waited < window
    }
}

/// `bytes 5-9/10`.
fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
