//! PullImage: has no limit of its own; a caller that leaves ends it, and how far it is goes to the journal.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use cofferdam_image_store::{Auth, Reference};
use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;

/// How often a running pull is reported.
const REPORT: Duration = Duration::from_secs(2);

pub(super) async fn call(node: &Node, wanted: &str, auth: Option<&cri::AuthConfig>) -> Result<String, CriError> {
    let began = Instant::now();
    let auth =
        auth.and_then(|a| Auth::from_cri(&a.username, &a.password, &a.auth, &a.identity_token, &a.registry_token));
    let id = tokio::select! {
        id = node.store.pull(wanted, auth) => id?,
        never = report(node, wanted) => match never {},
    };
    tracing::info!(image = wanted, id, elapsed_ms = began.elapsed().as_millis() as u64, "image pulled");
    Ok(id)
}

async fn report(node: &Node, wanted: &str) -> Infallible {
    let normalised = wanted.parse::<Reference>().map_or_else(|_| wanted.to_owned(), |r| r.to_string());
    loop {
        tokio::time::sleep(REPORT).await;
        for pull in node.store.progress().into_iter().filter(|p| p.reference == normalised) {
            let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
            tracing::info!(
                image = pull.reference,
                layers = format!("{}/{}", pull.layers_done, pull.layers_total),
                mib = format!("{}/{}", mib(pull.bytes_done), mib(pull.bytes_total)),
                elapsed_s = pull.elapsed.as_secs(),
                "pull progress"
            );
        }
    }
}
