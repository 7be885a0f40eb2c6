//! Container logs, from the guest's frames to the files that the kubelet reads (`cofferdam_proto::sink`).
//!
//! The daemon hands over one open file per container. Output of a container that has none yet is not taken, so the guest's
//! credit runs out and its agent waits; nothing is lost and at most one connection's buffer is held here. Records are
//! written whole, so a new file takes over at a record's boundary.

mod file;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cofferdam_proto::sink::SinkRequest;

use crate::event_loop::lock;
use file::LogFile;
pub(crate) use stream::LogStream;

/// Length of a container id: 64 hex digits.
const ID_LENGTH: usize = 64;
/// Containers with a file at once.
const MAX_FILES: usize = 1024;

type Files = Arc<Mutex<HashMap<String, LogFile>>>;

/// The files.
pub(crate) struct LogSink {
    files: Files,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// The id is none.
    #[error("a container id is {ID_LENGTH} lower-case hex digits, not {0:?}")]
    Id(String),
    /// No file came with it.
    #[error("the log of container {0} came without a file")]
    NoFile(String),
    /// What came is not a file.
    #[error("the log of container {0} must be a regular file")]
    NotRegular(String),
    /// Too many.
    #[error("there are {MAX_FILES} logs already")]
    TooMany,
}

impl LogSink {
    /// Without files.
    pub(crate) fn new() -> Self {
        Self { files: Files::default() }
    }

    /// Carries out a request of the daemon.
    pub(crate) fn request(&mut self, request: &SinkRequest, file: Option<OwnedFd>) -> Result<(), SinkError> {
        let (SinkRequest::Open { container } | SinkRequest::Close { container }) = request;
        if !is_id(container.as_bytes()) {
            return Err(SinkError::Id(container.chars().take(ID_LENGTH + 1).collect()));
        }
        let mut files = lock(&self.files);
        if matches!(request, SinkRequest::Close { .. }) {
            files.remove(container);
            return Ok(());
        }
        let file = file.ok_or_else(|| SinkError::NoFile(container.clone()))?;
        if !files.contains_key(container) && files.len() >= MAX_FILES {
            return Err(SinkError::TooMany);
        }
        let file = LogFile::new(file).ok_or_else(|| SinkError::NotRegular(container.clone()))?;
        files.insert(container.clone(), file);
        Ok(())
    }

    /// The node's end of a new connection from the guest.
    pub(crate) fn stream(&self) -> LogStream {
        LogStream::new(self.files.clone())
    }
}

fn is_id(bytes: &[u8]) -> bool {
    bytes.len() == ID_LENGTH && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
