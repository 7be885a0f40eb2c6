//! `[tracing]`: where the daemon's spans are sent, if anywhere.

use http::Uri;
use serde::{Deserialize, Serialize};

use super::settings::{Wrong, in_range};

const ENDPOINT: &str = "tracing.endpoint";
/// What is right, for messages.
const EXAMPLE: &str = "http://127.0.0.1:4317";
/// Longest endpoint, bytes.
const MAX_ENDPOINT: usize = 1024;

/// The table as files spell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tracing {
    /// Empty: nothing is traced.
    endpoint: String,
    sample_percent: u8,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_percent: 100 }
    }
}

/// Where spans are sent, and of how many calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TracingConfig {
    /// A collector that speaks OTLP over gRPC: `http`, host and port.
    pub(crate) endpoint: Uri,
    /// Of the calls that do not say themselves whether they are traced.
    pub(crate) sample_percent: u8,
}

impl Tracing {
    /// Checks both values; nothing when tracing is off.
    pub(super) fn check(&self) -> Result<Option<TracingConfig>, Wrong> {
        in_range("tracing.sample_percent", self.sample_percent.into(), 0, 100)?;
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let endpoint = parse(&self.endpoint).map_err(|reason| (ENDPOINT, reason))?;
        Ok(Some(TracingConfig { endpoint, sample_percent: self.sample_percent }))
    }
}

fn parse(text: &str) -> Result<Uri, String> {
    // Before anything that shows the text: a password is nothing for a journal.
    if text.contains('@') {
        return Err(format!("names a user, and none is sent to a collector; give a URL such as {EXAMPLE}"));
    }
    if text.len() > MAX_ENDPOINT {
        return Err(format!("is longer than {MAX_ENDPOINT} bytes"));
    }
    let endpoint: Uri = text.parse().map_err(|_| format!("is {text:?}, not a URL such as {EXAMPLE}"))?;
    match endpoint.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(format!(
                "is {text:?}, and spans are sent without TLS; name a collector on this node, which can use TLS to others"
            ));
        }
        _ => return Err(format!("is {text:?}, not a URL such as {EXAMPLE}")),
    }
    if endpoint.path() != "/" || endpoint.query().is_some() {
        return Err(format!("is {text:?}, and OTLP over gRPC has no path; give a URL such as {EXAMPLE}"));
    }
    if endpoint.port_u16().is_none() {
        return Err(format!("is {text:?}, which has no port; that of OTLP over gRPC is usually 4317"));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoint: &str, sample_percent: u8) -> Result<Option<TracingConfig>, String> {
        let settings = Tracing { endpoint: endpoint.into(), sample_percent };
        settings.check().map_err(|(key, reason)| format!("{key} {reason}"))
    }

    #[test]
    fn only_a_collectors_address_is_an_endpoint() {
        for good in ["http://127.0.0.1:4317", "http://collector.monitoring:4317/", "http://[::1]:4317"] {
            let config = check(good, 7).unwrap().unwrap();
            assert_eq!((config.endpoint, config.sample_percent), (good.parse().unwrap(), 7));
        }
        for (bad, why) in [
            ("127.0.0.1:4317", "not a URL"),
            ("localhost", "not a URL"),
            ("unix:///run/collector.sock", "not a URL"),
            ("http://", "not a URL"),
            ("http://a b:4317", "not a URL"),
            ("https://collector:4317", "without TLS"),
            ("http://collector", "no port"),
            ("http://collector:4317/v1/traces", "no path"),
            ("http://collector:4317?a=b", "no path"),
            ("http://user:hunter2@collector:4317", "names a user"),
        ] {
            let error = check(bad, 100).unwrap_err();
            assert!(error.starts_with("tracing.endpoint ") && error.contains(why), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(check(&format!("http://{}:4317", "x".repeat(1024)), 100).unwrap_err().contains("1024 bytes"));
    }

    #[test]
    fn without_an_endpoint_nothing_is_traced_and_the_rest_is_checked() {
        assert_eq!(Tracing::default().check().unwrap(), None);
        assert_eq!(check("", 101).unwrap_err(), "tracing.sample_percent is 101, not 0 to 100");
        assert_eq!(check("http://127.0.0.1:4317", 0).unwrap().unwrap().sample_percent, 0);
    }
}
