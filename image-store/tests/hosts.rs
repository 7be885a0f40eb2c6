//! `certs.d`, TLS, and the node's own credentials: as operators configure registries.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_image_store::{Auth, Config, RegistryConfig, Store, StoreError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use support::image::{Image, Packing, Tar};
use support::{Answer, Door, Registry, header, root, scratch};

/// A registry that has no address: what its folder says is all that is known.
const NAME: &str = "registry.invalid:5000";

fn image() -> Image {
    Image::new(vec![Tar::default().file("f", b"text").layer(Packing::Gzip)])
}

fn write(path: PathBuf, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A store that knows registries by its folder alone.
fn config(registry: &Registry, dir: &Path) -> Config {
    let mut config = registry.config(dir);
    config.registries.clear();
    config.certs_dir = Some(dir.join("certs.d"));
    config
}

fn hosts(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    write(dir.join("certs.d").join(name).join("hosts.toml"), text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_toml_is_read_for_each_pull() {
    if !root() {
        return;
    }
    let (dir, mirror) = (scratch(), Registry::start().await);
    let image = image();
    mirror.add("a/b:c", &image);
    let reference = format!("{NAME}/a/b:c");
    let store = Store::open(config(&mirror, dir.path())).unwrap();
    let address = &mirror.address;
    mirror.hook(|request| {
        // A path of its own, in place of /v2.
        let wanted = request.uri().path().starts_with("/own/");
        (wanted && header(request, "x-key") != "k").then(|| Answer::new(403, r#"{"message":"no key"}"#))
    });
    let right = format!("server = \"https://127.0.0.1:1\"\n[host.\"http://{address}\"]\n");
    let pulled = |result: Result<String, StoreError>| result.map_err(|e| e.chain());
    assert!(store.pull(&reference, None).await.is_err());
    hosts(dir.path(), NAME, &right);
    assert_eq!(pulled(store.pull(&reference, None).await), Ok(image.id()));
    store.remove(&reference).await.unwrap();
    for (case, text, words) in [
        ("a bad file", "server = \"https://x\"\n\n[host.1 2]\n".to_owned(), "hosts.toml:3: "),
        ("a bad value", "[host.\"http://x\"]\nca = \"absent.pem\"\n".into(), "absent.pem"),
        ("no capability", format!("{right}capabilities = [\"push\"]\n"), "cannot connect"),
        ("a header is missing", format!("[host.\"http://{address}/own\"]\n"), "no key"),
        ("the path is taken", format!("[host.\"http://{address}/own/x\"]\noverride_path = true\n"), "no key"),
    ] {
        hosts(dir.path(), NAME, text);
        let error = store.pull(&reference, None).await.unwrap_err().chain();
        assert!(error.contains(words), "{case}: {error}");
    }
    hosts(dir.path(), NAME, format!("[host.\"http://{address}/own/v2\".header]\nX-Key = [\"k\"]\n"));
    let error = store.pull(&reference, None).await.unwrap_err().chain();
    assert!(!error.contains("no key"), "{error}");
    // For all that have no folder of their own.
    fs::remove_dir_all(dir.path().join("certs.d").join(NAME)).unwrap();
    hosts(dir.path(), "_default", &right);
    assert_eq!(pulled(store.pull(&reference, None).await), Ok(image.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_without_resolve_are_not_asked_for_tags() {
    if !root() {
        return;
    }
    let (dir, registry, mirror) = (scratch(), Registry::start().await, Registry::start().await);
    let image = image();
    registry.add("a/b:c", &image);
    mirror.add("a/b:c", &image);
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        registry.address, mirror.address
    );
    hosts(dir.path(), NAME, text);
    let store = Store::open(config(&registry, dir.path())).unwrap();
    store.pull(&format!("{NAME}/a/b:c"), None).await.unwrap();
    let (asked, of_mirror) = (registry.log(), mirror.log());
    assert!(asked.len() == 1 && asked[0].starts_with("HEAD /v2/a/b/manifests/c"), "{asked:?}");
    assert!(of_mirror.len() == 3 && of_mirror.iter().all(|line| line.contains("sha256:")), "{of_mirror:?}");
}

/// PEM of a certificate for these names, and its key.
struct Made {
    certificate: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: KeyPair,
}

fn self_signed(names: &[&str], authority: bool) -> Made {
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.is_ca = if authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Made { certificate: certificate.pem(), chain: vec![certificate.der().clone()], key }
}

fn server(made: &Made, clients: Option<RootCertStore>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.key.serialize_der()));
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap(),
        ),
    };
    builder.with_single_cert(made.chain.clone(), key).unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn self_signed_certificates_are_trusted_when_they_are_named() {
    if !root() {
        return;
    }
    for authority in [true, false] {
        let dir = scratch();
        let made = self_signed(&["127.0.0.1", "localhost"], authority);
        let other = self_signed(&["127.0.0.1"], true);
        let misnamed = self_signed(&["registry.example"], authority);
        let registry = Registry::serve(Some(server(&made, None))).await;
        let reference = registry.add("a/b:c", &image());
        for (file, pem) in [("ca", &made), ("other", &other), ("misnamed", &misnamed)] {
            write(dir.path().join(format!("{file}.pem")), &pem.certificate);
        }
        let with = |registry: &Registry, file: &str| {
            let ca_files = vec![dir.path().join(file)];
            let settings = RegistryConfig { ca_files, ..RegistryConfig::default() };
            let mut config = registry.config(dir.path());
            config.registries = [(registry.address.clone(), settings)].into();
            Store::open(config).unwrap()
        };
        let result = with(&registry, "ca.pem").pull(&reference, None).await;
        assert_eq!(result.map_err(|e| e.chain()), Ok(image().id()), "authority: {authority}");
        let error = with(&registry, "other.pem").pull(&reference, None).await.unwrap_err().chain();
        assert!(error.contains("certificate") && error.contains("ca_files"), "{error}");
        // By the folder: as Docker has it, and named in the file.
        let folder = dir.path().join("certs.d").join(&registry.address);
        let store = || Store::open(config(&registry, dir.path())).unwrap();
        write(folder.join("any.crt"), &other.certificate);
        assert!(store().pull(&reference, None).await.is_err());
        write(folder.join("any.crt"), &made.certificate);
        store().pull(&reference, None).await.unwrap();
        for (settings, right) in [("ca = \"../../ca.pem\"", true), ("skip_verify = true", true), ("", false)] {
            let text = format!("server = \"https://{}\"\n{settings}\n", registry.address);
            hosts(dir.path(), &registry.address, text);
            let result = store().pull(&reference, None).await;
            assert_eq!(result.is_ok(), right, "{settings}: {result:?}");
        }
        // Its name counts, also when it is named.
        let registry = Registry::serve(Some(server(&misnamed, None))).await;
        let reference = registry.add("a/b:c", &image());
        let error = with(&registry, "misnamed.pem").pull(&reference, None).await.unwrap_err().chain();
        assert!(error.contains("another name"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_shown_to_their_endpoint_alone() {
    if !root() {
        return;
    }
    let dir = scratch();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "clients of here");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["node".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let stranger = self_signed(&["x"], false);
    let mut clients = RootCertStore::empty();
    clients.add(issuer.der().clone()).unwrap();
    let made = self_signed(&["127.0.0.1"], true);
    let registry = Registry::serve(Some(server(&made, Some(clients.clone())))).await;
    let strict = Registry::serve(Some(server(&made, Some(clients)))).await;
    let image = image();
    let reference = registry.add("a/b:c", &image);
    strict.add("a/b:c", &image);
    let folder = dir.path().join("certs.d").join(&registry.address);
    for (name, text) in [
        ("ca.pem", made.certificate.clone()),
        ("x.pem", stranger.certificate.clone() + &stranger.key.serialize_pem()),
        ("c.pem", certificate.pem()),
        ("k.pem", key.serialize_pem()),
        ("both.pem", certificate.pem() + &key.serialize_pem()),
    ] {
        write(folder.join(name), text);
    }
    let store = || Store::open(config(&registry, dir.path())).unwrap();
    for (client, right) in [
        ("", false),
        ("client = \"x.pem\"", false),
        ("client = \"both.pem\"", true),
        ("client = [\"x.pem\", \"both.pem\"]", true),
        ("client = [[\"c.pem\", \"k.pem\"]]", true),
    ] {
        hosts(
            dir.path(),
            &registry.address,
            format!("server = \"https://{}\"\nca = \"ca.pem\"\n{client}\n", registry.address),
        );
        let result = store().pull(&reference, None).await;
        assert_eq!(result.is_ok(), right, "{client}: {result:?}");
        store().remove(&reference).await.unwrap();
    }
    let to = strict.address.clone();
    registry.hook(move |request| {
        let blob = request.uri().path().contains("/blobs/");
        blob.then(|| Answer::new(307, "").with("location", format!("https://{to}{}", request.uri())))
    });
    assert!(store().pull(&reference, None).await.is_err(), "another server saw the certificate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_has_credentials_for_what_the_pull_has_none_for() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image());
    registry.content().door = Door::Basic("Basic dTpw");
    let mut config = registry.config(dir.path());
    config.docker_config = Some(dir.path().join("config.json"));
    let store = Store::open(config).unwrap();
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Unauthorized { .. })));
    write(
        dir.path().join("config.json"),
        format!(r#"{{"auths":{{"http://{}/v1/":{{"auth":"dTpw"}}}}}}"#, registry.address),
    );
    store.pull(&reference, None).await.unwrap();
    store.remove(&reference).await.unwrap();
    // The pull's own count more.
    let wrong = Auth::from_cri("u", "wrong", "", "", "");
    assert!(matches!(store.pull(&reference, wrong).await, Err(StoreError::Unauthorized { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_on_this_machine_goes_unchecked() {
    if !root() {
        return;
    }
    // On loopback without settings a certificate is not checked.
    let dir = scratch();
    let made = self_signed(&["registry.example"], true);
    let registry = Registry::serve(Some(server(&made, None))).await;
    let reference = registry.add("a/b:c", &image());
    let store = Store::open(config(&registry, dir.path())).unwrap();
    store.pull(&reference, None).await.unwrap();
    // A token service there is asked with the password; one elsewhere is not. 0.0.0.0 leads to this
    // machine as well, and is no loopback address.
    let port = registry.address.rsplit_once(':').unwrap().1.to_owned();
    for (host, seen) in [("127.0.0.1", true), ("0.0.0.0", false)] {
        let realm = format!("Bearer realm=\"https://{host}:{port}/token\"");
        registry.hook(move |request| {
            let challenged = request.uri().path() != "/token";
            challenged.then(|| Answer::new(401, "").with("www-authenticate", realm.clone()))
        });
        registry.log();
        assert!(store.pull(&reference, Auth::from_cri("u", "p", "", "", "")).await.is_err());
        assert_eq!(registry.log().iter().any(|line| line.contains("Basic")), seen, "{host}");
    }
}
