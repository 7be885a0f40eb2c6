//! Endpoints, requests, credentials.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Once, PoisonError};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Response, StatusCode, redirect};
use serde::Deserialize;

use super::Auth;
use super::challenge::Challenge;
use super::manifest::{self, Descriptor, Document, Manifest, printable};
use crate::config::{Config, Limits, Platform, RegistryConfig, Timeouts};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::parse_config;
use crate::platform::Normal;
use crate::reference::Reference;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const TOKEN_BYTES: u64 = 1 << 20;
const ERROR_BYTES: u64 = 16 << 10;
/// An index may hold an index; nobody nests deeper.
const NESTING: usize = 3;
/// Documents that are read to find an image.
const MAX_DOCUMENTS: usize = 20;
const ATTEMPTS: u32 = 3;

/// Why one request to one endpoint gave nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    NotFound,
    Refused(String),
    /// May work when tried again.
    Passing(String),
    /// Does not answer, or not as a registry does: trying again soon is no use.
    Down(String),
    /// What it sent is wrong.
    Bad(StoreError),
}

/// The HTTP clients by registry: kept, since trust roots are dear to load and connections to make.
pub(crate) struct Registries {
    settings: BTreeMap<String, RegistryConfig>,
    timeouts: Timeouts,
    limits: Limits,
    platform: Platform,
    clients: Mutex<HashMap<String, Client>>,
    /// Bytes of blobs that all of them have sent.
    pub(crate) received: Arc<AtomicU64>,
}

/// One place to ask.
pub(crate) struct Endpoint {
    /// `https://host`, for messages too.
    pub(crate) base: String,
    /// `<prefix>/<repository>`.
    path: String,
    /// The registry itself and not a mirror: it may see the credentials.
    origin: bool,
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

/// One repository of one registry, for one pull.
pub(crate) struct Session {
    host: String,
    repository: String,
    client: Client,
    auth: Option<Auth>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) timeouts: Timeouts,
    limits: Limits,
    platform: Platform,
    /// As of the registries.
    pub(crate) received: Arc<AtomicU64>,
}

/// A document and what it was served as.
struct Fetched {
    bytes: Bytes,
    digest: Digest,
    content_type: Option<String>,
}

impl Registries {
    /// Checks the settings: a bad mirror is an error when the store is opened, not at the first pull.
    pub(crate) fn new(config: &Config) -> StoreResult<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails when the program has chosen one itself, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        for (host, settings) in &config.registries {
            for mirror in &settings.mirrors {
                split_mirror(mirror)
                    .map_err(|reason| StoreError::Config(format!("registries.{host:?}: mirror {mirror:?} {reason}")))?;
            }
            if settings.mirrors_only && settings.mirrors.is_empty() {
                return Err(StoreError::Config(format!("registries.{host:?}: mirrors_only without mirrors")));
            }
        }
        Ok(Self {
            settings: config.registries.clone(),
            timeouts: config.timeouts.clone(),
            limits: config.limits.clone(),
            platform: config.platform.clone(),
            clients: Mutex::default(),
            received: Arc::default(),
        })
    }

    pub(crate) fn session(&self, reference: &Reference, auth: Option<Auth>) -> StoreResult<Session> {
        let default = RegistryConfig::default();
        let settings = self.settings.get(reference.host()).unwrap_or(&default);
        let mut endpoints = Vec::new();
        for mirror in &settings.mirrors {
            let (base, prefix) = split_mirror(mirror).map_err(|reason| StoreError::Config(reason.into()))?;
            endpoints.push(Endpoint::new(base, format!("{prefix}{}", reference.repository()), false));
        }
        if !settings.mirrors_only {
            let scheme = if settings.plain_http { "http" } else { "https" };
            let host = match reference.host() {
                "docker.io" => "registry-1.docker.io",
                host => host,
            };
            endpoints.push(Endpoint::new(format!("{scheme}://{host}"), reference.repository().into(), true));
        }
        Ok(Session {
            host: reference.host().into(),
            repository: reference.repository().into(),
            client: self.client(reference.host(), settings)?,
            auth,
            endpoints,
            timeouts: self.timeouts.clone(),
            limits: self.limits.clone(),
            platform: self.platform.clone(),
            received: self.received.clone(),
        })
    }

    fn client(&self, host: &str, settings: &RegistryConfig) -> StoreResult<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(host) {
            return Ok(client.clone());
        }
        // References choose the hosts: do not keep a client for each of a million.
        if clients.len() >= 64 {
            clients.clear();
        }
        let client = build_client(settings, &self.timeouts)?;
        clients.insert(host.into(), client.clone());
        Ok(client)
    }
}

