//! A registry in the test's own process, which can also misbehave, and images to serve from it.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod image;
pub mod raw;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cofferdam_image_store::{Config, Digest, RegistryConfig, Timeouts};
use futures::stream::{self, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::image::Image;

type Body = BoxBody<Bytes, io::Error>;

/// How one path misbehaves.
#[derive(Clone)]
pub enum Fault {
    Status(u16),
    /// Ends the connection after so many bytes of the answer's body.
    Cut(usize),
    /// Sends so many bytes, then nothing.
    Stall(usize),
    /// Sends these bytes instead.
    Instead(Bytes),
    /// Sends no length, then never stops.
    Endless,
    Redirect(String),
}

/// What it takes to be let in.
#[derive(Clone)]
pub enum Door {
    Open,
    Basic(&'static str),
    /// A token, which the token service gives to anybody (`None`) or for this `Authorization`.
    Bearer(Option<&'static str>),
    /// A refresh token.
    Refresh(&'static str),
}

/// An answer of a hook.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// Sent in chunks without a length; the connection breaks in place of the last one.
    pub broken: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), broken: false }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn broken(mut self) -> Self {
        self.broken = true;
        self
    }

    fn response(self) -> Response<Body> {
        let mut response = if self.broken { streamed(self.body, Fault::Cut(0)) } else { whole(200, self.body) };
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        for (name, value) in self.headers {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    }
}

/// Answers in place of the registry where it gives something.
pub type Hook = Box<dyn FnMut(&Request<Bytes>) -> Option<Answer> + Send>;

/// A header's value, or nothing.
pub fn header<'a>(request: &'a Request<Bytes>, name: &str) -> &'a str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

pub struct Content {
    pub blobs: HashMap<String, Bytes>,
    /// By `repository:tag` and `repository@digest`.
    pub manifests: HashMap<String, (String, Bytes)>,
    /// By a part of the path: the fault, and how many times more.
    pub faults: Vec<(String, Fault, usize)>,
    pub door: Door,
    pub ranges: bool,
    /// Manifests come with `Docker-Content-Digest`.
    pub announces: bool,
    pub hook: Option<Hook>,
    /// `GET /path [range] [authorization]`.
    pub log: Vec<String>,
    address: String,
}

/// Ends with its value.
pub struct Registry {
    pub address: String,
    content: Arc<Mutex<Content>>,
    server: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// Over TLS where it is given.
    pub async fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content {
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            faults: Vec::new(),
            door: Door::Open,
            ranges: true,
            announces: true,
            hook: None,
            log: Vec::new(),
            address: address.clone(),
        }));
        let served = content.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let content = served.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let content = content.clone();
                    async move { Ok::<_, Infallible>(answer(&content, request).await) }
                });
                let tls = tls.clone();
                connections.spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(config) => {
                            let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else {
                                return;
                            };
                            server.serve_connection(TokioIo::new(stream), service).await
                        }
                    };
                });
            }
        });
        Self { address, content, server }
    }

    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// Serves an image under a tag; gives its reference.
    pub fn add(&self, name: &str, image: &Image) -> String {
        let mut content = self.content();
        for layer in &image.layers {
            content.blobs.insert(layer.digest().to_string(), layer.bytes.clone());
        }
        content.blobs.insert(Digest::of(&image.config()).to_string(), image.config());
        content.put(name, image.manifest_type(), image.manifest());
        format!("{}/{name}", self.address)
    }

    pub fn fault(&self, path: &str, fault: Fault, times: usize) {
        self.content().faults.push((path.into(), fault, times));
    }

    pub fn hook(&self, hook: impl FnMut(&Request<Bytes>) -> Option<Answer> + Send + 'static) {
        self.content().hook = Some(Box::new(hook));
    }

    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.content().log)
    }

    /// A store's configuration that reaches this registry.
    pub fn config(&self, dir: &std::path::Path) -> Config {
        let mut config = Config::new(dir.join("store"));
        let plain = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
        config.registries.insert(self.address.clone(), plain);
        config.platform.architecture = "amd64".into();
        config.timeouts = Timeouts { retry: Duration::from_millis(5), ..Timeouts::default() };
        config
    }
}

impl Content {
    /// Serves a manifest or index by tag and by digest.
    pub fn put(&mut self, name: &str, media_type: &str, bytes: Bytes) {
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        let by_digest = format!("{repository}@{}", Digest::of(&bytes));
        self.manifests.insert(name.into(), (media_type.into(), bytes.clone()));
        self.manifests.insert(by_digest, (media_type.into(), bytes));
    }

    fn fault(&mut self, path: &str) -> Option<Fault> {
        let (_, fault, times) = self.faults.iter_mut().find(|(part, _, times)| path.contains(part) && *times > 0)?;
        *times -= 1;
        Some(fault.clone())
    }

