//! What a collector gets of real calls to a real server, and that nobody waits for one that is not
//! there.

mod collector;
mod registry;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cofferdam_proto::cri;
use cofferdam_proto::cri::image_service_client::ImageServiceClient;
use cofferdam_proto::cri::image_service_server::ImageServiceServer;
use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use cofferdam_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request};

use self::collector::Collector;
use self::registry::Registry;
use super::*;
use crate::image_service::Images;
use crate::journal;
use crate::node::Node;
use crate::runtime_service;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// Stands for everything that must not leave the node.
const SECRET: &str = "hunter2";

fn config(endpoint: &str, sample_percent: u8) -> TracingConfig {
    TracingConfig { endpoint: endpoint.parse().unwrap(), sample_percent }
}

fn counter() -> &'static AtomicU64 {
    Box::leak(Box::default())
}

/// A request as the kubelet makes it when it is traced; `flags` says whether it records.
fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("00-{TRACE}-{CALLER}-{flags}");
    request.metadata_mut().insert("traceparent", value.parse().unwrap());
    request
}

async fn node(dir: &Path, registry: &Registry) -> Arc<Node> {
    let mut config = crate::config::tests_config();
    config.run_dir = dir.join("run");
    config.state_dir = dir.join("state");
    config.vm.kernel = dir.join("no-kernel");
    config.registries.insert(registry.address.clone(), registry.plain_http());
    crate::node::tests_node(config).await
}

/// The daemon's services behind its layer, and a connection to them.
async fn serve(node: Arc<Node>) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .layer(TraceCalls)
        .add_service(RuntimeServiceServer::new(runtime_service::Runtime(node.clone())))
        .add_service(ImageServiceServer::new(Images(node)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn pull(image: &str) -> cri::PullImageRequest {
    let auth = cri::AuthConfig { username: "me".into(), password: SECRET.into(), ..Default::default() };
    let image = cri::ImageSpec { image: image.into(), ..Default::default() };
    cri::PullImageRequest { image: Some(image), auth: Some(auth), ..Default::default() }
}

fn pod() -> cri::RunPodSandboxRequest {
    let metadata =
        cri::PodSandboxMetadata { name: "web".into(), uid: "u-1".into(), namespace: "shop".into(), attempt: 0 };
    let secrets = || [("token".to_owned(), SECRET.to_owned())].into();
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        labels: secrets(),
        annotations: secrets(),
        ..Default::default()
    };
    cri::RunPodSandboxRequest { config: Some(config), runtime_handler: "vm".into() }
}

fn container() -> cri::CreateContainerRequest {
    let env = cri::KeyValue { key: "TOKEN".into(), value: SECRET.into() };
    let config = cri::ContainerConfig { envs: vec![env], ..Default::default() };
    cri::CreateContainerRequest { pod_sandbox_id: SECRET.into(), config: Some(config), ..Default::default() }
}

/// Does `work` while calls are traced as `config` says; gives how many spans were dropped.
async fn while_traced(config: TracingConfig, work: impl AsyncFnOnce()) -> u64 {
    let dropped = counter();
    let traces = Traces::counting(config, dropped);
    let guard = tracing::subscriber::set_default(journal::with_traces(tracing::Level::ERROR, &traces));
    let sending = traces.start().unwrap();
    work().await;
    // Whoever serves a call may still hold its span for a moment.
    tokio::time::sleep(Duration::from_millis(50)).await;
    sending.finish().await;
    drop(guard);
    dropped.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_pull_continues_its_callers_trace_step_by_step() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: unpacking layers needs root");
        return;
    }
    let (dir, registry, collector) = (tempfile::tempdir().unwrap(), Registry::start().await, Collector::start().await);
    let image = registry.image();
    let dropped = while_traced(config(&collector.endpoint, 0), async || {
        let mut images = ImageServiceClient::new(serve(node(dir.path(), &registry).await).await);
        images.pull_image(traced(pull(&image), "01")).await.unwrap();
    })
    .await;
    assert_eq!(dropped, 0);
    let seen = collector.seen();
    let call = seen.only("runtime.v1.ImageService/PullImage");
    assert_eq!((call.parent.as_str(), call.error), (CALLER, false));
    assert_eq!((call.attribute("container.image.name"), call.attribute("rpc.grpc.status_code")), (image.as_str(), "0"));
    // A layer is unpacked while it is fetched.
    let fetch = seen.only("layer fetch");
    for (step, parent) in [
        ("image manifest", call),
        ("image config", call),
        ("layer fetch", call),
        ("layer unpack", fetch),
        ("layer publish", call),
        ("image record", call),
    ] {
        let step = seen.only(step);
        assert_eq!((&step.parent, step.error), (&parent.id, false), "{step:?}");
        assert!(step.begin >= call.begin && step.end <= call.end, "{step:?} is not within {call:?}");
    }
    assert_eq!(seen.spans.len(), 7);
    assert!(seen.spans.iter().all(|span| span.trace == TRACE));
    assert_eq!(seen.only("layer fetch").attribute("layer.bytes"), registry.layer_bytes().to_string());
    assert_eq!(seen.resource("service.name"), "cofferdam");
    assert_eq!(seen.resource("service.version"), env!("CARGO_PKG_VERSION"));
    assert!(!seen.resource("host.name").is_empty());
    seen.has_no(SECRET);
}

