//! Whether an image may be pulled, by the signatures that its registry has beside it.
//!
//! ```text
//!  policy.json ─► requirements of the narrowest scope
//!  <repository>:sha256-<digest>.sig ─► a manifest whose layers are payloads, with a signature each
//!  payload ─► names a manifest's digest and a repository ─► fits the image? ─► signed by the key?
//! ```
//!
//! A signature over an index counts for the images in it, whose digests it has, and so does one
//! over the image's own manifest. Nothing of a payload is believed before its signature was
//! verified.

mod key;
mod policy;

use std::path::Path;

use base64::Engine as _;

use self::policy::{Identity, Policy, Requirement};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::go_struct;
use crate::reference::Reference;
use crate::registry::{Session, SignatureBlob, printable};

/// Payloads of one image that are looked at.
const SIGNATURES: usize = 50;
/// What a payload of cosign says that it is.
const KIND: &str = "cosign container image signature";

go_struct! {
    struct Payload {
        critical: Critical = "critical",
    }
}

go_struct! {
    struct Critical {
        kind: String = "type",
        image: Signed = "image",
        identity: Named = "identity",
    }
}

go_struct! {
    struct Signed {
        digest: String = "docker-manifest-digest",
    }
}

go_struct! {
    struct Named {
        reference: String = "docker-reference",
    }
}

/// What the policy wants of one image.
#[derive(Debug)]
pub(crate) struct Demand {
    reference: Reference,
    scope: String,
    requirements: Vec<Requirement>,
}

/// Reads the policy only to see that it can be read. Blocks.
///
/// # Errors
/// [`StoreError::Config`] with the file and what is wrong with it.
pub(crate) fn check_policy(path: &Path) -> StoreResult<()> {
    Policy::load(path).map(drop)
}

impl Demand {
    /// What the policy at `path`, as it is now, wants of an image. Blocks.
    ///
    /// # Errors
    /// The policy cannot be read, or rejects the image whatever its signatures.
    pub(crate) fn of(path: &Path, reference: Reference) -> StoreResult<Self> {
        let policy = Policy::load(path)?;
        let (scope, requirements) = policy.of(&reference);
        let demand = Self { scope, requirements: requirements.to_vec(), reference };
        match demand.requirements.iter().any(|requirement| matches!(requirement, Requirement::Reject)) {
            true => Err(demand.refused("the policy rejects every image of it".into())),
            false => Ok(demand),
        }
    }

    /// Whether it takes any image.
    pub(crate) fn is_nothing(&self) -> bool {
        self.requirements.iter().all(|requirement| matches!(requirement, Requirement::Anything))
    }

    /// Looks for the signatures that are wanted, over one of `digests`: that under which the image
    /// was served, and that of its manifest.
    ///
    /// # Errors
    /// [`StoreError::Signature`] when there is none, and the registry's when it cannot be asked.
    pub(crate) async fn check(&self, session: &Session, digests: [Digest; 2]) -> StoreResult<()> {
        let mut open: Vec<(&key::Key, &Identity)> = Vec::new();
        for requirement in &self.requirements {
            if let Requirement::Signed(key, identity) = requirement {
                open.push((key, identity));
            }
        }
        let mut why = Vec::new();
        let different = if digests[0] == digests[1] { 1 } else { 2 };
        for digest in &digests[..different] {
            if open.is_empty() {
                break;
            }
            let signatures = match session.signatures(digest).await {
                Err(StoreError::NotFound { .. }) => {
                    why.push(format!("there is no signature of {digest}"));
                    continue;
                }
                found => found?,
            };
            if signatures.is_empty() {
                why.push(format!("there is no signature of {digest}"));
            }
            for SignatureBlob { payload, signature } in signatures.iter().take(SIGNATURES) {
                let bytes = session.config(payload).await?;
                open.retain(|(key, identity)| match self.fits(key, identity, digest, &bytes, signature) {
                    Ok(()) => false,
                    Err(reason) => {
                        why.push(format!("signature {} {reason}", payload.digest));
                        true
                    }
                });
            }
            if signatures.len() > SIGNATURES {
                why.push(format!("{digest} has more than {SIGNATURES} signatures, of which no more are looked at"));
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        why.dedup();
        why.truncate(10);
        Err(self.refused(why.join("; ")))
    }

    fn fits(
        &self,
        key: &key::Key,
        identity: &Identity,
        digest: &Digest,
        payload: &[u8],
        signature: &str,
    ) -> Result<(), String> {
        let signature = base64::engine::general_purpose::STANDARD.decode(signature.trim());
        let signature = signature.map_err(|_| "is no base64".to_owned())?;
        if !key.has_signed(payload, &signature) {
            return Err("is not by the key of the policy".into());
        }
        let Payload { critical } =
            crate::json::read(payload).map_err(|e| format!("has a payload that is none: {e}"))?;
        if critical.kind != KIND {
            return Err(format!("is of another kind, {:?}", printable(&critical.kind)));
        }
        if critical.image.digest != digest.to_string() {
            return Err(format!("is of another image, {:?}", printable(&critical.image.digest)));
        }
        let named = &critical.identity.reference;
        if identity.fits(&self.reference, named) {
            return Ok(());
        }
        let bare = !named.rsplit('/').next().unwrap_or_default().contains([':', '@']);
        let hint = match identity {
            Identity::MatchRepoDigestOrExact {} | Identity::MatchExact {} if bare => {
                ", and has no tag, as cosign writes it: the policy may say \"signedIdentity\": {\"type\": \
                 \"matchRepository\"}"
            }
            _ => "",
        };
        Err(format!("is for {:?}, which is not what the policy wants{hint}", printable(named)))
    }

    fn refused(&self, detail: String) -> StoreError {
        let scope = if self.scope.is_empty() { "transports.docker.\"\"".to_owned() } else { self.scope.clone() };
        StoreError::Signature { image: self.reference.to_string(), scope, detail }
    }
}