    fn let_in(&self, authorization: Option<&str>) -> bool {
        match &self.door {
            Door::Open => true,
            Door::Basic(value) => authorization == Some(value),
            Door::Bearer(_) | Door::Refresh(_) => authorization == Some("Bearer good-token"),
        }
    }

    fn challenge(&self) -> String {
        match &self.door {
            Door::Basic(_) => "Basic realm=\"here\"".into(),
            _ => format!("Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:x:pull\"", self.address),
        }
    }
}

fn whole(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let body = http_body_util::Full::new(body.into()).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// The bytes, and then what the fault wants.
fn streamed(bytes: Bytes, tail: Fault) -> Response<Body> {
    let length = bytes.len();
    let end = match tail {
        Fault::Cut(_) => stream::iter([Err(io::Error::other("cut"))]).boxed(),
        Fault::Endless => stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 4096])))).boxed(),
        _ => stream::pending().boxed(),
    };
    let body = stream::iter([Ok(Frame::data(bytes))]).chain(end);
    let _ = length;
    Response::new(BodyExt::boxed(StreamBody::new(sync(body))))
}

/// `boxed()` wants `Sync`; a channel-like wrapper gives it.
fn sync(
    stream: impl futures::Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static,
) -> impl futures::Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.next().await {
            // What was sent must reach the client before a cut does.
            if item.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if sender.send(item).await.is_err() {
                break;
            }
        }
    });
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

/// What a `Range` asks for of so many bytes.
fn part(range: &str, size: usize) -> Option<Range<usize>> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = if to.is_empty() { size } else { to.parse::<usize>().ok()? + 1 };
    Some(from.parse().ok()?..end.min(size))
}

async fn answer(content: &Mutex<Content>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (authorization, range) = (header("authorization"), header("range"));
    let line = [Some(format!("{} {path}", request.method())), range.clone(), authorization.clone()];
    content.lock().unwrap().log.push(line.into_iter().flatten().collect::<Vec<_>>().join(" "));
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts, body.collect().await.unwrap().to_bytes());
    {
        let mut content = content.lock().unwrap();
        if let Some(answer) = content.hook.as_mut().and_then(|hook| hook(&request)) {
            return answer.response();
        }
    }
    if path == "/token" {
        let door = content.lock().unwrap().door.clone();
        let form = request.into_body();
        let right = match door {
            Door::Bearer(None) => true,
            Door::Bearer(Some(wanted)) => authorization.as_deref() == Some(wanted),
            Door::Refresh(token) => {
                String::from_utf8_lossy(&form).contains(&format!("refresh_token={token}&"))
                    || String::from_utf8_lossy(&form).ends_with(&format!("refresh_token={token}"))
            }
            _ => false,
        };
        return if right { whole(200, r#"{"token":"good-token"}"#) } else { whole(401, "") };
    }
    let mut content = content.lock().unwrap();
    if !content.let_in(authorization.as_deref()) {
        let mut response = whole(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#);
        response.headers_mut().insert("www-authenticate", content.challenge().parse().unwrap());
        return response;
    }
    let fault = content.fault(&path);
    let Some((media_type, bytes)) = content.find(&path) else {
        return whole(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#);
    };
    let size = bytes.len();
    let range = range.filter(|_| content.ranges).and_then(|range| part(&range, size));
    let rest = range.clone().map_or_else(|| bytes.clone(), |range| bytes.slice(range));
    let mut response = match fault {
        Some(Fault::Status(status)) => return whole(status, r#"{"errors":[{"code":"OOPS","message":"on purpose"}]}"#),
        Some(Fault::Redirect(to)) => {
            let mut response = whole(307, "");
            response.headers_mut().insert("location", to.parse().unwrap());
            return response;
        }
        Some(Fault::Instead(bytes)) => whole(200, bytes),
        Some(fault @ (Fault::Cut(n) | Fault::Stall(n))) => streamed(rest.slice(..n.min(rest.len())), fault),
        Some(Fault::Endless) => streamed(Bytes::from_static(b"{"), Fault::Endless),
        None => whole(200, rest),
    };
    if let Some(range) = range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        response.headers_mut().insert("content-range", range.parse().unwrap());
    }
    response.headers_mut().insert("content-type", media_type.parse().unwrap());
    if content.announces && path.contains("/manifests/") {
        response.headers_mut().insert("docker-content-digest", Digest::of(&bytes).to_string().parse().unwrap());
    }
    response
}

impl Content {
    fn find(&self, path: &str) -> Option<(String, Bytes)> {
        let path = path.strip_prefix("/v2/")?;
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return Some(("application/octet-stream".into(), self.blobs.get(digest)?.clone()));
        }
        let (repository, selector) = path.split_once("/manifests/")?;
        let separator = if selector.contains(':') { '@' } else { ':' };
        self.manifests.get(&format!("{repository}{separator}{selector}")).cloned()
    }
}

/// A directory on a file system with user extended attributes and device nodes, which /tmp may not
/// have.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Whether the test can make device nodes and change owners; says so when not.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: unpacking layers needs root");
    }
    root
}
