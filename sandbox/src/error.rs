//! Why a sandbox could not do what it was asked.

use std::error::Error;

/// Sorted by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// This node cannot run pods of the kind (gRPC: FailedPrecondition).
    #[error("this node cannot run {kind} pods: {reason}")]
    Unusable {
        /// `vm` or `host`.
        kind: &'static str,
        /// What is missing and what to do.
        reason: String,
    },
    /// The specification contradicts itself or the kind (gRPC: InvalidArgument).
    #[error("{0}")]
    Invalid(String),
    /// The pod cannot be as was asked, and is as it was (gRPC: FailedPrecondition).
    #[error("{0}")]
    Refused(String),
    /// The pod has ended already (gRPC: FailedPrecondition).
    #[error("pod {id} does not run")]
    Ended {
        /// Its id.
        id: String,
    },
    /// A step of the work failed; what came before it was undone (gRPC: Internal).
    #[error("cannot {step}")]
    Step {
        /// What failed, on what: "add the pod to network lab: plugin bridge".
        step: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The pod's processes have ended, and CNI failed to take it off its network; text and code are those of the cause.
    #[error(transparent)]
    Attached(Box<SandboxError>),
    /// The monitor, the kernel or the agent of a microVM did not come up; text and code are those of the cause.
    #[error(transparent)]
    Boot(Box<SandboxError>),
    /// A step took too long (gRPC: DeadlineExceeded).
    #[error("gave up on {step} after {seconds} s")]
    TimedOut {
        /// What did not end.
        step: String,
        /// The limit.
        seconds: u64,
    },
}

impl SandboxError {
    /// A [`SandboxError::Step`].
    pub(crate) fn step(step: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Step { step: step.into(), source: source.into() }
    }

    /// What failed and why, down to the first cause.
    pub(crate) fn chain(&self) -> String {
        let causes = std::iter::successors(self.source(), |error| (*error).source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }
}

/// Names the step that a result belongs to.
pub(crate) trait Doing<T> {
    /// `step` follows the word "cannot".
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, SandboxError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::step(step(), source))
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SandboxError::step("run a blocking step", error)),
    }
}