fn build_client(settings: &RegistryConfig, timeouts: &Timeouts) -> StoreResult<Client> {
    let mut authorities = Vec::new();
    for file in &settings.ca_files {
        let pem = std::fs::read(file).map_err(|e| StoreError::io(format!("reading {}", file.display()), e))?;
        let bad = |_| StoreError::Config(format!("{}: not PEM certificates", file.display()));
        authorities.extend(Certificate::from_pem_bundle(&pem).map_err(bad)?);
    }
    let builder = || {
        Client::builder()
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeouts.connect)
            .read_timeout(timeouts.stall)
            .redirect(redirect::Policy::custom(follow))
    };
    let build = if authorities.is_empty() { builder() } else { builder().tls_certs_merge(authorities.clone()) };
    // A node without any trust roots can still pull over plain HTTP, and from who is signed by `ca_files`.
    let client = build.build().or_else(|_| builder().tls_certs_only(authorities).build());
    client.map_err(|e| StoreError::Config(format!("cannot make an HTTP client: {}", causes(&e))))
}

/// Registries send blobs from elsewhere; not from plain HTTP when they were asked over TLS. reqwest itself does not
/// show the credentials to another host.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if from_tls && attempt.url().scheme() != "https" {
        return attempt.error("redirect from https to plain http");
    }
    if attempt.previous().len() > 5 {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

/// `http://host:port/prefix` as base and prefix (ending in a slash, or empty).
fn split_mirror(mirror: &str) -> Result<(String, String), &'static str> {
    let (scheme, rest) = mirror.split_once("://").ok_or("is not http:// or https://")?;
    if !matches!(scheme, "http" | "https") {
        return Err("is not http:// or https://");
    }
    let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) || prefix.contains(['?', '#', ' ']) {
        return Err("is not scheme://host[:port][/prefix]");
    }
    let prefix = prefix.trim_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    Ok((format!("{scheme}://{host}"), prefix))
}

impl Endpoint {
    fn new(base: String, path: String, origin: bool) -> Self {
        Self { base, path, origin, authorization: tokio::sync::Mutex::default() }
    }
}

