//! The kubelet's command line: the arguments that matter here. Both `--name=value` and `--name
//! value` are the kubelet's.

/// What the kubelet was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// `--config`.
    pub(crate) config: Option<String>,
    /// `--config-dir`.
    pub(crate) config_dir: Option<String>,
    /// `--kubeconfig`.
    pub(crate) kubeconfig: Option<String>,
    /// `--container-runtime-endpoint`.
    pub(crate) endpoint: Option<String>,
    /// The pieces of `--feature-gates`.
    pub(crate) gates: Vec<String>,
}

impl Arguments {
    /// Reads a command line; its first word is the program. As in the kubelet, the last one of a
    /// name counts.
    pub(crate) fn parse(words: &[String]) -> Self {
        let mut found = Self::default();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let slot = match name {
                "config" => &mut found.config,
                "config-dir" => &mut found.config_dir,
                "kubeconfig" => &mut found.kubeconfig,
                "container-runtime-endpoint" => &mut found.endpoint,
                "feature-gates" => {
                    let value = value.or_else(|| words.next().cloned()).unwrap_or_default();
                    found.gates.extend(value.split(',').map(|gate| gate.trim().to_owned()));
                    continue;
                }
                _ => continue,
            };
            *slot = value.or_else(|| words.next().cloned()).filter(|value| !value.is_empty());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn kubeadms_command_line() {
        let found = parse(
            "/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
             --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
             --container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2",
        );
        assert_eq!(found.kubeconfig.as_deref(), Some("/etc/kubernetes/kubelet.conf"));
        assert_eq!(found.config.as_deref(), Some("/var/lib/kubelet/config.yaml"));
        assert_eq!(found.endpoint.as_deref(), Some("unix:///run/containerd/containerd.sock"));
        assert_eq!(found.config_dir, None);
    }

    #[test]
    fn values_in_words_of_their_own_and_repetitions() {
        let found =
            parse("kubelet --config /a --config-dir /d -kubeconfig /k --feature-gates A=true,B=false --config=/b");
        assert_eq!(found.config.as_deref(), Some("/b"));
        assert_eq!(found.config_dir.as_deref(), Some("/d"));
        assert_eq!(found.kubeconfig.as_deref(), Some("/k"));
        assert_eq!(found.gates, ["A=true", "B=false"]);
        assert_eq!(parse("kubelet --config"), Arguments::default());
        assert_eq!(parse(""), Arguments::default());
    }
}
