//! Signatures that cosign keeps in a repository, under a tag made of the digest that they are of.

use super::manifest::Descriptor;
use super::session::Session;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::{self, Item, Loose, go_struct};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

go_struct! {
    struct Raw {
        layers: Vec<Item<Layer>> = "layers",
    }
}

go_struct! {
    struct Layer {
        media_type: Loose = "mediaType",
        digest: Loose = "digest",
        size: Loose = "size",
        annotations: Annotations = "annotations",
    }
}

go_struct! {
    struct Annotations {
        signature: Loose = "dev.cosignproject.cosign/signature",
    }
}

/// A signature, and the payload that it is of.
pub(crate) struct SignatureBlob {
    pub(crate) payload: Descriptor,
    /// In base64.
    pub(crate) signature: String,
}

impl Session {
    /// The signatures of a manifest. They are whatever the registry says until they are verified.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there are none.
    pub(crate) async fn signatures(&self, digest: &Digest) -> StoreResult<Vec<SignatureBlob>> {
        let tag = format!("{}.sig", digest.to_string().replace(':', "-"));
        let bytes = self.tagged(&tag).await?;
        let raw: Raw =
            json::read(&bytes).map_err(|e| StoreError::malformed(format!("manifest {tag}"), e.to_string()))?;
        let layers = raw.layers.into_iter().map(|Item(layer)| layer).filter(|layer| layer.media_type.text == PAYLOAD);
        let found = layers.filter_map(|layer| {
            let digest = layer.digest.text.parse().ok()?;
            let size = u64::try_from(layer.size.number?).ok()?;
            let signature = layer.annotations.signature.text;
            Some(SignatureBlob { payload: Descriptor { digest, size }, signature })
        });
        Ok(found.collect())
    }
}
