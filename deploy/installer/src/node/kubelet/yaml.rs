//! Two keys of a KubeletConfiguration, changed in its text: comments, order and everything else
//! stay as they are.
//!
//! The text is changed by lines, and the result is believed only if a YAML parser reads from it
//! what was asked for, and everything else as before. So a layout that the lines do not understand
//! is refused, never damaged.

use serde_json::{Map, Value, json};

use super::GATE;
use crate::error::{Doing, Result};

const ENDPOINT: &str = "containerRuntimeEndpoint";
const GATES: &str = "featureGates";

/// The endpoint that a configuration names.
pub(crate) fn endpoint(text: &str) -> Result<Option<String>> {
    let all = parse(text).doing(|| "read the kubelet's configuration".into())?;
    Ok(all.get(ENDPOINT).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned))
}

/// A drop-in for `--config-dir` with these settings.
pub(crate) fn drop_in(endpoint: Option<&str>, gate: bool) -> String {
    let mut text = "# Written by Cofferdam's installer, which removes it when the node is switched back.\n\
                    apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
        .to_owned();
    if let Some(endpoint) = endpoint {
        text.push_str(&format!("{ENDPOINT}: {endpoint}\n"));
    }
    if gate {
        text.push_str(&format!("{GATES}:\n  {GATE}: true\n"));
    }
    text
}

/// The text with another endpoint, if one is given, and with the gate open, if that is asked for.
///
/// # Errors
/// Why it cannot be changed without touching something else.
pub(crate) fn set(text: &str, endpoint: Option<&str>, gate: bool) -> Result<String, String> {
    let before = parse(text)?;
    let mut wanted = before.clone();
    let mut out = text.to_owned();
    if let Some(endpoint) = endpoint {
        wanted.insert(ENDPOINT.into(), json!(endpoint));
        out = set_endpoint(&out, endpoint);
    }
    if gate {
        let gates = wanted.entry(GATES).or_insert(Value::Null);
        if gates.is_null() {
            *gates = json!({});
        }
        let gates = gates.as_object_mut().ok_or_else(|| format!("its {GATES} is not a mapping"))?;
        if gates.insert(GATE.into(), json!(true)) != Some(json!(true)) {
            out = set_gate(&out);
        }
    }
    if parse(&out).as_ref() == Ok(&wanted) {
        Ok(out)
    } else {
        Err(format!("its layout is not one that can be changed safely; set {ENDPOINT} and {GATES}.{GATE} by hand"))
    }
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_saphyr::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("it is not a mapping".into()),
        Err(error) => Err(format!("it is no YAML: {error}")),
    }
}

fn set_endpoint(text: &str, endpoint: &str) -> String {
    match find(text, ENDPOINT) {
        // What follows the value, a comment, stays.
        Some((start, end)) => {
            let line = &text[start..end];
            let comment = line.find(" #").map_or("", |at| line[at..].trim_end());
            format!("{}{ENDPOINT}: {endpoint}{comment}{}{}", &text[..start], newline(line), &text[end..])
        }
        None => append(text, &format!("{ENDPOINT}: {endpoint}\n")),
    }
}

fn set_gate(text: &str) -> String {
    let Some((start, end)) = find(text, GATES) else {
        return append(text, &format!("{GATES}:\n  {GATE}: true\n"));
    };
    let line = &text[start..end];
    let value = line.split_once(':').map_or("", |(_, value)| value);
    let value = value.split(" #").next().unwrap_or_default().trim();
    if let Some(inner) = value.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let others = inner.split(',').map(str::trim).filter(|gate| !gate.is_empty() && !names_gate(gate));
        let all: Vec<String> = others.map(str::to_owned).chain([format!("{GATE}: true")]).collect();
        return format!("{}{GATES}: {{{}}}{}{}", &text[..start], all.join(", "), newline(line), &text[end..]);
    }
    // Lines of the block: they are indented, or empty, or comments.
    let mut out = text[..start].to_owned();
    out.push_str(if matches!(value, "null" | "~") { "featureGates:\n" } else { line });
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let rest = &text[end..];
    let inside = |line: &&str| line.starts_with([' ', '\t']) || line.trim().is_empty() || line.starts_with('#');
    let block = || rest.split_inclusive('\n').take_while(inside);
    let first = block().find(|line| line.starts_with(' ') && !line.trim_start().starts_with('#'));
    let indent = first.map_or("  ", |line| &line[..line.len() - line.trim_start().len()]);
    out.push_str(&format!("{indent}{GATE}: true\n"));
    let length: usize = block().map(str::len).sum();
    block().filter(|line| !names_gate(line.trim_start())).for_each(|line| out.push_str(line));
    out + &rest[length..]
}

