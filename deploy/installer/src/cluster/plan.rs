//! What a node needs next. Everything that is known goes in, one step comes out; so a pod that was
//! killed goes on where it was.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::{CORDONED, INSTALL, RETRY, SWITCH};
use crate::node::outcome::Outcome;

/// What the node's labels ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing: the node is left alone.
    Nothing,
    /// The product, kept up to date.
    Install,
    /// And a kubelet that uses it.
    Switch,
}

/// What the API server knows of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// What is asked for.
    pub(crate) wants: Wants,
    /// Whether the kubelet reports Cofferdam as its runtime.
    pub(crate) on_cofferdam: bool,
    /// Whether the node is Ready.
    pub(crate) ready: bool,
    /// Whether the installer has cordoned the node.
    pub(crate) cordoned: bool,
    /// Whether an administrator asks to try again.
    pub(crate) retry: bool,
}

/// What is known of a node.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// What the API server says.
    pub(crate) seen: Seen,
    /// The version of this pod's image.
    pub(crate) product: String,
    /// The version that is the node's current one.
    pub(crate) installed: Option<String>,
    /// Whether a unit works on the host now.
    pub(crate) working: bool,
    /// Whether one was interrupted.
    pub(crate) unfinished: bool,
    /// How the last install ended.
    pub(crate) install: Option<Outcome>,
    /// How the last switch ended.
    pub(crate) switch: Option<Outcome>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A unit works; look again later.
    Wait,
    /// Have the host undo what was interrupted.
    Recover,
    /// Have the host install this pod's version.
    Install,
    /// Take the lease, drain, and have the host switch.
    Switch,
    /// Undo the cordon.
    Uncordon,
    /// Nothing to do.
    Settled,
    /// Nothing to do until an administrator does something; why.
    Stuck(String),
}

impl Seen {
    /// Reads a node.
    pub(crate) fn of(node: &Node) -> Self {
        let is = |map: Option<&BTreeMap<String, String>>, key: &str| {
            map.and_then(|map| map.get(key)).map(String::as_str) == Some("true")
        };
        let (labels, annotations) = (node.metadata.labels.as_ref(), node.metadata.annotations.as_ref());
        let wants = match (is(labels, SWITCH), is(labels, INSTALL)) {
            (true, _) => Wants::Switch,
            (false, true) => Wants::Install,
            (false, false) => Wants::Nothing,
        };
        Self {
            wants,
            on_cofferdam: on_cofferdam(node),
            ready: is_ready(node),
            cordoned: is(annotations, CORDONED),
            retry: annotations.is_some_and(|map| map.contains_key(RETRY)),
        }
    }
}

impl Facts {
    /// What is to be done next.
    pub(crate) fn next(&self) -> Step {
        let failed = |outcome: &Option<Outcome>| {
            outcome.clone().filter(|o| !o.done && o.version == self.product && !self.seen.retry)
        };
        let switch_failed = failed(&self.switch);
        if self.working {
            return Step::Wait;
        }
        if self.unfinished {
            return Step::Recover;
        }
        if self.seen.cordoned && self.may_uncordon(switch_failed.is_some()) {
            return Step::Uncordon;
        }
        if self.seen.wants == Wants::Nothing {
            return Step::Settled;
        }
        if self.installed.as_ref() != Some(&self.product) {
            return match failed(&self.install) {
                Some(outcome) => Step::Stuck(format!("installing {} failed: {}", self.product, outcome.message)),
                None => Step::Install,
            };
        }
        if self.seen.wants == Wants::Switch && !self.seen.on_cofferdam {
            return match switch_failed {
                Some(outcome) => Step::Stuck(format!("switching failed: {}", outcome.message)),
                None => Step::Switch,
            };
        }
        Step::Settled
    }

    fn may_uncordon(&self, switch_failed: bool) -> bool {
        match self.seen.wants {
            Wants::Switch => (self.seen.on_cofferdam && self.seen.ready) || switch_failed,
            Wants::Install | Wants::Nothing => true,
        }
    }
}

fn on_cofferdam(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.is_some_and(|info| info.container_runtime_version.starts_with("cofferdam://"))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(wants: Wants) -> Facts {
        Facts {
            seen: Seen { wants, on_cofferdam: false, ready: true, cordoned: false, retry: false },
            product: "2".into(),
            installed: None,
            working: false,
            unfinished: false,
            install: None,
            switch: None,
        }
    }

    fn ended(version: &str, done: bool) -> Option<Outcome> {
        Some(Outcome { version: version.into(), done, message: "why".into(), vm: true, host: true })
    }

    #[test]
    fn a_node_that_asks_for_nothing_is_left_alone() {
        assert_eq!(facts(Wants::Nothing).next(), Step::Settled);
        let mut left = Facts { installed: Some("1".into()), ..facts(Wants::Nothing) };
        left.seen.cordoned = true;
        assert_eq!(left.next(), Step::Uncordon);
    }

    #[test]
    fn install_then_switch_then_uncordon() {
        let mut node = facts(Wants::Switch);
        assert_eq!(node.next(), Step::Install);
        node.installed = Some("2".into());
        node.install = ended("2", true);
        assert_eq!(node.next(), Step::Switch);
        node.seen.cordoned = true;
        assert_eq!(node.next(), Step::Switch, "a pod that was killed while it drained goes on");
        node.working = true;
        assert_eq!(node.next(), Step::Wait);
        node.working = false;
        node.seen.on_cofferdam = true;
        node.seen.ready = false;
        assert_eq!(node.next(), Step::Settled);
        node.seen.ready = true;
        assert_eq!(node.next(), Step::Uncordon);
        node.seen.cordoned = false;
        assert_eq!(node.next(), Step::Settled);
        node.product = "3".into();
        assert_eq!(node.next(), Step::Install, "an upgrade");
    }

    #[test]
    fn what_failed_is_not_tried_in_a_loop() {
        let mut node = Facts { installed: Some("1".into()), install: ended("2", false), ..facts(Wants::Install) };
        assert!(matches!(node.next(), Step::Stuck(why) if why.contains("installing 2 failed: why")));
        node.seen.retry = true;
        assert_eq!(node.next(), Step::Install);
        node.seen.retry = false;
        node.install = ended("1", false);
        assert_eq!(node.next(), Step::Install, "another version may work");

        let mut node = Facts { installed: Some("2".into()), switch: ended("2", false), ..facts(Wants::Switch) };
        node.seen.cordoned = true;
        assert_eq!(node.next(), Step::Uncordon);
        node.seen.cordoned = false;
        assert!(matches!(node.next(), Step::Stuck(_)));
        node.unfinished = true;
        assert_eq!(node.next(), Step::Recover);
    }

    #[test]
    fn labels_say_what_is_wanted() {
        let node = |labels: serde_json::Value| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {"labels": labels}})).unwrap()
        };
        for (labels, wants) in [
            (serde_json::json!({}), Wants::Nothing),
            (serde_json::json!({INSTALL: "true"}), Wants::Install),
            (serde_json::json!({INSTALL: "true", SWITCH: "true"}), Wants::Switch),
            (serde_json::json!({SWITCH: "false"}), Wants::Nothing),
        ] {
            assert_eq!(Seen::of(&node(labels)).wants, wants);
        }
    }
}
