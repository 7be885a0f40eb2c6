//! Content digests: sha256, which registries serve, and sha512, the other algorithm of the OCI
//! specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A content digest, written `sha256:<64 lower-case hex>` or `sha512:<128 lower-case hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(Value);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// Takes bytes and gives their digest.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(match self {
            Self::Sha256(hasher) => Value::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Value::Sha512(hasher.finalize().into()),
        })
    }
}

impl Digest {
    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Value::Sha256(Sha256::digest(bytes).into()))
    }

    /// The hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        match &self.0 {
            Value::Sha256(bytes) => hex::encode(bytes),
            Value::Sha512(bytes) => hex::encode(bytes),
        }
    }

    /// A hasher for what is to have this digest.
    pub(crate) fn hasher(&self) -> Hasher {
        match self.0 {
            Value::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Value::Sha512(_) => Hasher::Sha512(Box::default()),
        }
    }

    /// The digest of `bytes` by the same algorithm.
    pub(crate) fn same_kind(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The chain ID of a layer on top of `parent` (OCI image-spec, "Layer ChainID"). It names a
    /// directory of the store and is always sha256.
    pub(crate) fn chain(parent: Option<&Self>, diff_id: &Self) -> Self {
        match (parent, diff_id.0) {
            (None, Value::Sha256(_)) => *diff_id,
            (None, Value::Sha512(_)) => Self::of(diff_id.to_string().as_bytes()),
            (Some(parent), _) => Self::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }

    /// A sha256 digest from its 64 hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        bytes(text).map(|bytes| Self(Value::Sha256(bytes)))
    }
}

/// Bytes from exactly as many lower-case hex digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = match self.0 {
            Value::Sha256(_) => "sha256",
            Value::Sha512(_) => "sha512",
        };
        write!(f, "{algorithm}:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest (sha256: and 64 lower-case hex digits, or sha512: and 128)")]
pub struct DigestParseError(String);

impl FromStr for Digest {
    type Err = DigestParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value = match text.split_once(':') {
            Some(("sha256", hex)) => bytes(hex).map(Value::Sha256),
            Some(("sha512", hex)) => bytes(hex).map(Value::Sha512),
            _ => None,
        };
        value.map(Self).ok_or_else(|| DigestParseError(text.chars().take(160).collect()))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_sha512() {
        let digest = Digest::of(b"").to_string().parse::<Digest>().unwrap();
        assert_eq!(digest.same_kind(b""), digest);
        let long = format!("sha512:{}", hex::encode(Sha512::digest(b"x")));
        let digest = long.parse::<Digest>().unwrap();
        assert_eq!((digest.to_string(), digest.hex().len()), (long.clone(), 128));
        assert_eq!(digest.same_kind(b"x"), digest);
        assert!(digest.same_kind(b"y") != digest);
        assert_eq!(Digest::chain(None, &digest), Digest::of(long.as_bytes()), "a directory's name");
        for bad in [&long[..100], &long.replace("512", "256"), &long.replace("512", "384"), &long.to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parses_only_canonical_sha256() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").to_string(), empty);
        for bad in [
            "",
            "sha256:",
            "sha256:e3b0",
            &empty.to_uppercase(),
            &empty.replace("sha256", "sha512"),
            &format!("{empty}0"),
            &empty.replace('e', "g"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(Digest::chain(None, &a), a);
        assert_eq!(Digest::chain(Some(&a), &b), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
