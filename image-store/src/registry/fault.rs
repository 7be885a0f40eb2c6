//! Why a request gave nothing, and what of it a user is told.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::manifest::printable;
use super::message::message;
use crate::error::StoreError;

const ERROR_BYTES: u64 = 16 << 10;

/// Why one request to one endpoint gave nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    NotFound,
    Refused(String),
    /// May work when tried again, not earlier than the registry says, where it does.
    Passing(String, Option<Duration>),
    /// Said nothing for as long as was waited.
    Silent(String),
    /// Does not answer, or not as a registry does: trying again soon is no use.
    Down(String),
    /// What it sent is wrong.
    Bad(StoreError),
}

impl Fault {
    pub(crate) fn passing(detail: impl Into<String>) -> Self {
        Self::Passing(detail.into(), None)
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::NotFound => "not found".into(),
            Self::Refused(detail) => format!("refused: {detail}"),
            Self::Passing(detail, Some(after)) => {
                format!("{detail} (it asks to be left alone for {} s)", after.as_secs())
            }
            Self::Passing(detail, None) | Self::Silent(detail) | Self::Down(detail) => detail.clone(),
            Self::Bad(error) => error.to_string(),
        }
    }
}

/// An answer that is no success.
pub(crate) async fn of_answer(response: Response) -> Fault {
    let after = retry_after(response.headers(), SystemTime::now());
    match response.status().as_u16() {
        404 | 410 => Fault::NotFound,
        401 | 403 => Fault::Refused(explain(response).await),
        408 | 425 | 429 | 500.. => Fault::Passing(explain(response).await, after),
        _ => Fault::Down(explain(response).await),
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A date in the past means now.
    Some(date.duration_since(now).unwrap_or_default())
}

/// A failure below HTTP.
pub(crate) fn transport(error: &reqwest::Error) -> Fault {
    let text = causes(error);
    if error.is_timeout() {
        Fault::Silent(text)
    } else if is_reset(error) {
        Fault::passing(text)
    } else if error.is_connect() || error.is_redirect() || error.is_builder() {
        Fault::Down(text)
    } else {
        Fault::passing(text)
    }
}

/// Whether the connection broke, also before it stood: a server that restarts does that.
fn is_reset(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let mut next = error.source();
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(io, Some(BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// What to do about a certificate that was refused. An `io::Error` hides what it wraps from the
/// chain.
fn advice(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return advice(inner);
    }
    let Some(rustls::Error::InvalidCertificate(reason)) = cause.downcast_ref::<rustls::Error>() else {
        return None;
    };
    Some(match reason {
        rustls::CertificateError::UnknownIssuer
        | rustls::CertificateError::BadSignature
        | rustls::CertificateError::Other(_) => {
            "no authority that this node trusts has signed its certificate: name the one that has, or the \
             certificate itself when it is self-signed, in this registry's ca_files or in `ca` of its hosts.toml"
        }
        rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name: it needs the registry's name or address among its subject \
             alternative names (a common name alone does not count)"
        }
        rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
            "its certificate has expired, or this node's clock is wrong"
        }
        rustls::CertificateError::NotValidYet | rustls::CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet, or this node's clock is wrong"
        }
        _ => return None,
    })
}

/// The chain of causes without the URL, which may carry signatures.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut text = String::from(if error.is_connect() {
        "cannot connect"
    } else if error.is_timeout() {
        "timed out"
    } else {
        "transfer failed"
    });
    let mut next = error.source();
    let mut hint = None;
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&printable(&cause.to_string()));
        hint = hint.or_else(|| advice(cause));
        next = cause.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!(" ({hint})"));
    } else if text.contains("InvalidContentType") || text.contains("corrupt message") {
        text.push_str(" (it does not speak TLS: for plain HTTP set plain_http, or http:// in its hosts.toml)");
    }
    text
}

/// The whole body, or `None` when it is longer than `limit`.
pub(crate) async fn body(mut response: Response, limit: u64) -> Result<Option<Bytes>, Fault> {
    if response.content_length().is_some_and(|length| length > limit) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| transport(&e))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.into()))
}

/// An error answer in a line: its status, and the registry's own message where it gives one.
pub(crate) async fn explain(mut response: Response) -> String {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    // What came of a body that is long, or cut off, is enough.
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > ERROR_BYTES {
            bytes.truncate(ERROR_BYTES as usize);
            break;
        }
    }
    with_status(status, &bytes, &kind)
}

fn with_status(status: StatusCode, bytes: &[u8], kind: &str) -> String {
    match message(bytes, kind) {
        Some(message) => format!("{status} ({message})"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(read("3"), seconds(3));
        assert_eq!(read(" 120 "), seconds(120));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:42 GMT"), seconds(5));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), seconds(0));
        assert_eq!(read("Sunday, 06-Nov-94 08:49:42 GMT"), seconds(5));
        for bad in ["soon", "-1", "", "NaN", "inf"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
