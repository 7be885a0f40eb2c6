//! A connection to the running daemon, for the subcommands that show what it has.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri::image_service_client::ImageServiceClient;
use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use cofferdam_proto::images::image_admin_client::ImageAdminClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::Outcome;
use super::serve::MAX_MESSAGE;
use crate::config::{Config, load};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The daemon's configuration and its two services.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    /// For calls that take as long as they take, as those of `admin`.
    pub(super) patient: ImageServiceClient<Channel>,
    /// What CRI has no call for.
    pub(super) admin: ImageAdminClient<Channel>,
}

/// Runs `work` with a connection to the daemon that the configuration at `path` names.
///
/// # Errors
/// When nothing listens on its socket, or `work` fails.
#[expect(clippy::disallowed_methods, reason = "this thread is no asynchronous worker")]
pub(super) fn with_daemon<W: Future<Output = Outcome>>(path: Option<&Path>, work: impl FnOnce(Daemon) -> W) -> Outcome {
    let (_, config) = load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = config.socket.clone();
        let endpoint = Endpoint::from_static("http://cofferdam");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let limited = endpoint.clone().timeout(LIMIT);
        let channel = limited.connect_with_connector(connector.clone()).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!(
                "cannot connect to the daemon at {}: {cause}; is cofferdam.service running, and are you root?",
                config.socket.display()
            )
        })?;
        let patient = endpoint.connect_with_connector_lazy(connector);
        let daemon = Daemon {
            config,
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            patient: ImageServiceClient::new(patient.clone()),
            admin: ImageAdminClient::new(patient),
        };
        work(daemon).await
    })
}