#[tokio::test]
async fn calls_that_fail_say_so_and_tell_no_secret() {
    let (dir, registry, collector) = (tempfile::tempdir().unwrap(), Registry::start().await, Collector::start().await);
    while_traced(config(&collector.endpoint, 100), async || {
        let channel = serve(node(dir.path(), &registry).await).await;
        let mut images = ImageServiceClient::new(channel.clone());
        let mut runtime = RuntimeServiceClient::new(channel);
        let missing = format!("{}/no/such:image", registry.address);
        assert_eq!(images.pull_image(traced(pull(&missing), "01")).await.unwrap_err().code(), Code::NotFound);
        let odd = format!("{SECRET}@{}/a", registry.address);
        assert_eq!(images.pull_image(pull(&odd)).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(runtime.run_pod_sandbox(traced(pod(), "01")).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(runtime.create_container(container()).await.unwrap_err().code(), Code::NotFound);
        let start = cri::StartContainerRequest { container_id: SECRET.into() };
        assert_eq!(runtime.start_container(start).await.unwrap_err().code(), Code::NotFound);
        // What is asked by the second is not traced.
        runtime.version(traced(cri::VersionRequest::default(), "01")).await.unwrap();
    })
    .await;
    let seen = collector.seen();
    let run = seen.only("runtime.v1.RuntimeService/RunPodSandbox");
    assert_eq!((run.trace.as_str(), run.parent.as_str(), run.error), (TRACE, CALLER, true));
    assert_eq!(run.message, "FailedPrecondition");
    for (key, value) in [
        ("k8s.pod.name", "web"),
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.uid", "u-1"),
        ("cofferdam.handler", "vm"),
        ("rpc.grpc.status_code", "9"),
    ] {
        assert_eq!(run.attribute(key), value, "{key}");
    }
    let manifest = seen.only("image manifest");
    assert!(manifest.error && manifest.trace == TRACE);
    let create = seen.only("runtime.v1.RuntimeService/CreateContainer");
    assert!(create.error && create.trace != TRACE && create.parent.is_empty(), "a trace of its own: {create:?}");
    // Two pulls and one of each other, and one step.
    assert_eq!(seen.spans.len(), 6, "{:?}", seen.spans);
    seen.has_no(SECRET);
}

#[tokio::test]
async fn callers_decide_and_of_the_others_a_part_is_traced() {
    for (percent, flags, traced_calls) in [(100, None, 1), (0, None, 0), (0, Some("01"), 1), (100, Some("00"), 0)] {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::start().await);
        let collector = Collector::start().await;
        while_traced(config(&collector.endpoint, percent), async || {
            let mut runtime = RuntimeServiceClient::new(serve(node(dir.path(), &registry).await).await);
            let request = flags.map_or_else(|| Request::new(container()), |flags| traced(container(), flags));
            runtime.create_container(request).await.unwrap_err();
        })
        .await;
        assert_eq!(collector.seen().spans.len(), traced_calls, "{percent} {flags:?}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_not_there_or_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), closed] {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::start().await);
        let began = Instant::now();
        let dropped = while_traced(config(&format!("http://{address}"), 100), async || {
            let mut runtime = RuntimeServiceClient::new(serve(node(dir.path(), &registry).await).await);
            for _ in 0..100 {
                assert_eq!(runtime.create_container(container()).await.unwrap_err().code(), Code::NotFound);
            }
            assert!(began.elapsed() < Duration::from_secs(30), "the calls were held up");
            // More than the queue holds, without a pause in which it could be emptied.
            for _ in 0..queue::QUEUE + 50 {
                drop(tracing::info_span!(target: SPANS, "step"));
            }
        })
        .await;
        assert!(dropped >= 50, "the queue takes no more than it holds: {dropped}");
        assert!(began.elapsed() < Duration::from_secs(45), "the end waits 2 s at most");
    }
}

#[tokio::test]
async fn without_an_endpoint_there_are_no_spans() {
    assert_eq!(crate::config::tests_config().tracing, None);
    let _guard = tracing::subscriber::set_default(journal::alone(tracing::Level::TRACE));
    assert!(tracing::info_span!(target: SPANS, "step").is_disabled());
    let step = async { Ok::<_, ()>(tracing::Span::current().is_disabled()) };
    let span = tracing::info_span!(target: SPANS, "step", otel.status_code = tracing::field::Empty);
    assert_eq!(cofferdam_sandbox::step(span, step).await, Ok(true));
}
