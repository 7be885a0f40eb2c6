//! Manifests and configs: small, kept in memory, verified.

use std::collections::VecDeque;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

use super::fault::{Fault, body};
use super::manifest::{self, Descriptor, Document};
use super::request::Request;
use super::retry::{Retry, Turn};
use super::session::{Endpoint, Role, Session};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::reference::Reference;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const DIGEST: &str = "docker-content-digest";

/// A document and what it was served as.
struct Fetched {
    bytes: Bytes,
    digest: Digest,
    content_type: Option<String>,
}

/// A document to get.
struct Wanted<'a> {
    path: &'a str,
    accept: &'static str,
    what: &'a str,
    role: Role,
    digest: Option<Digest>,
    limit: u64,
}

impl Session {
    /// The digest under which the registry serves the reference now, asked for by HEAD: registries
    /// that count pulls do not count that. `None` when no endpoint says.
    pub(crate) async fn head(&self, reference: &Reference) -> Option<Digest> {
        let role = if reference.digest().is_some() { Role::Pull } else { Role::Resolve };
        let path = format!("manifests/{}", reference.selector());
        // The answer has no body, and there is still GET.
        let time = self.timeouts.document.min(self.timeouts.mirror);
        for endpoint in self.order(role) {
            let request = Request { method: Method::HEAD, ..Request::get(&path, MANIFESTS) };
            let answer = tokio::time::timeout(time, self.ask(endpoint, &request)).await;
            let answer = answer.unwrap_or_else(|_| Err(Fault::Silent(format!("no answer within {time:?}"))));
            match answer {
                Ok(response) => {
                    if let Some(digest) = announced(response.headers()) {
                        return Some(digest);
                    }
                }
                Err(fault) => endpoint.learn(&fault),
            }
        }
        None
    }

    /// One manifest or index, and its digest.
    pub(super) async fn manifest(&self, selector: &str, expected: Option<Digest>) -> StoreResult<(Digest, Document)> {
        let what = format!("{}/{} manifest {selector}", self.host, self.repository);
        let wanted = Wanted {
            path: &format!("manifests/{selector}"),
            accept: MANIFESTS,
            what: &what,
            role: if expected.is_some() { Role::Pull } else { Role::Resolve },
            digest: expected,
            limit: self.limits.manifest_bytes,
        };
        let document = self.document(&wanted).await?;
        let served_as = document.content_type.as_deref();
        let parsed = manifest::parse(&document.bytes, served_as, &self.platform, &self.limits)?;
        Ok((document.digest, parsed))
    }

    /// The bytes of what is under a tag, whatever it is.
    pub(super) async fn tagged(&self, tag: &str) -> StoreResult<Bytes> {
        let what = format!("{}/{} manifest {tag}", self.host, self.repository);
        let path = format!("manifests/{tag}");
        let (role, limit) = (Role::Resolve, self.limits.manifest_bytes);
        let wanted = Wanted { path: &path, accept: MANIFESTS, what: &what, role, digest: None, limit };
        Ok(self.document(&wanted).await?.bytes)
    }

    /// The config document, verified.
    pub(crate) async fn config(&self, config: &Descriptor) -> StoreResult<Bytes> {
        let what = format!("{}/{} config {}", self.host, self.repository, config.digest);
        let wanted = Wanted {
            path: &format!("blobs/{}", config.digest),
            accept: "*/*",
            what: &what,
            role: Role::Pull,
            digest: Some(config.digest),
            limit: self.limits.config_bytes,
        };
        Ok(self.document(&wanted).await?.bytes)
    }

    async fn document(&self, wanted: &Wanted<'_>) -> StoreResult<Fetched> {
        if let (Some(archive), Some(digest)) = (&self.archive, wanted.digest) {
            let bytes = archive.document(&digest, wanted.limit)?;
            let actual = digest.same_kind(&bytes);
            return match check(wanted.what, Some(digest), actual) {
                Err(Fault::Bad(error)) => Err(error),
                _ => Ok(Fetched { bytes, digest, content_type: None }),
            };
        }
        let mut faults = Vec::new();
        let mut queue: VecDeque<_> = self.order(wanted.role).into_iter().map(Turn::first).collect();
        while let Some(turn) = queue.pop_front() {
            let mut retry = Retry::new(&self.timeouts);
            let fault = loop {
                let time = self.patience(turn.endpoint, turn.short(&queue));
                let result = match tokio::time::timeout(time, self.fetch(turn.endpoint, wanted)).await {
                    Ok(result) => result,
                    Err(_) => Err(Fault::Silent(format!("no whole answer within {time:?}"))),
                };
                let fault = match result {
                    Ok(fetched) => return Ok(fetched),
                    Err(fault) => fault,
                };
                turn.endpoint.learn(&fault);
                let Some(wait) = retry.after(&fault, queue.is_empty()) else { break fault };
                tracing::debug!(
                    endpoint = turn.endpoint.base,
                    what = wanted.what,
                    fault = fault.text(),
                    "trying again"
                );
                tokio::time::sleep(wait).await;
            };
            if let Fault::Bad(error) = &fault {
                tracing::warn!(endpoint = turn.endpoint.base, error = error.chain(), "wrong bytes");
            }
            turn.endpoint.given_up(&fault);
            match turn.again(&fault, &queue) {
                Some(later) => queue.push_back(later),
                None => faults.push((turn.endpoint, fault)),
            }
        }
        Err(self.verdict(wanted.what, faults))
    }

