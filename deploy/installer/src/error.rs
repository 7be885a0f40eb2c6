//! What can go wrong: a step that failed with its cause, or a state in which the installer does
//! nothing.

use std::error::Error as _;

/// An error of the installer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A step failed.
    #[error("cannot {doing}")]
    Failed {
        /// What was done, on what.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing was tried: the text says why, and what to do.
    #[error("{0}")]
    Refused(String),
}

/// What the installer's functions return.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Says of an error what was being done.
pub(crate) trait Doing<T> {
    /// `what` reads as in "cannot {what}".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Failed { doing: what(), source: error.into() })
    }
}

/// An [`Error::Refused`].
pub(crate) fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Refused(text.into()))
}

/// An error and its causes in one line; a cause that its error has said already is left out.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let inner: Result<()> = Err(std::io::Error::other("disk full")).doing(|| "write /a".into());
        let outer = inner.doing(|| "install version 1".into()).unwrap_err();
        assert_eq!(chain(&outer), "cannot install version 1: cannot write /a: disk full");
        assert_eq!(chain(&refuse::<()>("no").unwrap_err()), "no");
    }
}