impl Session {
    /// The image behind a reference: its manifest, and the digest under which the registry served it (of the index,
    /// where there is one).
    pub(crate) async fn resolve(&self, reference: &Reference) -> StoreResult<(Digest, Manifest)> {
        let mut todo = vec![(reference.selector(), reference.digest().copied(), true, 0)];
        let (mut served, mut asked, mut second_best, mut failed) = (None, 0, None, None);
        while let Some((selector, expected, sure, depth)) = todo.pop() {
            asked += 1;
            if depth == NESTING || asked > MAX_DOCUMENTS {
                let detail = format!("is nested more than {NESTING} deep, or has no image in {MAX_DOCUMENTS} entries");
                return Err(StoreError::malformed("image index", detail));
            }
            let found = self.manifest(&selector, expected).await;
            let (digest, document) = match found {
                Ok(found) => found,
                // Of an entry that may be anything, it is no matter what is wrong with it.
                Err(error) if !sure => {
                    failed.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let served = *served.get_or_insert(digest);
            match document {
                Document::Index(entries) => {
                    let next = entries.into_iter().rev().map(|entry| (entry.descriptor.digest, entry.sure));
                    todo.extend(next.map(|(digest, sure)| (digest.to_string(), Some(digest), sure, depth + 1)));
                }
                Document::Image(manifest) if manifest.odd_config.is_some() && depth > 0 => {
                    second_best.get_or_insert((served, manifest));
                }
                Document::Image(manifest) if sure => return Ok((served, manifest)),
                Document::Image(manifest) => match self.platform_of(&manifest).await {
                    Ok(platform) if platform.rank(&self.platform).is_some() => return Ok((served, manifest)),
                    Ok(_) => {}
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                },
            }
        }
        let Platform { os, architecture, .. } = &self.platform;
        let none =
            || StoreError::Unsupported { what: "image".into(), detail: format!("it has no {os}/{architecture} image") };
        second_best.ok_or_else(|| failed.unwrap_or_else(none))
    }

    /// One manifest or index, and its digest.
    async fn manifest(&self, selector: &str, expected: Option<Digest>) -> StoreResult<(Digest, Document)> {
        let what = format!("{}/{} manifest {selector}", self.host, self.repository);
        let path = format!("manifests/{selector}");
        let document = self.document(&path, MANIFESTS, &what, expected, self.limits.manifest_bytes).await?;
        let served_as = document.content_type.as_deref();
        let parsed = manifest::parse(&document.bytes, served_as, &self.platform, &self.limits)?;
        Ok((document.digest, parsed))
    }

    /// What an image itself says that it is for.
    async fn platform_of(&self, manifest: &Manifest) -> StoreResult<Normal> {
        let config = parse_config(&self.config(&manifest.config).await?)?;
        Ok(Normal::new(&config.config.os, &config.config.architecture, &config.variant))
    }

    /// The config document, verified.
    pub(crate) async fn config(&self, config: &Descriptor) -> StoreResult<Bytes> {
        let what = format!("{}/{} config {}", self.host, self.repository, config.digest);
        let path = format!("blobs/{}", config.digest);
        Ok(self.document(&path, "*/*", &what, Some(config.digest), self.limits.config_bytes).await?.bytes)
    }

    async fn document(
        &self,
        path: &str,
        accept: &'static str,
        what: &str,
        expected: Option<Digest>,
        limit: u64,
    ) -> StoreResult<Fetched> {
        let mut faults = Vec::new();
        for endpoint in &self.endpoints {
            let mut wait = self.timeouts.retry;
            for attempt in 1..=ATTEMPTS {
                let work = self.fetch(endpoint, path, accept, what, expected, limit);
                let result = match tokio::time::timeout(self.timeouts.document, work).await {
                    Ok(result) => result,
                    Err(_) => Err(Fault::Down(format!("no whole answer within {:?}", self.timeouts.document))),
                };
                match result {
                    Ok(fetched) => return Ok(fetched),
                    Err(Fault::Passing(detail)) if attempt < ATTEMPTS => {
                        tracing::debug!(endpoint = endpoint.base, what, detail, "trying again");
                        tokio::time::sleep(wait).await;
                        wait *= 4;
                    }
                    Err(fault) => {
                        faults.push((endpoint, fault));
                        break;
                    }
                }
            }
        }
        Err(self.verdict(what, faults))
    }

    async fn fetch(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &'static str,
        what: &str,
        expected: Option<Digest>,
        limit: u64,
    ) -> Result<Fetched, Fault> {
        let response = self.get(endpoint, path, accept, None).await?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = header(CONTENT_TYPE.as_str()).map(|t| t.split(';').next().unwrap_or("").trim().to_owned());
        let announced = header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        let bytes = body(response, limit)
            .await?
            .ok_or_else(|| Fault::Bad(StoreError::TooLarge { what: what.into(), limit: format!("{limit} bytes") }))?;
        // What a tag stands for is the registry's word alone; it must at least keep it.
        let wanted = expected.or(announced);
        let digest = wanted.map_or_else(|| Digest::of(&bytes), |wanted| wanted.same_kind(&bytes));
        if let Some(expected) = wanted.filter(|expected| *expected != digest) {
            return Err(Fault::Bad(StoreError::DigestMismatch {
                what: what.into(),
                expected: expected.to_string(),
                actual: digest.to_string(),
            }));
        }
        Ok(Fetched { bytes, digest, content_type })
    }

    /// One GET that is answered with success. Logs in when it must.
    pub(crate) async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &'static str,
        from: Option<u64>,
    ) -> Result<Response, Fault> {
        let url = format!("{}/v2/{}/{path}", endpoint.base, endpoint.path);
        let used = endpoint.authorization.lock().await.clone();
        let mut response = self.send(&url, accept, from, used.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.log_in(endpoint, response.headers(), used).await?;
            response = self.send(&url, accept, from, Some(authorization)).await?;
        }
        let status = response.status();
        match status.as_u16() {
            200 | 206 => Ok(response),
            404 => Err(Fault::NotFound),
            401 | 403 => Err(Fault::Refused(explain(response).await)),
            408 | 429 | 500.. => Err(Fault::Passing(explain(response).await)),
            _ => Err(Fault::Down(explain(response).await)),
        }
    }

    async fn send(
        &self,
        url: &str,
        accept: &'static str,
        from: Option<u64>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Fault> {
        let mut request = self.client.get(url).header(ACCEPT, accept);
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|e| transport(&e))
    }

    /// Answers a challenge; layers that are challenged at the same time log in once.
    async fn log_in(
        &self,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue, Fault> {
        let mut known = endpoint.authorization.lock().await;
        if *known != used
            && let Some(newer) = &*known
        {
            return Ok(newer.clone());
        }
        let auth = self.auth.as_ref().filter(|_| endpoint.origin);
        let challenges: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|h| h.to_str().ok()).collect();
        let value = match (auth, challenges.iter().find_map(|c| Challenge::parse(c))) {
            (Some(Auth::Bearer(token)), _) => format!("Bearer {token}"),
            (_, Some(Challenge::Bearer { realm, service, scope })) => {
                format!("Bearer {}", self.token(endpoint, auth, &realm, service, scope).await?)
            }
            (Some(Auth::Basic { username, password }), Some(Challenge::Basic)) => basic(username, password),
            (_, Some(Challenge::Basic)) => return Err(Fault::Refused("it wants a user name and a password".into())),
            (_, None) => return Err(Fault::Refused("it asks for no kind of login that is known here".into())),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| Fault::Refused("the token is not text".into()))?;
        value.set_sensitive(true);
        *known = Some(value.clone());
        Ok(value)
    }

    /// Gets a bearer token (distribution's token specification; POST for refresh tokens is its OAuth2 form).
    async fn token(
        &self,
        endpoint: &Endpoint,
        auth: Option<&Auth>,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, Fault> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut url = reqwest::Url::parse(realm).map_err(|_| Fault::Down("its token service is not a URL".into()))?;
        let plain = endpoint.base.starts_with("http://");
        if url.scheme() != "https" && !(plain && url.scheme() == "http") {
            return Err(Fault::Down(format!("its token service {} is not https", printable(realm))));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", endpoint.path));
        let mut query = vec![("scope", scope)];
        query.extend(service.map(|s| ("service", s)));
        let request = if let Some(Auth::Identity(refresh)) = auth {
            query.push(("grant_type", "refresh_token".into()));
            query.push(("client_id", "cofferdam".into()));
            query.push(("refresh_token", refresh.clone()));
            let form = reqwest::Url::parse_with_params("http://form/", &query)
                .map_err(|_| Fault::Refused("the refresh token is not text".into()))?;
            let form = form.query().unwrap_or_default().to_owned();
            self.client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        } else {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(k, v)| (*k, v.as_str())));
            match auth {
                Some(Auth::Basic { username, password }) => {
                    self.client.get(url).header(AUTHORIZATION, sensitive(&basic(username, password))?)
                }
                _ => self.client.get(url),
            }
        };
        let response = request.send().await.map_err(|e| transport(&e))?;
        match response.status().as_u16() {
            200..=299 => {}
            408 | 429 | 500.. => return Err(Fault::Passing(format!("token service: {}", explain(response).await))),
            _ => return Err(Fault::Refused(format!("token service: {}", explain(response).await))),
        }
        let bytes = body(response, TOKEN_BYTES).await?;
        let answer = bytes.and_then(|b| serde_json::from_slice::<Answer>(&b).ok());
        let token = answer.and_then(|a| a.token.filter(|t| !t.is_empty()).or(a.access_token));
        token.ok_or_else(|| Fault::Down("its token service sent no token".into()))
    }

