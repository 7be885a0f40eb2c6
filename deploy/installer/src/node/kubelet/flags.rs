//! `--container-runtime-endpoint` in an environment file, such as kubeadm's
//! `/var/lib/kubelet/kubeadm-flags.env`:
//!
//! ```text
//! KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/containerd/containerd.sock
//! --pod-infra-container-image=…"
//! ```

const FLAG: &str = "--container-runtime-endpoint";

/// The text with another endpoint in it, and nothing else changed; none if it names no endpoint.
pub(crate) fn set(text: &str, endpoint: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + endpoint.len());
    let mut found = false;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with(['#', ';']) {
            out.push_str(line);
        } else {
            found |= set_line(line, endpoint, &mut out);
        }
    }
    found.then_some(out)
}

fn set_line(mut line: &str, endpoint: &str, out: &mut String) -> bool {
    let ends = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    let mut found = false;
    while let Some(at) = line.find(FLAG) {
        let (before, after) = line.split_at(at + FLAG.len());
        out.push_str(before);
        line = after;
        // `=value`, or a value that is the next word; anything else is a longer name.
        let skip = match line.chars().next() {
            Some('=') => 1,
            Some(' ' | '\t') => line.len() - line.trim_start_matches([' ', '\t']).len(),
            _ => continue,
        };
        out.push_str(&line[..skip]);
        line = &line[skip..];
        out.push_str(endpoint);
        line = &line[line.find(ends).unwrap_or(line.len())..];
        found = true;
    }
    out.push_str(line);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "unix:///run/cofferdam/cofferdam.sock";

    #[test]
    fn only_the_value_changes() {
        for (before, after) in [
            (
                "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2\"\n",
                Some("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=NEW --v=2\"\n"),
            ),
            ("A='--v=2 --container-runtime-endpoint unix:///a'", Some("A='--v=2 --container-runtime-endpoint NEW'")),
            ("A=--container-runtime-endpoint=/a\nB=1\n", Some("A=--container-runtime-endpoint=NEW\nB=1\n")),
            ("# --container-runtime-endpoint=/a\nA=\"--v=2\"\n", None),
            ("A=--container-runtime-endpoint-x=/a\n", None),
            ("", None),
        ] {
            assert_eq!(set(before, NEW), after.map(|text| text.replace("NEW", NEW)), "{before}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_changed_back_and_forth(text in "([A-Z]=\"(--v=2 )?(--container-runtime-endpoint=unix:///old)?( --x)?\"\n){0,4}") {
            match set(&text, NEW) {
                Some(new) => proptest::prop_assert_eq!(set(&new, "unix:///old").unwrap(), text),
                None => proptest::prop_assert!(!text.contains(FLAG)),
            }
        }
    }
}
