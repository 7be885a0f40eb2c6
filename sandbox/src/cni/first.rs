//! The first pod of a network is added alone.
//!
//! It makes what all share: the bridge, the firewall's chains. Plugins look whether these are there and then make them, so two that do it at
//! once disturb each other (firewall: "CHAIN_USER_ADD failed (File exists)"). Later pods need no such care.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

/// Networks that have had a pod since the daemon started.
#[derive(Default)]
pub(crate) struct Networks {
    used: Mutex<BTreeSet<String>>,
    first: AsyncMutex<()>,
}

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

    fn is_used(&self, network: &str) -> bool {
        self.lock().contains(network)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
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
}
