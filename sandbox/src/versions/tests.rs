//! A pod of version 1 under this daemon. `v1/` holds what the programs of that version wrote: the
//! pod's records, and what its monitor answered to which bytes (`monitor.txt`: a request after `>`,
//! the answer after `<`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::{BodyExt, Full};
use rustix::net::{SocketFlags, SocketType, accept_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::transport::{Endpoint, Server};
use tower::Service;

use super::*;
use crate::dirs::{self, Dirs};
use crate::{Adopted, Runtime, process};

const MONITOR: &str = include_str!("v1/monitor.txt");
pub(crate) const SPEC: &str = include_str!("v1/spec.json");
const READY: &str = include_str!("v1/ready.json");
const NETWORK: &str = include_str!("v1/network.json");
pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

type Log = Arc<Mutex<Vec<String>>>;

fn logged(log: &Log) -> Vec<String> {
    log.lock().unwrap().clone()
}

/// Answers as the recorded monitor did, byte for byte. Requests that it never got are logged, and
/// end the connection.
fn recorded_monitor(socket: OwnedFd, unheard: Log) {
    let lines: Vec<&str> = MONITOR.lines().collect();
    let pair = |pair: &[&'static str]| (pair[0].strip_prefix("> ").unwrap(), pair[1].strip_prefix("< ").unwrap());
    let answers: HashMap<&str, &str> = lines.chunks(2).map(pair).collect();
    std::thread::spawn(move || {
        while let Ok(connection) = accept_with(&socket, SocketFlags::CLOEXEC) {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = rustix::io::read(&connection, &mut buffer) {
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let Some(answer) = answers.get(request.as_str()) else {
                    unheard.lock().unwrap().push(request);
                    break;
                };
                rustix::io::write(&connection, answer.as_bytes()).unwrap();
            }
        }
    });
}

/// An agent that speaks the version `speaks` alone, and knows no call but `Hello`.
#[derive(Clone)]
struct OldAgent {
    speaks: u8,
    calls: Log,
}

impl NamedService for OldAgent {
    const NAME: &'static str = "cofferdam.agent.v1.Agent";
}

impl Service<http::Request<Body>> for OldAgent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let agent = self.clone();
        async move {
            let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            agent.calls.lock().unwrap().push(format!("{call} {}", sent.last().copied().unwrap_or(0)));
            let answer = http::Response::builder().header("content-type", "application/grpc");
            // A frame of gRPC: not compressed, its length, field 1 of HelloRequest.
            let greeted = sent[..] == [0, 0, 0, 0, 2, 8, agent.speaks];
            let answer = match call.as_str() {
                "Hello" if greeted => {
                    let mut reply = vec![0, 0, 0, 0, 21, 8, agent.speaks];
                    reply.extend(b"\x12\x050.1.0\x1a\x02vm\x22\x066.12.0");
                    answer.body(Body::new(Full::from(reply).with_trailers(async {
                        Some(Ok(http::HeaderMap::from_iter([(
                            http::HeaderName::from_static("grpc-status"),
                            http::HeaderValue::from_static("0"),
                        )])))
                    })))
                }
                "Hello" => answer
                    .header("grpc-status", "9")
                    .header("grpc-message", "this agent speaks another version of its API")
                    .body(Body::empty()),
                _ => answer.header("grpc-status", "12").body(Body::empty()),
            };
            Ok(answer.unwrap())
        }
        .boxed()
    }
}

