//! Disks of microVMs that show block devices of the node: one for each device and access in a pod,
//! whichever of its containers have it.
//!
//! Who has which, the containers' records tell; what is plugged, the pod's monitor. So nothing has
//! to be remembered for a restart of the daemon, and what a kill left between the two is found at
//! the next one.

use std::collections::BTreeSet;

use cofferdam_sandbox::Pod as Sandbox;

use super::{Container, Node, Pod};
use crate::error::{CriError, During, chain};

/// Serials of `own` that are in none of `others`, each once.
fn last_users(own: &[String], others: impl IntoIterator<Item = Vec<String>>) -> BTreeSet<String> {
    let used: BTreeSet<String> = others.into_iter().flatten().collect();
    own.iter().filter(|serial| !used.contains(*serial)).cloned().collect()
}

impl Container {
    /// Takes the container's disks from its pod, but for those that others of the pod have too. The
    /// caller holds the pod's `work`, and the container's processes have ended. Idempotent.
    pub(super) async fn unplug(&self, node: &Node, sandbox: &Sandbox) -> Result<(), CriError> {
        let own = self.with(|r| r.disks.clone());
        let others = node.containers_of(&self.pod.id).into_iter().filter(|c| c.id != self.id);
        for serial in last_users(&own, others.map(|c| c.with(|r| r.disks.clone()))) {
            let taken = sandbox.unplug(&serial).await;
            // A pod that ended meanwhile has none.
            if let (Err(error), Ok(_)) = (taken, self.pod.sandbox())
                && !self.pod.stopping.is_cancelled()
            {
                return Err(error).during(|| format!("take disk {serial} from container {}", self.id));
            }
        }
        Ok(())
    }
}

/// Takes the disks from a pod that none of its containers has by its record. The caller holds the
/// pod's `work`.
pub(super) async fn unplug_forgotten(node: &Node, pod: &Pod, sandbox: &Sandbox) {
    let kept = node.containers_of(&pod.id).into_iter().flat_map(|c| c.with(|r| r.disks.clone())).collect();
    if let Err(error) = sandbox.unplug_all_but(&kept).await {
        tracing::error!(pod = %pod.id, error = chain(&error), "disks that no container has stay in the pod");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_stays_as_long_as_one_container_has_it() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (own, others, wanted) in [
            ("a b", vec![], "a b"),
            ("a b", vec!["b c"], "a"),
            ("a a", vec!["", "c"], "a"),
            ("a", vec!["c", "a"], ""),
            ("", vec!["c"], ""),
        ] {
            let others = others.into_iter().map(list);
            let got = last_users(&list(own), others);
            assert_eq!(got.into_iter().collect::<Vec<_>>(), list(wanted), "{own:?}");
        }
    }
}
