//! One blob as a verified stream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::fault::{Fault, of_answer};
use super::manifest::Descriptor;
use super::receiver::{Download, Ended, Receiver};
use super::request::Request;
use super::retry::{Retry, Turn};
use super::session::{Endpoint, Role, Session};
use crate::archive::Archive;
use crate::error::{StoreError, StoreResult};

/// Bytes that a registry may send between two failures and still be taken for one that gets
/// nowhere.
const NO_PROGRESS: u64 = 64 << 10;
/// Failures of one blob, however much came between them.
const MAX_FAILURES: u32 = 50;

impl Session {
    /// Streams the rest of a blob into the download's sink and checks size and digest. True when it
    /// came whole; false when the receiver went away. The receiver must not trust anything before
    /// this has said true. After an error, or when the future was dropped, the download can go on
    /// where it stopped, unless the error says that the bytes are wrong.
    ///
    /// A broken connection is taken up again where it broke, at the next endpoint when this one
    /// keeps failing.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        download: &mut Download,
        meter: &AtomicU64,
    ) -> StoreResult<bool> {
        let mut state = Receiver::new(blob, self.name_of(&blob.digest), download, meter, &self.received);
        // An earlier pull was given up between the last byte and the end. Wrong bytes are asked for
        // again below.
        if state.download.received == blob.size
            && let Ok(wanted) = state.finish().await
        {
            return Ok(wanted);
        }
        if let Some(archive) = &self.archive {
            return from_archive(archive, state).await;
        }
        let mut faults: Vec<(&Endpoint, Fault)> = Vec::new();
        // Whose bytes are in what came so far.
        let mut sources: Vec<&Endpoint> = Vec::new();
        let mut failures = 0;
        let mut queue: VecDeque<_> = self.order(Role::Pull).into_iter().map(Turn::first).collect();
        while let Some(turn) = queue.pop_front() {
            let endpoint = turn.endpoint;
            let mut retry = Retry::new(&self.timeouts);
            let fault = loop {
                let before = state.download.received;
                let short = turn.short(&queue);
                let result = self.attempt(endpoint, &mut state, short).await;
                if state.download.received > before {
                    sources.push(endpoint);
                }
                let result = match result {
                    Ok(Ended::Whole) => state.finish().await,
                    Ok(Ended::Unwanted) => Ok(false),
                    Err(fault) => Err(fault),
                };
                let mut fault = match result {
                    Ok(wanted) => return Ok(wanted),
                    Err(fault) => fault,
                };
                failures += 1;
                endpoint.learn(&fault);
                if state.download.received - before > NO_PROGRESS {
                    retry.progress();
                }
                let idle = state.progress.elapsed();
                if idle >= self.timeouts.progress {
                    return Err(self.no_progress(&state, endpoint, &fault));
                }
                fault = match fault {
                    // A registry that restarts refuses connections for a moment: worth waiting for
                    // in the middle.
                    Fault::Down(detail) if state.download.received > 0 => Fault::passing(detail),
                    Fault::Silent(detail) if queue.is_empty() => Fault::passing(detail),
                    fault => fault,
                };
                let wait = retry.after(&fault, queue.is_empty()).filter(|_| failures < MAX_FAILURES);
                tracing::debug!(
                    endpoint = endpoint.base,
                    what = state.what,
                    fault = fault.text(),
                    ?wait,
                    "blob cut off"
                );
                let Some(wait) = wait else { break fault };
                tokio::time::sleep(wait).await;
            };
            if let Fault::Bad(error) = &fault {
                tracing::warn!(endpoint = endpoint.base, error = error.chain(), "wrong bytes");
                // Which of several sources was wrong cannot be told: the registry itself is trusted
                // last.
                for source in sources.drain(..).filter(|source| !source.place.origin) {
                    source.doubtful.store(true, Relaxed);
                }
                if state.download.received >= blob.size && !state.restart() {
                    meter.fetch_sub(state.download.received, Relaxed);
                    return Err(self.verdict(&state.what, vec![(endpoint, fault)]));
                }
            }
            endpoint.given_up(&fault);
            match turn.again(&fault, &queue) {
                Some(later) => queue.push_back(later),
                None => faults.push((endpoint, fault)),
            }
        }
        Err(self.verdict(&format!("{} (after {} of {} bytes)", state.what, state.download.received, blob.size), faults))
    }

    /// Whether there is an endpoint that has not sent wrong bytes: when it is asked first, the same
    /// blob may come right.
    pub(crate) fn has_other_source(&self) -> bool {
        let doubtful = |endpoint: &Endpoint| endpoint.doubtful.load(Relaxed);
        let order = self.order(Role::Pull);
        order.iter().any(|endpoint| doubtful(endpoint)) && order.iter().any(|endpoint| !doubtful(endpoint))
    }

    async fn attempt(&self, endpoint: &Endpoint, state: &mut Receiver<'_>, short: bool) -> Result<Ended, Fault> {
        if let Some(ended) = self.in_parts(endpoint, state, self.patience(endpoint, short)).await? {
            return Ok(ended);
        }
        let wanted = Some(state.download.received).filter(|n| *n > 0);
        let mut from = wanted.filter(|_| !endpoint.no_ranges.load(Relaxed));
        let stall = self.timeouts.stall.min(self.timeouts.progress);
        loop {
            let path = format!("blobs/{}", state.blob.digest);
            let range = from.map(|from| format!("bytes={from}-"));
            let request = Request { range, ..Request::get(&path, "*/*") };
            let time = self.patience(endpoint, short);
            let opening = tokio::time::timeout(time, self.exchange(endpoint, &request)).await;
            let response = opening.map_err(|_| Fault::Silent(format!("no answer within {time:?}")))??;
            let status = response.status().as_u16();
            let skip = match status {
                200 | 206 => state.agree(&response, from)?,
                // Not of the range: of the blob, or of the moment.
                401 | 403 | 404 | 408 | 410 | 425 | 429 | 500.. => return Err(of_answer(response).await),
                _ if from.is_none() => return Err(of_answer(response).await),
                _ => None,
            };
            match skip {
                Some(skip) => return state.receive(response, skip, stall).await,
                // A part that was not asked for cannot be helped.
                None if from.is_none() => {
                    return Err(Fault::Down("answers with another part than it was asked for".into()));
                }
                None => {
                    tracing::debug!(endpoint = endpoint.base, status, "no ranges: asking for the whole");
                    endpoint.no_ranges.store(true, Relaxed);
                    from = None;
                }
            }
        }
    }

    fn no_progress(&self, state: &Receiver<'_>, endpoint: &Endpoint, fault: &Fault) -> StoreError {
        let time = self.timeouts.progress;
        StoreError::Unavailable {
            registry: self.host.clone(),
            detail: format!(
                "{}: no progress within {time:?} (after {} bytes); {}: {}",
                state.what,
                state.download.received,
                endpoint.base,
                fault.text()
            ),
            source: None,
        }
    }
}

/// As [`Session::blob`]: what there is in an archive is whole and right, or never will be.
async fn from_archive(archive: &Archive, mut state: Receiver<'_>) -> StoreResult<bool> {
    let (size, mut pieces) = archive.stream(&state.blob.digest)?;
    let wrong = |fault: Fault| match fault {
        Fault::Bad(error) => error,
        fault => StoreError::malformed("image archive", fault.text()),
    };
    if size != state.blob.size {
        let detail = format!("has {} with {size} bytes, and its manifest says {}", state.what, state.blob.size);
        return Err(StoreError::malformed("image archive", detail));
    }
    // What an earlier pull got of it counts.
    let mut skip = state.download.received;
    while let Some(piece) = pieces.recv().await {
        let mut piece = piece.map_err(|e| StoreError::io(format!("reading {} of the archive", state.what), e))?;
        let known = skip.min(piece.len() as u64);
        let _ = piece.split_to(known as usize);
        skip -= known;
        if !piece.is_empty()
            && let Ended::Unwanted = state.take(piece).await.map_err(wrong)?
        {
            return Ok(false);
        }
    }
    state.finish().await.map_err(wrong)
}