/// Serves `agent` at `path`, below the monitor's vsock greeting if it is that of a microVM.
pub(crate) fn serve<A>(path: &Path, agent: A, vsock: bool)
where
    A: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + NamedService,
    A: Clone + Send + Sync + 'static,
    A::Future: Send + 'static,
{
    let listener = UnixListener::bind(path).unwrap();
    let connections = stream::unfold(listener, move |listener| async move {
        let stream = greeted(listener.accept().await.unwrap().0, vsock).await;
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    tokio::spawn(Server::builder().add_service(agent).serve_with_incoming(connections.boxed()));
}

async fn greeted(mut stream: UnixStream, vsock: bool) -> UnixStream {
    if vsock {
        let mut line = [0; 13];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        stream.write_all(b"OK 1024\n").await.unwrap();
    }
    stream
}

/// A pod that a daemon of version 1 launched: its records, a process that stands for its monitor,
/// and what listens on its sockets.
struct OldPod {
    process: Child,
    unheard: Log,
    calls: Log,
}

/// Writes the records of a pod with the specification `spec`; answers a process that stands for its monitor.
pub(crate) fn recorded(dirs: &Dirs, spec: &str) -> Child {
    fs::create_dir_all(&dirs.run).unwrap();
    fs::create_dir_all(&dirs.state).unwrap();
    let process = Command::new("sleep").arg("600").spawn().unwrap();
    let record = process::identify(process.id()).unwrap().record;
    fs::write(dirs.spec(), spec).unwrap();
    fs::write(dirs.ready(), READY).unwrap();
    fs::write(dirs.network(), NETWORK).unwrap();
    let text = format!(r#"{{"pid":{},"start_time":{}}}"#, record.pid, record.start_time);
    fs::write(dirs.process(), text).unwrap();
    process
}

impl OldPod {
    fn new(dirs: &Dirs) -> Self {
        let process = recorded(dirs, SPEC);
        let (unheard, calls) = (Log::default(), Log::default());
        recorded_monitor(connect::listener(&dirs.control(), SocketType::SEQPACKET).unwrap(), unheard.clone());
        serve(&dirs.vsock(), OldAgent { speaks: 1, calls: calls.clone() }, true);
        Self { process, unheard, calls }
    }
}

impl Drop for OldPod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_pod_of_version_1_is_adopted_and_spoken_to_in_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::testing::config_below(folder.path());
    let dirs = Dirs::of(&config, ID).unwrap();
    let old = OldPod::new(&dirs);
    let Adopted::Running(pod) = Runtime::open(config).unwrap().adopt(ID).await.unwrap() else { panic!("it has ended") };
    let known = async {
        while pod.programs().monitor.is_none() || pod.programs().agent.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("its versions stay unknown");
    let old_one = Some(ProgramVersion { api: 1, version: "0.1.0".into() });
    assert_eq!(pod.programs(), Programs { monitor: old_one.clone(), agent: old_one });
    assert!(pod.programs().differ());
    // What a monitor of that version can do goes on working.
    pod.close_log(ID).await.unwrap();
    assert_eq!(pod.status().await.unwrap(), monitor::Status::default());
    assert_eq!(pod.agent_api().await.unwrap(), 1);
    assert_eq!(pod.network().unwrap().addresses.len(), 2);
    // What it cannot do is refused without being asked for.
    let error = pod.plug(crate::blocks::tests::any()).await.unwrap_err();
    assert!(matches!(&error, crate::SandboxError::Refused(why) if why.contains("make the pod anew")), "{error}");
    pod.unplug("b7.0w").await.unwrap();
    // Its clock is looked at when it is adopted, by an agent that can.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(logged(&old.calls), ["Hello 4", "Hello 3", "Hello 2", "Hello 1"]);
    assert_eq!(logged(&old.unheard), [""; 0], "bytes that the monitor of version 1 was never asked");
}

#[test]
fn records_of_version_1_are_read_and_fields_of_later_ones_have_defaults() {
    let spec: crate::PodSpec = serde_json::from_str(SPEC).unwrap();
    assert_eq!((spec.id.as_str(), spec.oom_score_adj), (ID, 0));
    let network = spec.network.unwrap();
    assert_eq!((network.port_mappings.len(), network.annotations.len(), network.bandwidth), (1, 0, None));
    let attachment: crate::cni::Attachment = serde_json::from_str(NETWORK).unwrap();
    assert_eq!((attachment.container.as_str(), attachment.complete), (ID, false));
    assert!(serde_json::from_str::<dirs::ReadyRecord>(READY).unwrap().network.is_some());
    let report = r#"{"reason":"power_off","detail":"x","at_unix_nanos":5}"#;
    assert_eq!(serde_json::from_str::<monitor::ExitReport>(report).unwrap().at_unix_nanos, 5);
}

/// An agent that speaks `speaks` alone, greeted with `versions`.
async fn agreed(speaks: u8, versions: RangeInclusive<u32>) -> (Result<u32, String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (path, calls) = (folder.path().join("agent"), Log::default());
    serve(&path, OldAgent { speaks, calls: calls.clone() }, false);
    let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    }));
    let outcome = greet(AgentClient::new(channel), versions).await;
    (outcome.map(|program| program.api).map_err(|error| error.chain()), logged(&calls))
}

#[tokio::test]
async fn the_newest_version_of_both_is_spoken() {
    assert_eq!(agreed(5, 3..=5).await, (Ok(5), vec!["Hello 5".into()]));
    assert_eq!(agreed(3, 3..=5).await.0, Ok(3));
    let (refused, calls) = agreed(2, 3..=5).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("versions 3 to 5") && refused.contains("another version"), "{refused}");
    assert_eq!(calls, ["Hello 5", "Hello 4", "Hello 3"]);
    // A launch: daemon and agent are of one installation.
    assert!(agreed(1, 2..=2).await.0.unwrap_err().contains("speaks version 2 of the agent's API"));
}

#[test]
fn what_an_agent_says_of_itself_is_short_and_plain() {
    assert_eq!(ProgramVersion::new(1, "1.2.3-rc.1").version, "1.2.3-rc.1");
    assert_eq!(ProgramVersion::new(1, "1\n\u{202e}2").version, "1??2");
    assert_eq!(ProgramVersion::new(1, &"x".repeat(1000)).version.len(), LONGEST);
    let ours = ProgramVersion::new(monitor::API_VERSION, env!("CARGO_PKG_VERSION"));
    assert!(!Programs { monitor: Some(ours), agent: None }.differ());
    assert!(!Programs::default().differ());
}
