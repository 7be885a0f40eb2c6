//! The policy file: containers-policy.json(5), read as strictly as that page says.
//!
//! ```text
//!  { "default": [requirement, ...],
//!    "transports": { "docker": { "registry.example/team": [requirement, ...], ... } } }
//! ```
//!
//! Of the scopes that an image is in, the narrowest counts alone: the image, its repository, each
//! namespace above, the registry, `*.` and each domain above, `""`, and then `default`. All
//! requirements of a scope must hold. What this program does not know is refused when the file is
//! read, since a requirement that is passed over protects nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::key::Key;
use crate::error::{StoreError, StoreResult};
use crate::reference::Reference;

/// Bytes of the policy file and of a key's.
const FILE: u64 = 1 << 20;

/// What an image of a scope must satisfy.
#[derive(Debug, Clone)]
pub(super) enum Requirement {
    /// Nothing.
    Anything,
    /// No image does.
    Reject,
    /// A signature by this key that names the image.
    Signed(Key, Identity),
}

/// Which image a signature must name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Identity {
    /// The very reference.
    MatchExact {},
    /// The very reference, and of one by digest, its repository.
    MatchRepoDigestOrExact {},
    /// Its repository.
    MatchRepository {},
    /// This one.
    ExactReference { docker_reference: String },
    /// Any of this repository.
    ExactRepository { docker_repository: String },
    /// As by default, with a prefix of the reference replaced.
    #[serde(rename = "remapIdentity")]
    Remap { prefix: String, signed_prefix: String },
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<Raw>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Raw>>>,
}

#[derive(serde::Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Raw {
    InsecureAcceptAnything {},
    Reject {},
    SigstoreSigned { key_path: Option<PathBuf>, key_data: Option<String>, signed_identity: Option<Identity> },
}

/// A map without equal keys.
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if values.contains_key(&key) {
                        return Err(de::Error::custom(format!("{key:?} is there twice")));
                    }
                    values.insert(key, value);
                }
                Ok(Unique(values))
            }
        }
        deserializer.deserialize_map(Reader(PhantomData))
    }
}

/// The requirements of each scope, with their keys.
#[derive(Debug)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    docker: BTreeMap<String, Vec<Requirement>>,
}

impl Policy {
    /// Reads the file and the keys that it names. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Config`] with the file and what is wrong with it.
    pub(super) fn load(path: &Path) -> StoreResult<Self> {
        let wrong = |why: String| StoreError::Config(format!("signature policy {}: {why}", path.display()));
        Self::parse(&read(path).map_err(wrong)?).map_err(wrong)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut docker = BTreeMap::new();
        for (transport, scopes) in document.transports.0 {
            for (scope, requirements) in scopes.0 {
                // Those of other transports are nobody's here, and have to be right all the same.
                let checked = all(requirements, &format!("transports.{transport}.{scope:?}"))?;
                if transport == "docker" {
                    docker.insert(scope, checked);
                }
            }
        }
        Ok(Self { default: all(document.default, "default")?, docker })
    }

    /// The requirements for a reference, and the name of their scope.
    pub(super) fn of(&self, reference: &Reference) -> (String, &[Requirement]) {
        for scope in scopes(reference) {
            if let Some(found) = self.docker.get(&scope) {
                return (scope, found);
            }
        }
        ("default".into(), &self.default)
    }
}

/// The scopes that a reference is in, the narrowest first.
fn scopes(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let image = match reference.digest() {
        Some(digest) => format!("{name}@{digest}"),
        None => reference.tag_key().unwrap_or_else(|| name.clone()),
    };
    let mut scopes = vec![image, name.clone()];
    let mut rest = name.as_str();
    while let Some((above, _)) = rest.rsplit_once('/') {
        scopes.push(above.to_owned());
        rest = above;
    }
    while let Some((_, domain)) = rest.split_once('.') {
        scopes.push(format!("*.{domain}"));
        rest = domain;
    }
    scopes.push(String::new());
    scopes
}

