//! Whom a TLS connection trusts, and who it says that we are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::{Client, redirect};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::Timeouts;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};

/// The system's authorities, which are read once.
static SYSTEM: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();

/// The largest file of certificates that is read, bytes.
const MAX_FILE: u64 = 4 << 20;

/// How to connect to one endpoint. The files are read anew for each pull.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// PEM files of authorities, or of servers' own certificates, beside the system's.
    pub(crate) authorities: Vec<PathBuf>,
    /// PEM files of client certificates, and of their keys where those are in another file.
    pub(crate) identities: Vec<(PathBuf, Option<PathBuf>)>,
    /// Takes any certificate.
    pub(crate) skip_verify: bool,
    /// For a connection, TLS included, in place of the usual time.
    pub(crate) connect: Option<Duration>,
}

/// The files' contents: two that are equal share a client, and with it connections.
pub(crate) struct Loaded {
    authorities: Vec<(PathBuf, Vec<u8>)>,
    identities: Vec<(PathBuf, Vec<u8>, Vec<u8>)>,
    skip_verify: bool,
    connect: Option<Duration>,
}

impl Trust {
    /// The same without the client certificates, for hosts that the endpoint redirects to;
    /// `check`: their certificates are checked in any case.
    pub(crate) fn elsewhere(&self, check: bool) -> Self {
        Self { identities: Vec::new(), skip_verify: self.skip_verify && !check, ..self.clone() }
    }

    pub(crate) fn load(&self) -> StoreResult<Loaded> {
        let identity = |(certificate, key): &(PathBuf, Option<PathBuf>)| {
            let key = read(key.as_ref().unwrap_or(certificate))?;
            Ok((certificate.clone(), read(certificate)?, key))
        };
        Ok(Loaded {
            authorities: self
                .authorities
                .iter()
                .map(|path| Ok((path.clone(), read(path)?)))
                .collect::<StoreResult<_>>()?,
            identities: self.identities.iter().map(identity).collect::<StoreResult<_>>()?,
            skip_verify: self.skip_verify,
            connect: self.connect,
        })
    }
}

fn read(path: &Path) -> StoreResult<Vec<u8>> {
    let failed = |e| StoreError::io(format!("reading {}", path.display()), e);
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(StoreError::Config(format!("{}: is longer than {MAX_FILE} bytes", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

fn certificates(path: &Path, pem: &[u8]) -> StoreResult<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(StoreError::Config(format!("{}: not PEM certificates", path.display()))),
    }
}

impl Loaded {
    /// One word for equal contents.
    pub(crate) fn key(&self) -> Digest {
        let mut text = format!("{} {:?}\0", self.skip_verify, self.connect).into_bytes();
        let mut add = |bytes: &[u8]| text.extend_from_slice(Digest::of(bytes).to_string().as_bytes());
        for (_, pem) in &self.authorities {
            add(pem);
        }
        add(b"identities");
        for (_, certificate, key) in &self.identities {
            add(certificate);
            add(key);
        }
        Digest::of(&text)
    }

    /// A client that follows no redirects by itself.
    pub(crate) fn client(&self, timeouts: &Timeouts) -> StoreResult<Client> {
        let client = Client::builder()
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect.unwrap_or(timeouts.connect))
            .read_timeout(timeouts.stall)
            .redirect(redirect::Policy::none())
            .tls_backend_preconfigured(self.tls()?)
            .build();
        client.map_err(|e| StoreError::Config(format!("cannot make an HTTP client: {}", super::fault::causes(&e))))
    }

    fn tls(&self) -> StoreResult<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |e: rustls::Error| StoreError::Config(format!("cannot set TLS up: {e}"));
        let mut own = Vec::new();
        for (path, pem) in &self.authorities {
            own.extend(certificates(path, pem)?);
        }
        let mut roots = RootCertStore::empty();
        // A node without trust roots can still pull over plain HTTP, and from who is in `own`.
        if !self.skip_verify {
            let system = SYSTEM.get_or_init(|| rustls_native_certs::load_native_certs().certs);
            roots.add_parsable_certificates(system.iter().cloned());
        }
        roots.add_parsable_certificates(own.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build().ok();
        let verifier = Verifier { chain, own, skip: self.skip_verify, provider: provider.clone() };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut keys = Vec::new();
        for (path, certificate, key) in &self.identities {
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_| StoreError::Config(format!("{}: no private key in PEM for it", path.display())))?;
            let chain = certificates(path, certificate)?;
            let certified = CertifiedKey::from_der(chain, key, &provider)
                .map_err(|e| StoreError::Config(format!("{}: {e}", path.display())))?;
            keys.push(Arc::new(certified));
        }
        Ok(match keys.is_empty() {
            true => builder.with_no_client_auth(),
            false => builder.with_client_cert_resolver(Arc::new(Identities(keys))),
        })
    }
}

/// Trusts chains to a root, and also a certificate that is itself among those of the
/// configuration: a self-signed one, which is an authority too when openssl made it, and so no
/// server's by webpki's rules. Its name and its time count nonetheless.
#[derive(Debug)]
struct Verifier {
    /// `None` without any root.
    chain: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    skip: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.skip {
            return Ok(ServerCertVerified::assertion());
        }
        let result = match &self.chain {
            Some(chain) => chain.verify_server_cert(end_entity, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        match result {
            // webpki looks at the times before it looks at who may be a server. Being an authority
            // is among the reasons that have no name here; a root of the same subject with another
            // key gives a bad signature.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Other(_) | CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) if self.own.iter().any(|known| known.as_ref() == end_entity.as_ref()) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Client certificates: the one of an authority that the server names, or else the first.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl rustls::client::ResolvesClientCert for Identities {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = || self.0.iter().filter(|key| key.key.choose_scheme(schemes).is_some());
        // An issuer's name is in a certificate as it is in the hint.
        let names = |der: &[u8], name: &[u8]| !name.is_empty() && der.windows(name.len()).any(|part| part == name);
        let of_hint = |key: &&Arc<CertifiedKey>| key.cert.iter().any(|der| hints.iter().any(|name| names(der, name)));
        usable().find(of_hint).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
