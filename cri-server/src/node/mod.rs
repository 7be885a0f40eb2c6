//! What there is on the node now: pods, containers, and the names they hold.
//!
//! Locks, in the order in which they are taken:
//!
//! 1. a pod's `work` (async): held by whatever changes the pod or its containers, across calls to
//!    sandbox, store and agent;
//! 2. the maps and records (blocking, held for a few lines, never across an await).
//!
//! List and status calls take only the second kind, so nothing that hangs in a guest or a plugin
//! can block them.

pub(crate) mod agent;
pub(crate) mod container;
mod disks;
pub(crate) mod events;
mod growth;
pub(crate) mod health;
mod listed;
pub(crate) mod names;
pub(crate) mod pids;
pub(crate) mod pod;
pub(crate) mod restore;
#[cfg(test)]
mod states;
mod stop;
pub(crate) mod swaps;
pub(crate) mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cofferdam_image_store::Store;
use cofferdam_sandbox::{Kind, Runtime};

use crate::config::Config;
use crate::error::CriError;
use crate::records::Records;
use crate::streaming::StreamingServer;
use crate::telemetry::Telemetry;
pub(crate) use container::{Container, container_of, volume_holder};
pub(crate) use events::Events;
use health::Health;
pub(crate) use names::Names;
pub(crate) use pod::Pod;

/// Everything that calls need.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) runtime: Runtime,
    pub(crate) records: Records,
    pub(crate) streaming: StreamingServer,
    pub(crate) names: Names,
    pub(crate) events: Events,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) health: Health,
    pods: RwLock<HashMap<String, Arc<Pod>>>,
    containers: RwLock<HashMap<String, Arc<Container>>>,
    /// Why a kind of pod cannot run, as it was when it was last tried.
    unusable: Mutex<HashMap<Kind, String>>,
}

/// A panic of another holder leaves the data whole, as each change is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(
        config: Config,
        store: Arc<Store>,
        runtime: Runtime,
        records: Records,
        streaming: StreamingServer,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            store,
            runtime,
            records,
            streaming,
            names: Names::default(),
            events: Events::default(),
            telemetry: Arc::default(),
            health: Health::default(),
            pods: RwLock::default(),
            containers: RwLock::default(),
            unusable: Mutex::default(),
        })
    }

    /// A pod by its id or an unambiguous beginning of it.
    pub(crate) fn pod(&self, id: &str) -> Result<Option<Arc<Pod>>, CriError> {
        find(&self.pods.read().unwrap_or_else(PoisonError::into_inner), id, "pod")
    }

    /// A container by its id or an unambiguous beginning of it.
    pub(crate) fn container(&self, id: &str) -> Result<Option<Arc<Container>>, CriError> {
        find(&self.containers.read().unwrap_or_else(PoisonError::into_inner), id, "container")
    }

    /// As [`Node::pod`]; unknown is an error.
    pub(crate) fn known_pod(&self, id: &str) -> Result<Arc<Pod>, CriError> {
        self.pod(id)?.ok_or_else(|| CriError::NotFound(format!("pod sandbox {:?}", shorten(id))))
    }

    /// As [`Node::container`]; unknown is an error.
    pub(crate) fn known_container(&self, id: &str) -> Result<Arc<Container>, CriError> {
        self.container(id)?.ok_or_else(|| CriError::NotFound(format!("container {:?}", shorten(id))))
    }

    /// All pods.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All containers.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Containers of one pod.
    pub(crate) fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.values().filter(|c| c.pod.id == pod).cloned().collect()
    }

    pub(crate) fn add_pod(&self, pod: Arc<Pod>) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(pod.id.clone(), pod);
    }

    pub(crate) fn drop_pod(&self, id: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) fn add_container(&self, container: Arc<Container>) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).insert(container.id.clone(), container);
    }

    pub(crate) fn drop_container(&self, id: &str) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Tries whether this node can run pods of `kind`, and remembers the answer for
    /// [`Node::unusable`].
    pub(crate) async fn probe(&self, kind: Kind) -> Result<(), CriError> {
        let runtime = self.runtime.clone();
        let answer = tokio::task::spawn_blocking(move || runtime.probe(kind))
            .await
            .map_err(|e| CriError::internal("try what this node can run", e))?;
        let mut unusable = lock(&self.unusable);
        match &answer {
            Ok(()) => drop(unusable.remove(&kind)),
            Err(error) => drop(unusable.insert(kind, crate::error::chain(error))),
        }
        Ok(answer?)
    }

    /// Why pods get no network, if so, as CNI's directory is now.
    pub(crate) async fn without_network(&self) -> Option<String> {
        let runtime = self.runtime.clone();
        match tokio::task::spawn_blocking(move || runtime.network_ready()).await {
            Ok(looked) => looked.err().map(|e| crate::error::chain(&e)),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Why pods of `kind` cannot run, if so, without trying.
    pub(crate) fn unusable(&self, kind: Kind) -> Option<String> {
        lock(&self.unusable).get(&kind).cloned()
    }
}

/// Fewest characters of a shortened id.
const MIN_PREFIX: usize = 6;

fn find<T>(map: &HashMap<String, Arc<T>>, id: &str, what: &str) -> Result<Option<Arc<T>>, CriError> {
    if let Some(found) = map.get(id) {
        return Ok(Some(found.clone()));
    }
    if id.len() < MIN_PREFIX || id.len() >= 64 {
        return Ok(None);
    }
    let mut fitting = map.iter().filter(|(known, _)| known.starts_with(id)).map(|(_, found)| found.clone());
    match (fitting.next(), fitting.next()) {
        (Some(_), Some(_)) => Err(CriError::invalid(format!("{what} id {id:?} fits several: give more digits"))),
        (found, _) => Ok(found),
    }
}

/// An id from a request, as error texts show it.
pub(crate) fn shorten(id: &str) -> String {
    id.chars().take(80).collect()
}

/// A node with the folders that `config` names, and what an earlier one left in them.
#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail by it, and wait for nobody")]
pub(crate) async fn tests_node(config: Config) -> Arc<Node> {
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let records = Records::open(&config.state_dir.join("records.redb")).unwrap();
    let store = Arc::new(Store::open(config.store()).unwrap());
    let runtime = Runtime::open(config.sandbox()).unwrap();
    let streaming = StreamingServer::start(config.streaming).await.unwrap();
    Node::new(config, store, runtime, records, streaming)
}
