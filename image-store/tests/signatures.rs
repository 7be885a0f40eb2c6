//! The signature policy: what it lets in, and what it refuses and why.

#[path = "support/mod.rs"]
mod support;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cofferdam_image_store::{Config, Digest, Store, StoreError, StoreResult};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use support::image::{Image, Packing, Tar};
use support::{Fault, Registry, root, scratch};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const KIND: &str = "cosign container image signature";

/// A key pair as `cosign generate-key-pair` makes it.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    fn pem(&self) -> String {
        let prefix = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        let der = [&prefix, self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(&SystemRandom::new(), bytes).unwrap())
    }

    fn requirement(&self, identity: Value) -> Value {
        json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(self.pem()), "signedIdentity": identity})
    }

    /// What cosign's own signatures can satisfy.
    fn by_repository(&self) -> Value {
        self.requirement(json!({"type": "matchRepository"}))
    }
}

fn payload(name: &str, digest: &str, kind: &str) -> Value {
    let image = json!({"docker-manifest-digest": digest});
    json!({"critical": {"identity": {"docker-reference": name}, "image": image, "type": kind}, "optional": null})
}

/// Puts signatures beside a manifest, as cosign does.
fn attach(registry: &Registry, repository: &str, digest: &str, signatures: &[(String, String)]) {
    let layers = signatures.iter().map(|(payload, signature)| {
        let bytes = Bytes::from(payload.clone());
        let digest = Digest::of(&bytes);
        let layer = json!({
            "mediaType": PAYLOAD, "digest": digest, "size": bytes.len(),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        });
        registry.content().blobs.insert(digest.to_string(), bytes);
        layer
    });
    let layers: Vec<_> = layers.collect();
    let config =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let tag = format!("{repository}:{}.sig", digest.replace(':', "-"));
    registry.content().put(&tag, MANIFEST, manifest.to_string().into());
}

fn image() -> Image {
    Image::new(vec![Tar::default().file("x", b"x").layer(Packing::Gzip)])
}

fn config(registry: &Registry, dir: &Path, policy: &Value) -> Config {
    let path = dir.join("policy.json");
    std::fs::write(&path, policy.to_string()).unwrap();
    Config { signature_policy: Some(path), ..registry.config(dir) }
}

