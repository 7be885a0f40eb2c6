//! Names in use: one pod for each name, namespace, uid and attempt; one container for each name and attempt in a pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::error::CriError;

/// What a name consists of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// A pod's.
    Pod {
        /// Kubernetes' name.
        name: String,
        /// Its namespace.
        namespace: String,
        /// Its uid.
        uid: String,
        /// How often the kubelet tried before.
        attempt: u32,
    },
    /// A container's.
    Container {
        /// The pod's id.
        pod: String,
        /// Kubernetes' name.
        name: String,
        /// How often it was restarted.
        attempt: u32,
    },
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { name, namespace, uid, attempt } => {
                write!(f, "pod {namespace}/{name} (uid {uid}, attempt {attempt})")
            }
            Self::Container { pod, name, attempt } => write!(f, "container {name} (attempt {attempt}) of pod {pod}"),
        }
    }
}

/// Which id holds which name.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Mutex<HashMap<Name, String>>>);

impl Names {
    /// Takes a name for `id`.
    pub(crate) fn reserve(&self, name: Name, id: &str) -> Result<(), CriError> {
        let mut taken = lock(&self.0);
        if let Some(holder) = taken.get(&name) {
            return Err(CriError::Exists(format!("{name} exists already: {holder}")));
        }
        taken.insert(name, id.to_owned());
        Ok(())
    }

    /// Gives back what `id` holds.
    pub(crate) fn release(&self, id: &str) {
        lock(&self.0).retain(|_, holder| holder != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_until_it_is_given_back() {
        let names = Names::default();
        let name = |attempt| Name::Pod { name: "web".into(), namespace: "ns".into(), uid: "u".into(), attempt };
        names.reserve(name(0), "first").unwrap();
        let error = names.reserve(name(0), "second").unwrap_err().to_string();
        assert!(error.contains("ns/web") && error.contains("first"), "{error}");
        names.reserve(name(1), "second").unwrap();
        names.release("first");
        names.reserve(name(0), "third").unwrap();
        assert!(names.reserve(name(1), "third").is_err());
    }
}
