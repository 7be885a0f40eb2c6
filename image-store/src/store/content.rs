//! What is behind a manifest: an image or an artifact, and what its layers are to become.

use std::sync::Arc;

use super::artifact::Form;
use super::db::ImageRecord;
use super::inner::Inner;
use super::layer::Wanted;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::{ParsedConfig, parse_config};
use crate::platform::Normal;
use crate::registry::{Manifest, Session, printable};

/// The image or artifact of a manifest, when it is in the store.
pub(super) fn known(inner: &Inner, manifest: &Manifest) -> Option<(String, Arc<ImageRecord>)> {
    let state = inner.state();
    let find = |digest: &Digest, artifact: bool| {
        let id = digest.to_string();
        let record = state.images.get(&id).filter(|record| record.artifact.is_some() == artifact)?.clone();
        Some((id, record))
    };
    let artifact = manifest.artifact.as_ref().and_then(|_| find(&manifest.digest, true));
    artifact.or_else(|| find(&manifest.config.digest, false))
}

/// What is behind a manifest.
pub(super) enum Content {
    Image(Box<ParsedConfig>),
    /// An artifact of this type.
    Artifact(String),
}

/// Reads the config document. Where the manifest may be an artifact's, its content decides whether
/// there is an image.
pub(super) async fn content(session: &Session, manifest: &Manifest) -> StoreResult<Content> {
    let read = async { parse_config(&session.config(&manifest.config).await?) };
    match (read.await, &manifest.artifact) {
        (Ok(_), Some(kind)) if manifest.layers.iter().any(|layer| layer.check_type().is_err()) => {
            Ok(Content::Artifact(kind.clone()))
        }
        (Ok(parsed), _) => Ok(Content::Image(Box::new(parsed))),
        (Err(StoreError::Malformed { .. }), Some(kind)) => Ok(Content::Artifact(kind.clone())),
        (Err(error), _) => Err(error),
    }
}

pub(super) fn image_layers(manifest: &Manifest, diff_ids: Vec<Digest>) -> Vec<Wanted> {
    let layers = manifest.layers.iter().zip(diff_ids).enumerate();
    let wanted =
        layers.map(|(index, (layer, diff_id))| Wanted { index, blob: layer.blob.clone(), form: Form::Layer, diff_id });
    wanted.collect()
}

pub(super) fn artifact_layers(manifest: &Manifest) -> StoreResult<Vec<Wanted>> {
    let layers = manifest.layers.iter().enumerate();
    let wanted = layers.map(|(index, layer)| {
        let form = Form::of_artifact(layer)?;
        let diff_id = form.stand_in(&layer.blob.digest);
        Ok(Wanted { index, blob: layer.blob.clone(), form, diff_id })
    });
    wanted.collect()
}

pub(super) fn check_config(inner: &Inner, manifest: &Manifest, parsed: &ParsedConfig) -> StoreResult<()> {
    if parsed.diff_ids.len() != manifest.layers.len() {
        return Err(StoreError::malformed(
            "image config",
            format!("has {} diff IDs for {} layers", parsed.diff_ids.len(), manifest.layers.len()),
        ));
    }
    let (node, have) = (&inner.config.platform, &parsed.config);
    // Builders that cross-compile often leave their own architecture here, and other runtimes do
    // not look.
    let says = Normal::new(&have.os, &have.architecture, &parsed.variant);
    if !have.architecture.is_empty() && says.rank(node).is_none() {
        tracing::warn!(
            os = printable(&have.os),
            architecture = printable(&have.architecture),
            node = format!("{}/{}", node.os, node.architecture),
            "the image says that it is for another platform; it is taken all the same"
        );
    }
    Ok(())
}
