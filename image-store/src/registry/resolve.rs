//! From a reference to the manifest of the image that suits the node, through indexes.

use super::manifest::{Document, Manifest};
use super::session::Session;
use crate::config::Platform;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::parse_config;
use crate::platform::Normal;
use crate::reference::Reference;

/// An index may hold an index; nobody nests deeper.
const NESTING: usize = 3;
/// Documents that are read to find an image.
const MAX_DOCUMENTS: usize = 20;

/// A document to look at.
struct Next {
    selector: String,
    expected: Option<Digest>,
    /// It is said to be for this node's platform.
    sure: bool,
    depth: usize,
}

impl Session {
    /// The image behind a reference: its manifest, and the digest under which the registry served
    /// it (of the index, where there is one). `served` is that digest, when it is known already.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        served: Option<Digest>,
    ) -> StoreResult<(Digest, Manifest)> {
        // Mirrors that may not say what a tag stands for can still have what it stands for.
        let split = self.endpoints.iter().any(|endpoint| endpoint.place.pull != endpoint.place.resolve);
        let served = match (reference.digest(), served) {
            (Some(digest), _) => Some(*digest),
            (None, None) if split => self.head(reference).await,
            (None, served) => served,
        };
        if let Some(digest) = served {
            match self.image(digest.to_string(), Some(digest)).await {
                // Some registries announce a digest that they do not serve.
                Err(StoreError::NotFound { .. }) if reference.digest().is_none() => {}
                result => return result,
            }
        }
        self.image(reference.selector(), None).await
    }

    /// As [`Session::resolve`], for a digest that is known.
    pub(crate) async fn resolve_digest(&self, digest: Digest) -> StoreResult<Manifest> {
        self.image(digest.to_string(), Some(digest)).await.map(|(_, manifest)| manifest)
    }

    /// Goes from an index down to the manifest for the platform.
    async fn image(&self, selector: String, expected: Option<Digest>) -> StoreResult<(Digest, Manifest)> {
        let mut todo = vec![Next { selector, expected, sure: true, depth: 0 }];
        let (mut served, mut asked, mut second_best, mut failed) = (None, 0, None, None);
        while let Some(Next { selector, expected, sure, depth }) = todo.pop() {
            asked += 1;
            if depth == NESTING || asked > MAX_DOCUMENTS {
                let detail = format!("is nested more than {NESTING} deep, or has no image in {MAX_DOCUMENTS} entries");
                return Err(StoreError::malformed("image index", detail));
            }
            let (digest, document) = match self.manifest(&selector, expected).await {
                Ok(found) => found,
                // Of an entry that may be anything, it is no matter what is wrong with it.
                Err(error) if !sure => {
                    failed.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let served = *served.get_or_insert(digest);
            match document {
                Document::Index(entries) => todo.extend(entries.into_iter().rev().map(|entry| {
                    let digest = entry.descriptor.digest;
                    Next { selector: digest.to_string(), expected: Some(digest), sure: entry.sure, depth: depth + 1 }
                })),
                Document::Image(manifest) if manifest.artifact.is_some() && depth > 0 => {
                    second_best.get_or_insert((served, manifest));
                }
                Document::Image(manifest) if sure => return Ok((served, manifest)),
                Document::Image(manifest) => match self.platform_of(&manifest).await {
                    Ok(platform) if platform.rank(&self.platform).is_some() => return Ok((served, manifest)),
                    Ok(_) => {}
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                },
            }
        }
        let Platform { os, architecture, .. } = &self.platform;
        let none =
            || StoreError::Unsupported { what: "image".into(), detail: format!("it has no {os}/{architecture} image") };
        second_best.ok_or_else(|| failed.unwrap_or_else(none))
    }

    /// What an image itself says that it is for.
    async fn platform_of(&self, manifest: &Manifest) -> StoreResult<Normal> {
        let config = parse_config(&self.config(&manifest.config).await?)?;
        Ok(Normal::new(&config.config.os, &config.config.architecture, &config.variant))
    }
}
