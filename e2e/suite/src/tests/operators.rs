//! The commands of `cofferdam` that operators use on a node.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{self, BUSYBOX, Container, Crictl, Output, Pod};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] =
    &[("operators_commands", || with_both(|handler| in_one_pod(handler, &Pod::new("shown"), CHECKS)))];

const CHECKS: &[Check] =
    &[("lists_of_pods_and_images", lists), ("console_of_a_guest", console), ("debug_bundle", bundle)];

fn cofferdam(args: &[&str]) -> Outcome<Output> {
    let mut command = Command::new("cofferdam");
    command.args(args);
    crictl::run(command, &format!("cofferdam {}", args.join(" ")))
}

fn listed(what: &str) -> Outcome<Vec<Value>> {
    let output = cofferdam(&[what, "-o", "json"])?;
    ensure!(output.code == 0, "cofferdam {what}: {}", output.stderr);
    let list: Value = serde_json::from_str(&output.stdout).doing(&format!("read the JSON of cofferdam {what}"))?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

fn lists(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    crictl.run_container(id, pod, &Container::shell("sleeper", "exec sleep 100000"))?;
    let pods = listed("pods")?;
    let shown = pods.iter().find(|shown| shown["id"] == id).cloned().unwrap_or_default();
    let wanted =
        json!({"handler": handler, "state": "ready", "namespace": "e2e", "name": "shown", "running": 1, "restarts": 0});
    for (key, value) in wanted.as_object().into_iter().flatten() {
        ensure!(shown[key] == *value, "cofferdam pods: {key} is {}, not {value}: {shown}", shown[key]);
    }
    ensure!(shown["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 0), "the pod uses no memory: {shown}");
    let guest = shown["guest"]["memoryMib"].as_u64().unwrap_or(0);
    ensure!((guest > 0) == (handler == "vm"), "the guest has {guest} MiB: {shown}");
    let table = cofferdam(&["pods"])?.stdout;
    ensure!(table.starts_with("NAMESPACE") && table.contains("shown"), "cofferdam pods printed {table:?}");
    let images = listed("images")?;
    let has = |image: &Value| image["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == BUSYBOX));
    ensure!(images.iter().any(has), "cofferdam images lacks {BUSYBOX}: {images:?}");
    Ok(())
}

fn console(handler: &'static str, id: &str, _pod: &Pod) -> Outcome {
    for name in [&id[..20], "shown", "e2e/shown"] {
        let output = cofferdam(&["console", name])?;
        if handler == "vm" {
            ensure!(output.code == 0, "cofferdam console {name}: {}", output.stderr);
        } else {
            ensure!(output.stderr.contains("a host pod has no guest"), "the console of a host pod: {output:?}");
        }
    }
    let output = cofferdam(&["console", "no-such-pod"])?;
    ensure!(output.code != 0 && output.stderr.contains("no-such-pod"), "the console of no pod: {output:?}");
    Ok(())
}

/// It has what is needed, and nothing that a pod was given or has said.
fn bundle(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    const SECRET: &str = "correct-horse-battery-staple";
    const OUT: &str = "/run/cofferdam-e2e/bundle.tar.gz";
    let container = Container::shell("secretive", "echo $PASSWORD; exec sleep 100000")
        .with("envs", json!([{"key": "PASSWORD", "value": SECRET}]));
    let container = Crictl::default().run_container(id, pod, &container)?;
    Crictl::default().wait_log(&container, SECRET)?;
    let _ = fs::remove_file(OUT);
    let output = cofferdam(&["debug", "bundle", "--out", OUT])?;
    ensure!(output.code == 0, "cofferdam debug bundle: {}", output.stderr);
    let tar = |words: &[&str]| {
        let mut command = Command::new("tar");
        command.args(words).arg(OUT);
        crictl::run(command, "tar").map(|output| output.stdout)
    };
    let (names, text) = (tar(&["-tzf"])?, tar(&["-xzOf"])?);
    fs::remove_file(OUT).doing("remove the archive")?;
    for part in ["version.txt", "config.toml", "check.txt", "pods.json", "journal.txt", "proc-meminfo.txt"] {
        ensure!(names.lines().any(|name| name.ends_with(part)), "the archive lacks {part}: {names}");
    }
    ensure!(text.contains("container started") && text.contains(id), "the archive does not name the pod");
    ensure!(!text.contains(SECRET), "the archive holds a secret of a pod");
    Ok(())
}