    /// How long an endpoint may take for a whole document, or to begin with a blob.
    pub(super) fn patience(&self, endpoint: &Endpoint, others: bool) -> Duration {
        match others && !endpoint.place.origin {
            true => self.timeouts.document.min(self.timeouts.mirror),
            false => self.timeouts.document,
        }
    }

    async fn fetch(&self, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Result<Fetched, Fault> {
        let response = self.ask(endpoint, &Request::get(wanted.path, wanted.accept)).await?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = header(CONTENT_TYPE).map(|t| t.split(';').next().unwrap_or("").trim().to_owned());
        let encoding = header(CONTENT_ENCODING).map(|e| e.trim().to_ascii_lowercase());
        let announced = announced(response.headers());
        let limit = wanted.limit;
        let too_large =
            || Fault::Bad(StoreError::TooLarge { what: wanted.what.into(), limit: format!("{limit} bytes") });
        // A tag says nothing about the bytes behind it: what is no manifest at all is no answer.
        let checked = |fetched: Fetched| match wanted.digest {
            None => self.manifest_of(fetched),
            Some(_) => Ok(fetched),
        };
        let raw = body(response, limit).await?.ok_or_else(too_large)?;
        let expected = wanted.digest.or(announced);
        let digest_of = |bytes: &[u8]| expected.map_or_else(|| Digest::of(bytes), |expected| expected.same_kind(bytes));
        let digest = digest_of(&raw);
        let encoded = encoding.as_deref().filter(|e| !matches!(*e, "" | "identity"));
        // What is labelled as encoded may be as it should be: then the label is wrong.
        if expected == Some(digest) || encoded.is_none() {
            check(wanted.what, expected, digest)?;
            return checked(Fetched { bytes: raw, digest, content_type });
        }
        let encoding = encoded.unwrap_or_default();
        let Some(bytes) = decode(&raw, encoding, limit).map_err(|()| too_large())? else {
            check(wanted.what, expected, digest)?;
            return checked(Fetched { bytes: raw, digest, content_type });
        };
        let digest = digest_of(&bytes);
        check(wanted.what, expected, digest)?;
        checked(Fetched { bytes, digest, content_type })
    }

    fn manifest_of(&self, fetched: Fetched) -> Result<Fetched, Fault> {
        let content_type = fetched.content_type.as_deref();
        match manifest::parse(&fetched.bytes, content_type, &self.platform, &self.limits) {
            Err(StoreError::Malformed { .. }) if content_type == Some("text/html") => {
                Err(Fault::Bad(StoreError::malformed("image manifest", "is a page of HTML")))
            }
            Err(error @ StoreError::Malformed { .. }) => Err(Fault::Bad(error)),
            // What is wrong otherwise is wrong wherever it comes from.
            _ => Ok(fetched),
        }
    }
}

fn announced(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST)?.to_str().ok()?.trim().trim_matches('"').parse().ok()
}

/// What a tag stands for is the registry's word alone; it must at least keep it.
fn check(what: &str, expected: Option<Digest>, actual: Digest) -> Result<(), Fault> {
    match expected {
        Some(expected) if expected != actual => Err(Fault::Bad(StoreError::DigestMismatch {
            what: what.into(),
            expected: expected.to_string(),
            actual: actual.to_string(),
        })),
        _ => Ok(()),
    }
}

/// Undoes a `Content-Encoding` that nobody asked for, up to `limit` bytes; `Err` when there are
/// more, `None` when the bytes are not of it.
fn decode(raw: &Bytes, encoding: &str, limit: u64) -> Result<Option<Bytes>, ()> {
    let decoded = match encoding {
        "gzip" | "x-gzip" => read(flate2::bufread::MultiGzDecoder::new(&raw[..]), limit),
        "deflate" => read(flate2::bufread::ZlibDecoder::new(&raw[..]), limit),
        "zstd" => match zstd::stream::read::Decoder::with_buffer(&raw[..]) {
            // The window of a document need not be larger than the largest document.
            Ok(mut decoder) => decoder.window_log_max(23).ok().and_then(|()| read(decoder, limit)),
            Err(_) => None,
        },
        _ => None,
    };
    match decoded {
        Some(bytes) if bytes.len() as u64 > limit => Err(()),
        other => Ok(other.map(Bytes::from)),
    }
}

fn read(decoder: impl Read, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    decoder.take(limit + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
