//! `cofferdam check`: whether this node can run vm and host pods, by trying.
//!
//! Status 0 when every kind can run (or the one that was named), else 1. A missing CNI
//! configuration is shown and does not count: network add-ons write it after the runtime has
//! started. Nor does what does not fit in the kubelet's configuration, which is looked at on the
//! node alone; RuntimeClasses are the API server's, which is not asked.

mod advice;
mod kubelet;

use std::path::Path;
use std::process::ExitCode;

use cofferdam_sandbox::Runtime;

use super::Outcome;
use crate::config::{HANDLERS, load};
use crate::error::chain;

pub(crate) fn run(path: Option<&Path>, only: Option<&str>) -> Outcome {
    let (_, config) = load(path)?;
    let runtime = Runtime::open(config.sandbox())?;
    let mut usable = true;
    for (name, kind) in HANDLERS {
        let answer = runtime.probe(kind).map_err(|e| chain(&e));
        usable &= answer.is_ok() || only.is_some_and(|o| o != name);
        say(&format!("{name} pods"), &answer);
    }
    say("pod network (CNI)", &runtime.network_ready().map_err(|e| chain(&e)));
    look_at_kubelet(&advice::Ours { socket: config.socket.clone(), cgroup_driver: config.cgroup_driver });
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn look_at_kubelet(ours: &advice::Ours) {
    match kubelet::find(Path::new("/")) {
        Ok(Some(settings)) => {
            println!("{:<18} {}", "kubelet", settings.source);
            advice::lines(&settings, ours).iter().for_each(|(what, answer)| say(what, answer));
        }
        Ok(None) => println!("{:<18} none runs, and kubeadm has prepared none", "kubelet"),
        Err(why) => println!("{:<18} its configuration cannot be read: {why}", "kubelet"),
    }
}

fn say(what: &str, answer: &Result<(), String>) {
    match answer {
        Ok(()) => println!("{what:<18} yes"),
        Err(why) => println!("{what:<18} no: {why}"),
    }
}
