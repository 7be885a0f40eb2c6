//! What a call can end with, and the one table from there to gRPC codes.

use std::error::Error;

use cofferdam_image_store::StoreError;
use cofferdam_sandbox::SandboxError;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriError {
    /// The request contradicts itself, or asks for what is never given.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0} not found")]
    NotFound(String),
    /// Taken already.
    #[error("{0}")]
    Exists(String),
    /// Not in the present state.
    #[error("{0}")]
    State(String),
    /// Not written yet.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// Took too long.
    #[error("{0}")]
    TimedOut(String),
    /// A pull did not reach its registry. The kubelet knows this by the first word, and only where
    /// the code is `Unknown`.
    #[error("RegistryUnavailable")]
    RegistryUnavailable(#[source] StoreError),
    /// A pull was refused by the signature policy. The kubelet knows this as it knows the one above.
    #[error("SignatureValidationFailed")]
    SignatureInvalid(#[source] StoreError),
    /// The image store's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox's answer.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The agent's answer.
    #[error("{}", .0.message())]
    Agent(Box<Status>),
    /// Something of the node failed.
    #[error("cannot {what}")]
    Internal {
        /// What failed, on what.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What was being done when the cause came up.
    #[error("cannot {what}")]
    During {
        /// Reads as in "cannot {what}".
        what: String,
        /// Why.
        #[source]
        source: Box<CriError>,
    },
}

impl CriError {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub(crate) fn internal(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal { what: what.into(), source: source.into() }
    }

    /// Whether it is the agent's own answer. What failed on the way to the agent, or took too long,
    /// says nothing of what it did.
    pub(crate) fn is_agents_word(&self) -> bool {
        match self {
            // The transport keeps what it met as the source.
            Self::Agent(status) => status.source().is_none(),
            Self::During { source, .. } => source.is_agents_word(),
            _ => false,
        }
    }

    /// Whether something took too long, whatever was being done.
    pub(crate) fn is_timeout(&self) -> bool {
        code(self) == Code::DeadlineExceeded
    }

    /// Whether there was nothing to be done it to.
    pub(crate) fn is_not_found(&self) -> bool {
        code(self) == Code::NotFound
    }
}

/// Adds what was being done.
pub(crate) trait During<T> {
    /// `what` reads as in "cannot {what}".
    fn during(self, what: impl FnOnce() -> String) -> Result<T, CriError>;
}

impl<T, E: Into<CriError>> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, CriError> {
        self.map_err(|e| CriError::During { what: what(), source: Box::new(e.into()) })
    }
}

impl From<Status> for CriError {
    fn from(status: Status) -> Self {
        Self::Agent(Box::new(status))
    }
}

/// The table.
pub(crate) fn code(error: &CriError) -> Code {
    match error {
        CriError::Invalid(_) => Code::InvalidArgument,
        CriError::NotFound(_) => Code::NotFound,
        CriError::Exists(_) => Code::AlreadyExists,
        CriError::State(_) => Code::FailedPrecondition,
        CriError::Unimplemented(_) => Code::Unimplemented,
        CriError::TimedOut(_) => Code::DeadlineExceeded,
        CriError::RegistryUnavailable(_) | CriError::SignatureInvalid(_) => Code::Unknown,
        CriError::Store(e) => store_code(e),
        CriError::Sandbox(e) => sandbox_code(e),
        CriError::Agent(status) => agent_code(status.code()),
        CriError::Internal { .. } => Code::Internal,
        CriError::During { source, .. } => code(source),
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::InvalidReference(_) | StoreError::Ambiguous { .. } | StoreError::Malformed { .. } => {
            Code::InvalidArgument
        }
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::Unauthorized { .. } => Code::Unauthenticated,
        StoreError::Unavailable { .. } | StoreError::Stopped { .. } => Code::Unavailable,
        StoreError::DigestMismatch { .. } => Code::DataLoss,
        StoreError::Unsupported { .. } | StoreError::Signature { .. } => Code::FailedPrecondition,
        StoreError::TooLarge { .. } | StoreError::NoSpace { .. } => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::Unusable { .. } | SandboxError::Ended { .. } | SandboxError::Refused(_) => {
            Code::FailedPrecondition
        }
        SandboxError::Invalid(_) => Code::InvalidArgument,
        SandboxError::Boot(cause) | SandboxError::Attached(cause) => sandbox_code(cause),
        SandboxError::TimedOut { .. } => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

/// A guest chooses these, so only what the kubelet can use passes; a code such as NotFound would
/// tell it that the object is gone.
fn agent_code(code: Code) -> Code {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::DeadlineExceeded => code,
        Code::Unavailable => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// Longest message that is sent: what comes from a guest or a registry is not bounded by them.
const MAX_MESSAGE: usize = 4096;

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        Self::new(code(&error), message(&error))
    }
}

/// The chain in one bounded line.
pub(crate) fn message(error: &CriError) -> String {
    let text = chain(error);
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    if clean.len() < text.len() && text.chars().count() > MAX_MESSAGE {
        clean.push_str(" ...");
    }
    clean
}

/// An error and its causes in one line: "what: why: why".
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(what: &str) -> StoreError {
        StoreError::NotFound { what: what.into() }
    }

    #[test]
    fn every_kind_of_error_has_its_code() {
        let step = SandboxError::Step { step: "add the pod to network lab".into(), source: "plugin bridge: no".into() };
        let rows: Vec<(CriError, Code, &str)> = vec![
            (CriError::invalid("no metadata"), Code::InvalidArgument, "no metadata"),
            (CriError::NotFound("pod x".into()), Code::NotFound, "pod x not found"),
            (CriError::Exists("taken".into()), Code::AlreadyExists, "taken"),
            (CriError::State("not running".into()), Code::FailedPrecondition, "not running"),
            (CriError::Unimplemented("not yet"), Code::Unimplemented, "not yet"),
            (CriError::TimedOut("late".into()), Code::DeadlineExceeded, "late"),
            (store("image a").into(), Code::NotFound, "image a not found"),
            (
                StoreError::Unauthorized { registry: "r".into(), what: "a".into(), detail: "401".into() }.into(),
                Code::Unauthenticated,
                "r refused access to a: 401",
            ),
            (
                StoreError::Unavailable { registry: "r".into(), detail: "reset".into(), source: None }.into(),
                Code::Unavailable,
                "registry r is unavailable: reset",
            ),
            (
                CriError::SignatureInvalid(StoreError::Signature {
                    image: "a/b:1".into(),
                    scope: "default".into(),
                    detail: "none".into(),
                }),
                Code::Unknown,
                "SignatureValidationFailed: image a/b:1 is refused by the signature policy, scope default: none",
            ),
            (
                CriError::RegistryUnavailable(StoreError::Unavailable {
                    registry: "r".into(),
                    detail: "reset".into(),
                    source: None,
                }),
                Code::Unknown,
                "RegistryUnavailable: registry r is unavailable: reset",
            ),
            (
                StoreError::DigestMismatch { what: "layer".into(), expected: "a".into(), actual: "b".into() }.into(),
                Code::DataLoss,
                "digest mismatch of layer: expected a, got b",
            ),
            (
                StoreError::Malformed { what: "layer".into(), detail: "../x".into() }.into(),
                Code::InvalidArgument,
                "layer is malformed: ../x",
            ),
            (
                StoreError::TooLarge { what: "manifest".into(), limit: "4 MiB".into() }.into(),
                Code::ResourceExhausted,
                "manifest is too large: limit is 4 MiB",
            ),
            (
                SandboxError::Unusable { kind: "vm", reason: "no /dev/kvm".into() }.into(),
                Code::FailedPrecondition,
                "this node cannot run vm pods: no /dev/kvm",
            ),
            (SandboxError::Invalid("bad".into()).into(), Code::InvalidArgument, "bad"),
            (SandboxError::Ended { id: "p".into() }.into(), Code::FailedPrecondition, "pod p does not run"),
            (
                SandboxError::TimedOut { step: "boot".into(), seconds: 5 }.into(),
                Code::DeadlineExceeded,
                "gave up on boot after 5 s",
            ),
            (
                SandboxError::Boot(SandboxError::TimedOut { step: "boot".into(), seconds: 5 }.into()).into(),
                Code::DeadlineExceeded,
                "gave up on boot after 5 s",
            ),
            (step.into(), Code::Internal, "cannot add the pod to network lab: plugin bridge: no"),
            (Status::not_found("guest says so").into(), Code::Internal, "guest says so"),
            (Status::invalid_argument("no such user").into(), Code::InvalidArgument, "no such user"),
        ];
        for (error, code, message) in rows {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, message));
        }
    }

    #[test]
    fn what_the_agent_said_is_told_from_what_became_of_the_call() {
        let during = |error: CriError| Err::<(), _>(error).during(|| "start container c".into()).unwrap_err();
        assert!(during(Status::invalid_argument("no such user").into()).is_agents_word());
        let broken = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(!during(broken.into()).is_agents_word());
        assert!(!during(CriError::TimedOut("no answer".into())).is_agents_word());
        assert!(!during(CriError::State("pod p is being stopped".into())).is_agents_word());
    }

    #[test]
    fn context_keeps_the_code_and_is_joined() {
        let error = Err::<(), _>(store("image a")).during(|| "create container c".into()).unwrap_err();
        let status = Status::from(error);
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "cannot create container c: image a not found");
    }

    #[test]
    fn what_a_guest_says_is_bounded_and_one_line() {
        let status = Status::from(CriError::from(Status::internal(format!("a\nb\x1b[31m{}", "x".repeat(100_000)))));
        assert!(status.message().len() < MAX_MESSAGE + 10);
        assert!(!status.message().chars().any(char::is_control));
    }
}
