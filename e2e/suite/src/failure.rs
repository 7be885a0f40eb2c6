//! The one error of the suites: a sentence for whoever reads the run.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub(crate) String);

/// A step's outcome.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Fails with the text when the condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// Adds what was being done to an I/O error.
pub(crate) trait Doing<T> {
    /// `what` reads as in "cannot {what}".
    fn doing(self, what: &str) -> Outcome<T>;
}

impl<T, E: std::error::Error> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Outcome<T> {
        self.map_err(|error| {
            let mut text = format!("cannot {what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            Failure(text)
        })
    }
}
