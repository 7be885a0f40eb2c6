//! `cofferdam serve`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_image_store::Store;
use cofferdam_proto::cri::image_service_server::ImageServiceServer;
use cofferdam_proto::cri::runtime_service_server::RuntimeServiceServer;
use cofferdam_proto::images::image_admin_server::ImageAdminServer;
use cofferdam_sandbox::{Kind, Runtime};
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use super::Outcome;
use crate::config::{Config, HANDLERS, load};
use crate::deadline::KeepDeadlines;
use crate::error::{CriError, message};
use crate::image_service::{ImageAdmin, Images};
use crate::journal;
use crate::node::{Node, health, restore};
use crate::panics::{self, CatchPanics};
use crate::records::Records;
use crate::runtime_service;
use crate::streaming::StreamingServer;
use crate::telemetry::{self, MeasureCalls, TraceCalls, Traces};

/// Largest message either way, as the kubelet's own client has it.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// How long calls may take to end once the daemon was told to.
const GOODBYE: Duration = Duration::from_secs(10);
/// Threads that serve calls; what blocks has threads of its own.
const WORKERS: usize = 4;

#[expect(clippy::disallowed_methods, reason = "the daemon's own thread, which is no worker")]
pub(crate) fn run(path: Option<&Path>) -> Outcome {
    let (_, config) = load(path)?;
    let traces = config.tracing.clone().map(Traces::new);
    journal::start(config.log_level, traces.as_ref());
    panics::watch();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus.clamp(2, WORKERS))
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(config, traces));
    // Whoever still works in a thread of its own is not waited for: every step is written down.
    runtime.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, traces: Option<Traces>) -> Result<(), Box<dyn std::error::Error>> {
    let sending = traces.map(Traces::start).transpose()?;
    for folder in [&config.run_dir, &config.state_dir] {
        private_folder(folder).map_err(|e| CriError::internal(format!("make {}", folder.display()), e))?;
    }
    let records = Records::open(&config.state_dir.join("records.redb"))?;
    let store = Arc::new(Store::open(config.store())?);
    let runtime = Runtime::open(config.sandbox())?;
    let streaming = StreamingServer::start(config.streaming).await?;
    let (socket, metrics) = (config.socket.clone(), config.metrics);
    let node = Node::new(config, store, runtime, records, streaming);
    restore::all(&node).await?;
    health::look_after(&node)?;
    crate::apparmor::load_default().await;
    if let Some(address) = metrics {
        telemetry::start(address, node.clone()).await?;
    }
    let listener = listen(&socket).map_err(|e| CriError::internal(format!("listen on {}", socket.display()), e))?;
    probe_all(node.clone());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .layer(MeasureCalls(node.telemetry.clone()))
        .layer(TraceCalls)
        .layer(KeepDeadlines)
        .layer(CatchPanics)
        .add_service(
            RuntimeServiceServer::new(runtime_service::Runtime(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(Images(node.clone()))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(ImageAdminServer::new(ImageAdmin(node.clone())))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _ = stopped.await;
        });
    let server = tokio::spawn(server);
    sd_notify::notify(&[NotifyState::Ready])?;
    tracing::info!(socket = %socket.display(), pods = node.pods().len(), containers = node.containers().len(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sd_notify::notify(&[NotifyState::Stopping]).ok();
    tracing::info!("told to end; pods go on");
    let _ = stop.send(());
    node.streaming.leave().await;
    if tokio::time::timeout(GOODBYE, node.runtime.close_pool()).await.is_err() {
        tracing::warn!("microVMs that waited for pods are left to the next daemon, which ends them");
    }
    if let Ok(ended) = tokio::time::timeout(GOODBYE, server).await {
        ended??;
    }
    if let Some(sending) = sending {
        sending.finish().await;
    }
    tokio::fs::remove_file(&socket).await.ok();
    Ok(())
}

/// Tries each kind once, so that Status can tell; on its own, since a probe may take a while.
fn probe_all(node: Arc<Node>) {
    tokio::spawn(async move {
        for (handler, kind) in HANDLERS {
            match node.probe(kind).await {
                Ok(()) => {
                    tracing::info!(handler, "usable");
                    if kind == Kind::Vm {
                        node.runtime.make_templates();
                    }
                }
                Err(error) => tracing::warn!(handler, error = message(&error), "not usable"),
            }
        }
    });
}

#[expect(clippy::disallowed_methods, reason = "before the daemon serves anybody")]
fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Listens on a socket that only root reaches. The records' lock has made sure that no other daemon
/// of this state lives.
#[expect(clippy::disallowed_methods, reason = "before the daemon serves anybody")]
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