fn all(requirements: Vec<Raw>, scope: &str) -> Result<Vec<Requirement>, String> {
    if requirements.is_empty() {
        return Err(format!("{scope} has no requirement: write insecureAcceptAnything for none"));
    }
    let checked = requirements.into_iter().map(|requirement| match requirement {
        Raw::InsecureAcceptAnything {} => Ok(Requirement::Anything),
        Raw::Reject {} => Ok(Requirement::Reject),
        Raw::SigstoreSigned { key_path, key_data, signed_identity } => {
            let (what, pem) = match (key_path, key_data) {
                (Some(path), None) if path.is_absolute() => (format!("keyPath {}", path.display()), read(&path)),
                (Some(path), None) => return Err(format!("{scope}: keyPath {} is not absolute", path.display())),
                (None, Some(data)) => {
                    let data = base64::engine::general_purpose::STANDARD.decode(data.trim());
                    ("keyData".into(), data.map_err(|e| format!("is no base64: {e}")))
                }
                _ => return Err(format!("{scope}: sigstoreSigned needs a keyPath or keyData, and not both")),
            };
            let key = pem.and_then(|pem| Key::from_pem(&pem)).map_err(|why| format!("{scope}: {what}: {why}"))?;
            let identity = signed_identity.unwrap_or(Identity::MatchRepoDigestOrExact {});
            identity.check().map_err(|why| format!("{scope}: {why}"))?;
            Ok(Requirement::Signed(key, identity))
        }
    });
    checked.collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(FILE + 1).read_to_end(&mut bytes));
    opened.map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > FILE { Err(format!("is larger than {FILE} bytes")) } else { Ok(bytes) }
}

impl Identity {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::ExactReference { docker_reference: text } => match exact(text, text) {
                true => Ok(()),
                false => Err(format!("dockerReference {text:?} is no reference with a tag or a digest")),
            },
            Self::ExactRepository { docker_repository: text } => {
                let name = text.parse::<Reference>().map_err(|e| format!("dockerRepository: {e}"))?.name();
                match name == *text {
                    true => Ok(()),
                    false => Err(format!("dockerRepository {text:?} is not in its full form, {name:?}")),
                }
            }
            Self::Remap { prefix, signed_prefix } if prefix.is_empty() || signed_prefix.is_empty() => {
                Err("remapIdentity has an empty prefix".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether a signature that names `signed` is for `image`.
    pub(super) fn fits(&self, image: &Reference, signed: &str) -> bool {
        let repository = |name: &str| signed.parse::<Reference>().is_ok_and(|signed| signed.name() == name);
        match self {
            Self::MatchExact {} => exact(&image.to_string(), signed),
            Self::MatchRepoDigestOrExact {} => match image.digest() {
                Some(_) => repository(&image.name()),
                None => exact(&image.to_string(), signed),
            },
            Self::MatchRepository {} => repository(&image.name()),
            Self::ExactReference { docker_reference } => exact(docker_reference, signed),
            Self::ExactRepository { docker_repository } => repository(docker_repository),
            Self::Remap { prefix, signed_prefix } => {
                let (whole, name) = (image.to_string(), image.name());
                let inside =
                    name.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                let remapped = match inside {
                    true => format!("{signed_prefix}{}", &whole[prefix.len()..]),
                    false => whole,
                };
                let image = remapped.parse::<Reference>();
                image.is_ok_and(|image| Self::MatchRepoDigestOrExact {}.fits(&image, signed))
            }
        }
    }
}

/// Whether two texts are one reference, each with a tag or a digest that it names itself.
fn exact(image: &str, signed: &str) -> bool {
    let named = |text: &str| {
        let reference = text.parse::<Reference>().ok()?;
        let last = text.rsplit('/').next().unwrap_or_default();
        last.contains([':', '@']).then_some(reference)
    };
    matches!((named(image), named(signed)), (Some(image), Some(signed)) if image == signed)
}

#[cfg(test)]
mod tests;
