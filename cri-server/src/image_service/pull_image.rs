//! PullImage: has no limit of its own; a caller that leaves ends it. The store tells the journal
//! how far it is.

use cofferdam_image_store::{Auth, StoreError};
use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;
use crate::telemetry;

pub(super) async fn call(node: &Node, wanted: &str, auth: Option<&cri::AuthConfig>) -> Result<String, CriError> {
    telemetry::of_image(wanted);
    let auth = auth.and_then(|a| {
        let auth = Auth::from_cri(&a.username, &a.password, &a.auth, &a.identity_token, &a.registry_token);
        auth.map(|auth| auth.for_server(&a.server_address))
    });
    node.store.pull(wanted, auth).await.map_err(|error| match error {
        StoreError::Signature { .. } => CriError::SignatureInvalid(error),
        StoreError::Unavailable { .. } => CriError::RegistryUnavailable(error),
        error => error.into(),
    })
}
