//! What came of a blob: it outlives the connections that it comes over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE};

use super::fault::{Fault, transport};
use super::manifest::{Descriptor, printable};
use crate::config::Timeouts;
use crate::digest::Hasher;
use crate::error::StoreError;
use crate::flow::Sink;

/// Blobs up to this size are passed on only when they are whole and right, so that wrong bytes of
/// one endpoint cost no more than a request to the next one.
const HELD: u64 = 256 << 10;
/// How long the end of a body is waited for when all bytes are there, so that its connection can be
/// used again.
const TRAILER: Duration = Duration::from_millis(20);

/// What came of a blob so far. It outlives the pull that asked for it: the next one goes on from
/// here.
pub(crate) struct Download {
    pub(super) received: u64,
    hasher: Hasher,
    held: VecDeque<Bytes>,
    sink: Sink,
}

impl Download {
    pub(crate) fn new(blob: &Descriptor, sink: Sink) -> Self {
        Self { received: 0, hasher: blob.digest.hasher(), held: VecDeque::new(), sink }
    }
}

/// A download, as one pull goes on with it. Counting a piece and passing it on are one step, so
/// that a pull that is given up at any moment leaves a download that can go on.
pub(super) struct Receiver<'a> {
    pub(super) blob: &'a Descriptor,
    pub(super) what: String,
    pub(super) download: &'a mut Download,
    meter: &'a AtomicU64,
    /// Of all pulls.
    all: &'a AtomicU64,
    /// When something came last; time in which nobody took it does not count.
    pub(super) progress: Instant,
}

/// How one connection ended.
pub(super) enum Ended {
    /// All bytes are there.
    Whole,
    /// Nobody wants the bytes any more.
    Unwanted,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(
        blob: &'a Descriptor,
        what: String,
        download: &'a mut Download,
        meter: &'a AtomicU64,
        all: &'a AtomicU64,
    ) -> Self {
        meter.fetch_add(download.received, Relaxed);
        Self { blob, what, download, meter, all, progress: Instant::now() }
    }

    /// How much of the answer we have already, when it is an answer of use. `from` is the byte that
    /// was asked for. `Ok(None)`: it is a part that does not follow on what we have.
    pub(super) fn agree(&self, response: &Response, from: Option<u64>) -> Result<Option<u64>, Fault> {
        let length = response.content_length();
        let start = match (response.status().as_u16(), from) {
            (206, Some(from)) => match range_start(response) {
                Some(start) if start <= from => start,
                // Some servers leave the range out: the length tells a part from the whole.
                None if length == Some(self.blob.size - from) => from,
                None if length == Some(self.blob.size) => 0,
                _ => return Ok(None),
            },
            _ => 0,
        };
        let page = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(is_page);
        match length {
            Some(length) if start.checked_add(length) != Some(self.blob.size) => {
                let encoding = response.headers().get(CONTENT_ENCODING).and_then(|v| v.to_str().ok());
                let encoding = encoding.map(|e| format!(", sent with Content-Encoding {}", printable(e)));
                let size = start.saturating_add(length);
                Err(self.mismatch(format!("a blob of {size} bytes{}", encoding.unwrap_or_default())))
            }
            None if page => Err(self.mismatch("a page of HTML".into())),
            _ => Ok(Some(self.download.received - start)),
        }
    }

    /// Takes the answer's bytes but for the first `skip`.
    pub(super) async fn receive(
        &mut self,
        mut response: Response,
        mut skip: u64,
        stall: Duration,
    ) -> Result<Ended, Fault> {
        let mut pace = Pace::default();
        while self.download.received < self.blob.size {
            let asked = Instant::now();
            let chunk = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(chunk) => chunk.map_err(|e| transport(&e))?,
                Err(_) => return Err(Fault::Silent(format!("stalled: no byte within {stall:?}"))),
            };
            let Some(mut chunk) = chunk else {
                return Err(Fault::passing("ended too early"));
            };
            if !pace.enough(asked.elapsed(), chunk.len() as u64, stall) {
                let least = Timeouts::STALL_BYTES;
                return Err(Fault::Silent(format!("stalled: less than {least} bytes within {stall:?}")));
            }
            if skip > 0 {
                let known = skip.min(chunk.len() as u64);
                let _ = chunk.split_to(known as usize);
                skip -= known;
                self.progress = Instant::now();
                if chunk.is_empty() {
                    continue;
                }
            }
            if let Ended::Unwanted = self.take(chunk).await? {
                return Ok(Ended::Unwanted);
            }
        }
        // The size and the digest say that it is whole, whatever becomes of the connection.
        let _ = tokio::time::timeout(TRAILER, response.chunk()).await;
        Ok(Ended::Whole)
    }

    pub(super) async fn take(&mut self, chunk: Bytes) -> Result<Ended, Fault> {
        let length = chunk.len() as u64;
        let download = &mut *self.download;
        if download.received + length > self.blob.size {
            return Err(self.wrong_size(self.download.received + length));
        }
        if self.blob.size <= HELD {
            if download.sink.is_closed() {
                return Ok(Ended::Unwanted);
            }
            download.hasher.update(&chunk);
            download.held.push_back(chunk);
        } else {
            let Some(room) = download.sink.room(chunk.len()).await else { return Ok(Ended::Unwanted) };
            download.hasher.update(&chunk);
            room.send(chunk);
        }
        download.received += length;
        self.meter.fetch_add(length, Relaxed);
        self.all.fetch_add(length, Relaxed);
        self.progress = Instant::now();
        Ok(Ended::Whole)
    }

    /// Checks the digest; passes on what was held. False when nobody wants it.
    pub(super) async fn finish(&mut self) -> Result<bool, Fault> {
        let actual = self.download.hasher.clone().finish();
        if actual != self.blob.digest {
            return Err(self.mismatch(actual.to_string()));
        }
        let Download { held, sink, .. } = &mut *self.download;
        while let Some(chunk) = held.front() {
            let Some(room) = sink.room(chunk.len()).await else { return Ok(false) };
            room.send(chunk.clone());
            held.pop_front();
        }
        Ok(true)
    }

    /// Begins anew. False when bytes were passed on already, which cannot be taken back.
    pub(super) fn restart(&mut self) -> bool {
        let download = &mut *self.download;
        if download.received > 0 && self.blob.size > HELD {
            return false;
        }
        self.meter.fetch_sub(download.received, Relaxed);
        download.held.clear();
        download.hasher = self.blob.digest.hasher();
        download.received = 0;
        true
    }

    fn wrong_size(&self, size: u64) -> Fault {
        self.mismatch(format!("a blob of {size} bytes or more"))
    }

    fn mismatch(&self, actual: String) -> Fault {
        Fault::Bad(StoreError::DigestMismatch {
            what: self.what.clone(),
            expected: format!("{} of {} bytes", self.blob.digest, self.blob.size),
            actual,
        })
    }
}

/// Time spent waiting for the network (our own back-pressure is not the registry's fault) against
/// bytes.
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
pub(super) fn range_start(response: &Response) -> Option<u64> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (unit, range) = value.split_once([' ', '='])?;
    let start = range.trim().split_once('-')?.0;
    start.trim().parse().ok().filter(|_| unit.eq_ignore_ascii_case("bytes"))
}

fn is_page(content_type: &str) -> bool {
    content_type.trim().to_ascii_lowercase().starts_with("text/html")
}
