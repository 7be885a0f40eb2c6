//! Registries as the configuration has them, and one repository of one of them for one pull.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};

use reqwest::Client;
use reqwest::header::HeaderValue;

use super::credentials::{Auth, canonical_host};
use super::fault::Fault;
use super::node_login::NodeLogin;
use super::parts::Room;
use super::place::{Place, Scheme};
use super::tls::Trust;
use super::{certs_dir, place};
use crate::archive::Archive;
use crate::config::{Config, Limits, Platform, RegistryConfig, Timeouts};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::lock::lock;
use crate::reference::Reference;

/// Clients that are kept: references choose the hosts, so there must be an end.
const MAX_CLIENTS: usize = 64;

/// The registries: their settings, and the HTTP clients, which are kept, since trust roots are dear
/// to load and connections to make.
#[derive(Clone)]
pub(crate) struct Registries(Arc<Shared>);

struct Shared {
    settings: BTreeMap<String, RegistryConfig>,
    certs_dir: Option<PathBuf>,
    node_login: Option<NodeLogin>,
    timeouts: Timeouts,
    limits: Limits,
    platform: Platform,
    clients: Mutex<HashMap<Digest, Client>>,
    received: Arc<AtomicU64>,
    room: Arc<Room>,
    parallel_from: u64,
}

/// One place to ask, for one pull.
pub(crate) struct Endpoint {
    pub(super) place: Place,
    /// `https://host`, for messages too.
    pub(super) base: String,
    /// Another server than the registry: has to be told which one is meant.
    pub(super) proxy: bool,
    pub(super) client: Client,
    /// For other hosts that it names: without what is for this endpoint alone.
    pub(super) elsewhere: Client,
    /// It turned out not to speak TLS ([`Scheme::Either`]).
    pub(super) plain: AtomicBool,
    /// It kept this pull waiting, or failed again and again: asked after the others from then on.
    pub(super) silent: AtomicBool,
    /// It sent wrong bytes: asked after the others from then on.
    pub(super) doubtful: AtomicBool,
    /// It does not send the rest of a blob.
    pub(super) no_ranges: AtomicBool,
    /// It does not send parts of blobs at the same time.
    no_parts: AtomicBool,
}

/// One repository of one registry, for one pull.
pub(crate) struct Session {
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) auth: Option<Auth>,
    pub(super) node_login: Option<NodeLogin>,
    pub(super) endpoints: Vec<Endpoint>,
    /// Everything is in here, and no endpoint is asked.
    pub(super) archive: Option<Arc<Archive>>,
    pub(super) logins: Logins,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) platform: Platform,
    /// Bytes of blobs that all registries have sent.
    pub(super) received: Arc<AtomicU64>,
    /// Of all registries.
    pub(super) room: Arc<Room>,
    /// The size of blobs that are fetched in parts.
    pub(super) parallel_from: u64,
}

/// The value of `Authorization` by server (`https://host:port`): each server has its own, and none
/// sees another's.
#[derive(Default)]
pub(super) struct Logins(Mutex<HashMap<String, Login>>);

pub(super) type Login = Arc<tokio::sync::Mutex<Option<HeaderValue>>>;

/// What an endpoint is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// What a tag stands for.
    Resolve,
    /// A manifest by its digest, or a blob.
    Pull,
}

