//! The first pod of a network is added alone.
//!
//! It makes what all share: the bridge, the firewall's chains. Plugins look whether these are there and then make them, so two that do it at
//! once disturb each other (firewall: "CHAIN_USER_ADD failed (File exists)"). Later pods need no such care.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use cofferdam_proto::monitor::MAX_CARDS;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::spec::NetworkSpec;

/// Networks that have had a pod since the daemon started.
#[derive(Default)]
pub(crate) struct Networks {
    used: Mutex<BTreeSet<String>>,
    first: AsyncMutex<()>,
    /// How many interfaces pods with an annotation of this text got last.
    interfaces: Mutex<BTreeMap<String, usize>>,
}

/// The annotation by which Multus, and what speaks its language, gives a pod more networks.
const MORE_NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Different annotations that are remembered.
const MAX_LEARNT: usize = 1024;

impl Networks {
    /// Waits for the first pod of `network`, or is that; hold what is returned while plugins run.
    pub(crate) async fn enter(&self, network: &str) -> Option<MutexGuard<'_, ()>> {
        if self.is_used(network) {
            return None;
        }
        let guard = self.first.lock().await;
        (!self.is_used(network)).then_some(guard)
    }

    /// A pod was added to `network`.
    pub(crate) fn used(&self, network: &str) {
        self.lock().insert(network.to_owned());
    }

    /// How many network cards a microVM with such a network is started with: its interfaces are only known when CNI has
    /// ended, which takes longer than the boot.
    pub(crate) fn cards(&self, spec: &NetworkSpec) -> usize {
        let asked = more_networks(spec);
        let learnt = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).get(asked).copied();
        learnt.unwrap_or_else(|| 1 + named(asked)).clamp(1, MAX_CARDS)
    }

    /// A pod got so many interfaces.
    pub(crate) fn learn(&self, spec: &NetworkSpec, interfaces: usize) {
        let mut learnt = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        if learnt.len() >= MAX_LEARNT {
            learnt.clear();
        }
        learnt.insert(more_networks(spec).to_owned(), interfaces);
    }

    fn is_used(&self, network: &str) -> bool {
        self.lock().contains(network)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn more_networks(spec: &NetworkSpec) -> &str {
    spec.annotations.get(MORE_NETWORKS).map(String::as_str).unwrap_or_default()
}

/// Networks that an annotation names: a list of JSON, or names with commas between.
fn named(annotation: &str) -> usize {
    match serde_json::from_str::<Vec<serde_json::Value>>(annotation) {
        Ok(list) => list.len(),
        Err(_) => annotation.split(',').filter(|name| !name.trim().is_empty()).count(),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn others_wait_for_the_first_until_one_succeeds() {
        let networks = Networks::default();
        let first = networks.enter("a").await;
        assert!(first.is_some());
        assert!(networks.enter("a").now_or_never().is_none(), "two were first");
        drop(first); // it failed
        let second = networks.enter("a").await;
        assert!(second.is_some());
        networks.used("a");
        assert!(networks.enter("a").now_or_never().expect("it need not wait").is_none());
        drop(second);
        assert!(networks.enter("b").await.is_some());
    }
    #[test]
    fn cards_are_what_the_annotation_names_until_a_pod_has_shown_how_many_it_takes() {
        let networks = Networks::default();
        let spec = |text: &str| NetworkSpec {
            annotations: [(MORE_NETWORKS.into(), text.into())].into(),
            ..Default::default()
        };
        for (text, cards) in [("", 1), ("a, b/c@x", 3), (r#"[{"name": "a"}, {"name": "b"}]"#, 3), (",,", 1)] {
            assert_eq!(networks.cards(&spec(text)), cards, "{text}");
        }
        assert_eq!(networks.cards(&spec(&"a,".repeat(100))), MAX_CARDS);
        networks.learn(&NetworkSpec::default(), 2);
        assert_eq!((networks.cards(&NetworkSpec::default()), networks.cards(&spec("a"))), (2, 2));
        networks.learn(&spec("a"), 4);
        assert_eq!((networks.cards(&NetworkSpec::default()), networks.cards(&spec("a"))), (2, 4));
    }
}
