//! Public keys, as `cosign generate-key-pair` writes them.

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

/// What a SubjectPublicKeyInfo of an uncompressed point on P-256 begins with (RFC 5480): two
/// sequences, id-ecPublicKey, prime256v1, and the bit string of 65 bytes.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of such a point.
const POINT: usize = 65;

/// An ECDSA key on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(Vec<u8>);

impl Key {
    /// Reads the one key of a PEM file.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem).take(2).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|e| format!("is no PEM: {e}"))?;
        let [key] = &keys[..] else {
            return Err(match keys.is_empty() {
                true => "has no PUBLIC KEY".into(),
                false => "has several keys: write a requirement for each".into(),
            });
        };
        let point = key.strip_prefix(&P256).filter(|point| point.len() == POINT && point[0] == 4);
        let point = point.ok_or("is no ECDSA key on P-256, which is what cosign makes")?;
        Ok(Self(point.to_vec()))
    }

    /// Whether `signature` (ASN.1) is this key's, over the SHA-256 of `message`.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(message, signature).is_ok()
    }
}