impl Registries {
    /// Checks the settings: a bad mirror is an error when the store is opened, not at the first
    /// pull.
    pub(crate) fn new(config: &Config) -> StoreResult<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails when the program has chosen one itself, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        for (host, settings) in &config.registries {
            configured(host, settings)?;
        }
        Ok(Self(Arc::new(Shared {
            settings: config.registries.clone(),
            certs_dir: config.certs_dir.clone(),
            node_login: config.docker_config.clone().map(NodeLogin::new),
            timeouts: config.timeouts.clone(),
            limits: config.limits.clone(),
            platform: config.platform.clone(),
            clients: Mutex::default(),
            received: Arc::default(),
            room: Arc::default(),
            parallel_from: config.parallel_blob_bytes,
        })))
    }

    /// Bytes of blobs that all of them have sent.
    pub(crate) fn received(&self) -> u64 {
        self.0.received.load(Relaxed)
    }

    /// A session with the repository of a reference, whose registry has these endpoints.
    pub(crate) fn session(&self, reference: &Reference, auth: Option<Auth>, endpoints: Vec<Endpoint>) -> Session {
        let shared = &self.0;
        Session {
            host: reference.host().into(),
            repository: reference.repository().into(),
            auth,
            node_login: shared.node_login.clone(),
            endpoints,
            archive: None,
            logins: Logins::default(),
            timeouts: shared.timeouts.clone(),
            limits: shared.limits.clone(),
            platform: shared.platform.clone(),
            received: shared.received.clone(),
            room: shared.room.clone(),
            parallel_from: shared.parallel_from,
        }
    }

    /// A session that has what an archive has, and asks nobody.
    pub(crate) fn offline(&self, reference: &Reference, archive: Arc<Archive>) -> Session {
        Session { archive: Some(archive), ..self.session(reference, None, Vec::new()) }
    }

    /// Where a registry is to be asked, by the files of the configuration as they are now. Blocks.
    pub(crate) fn endpoints(&self, registry: &str) -> StoreResult<Vec<Endpoint>> {
        let shared = &self.0;
        let places = match (shared.settings.get(registry), &shared.certs_dir) {
            (Some(settings), _) => configured(registry, settings)?,
            (None, Some(dir)) => certs_dir::places(dir, registry)?.unwrap_or_else(|| vec![Place::upstream(registry)]),
            (None, None) => vec![Place::upstream(registry)],
        };
        places.into_iter().map(|place| self.endpoint(place, registry)).collect()
    }

    fn endpoint(&self, place: Place, registry: &str) -> StoreResult<Endpoint> {
        let client = self.client(&place.trust)?;
        let elsewhere = place.trust.elsewhere(place.skip_verify_here);
        let elsewhere = if elsewhere == place.trust { client.clone() } else { self.client(&elsewhere)? };
        let scheme = if place.scheme == Scheme::Http { "http" } else { "https" };
        Ok(Endpoint {
            base: format!("{scheme}://{}", place.host),
            proxy: place.is_proxy_of(registry),
            place,
            client,
            elsewhere,
            plain: AtomicBool::default(),
            silent: AtomicBool::default(),
            doubtful: AtomicBool::default(),
            no_ranges: AtomicBool::default(),
            no_parts: AtomicBool::default(),
        })
    }

    fn client(&self, trust: &Trust) -> StoreResult<Client> {
        let loaded = trust.load()?;
        let key = loaded.key();
        let mut clients = lock(&self.0.clients);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        let client = loaded.client(&self.0.timeouts)?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn configured(host: &str, settings: &RegistryConfig) -> StoreResult<Vec<Place>> {
    Place::configured(host, settings).map_err(|reason| StoreError::Config(format!("registries.{host:?}: {reason}")))
}

impl Logins {
    /// The login of one server, whose host references and redirects choose.
    pub(super) fn of(&self, server: &str) -> Login {
        let mut logins = lock(&self.0);
        if logins.len() >= MAX_CLIENTS && !logins.contains_key(server) {
            logins.clear();
        }
        logins.entry(server.to_owned()).or_default().clone()
    }
}

impl Endpoint {
    /// `https://host` as it turned out to be.
    pub(super) fn origin(&self) -> String {
        if self.plain.load(Relaxed) { format!("http://{}", self.place.host) } else { self.base.clone() }
    }

    pub(super) fn no_parts(&self) -> bool {
        self.no_parts.load(Relaxed) || self.no_ranges.load(Relaxed)
    }

    pub(super) fn set_no_parts(&self) {
        self.no_parts.store(true, Relaxed);
    }

    /// Notes that it was given up for now: then it need not be tried for each layer again.
    pub(super) fn given_up(&self, fault: &Fault) {
        if matches!(fault, Fault::Passing(..)) {
            self.silent.store(true, Relaxed);
        }
    }

    /// Notes what a failure says about the endpoint.
    pub(super) fn learn(&self, fault: &Fault) {
        match fault {
            Fault::Silent(_) => self.silent.store(true, Relaxed),
            Fault::Bad(_) => self.doubtful.store(true, Relaxed),
            _ => {}
        }
    }
}

impl Session {
    /// The endpoints for a request, those that were silent or wrong before after the others.
    pub(super) fn order(&self, role: Role) -> Vec<&Endpoint> {
        let able = |endpoint: &&Endpoint| match role {
            Role::Resolve => endpoint.place.resolve,
            Role::Pull => endpoint.place.pull,
        };
        let mut endpoints: Vec<_> = self.endpoints.iter().filter(able).collect();
        endpoints.sort_by_key(|e| (e.doubtful.load(Relaxed), e.silent.load(Relaxed)));
        endpoints
    }

    /// The credentials for an endpoint: those of the pull, when they are for it; its own; or else
    /// the node's.
    pub(super) async fn credentials(&self, endpoint: &Endpoint) -> Option<Auth> {
        let host = canonical_host(&endpoint.place.host);
        let of_pull = self.auth.as_ref().filter(|auth| match auth.server() {
            Some(server) => server == host || endpoint.place.origin && server == canonical_host(&self.host),
            None => endpoint.place.origin,
        });
        if let Some(own) = of_pull.or(endpoint.place.login.as_ref()) {
            return Some(own.clone());
        }
        self.node_login.as_ref()?.find(&endpoint.place.host, &self.repository).await
    }

    /// What to say when no endpoint had it. The last one is the registry itself, and what it says
    /// counts most; wrong bytes of another are named before a mere failure.
    pub(super) fn verdict(&self, what: &str, mut faults: Vec<(&Endpoint, Fault)>) -> StoreError {
        let all: Vec<_> =
            faults.iter().map(|(endpoint, fault)| format!("{}: {}", endpoint.base, fault.text())).collect();
        let clear = matches!(faults.last(), Some((_, Fault::NotFound | Fault::Refused(_))));
        if !clear
            && let Some(at) = faults.iter().position(|(_, f)| matches!(f, Fault::Bad(_)))
            && let (_, Fault::Bad(error)) = faults.swap_remove(at)
        {
            return error;
        }
        match faults.pop() {
            Some((_, Fault::NotFound)) if all.len() == 1 => StoreError::NotFound { what: what.into() },
            Some((_, Fault::NotFound)) => StoreError::NotFound { what: format!("{what} ({})", all.join("; ")) },
            Some((endpoint, Fault::Refused(detail))) => {
                let before = &all[..all.len() - 1];
                let before =
                    if before.is_empty() { String::new() } else { format!(" (before: {})", before.join("; ")) };
                let detail = detail + &before;
                StoreError::Unauthorized { registry: endpoint.base.clone(), what: what.into(), detail }
            }
            Some(_) => StoreError::Unavailable {
                registry: self.host.clone(),
                detail: format!("{what}: {}", all.join("; ")),
                source: None,
            },
            None => StoreError::Config(format!(
                "registry {}: no host of its hosts.toml has the capability that {what} needs",
                self.host
            )),
        }
    }

    pub(crate) fn name_of(&self, digest: &Digest) -> String {
        format!("{}/{} layer {digest}", self.host, self.repository)
    }
}

/// Whether two servers are one, for what is sent to one alone.
pub(super) fn same_server(a: &reqwest::Url, b: &reqwest::Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether a URL is of this machine, where plain HTTP is as safe as TLS.
pub(super) fn is_local(url: &reqwest::Url) -> bool {
    url.host_str().is_some_and(place::is_loopback)
}