fn names_gate(text: &str) -> bool {
    let plain = text.trim_start_matches(['"', '\'']);
    plain.strip_prefix(GATE).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

/// Where the line of a key of the whole mapping is.
fn find(text: &str, key: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let plain = line.trim_start_matches(['"', '\'']);
        let rest = plain.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'']).trim_start());
        if rest.is_some_and(|rest| rest.starts_with(':')) {
            return Some((start, start + line.len()));
        }
        start += line.len();
    }
    None
}

fn newline(line: &str) -> &str {
    if line.ends_with("\r\n") {
        "\r\n"
    } else if line.ends_with('\n') {
        "\n"
    } else {
        ""
    }
}

fn append(text: &str, line: &str) -> String {
    let between = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{between}{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "unix:///run/cofferdam/cofferdam.sock";

    #[test]
    fn two_keys_change_and_nothing_else() {
        for (before, after) in [
            // kubeadm's, from 1.34 on.
            (
                "apiVersion: kubelet.config.k8s.io/v1beta1\n# ours\ncontainerRuntimeEndpoint: unix:///a.sock # old\nclusterDNS:\n- 10.96.0.10\n",
                "apiVersion: kubelet.config.k8s.io/v1beta1\n# ours\ncontainerRuntimeEndpoint: NEW # old\nclusterDNS:\n- 10.96.0.10\nfeatureGates:\n  GATE: true\n",
            ),
            (
                "containerRuntimeEndpoint: \"\"\nfeatureGates:\n    A: true\nz: 1\n",
                "containerRuntimeEndpoint: NEW\nfeatureGates:\n    GATE: true\n    A: true\nz: 1\n",
            ),
            ("featureGates: {}\n", "featureGates: {GATE: true}\ncontainerRuntimeEndpoint: NEW\n"),
            (
                "featureGates: {A: false, GATE: false}",
                "featureGates: {A: false, GATE: true}\ncontainerRuntimeEndpoint: NEW\n",
            ),
            (
                "featureGates:\n  GATE: false\n  # why\n  B: true\n",
                "featureGates:\n  GATE: true\n  # why\n  B: true\ncontainerRuntimeEndpoint: NEW\n",
            ),
            (
                "featureGates:\n  GATE: true\ncontainerRuntimeEndpoint: NEW\n",
                "featureGates:\n  GATE: true\ncontainerRuntimeEndpoint: NEW\n",
            ),
            ("featureGates: null\nx: 1", "featureGates:\n  GATE: true\nx: 1\ncontainerRuntimeEndpoint: NEW\n"),
            ("", "containerRuntimeEndpoint: NEW\nfeatureGates:\n  GATE: true\n"),
        ] {
            let fill = |text: &str| text.replace("NEW", NEW).replace("GATE", GATE);
            assert_eq!(set(&fill(before), Some(NEW), true).as_deref(), Ok(fill(after).as_str()), "{before}");
        }
    }

    #[test]
    fn what_the_lines_do_not_understand_is_refused() {
        for text in [
            "{\"containerRuntimeEndpoint\": \"unix:///a\"}\n",
            "featureGates: [a]\n",
            "- a\n",
            "a: [\n",
            "note: |\n  x\nfeatureGates: &g\n  A: true\nother: *g\n",
            "containerRuntimeEndpoint: >-\n  unix:///a\n",
        ] {
            assert!(set(text, Some(NEW), true).is_err(), "{text}");
        }
    }

    #[test]
    fn the_endpoint_is_read() {
        assert_eq!(endpoint("containerRuntimeEndpoint: unix:///a\n").unwrap().as_deref(), Some("unix:///a"));
        assert_eq!(endpoint("containerRuntimeEndpoint: ''\n").unwrap(), None);
        assert_eq!(endpoint("").unwrap(), None);
        assert!(endpoint("[").is_err());
        assert_eq!(endpoint(&drop_in(Some(NEW), true)).unwrap().as_deref(), Some(NEW));
        assert!(!drop_in(None, true).contains(ENDPOINT));
    }

    proptest::proptest! {
        #[test]
        fn other_keys_survive(keys in proptest::collection::btree_map("k[a-z]{1,8}", "[a-z0-9 ]{0,8}", 0..6)) {
            let text: String = keys.iter().map(|(key, value)| format!("{key}: \"{value}\" # c\n")).collect();
            let after = set(&text, Some(NEW), true).unwrap();
            proptest::prop_assert!(after.starts_with(&text));
        }
    }
}