    /// What to say when no endpoint had it: bad bytes first, then the last one's word, which is the registry's own.
    pub(crate) fn verdict(&self, what: &str, mut faults: Vec<(&Endpoint, Fault)>) -> StoreError {
        if let Some(at) = faults.iter().position(|(_, f)| matches!(f, Fault::Bad(_)))
            && let (_, Fault::Bad(error)) = faults.swap_remove(at)
        {
            return error;
        }
        let all: Vec<_> =
            faults.iter().map(|(endpoint, fault)| format!("{}: {}", endpoint.base, fault.text())).collect();
        match faults.pop() {
            Some((_, Fault::NotFound)) => StoreError::NotFound { what: what.into() },
            Some((endpoint, Fault::Refused(detail))) => {
                StoreError::Unauthorized { registry: endpoint.base.clone(), what: what.into(), detail }
            }
            _ => StoreError::Unavailable {
                registry: self.host.clone(),
                detail: format!("{what}: {}", all.join("; ")),
                source: None,
            },
        }
    }

    pub(crate) fn name_of(&self, digest: &Digest) -> String {
        format!("{}/{} layer {digest}", self.host, self.repository)
    }
}

impl Fault {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::NotFound => "not found".into(),
            Self::Refused(detail) => format!("refused: {detail}"),
            Self::Passing(detail) | Self::Down(detail) => detail.clone(),
            Self::Bad(error) => error.to_string(),
        }
    }
}