async fn pull(registry: &Registry, reference: &str, policy: &Value) -> StoreResult<()> {
    let dir = scratch();
    let store = Store::open(config(registry, dir.path(), policy)).unwrap();
    let pulled = store.pull(reference, None).await;
    if pulled.is_err() {
        assert!(store.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("store/layers")).unwrap().count(), 0, "no layer is fetched");
    }
    pulled.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_are_verified() {
    if !root() {
        return;
    }
    let (ours, theirs) = (Signer::new(), Signer::new());
    let image = image();
    let digest = Digest::of(&image.manifest()).to_string();
    let other = Digest::of(b"another image").to_string();
    for case in 0.. {
        let registry = Registry::start().await;
        let reference = registry.add("a/b:c", &image);
        let name = format!("{}/a/b", registry.address);
        let right = payload(&name, &digest, KIND).to_string();
        let by = |signer: &Signer, payload: &str| (payload.to_owned(), signer.sign(payload.as_bytes()));
        let (signatures, reason) = match case {
            0 => (vec![by(&ours, &right)], ""),
            1 => (vec![by(&theirs, &right), by(&ours, &right)], ""),
            2 => (vec![], "there is no signature of"),
            3 => (vec![by(&theirs, &right)], "not by the key"),
            4 => (vec![by(&ours, &payload(&name, &other, KIND).to_string())], "of another image"),
            5 => (vec![by(&ours, &payload("evil.example/a/b", &digest, KIND).to_string())], "evil.example/a/b"),
            6 => (vec![by(&ours, &payload(&name, &digest, "atomic container signature").to_string())], "another kind"),
            7 => (vec![(right.clone(), by(&ours, &payload(&name, &other, KIND).to_string()).1)], "not by the key"),
            8 => (vec![(right.clone(), "%%%".into())], "no base64"),
            9 => (vec![(right.clone(), String::new())], "not by the key"),
            10 => (vec![by(&ours, "no JSON")], "payload that is none"),
            11 => (vec![by(&ours, "{}")], "another kind"),
            12 => (vec![by(&theirs, &right); 60], "more than 50"),
            _ => break,
        };
        if case != 2 {
            attach(&registry, "a/b", &digest, &signatures);
        }
        let policy = json!({"default": [ours.by_repository()]});
        match pull(&registry, &reference, &policy).await {
            Ok(()) => assert_eq!(reason, "", "{case}"),
            Err(error @ StoreError::Signature { .. }) => {
                let text = error.to_string();
                assert!(!reason.is_empty() && text.contains(reason) && text.contains(&reference), "{case}: {text}");
            }
            Err(error) => panic!("{case}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scope_of_the_image_decides() {
    if !root() {
        return;
    }
    let (signer, other, registry) = (Signer::new(), Signer::new(), Registry::start().await);
    let image = image();
    let digest = Digest::of(&image.manifest()).to_string();
    for name in ["team/signed:1", "team/unsigned:1", "free/x:1", "else/x:1"] {
        registry.add(name, &image);
    }
    let at = |name: &str| format!("{}/{name}", registry.address);
    let by = |signer: &Signer| {
        let payload = payload(&at("team/signed"), &digest, KIND).to_string();
        (payload.clone(), signer.sign(payload.as_bytes()))
    };
    attach(&registry, "team/signed", &digest, &[by(&signer)]);
    let policy = json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {
            at("team"): [signer.by_repository()], at("free"): [{"type": "insecureAcceptAnything"}],
        }},
    });
    pull(&registry, &at("team/signed:1"), &policy).await.unwrap();
    pull(&registry, &at(&format!("team/signed@{digest}")), &policy).await.unwrap();
    registry.log();
    pull(&registry, &at("free/x:1"), &policy).await.unwrap();
    assert!(registry.log().iter().all(|line| !line.contains(".sig")), "nobody asks for signatures that nobody wants");
    let error = pull(&registry, &at("team/unsigned:1"), &policy).await.unwrap_err().to_string();
    assert!(error.contains("no signature") && error.contains(&format!("scope {}", at("team"))), "{error}");
    registry.log();
    let error = pull(&registry, &at("else/x:1"), &policy).await.unwrap_err().to_string();
    assert!(error.contains("scope default") && error.contains("rejects"), "{error}");
    assert_eq!(registry.log(), Vec::<String>::new(), "what is rejected anyhow is not asked for");
    // Cosign names no tag, which the default of the policy's format does not take; the error says so.
    let strict = json!({"default": [signer.requirement(json!({"type": "matchRepoDigestOrExact"}))]});
    let error = pull(&registry, &at("team/signed:1"), &strict).await.unwrap_err().to_string();
    assert!(error.contains("matchRepository"), "{error}");
    // All requirements must hold.
    let both = json!({"default": [signer.by_repository(), other.by_repository()]});
    assert!(matches!(pull(&registry, &at("team/signed:1"), &both).await, Err(StoreError::Signature { .. })));
    attach(&registry, "team/signed", &digest, &[by(&other), by(&signer)]);
    pull(&registry, &at("team/signed:1"), &both).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_of_the_index_or_of_the_image_counts() {
    if !root() {
        return;
    }
    let signer = Signer::new();
    let image = image();
    let manifest = Digest::of(&image.manifest());
    for sign_index in [true, false] {
        let registry = Registry::start().await;
        registry.add("a/b:part", &image);
        let entry = json!({
            "mediaType": MANIFEST, "digest": manifest, "size": image.manifest().len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string();
        registry.content().put("a/b:c", INDEX, index.clone().into());
        let digest = if sign_index { Digest::of(index.as_bytes()) } else { manifest }.to_string();
        let payload = payload(&format!("{}/a/b", registry.address), &digest, KIND).to_string();
        attach(&registry, "a/b", &digest, &[(payload.clone(), signer.sign(payload.as_bytes()))]);
        let policy = json!({"default": [signer.by_repository()]});
        pull(&registry, &format!("{}/a/b:c", registry.address), &policy).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_is_read_for_each_pull() {
    if !root() {
        return;
    }
    let (dir, registry, signer) = (scratch(), Registry::start().await, Signer::new());
    let image = image();
    let reference = registry.add("a/b:c", &image);
    let open = json!({"default": [{"type": "insecureAcceptAnything"}]});
    let config = config(&registry, dir.path(), &open);
    let path = config.signature_policy.clone().unwrap();
    let store = Store::open(config.clone()).unwrap();
    store.pull(&reference, None).await.unwrap();
    // The same tag again, which is in the store: it is no longer let in.
    std::fs::write(&path, json!({"default": [signer.by_repository()]}).to_string()).unwrap();
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Signature { .. })));
    // A registry that does not answer is no bad signature.
    attach(&registry, "a/b", &Digest::of(&image.manifest()).to_string(), &[]);
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Signature { .. })));
    registry.fault(".sig", Fault::Status(500), 100);
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Unavailable { .. })));
    // No policy is no permission, and a store does not open without it.
    for bad in [r#"{"default": [{"type": "signedBy"}]}"#, ""] {
        std::fs::write(&path, bad).unwrap();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert!(matches!(&error, StoreError::Config(text) if text.contains("policy.json")), "{error:?}");
    }
    drop(store);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Store::open(config), Err(StoreError::Config(text)) if text.contains("policy.json")));
}
