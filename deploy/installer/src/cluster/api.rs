//! The API server, as far as the installer uses it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::error::{Doing, Error, Result};

/// One node, through the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The node of this pod.
    pub(crate) node: String,
    /// The pod's namespace, where the lease is.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Connects with the pod's service account.
    pub(crate) async fn connect(node: String, namespace: String) -> Result<Self> {
        let config = Config::incluster().doing(|| "find the API server: this command runs in a pod".into())?;
        let client = Client::try_from(config).doing(|| "make a client of the API server".into())?;
        Ok(Self { client, node, namespace })
    }

    /// The node as it is now.
    pub(crate) async fn get(&self) -> Result<Node> {
        said(Api::<Node>::all(self.client.clone()).get(&self.node).await, || format!("get node {}", self.node))
    }

    /// Merges something into the node; `null` removes.
    pub(crate) async fn patch(&self, patch: Value) -> Result<()> {
        let nodes = Api::<Node>::all(self.client.clone());
        let done = nodes.patch(&self.node, &PatchParams::default(), &Patch::Merge(patch)).await;
        said(done.map(drop), || format!("change node {}", self.node))
    }

    /// Sets annotations, unless they are so already.
    pub(crate) async fn annotate(&self, node: &Node, wanted: &[(&str, Option<&str>)]) -> Result<()> {
        self.set("annotations", node.metadata.annotations.as_ref(), wanted).await
    }

    /// Sets labels, unless they are so already.
    pub(crate) async fn label(&self, node: &Node, wanted: &[(&str, Option<&str>)]) -> Result<()> {
        self.set("labels", node.metadata.labels.as_ref(), wanted).await
    }

    async fn set(
        &self,
        kind: &str,
        now: Option<&BTreeMap<String, String>>,
        wanted: &[(&str, Option<&str>)],
    ) -> Result<()> {
        let is = |key: &str| now.and_then(|map| map.get(key)).map(String::as_str);
        let differs = wanted.iter().filter(|(key, value)| is(key) != *value);
        let changes: serde_json::Map<String, Value> =
            differs.map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.patch(json!({"metadata": {kind: changes}})).await
    }

    /// Tells of something in an event of the node, which `kubectl describe node` shows. A failure
    /// to do so is only logged.
    pub(crate) async fn event(&self, warning: bool, reason: &str, message: &str) {
        let now = jiff::Timestamp::now();
        let event: Result<Event, _> = serde_json::from_value(json!({
            "metadata": {"name": format!("{}.cofferdam.{:x}", self.node, now.as_nanosecond()), "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node},
            "type": if warning { "Warning" } else { "Normal" },
            "reason": reason,
            // The API server takes 1024 bytes.
            "message": message.chars().take(900).collect::<String>(),
            "source": {"component": "cofferdam-installer", "host": self.node},
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "count": 1,
        }));
        let made = match event {
            Ok(event) => {
                let events = Api::<Event>::namespaced(self.client.clone(), "default");
                said(events.create(&PostParams::default(), &event).await.map(drop), || "write an event".into())
            }
            Err(error) => Err(error).doing(|| "write an event".into()),
        };
        if let Err(error) = made {
            tracing::warn!(error = crate::error::chain(&error), reason, message, "no event of it");
        }
    }
}

/// An answer of the API server, or an error with the server's own words.
pub(crate) fn said<T>(answer: kube::Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    answer.map_err(|error| match error {
        kube::Error::Api(status) => Error::Failed { doing: what(), source: status.message.clone().into() },
        other => Error::Failed { doing: what(), source: Box::new(other) },
    })
}