/// A failure below HTTP.
pub(crate) fn transport(error: &reqwest::Error) -> Fault {
    let text = causes(error);
    if error.is_connect() || error.is_redirect() || error.is_builder() {
        Fault::Down(text)
    } else {
        Fault::Passing(text)
    }
}

/// Whether this cause is a certificate that is signed by nobody who is trusted. An `io::Error` hides what it wraps from the chain.
fn is_untrusted(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return is_untrusted(inner);
    }
    let tls = cause.downcast_ref::<rustls::Error>();
    matches!(tls, Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)))
}

/// The chain of causes without the URL, which may carry signatures.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::from(if error.is_connect() {
        "cannot connect"
    } else if error.is_timeout() {
        "timed out"
    } else {
        "transfer failed"
    });
    let mut next = error.source();
    let mut untrusted = false;
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&printable(&cause.to_string()));
        untrusted |= is_untrusted(cause);
        next = cause.source();
    }
    if untrusted {
        text.push_str(" (no authority that this node trusts has signed its certificate: name the one that has in this registry's ca_files)");
    }
    text
}

/// The whole body, or `None` when it is longer than `limit`.
async fn body(mut response: Response, limit: u64) -> Result<Option<Bytes>, Fault> {
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
async fn explain(response: Response) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let bytes = body(response, ERROR_BYTES).await.ok().flatten().unwrap_or_default();
    match serde_json::from_slice::<Answer>(&bytes).ok().and_then(|a| a.errors.into_iter().next()) {
        Some(first) => format!("{status} ({} {})", printable(&first.code), printable(&first.message)),
        None => status.to_string(),
    }
}

fn sensitive(value: &str) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(value).map_err(|_| Fault::Refused("the credentials are not text".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", super::credentials::encode_base64(format!("{username}:{password}").as_bytes()))
}
