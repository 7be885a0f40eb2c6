//! Images that the configuration wants to keep: the kubelet's garbage collection leaves them (CRI,
//! `Image.pinned`).

use crate::error::{StoreError, StoreResult};
use crate::reference::Reference;

/// Patterns of images' names.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    names: Vec<String>,
    beginnings: Vec<String>,
}

impl Pinned {
    /// Reads patterns: references, or the beginnings of some with a `*` behind.
    ///
    /// # Errors
    /// [`StoreError::Config`] with the pattern that is neither.
    pub(crate) fn new(patterns: &[String]) -> StoreResult<Self> {
        let mut pinned = Self::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(beginning) if !beginning.contains('*') => {
                    pinned.beginnings.push(beginning.to_owned());
                    // As in references, Docker Hub's names may be short.
                    let hub = if beginning.contains('/') { "docker.io/" } else { "docker.io/library/" };
                    pinned.beginnings.push(format!("{hub}{beginning}"));
                }
                _ => {
                    let wrong = |why: String| StoreError::Config(format!("images.pinned: {pattern:?}: {why}"));
                    let reference: Reference = pattern.parse().map_err(|_| {
                        wrong("is neither an image reference nor the beginning of one with a * behind".into())
                    })?;
                    let digest = reference.digest().map(|digest| reference.digest_key(digest));
                    pinned.names.extend(digest.or_else(|| reference.tag_key()));
                }
            }
        }
        Ok(pinned)
    }

    /// Whether one of an image's names, which are normalised, is pinned.
    pub(crate) fn has<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        names.any(|name| {
            self.names.contains(name) || self.beginnings.iter().any(|beginning| name.starts_with(beginning))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pinned_as_references_are_written() {
        let digest = format!("a.example/d@{}", crate::Digest::of(b""));
        let patterns = ["busybox:1.36", "registry.k8s.io*", "grafana/*", "debian:1*", &digest].map(str::to_owned);
        let pinned = Pinned::new(&patterns).unwrap();
        for (name, expected) in [
            ("docker.io/library/busybox:1.36", true),
            ("docker.io/library/busybox:1.36.1", false),
            ("registry.k8s.io/pause:3.10", true),
            ("docker.io/grafana/loki:3", true),
            ("quay.io/grafana/loki:3", false),
            ("docker.io/library/debian:12", true),
            ("docker.io/library/debian:sid", false),
            (&*digest, true),
        ] {
            assert_eq!(pinned.has([name.to_owned()].iter()), expected, "{name}");
        }
        assert!(Pinned::new(&["*".into()]).unwrap().has(["a.example/a:1".to_owned()].iter()));
        assert!(!Pinned::default().has(["a.example/a:1".to_owned()].iter()));
        for bad in ["", "A b", "a**", "*/a", "a:*b"] {
            assert!(Pinned::new(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
