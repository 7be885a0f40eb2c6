//! Strings of a request that reach files, command lines or other programs' arguments.

use crate::error::CriError;

/// Refuses a string that is longer than `limit` bytes or has a control character: it would end up in a line-based file or an argument.
pub(crate) fn line(what: &str, text: &str, limit: usize) -> Result<(), CriError> {
    if text.len() > limit {
        return Err(CriError::invalid(format!("{what} is longer than {limit} bytes")));
    }
    if text.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{2029}') {
        return Err(CriError::invalid(format!("{what} {text:?} has a control character")));
    }
    Ok(())
}

/// As [`line`], and not empty.
pub(crate) fn name(what: &str, text: &str, limit: usize) -> Result<(), CriError> {
    if text.is_empty() {
        return Err(CriError::invalid(format!("{what} is missing")));
    }
    line(what, text, limit)
}
