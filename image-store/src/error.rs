//! What can go wrong, sorted by what the caller can do about it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use crate::reference::{Reference, ReferenceError};

/// A shared cause: an error is handed to everybody who waited for one merged pull.
pub(crate) type Cause = Arc<dyn Error + Send + Sync>;

/// The store's result.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why the store could not do what it was asked. One variant per answer that a caller may give.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The reference is not one (gRPC: InvalidArgument).
    #[error("image reference is not valid")]
    InvalidReference(#[from] ReferenceError),
    /// A short image id that fits several images (gRPC: InvalidArgument).
    #[error("image id {id:?} fits several images: give more digits")]
    Ambiguous {
        /// What was asked for.
        id: String,
    },
    /// The store or the registry does not have it (gRPC: NotFound).
    #[error("{what} not found")]
    NotFound {
        /// What was looked for, and where.
        what: String,
    },
    /// The registry wants other credentials (gRPC: Unauthenticated or PermissionDenied).
    #[error("{registry} refused access to {what}: {detail}")]
    Unauthorized {
        /// The registry that refused.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its answer.
        detail: String,
    },
    /// The registry could not be reached, or failed, also after retries (gRPC: Unavailable).
    #[error("registry {registry} is unavailable: {detail}")]
    Unavailable {
        /// The registry.
        registry: String,
        /// What failed.
        detail: String,
        /// The cause, where there is one.
        source: Option<Cause>,
    },
    /// Bytes do not have the promised digest or size (gRPC: DataLoss).
    #[error("digest mismatch of {what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Which blob or layer.
        what: String,
        /// What the manifest, config or reference promised.
        expected: String,
        /// What came.
        actual: String,
    },
    /// Manifest, config or layer is not what the specifications say (gRPC: InvalidArgument or
    /// FailedPrecondition).
    #[error("{what} is malformed: {detail}")]
    Malformed {
        /// Which document or layer.
        what: String,
        /// What is wrong with it; names the tar entry where there is one.
        detail: String,
    },
    /// Well-formed, and nothing that this node runs (gRPC: FailedPrecondition).
    #[error("{what} is not supported: {detail}")]
    Unsupported {
        /// Which document or layer.
        what: String,
        /// Why.
        detail: String,
    },
    /// Beyond one of [`crate::Limits`] (gRPC: ResourceExhausted).
    #[error("{what} is too large: limit is {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit and its unit.
        limit: String,
    },
    /// The store's file system is full (gRPC: ResourceExhausted).
    #[error("no space left in the image store while {what}")]
    NoSpace {
        /// What was being done.
        what: String,
    },
    /// The operating system refused (gRPC: Internal).
    #[error("{what} failed")]
    Io {
        /// What was being done, on what.
        what: String,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// The store's database refused (gRPC: Internal).
    #[error("image database: {what} failed")]
    Database {
        /// What was being done.
        what: String,
        /// The database's answer.
        source: Cause,
    },
    /// The signature policy does not let it in (CRI: SignatureValidationFailed).
    #[error("image {image} is refused by the signature policy, scope {scope}: {detail}")]
    Signature {
        /// The reference.
        image: String,
        /// The part of the policy that counts.
        scope: String,
        /// What is missing, and what was found in its place.
        detail: String,
    },
    /// The layer got nowhere, and others needed its memory (gRPC: Unavailable).
    #[error("{what} was stopped: its registry sent next to nothing while other pulls waited; try again later")]
    Stopped {
        /// Which layer.
        what: String,
    },
    /// A configuration value that cannot be used (at open).
    #[error("image store configuration: {0}")]
    Config(String),
}

impl StoreError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { what },
            _ => Self::Io { what, source: Arc::new(source) },
        }
    }

    pub(crate) fn database(what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Database { what: what.into(), source: Arc::new(source) }
    }

    /// A layer that had to give its memory to others.
    pub(crate) fn stopped(layer: &str) -> Self {
        Self::Stopped { what: layer.to_owned() }
    }

    pub(crate) fn malformed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), detail: detail.into() }
    }

    /// Names the image that a document is of: its readers know only which document it is.
    pub(crate) fn of_image(self, image: &Reference) -> Self {
        let named = |what: String| format!("{what} of {image}");
        match self {
            Self::Malformed { what, detail } => Self::Malformed { what: named(what), detail },
            Self::Unsupported { what, detail } => Self::Unsupported { what: named(what), detail },
            Self::TooLarge { what, limit } => Self::TooLarge { what: named(what), limit },
            other => other,
        }
    }

    /// The whole chain of causes in one line, for answers that carry only text.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}
