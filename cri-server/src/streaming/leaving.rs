//! The daemon's end, as clients of a running exec or attach hear of it.
//!
//! Their streams are the daemon's, so they end with it. A client that saw its connection close and
//! nothing else would take that for success.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{CommandTarget, Stdio};

/// How long clients may take to hear of it.
const LIMIT: Duration = Duration::from_secs(2);
const MESSAGE: &str = "the node's container runtime is being restarted, and the streams of exec and attach end with it; \
                       the container goes on: run the command again";

/// Whether the daemon is about to end, and who still has to be told.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving {
    begun: CancellationToken,
    /// What serves sessions.
    pub(super) sessions: TaskTracker,
}

impl Leaving {
    /// Tells all sessions and waits until they have told their clients, for two seconds at most.
    pub(super) async fn begin(&self) {
        self.begun.cancel();
        self.sessions.close();
        if tokio::time::timeout(LIMIT, self.sessions.wait()).await.is_err() {
            tracing::debug!(left = self.sessions.len(), "streaming clients that have not hung up are left");
        }
    }

    /// Ends when the daemon is about to end.
    pub(super) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// A target whose output ends with an error when the daemon is about to end.
    pub(super) fn with(&self, target: Arc<dyn CommandTarget>) -> Arc<dyn CommandTarget> {
        Arc::new(UntilThen { target, begun: self.begun.clone() })
    }
}

struct UntilThen {
    target: Arc<dyn CommandTarget>,
    begun: CancellationToken,
}

impl CommandTarget for UntilThen {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        let (starting, begun) = (self.target.start(), self.begun.clone());
        async move {
            let (input, output) = tokio::select! {
                started = starting => started?,
                () = begun.cancelled() => return Err(Status::unavailable(MESSAGE)),
            };
            let after = begun.clone();
            let message = move |()| ready(after.is_cancelled().then(|| Err(Status::unavailable(MESSAGE))));
            let end = stream::iter([()]).filter_map(message);
            Ok((input, output.take_until(begun.cancelled_owned()).chain(end).boxed()))
        }
        .boxed()
    }
}
