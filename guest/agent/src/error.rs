//! One error for the whole agent: what a caller can do about it, what failed, and why.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

/// Sorted by what a caller can do about it; each kind is one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The request contradicts itself, the image or this kernel.
    Invalid,
    /// No such container.
    NotFound,
    /// The id is taken.
    Exists,
    /// Not in this state.
    Precondition,
    /// There are too many, or it takes too much.
    Exhausted,
    /// The system refused something.
    Internal,
}

/// What failed, on what; `source` says why.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with nothing behind it.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A bad request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Not in this state.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::Precondition, message)
    }

    /// A container that does not exist.
    pub fn no_container(id: &str) -> Self {
        Self::new(Kind::NotFound, format!("there is no container {id}"))
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the kernel refused because something is in use, or has no place for it now.
    pub fn is_busy(&self) -> bool {
        let cause = self.source.as_deref().and_then(|source| source.downcast_ref::<std::io::Error>());
        cause.is_some_and(|e| matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)))
    }

    /// The message and what is behind it, as one line.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::Invalid => Code::InvalidArgument,
            Kind::NotFound => Code::NotFound,
            Kind::Exists => Code::AlreadyExists,
            Kind::Precondition => Code::FailedPrecondition,
            Kind::Exhausted => Code::ResourceExhausted,
            Kind::Internal => Code::Internal,
        };
        Self::new(code, error.chain())
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// `what` completes the sentence "cannot ...".
    fn doing(self, what: impl fmt::Display) -> Result<T>;
    /// Like `doing`, for a failure that is the request's fault.
    fn asked(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error { kind: Kind::Internal, message: format!("cannot {what}"), source: Some(Box::new(e)) })
    }

    fn asked(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error { kind: Kind::Invalid, message: format!("cannot {what}"), source: Some(Box::new(e)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_the_cause_once() {
        let error = Err::<(), _>(rustix::io::Errno::NOENT).doing("open /etc/passwd").unwrap_err();
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "cannot open /etc/passwd: No such file or directory (os error 2)");
    }
}
