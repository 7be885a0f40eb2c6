//! `cofferdam check`: whether this node can run vm and host pods, by trying.
//!
//! Status 0 when every kind can run (or the one that was named), else 1. A missing CNI configuration is shown and
//! does not count: network add-ons write it after the runtime has started.

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
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(what: &str, answer: &Result<(), String>) {
    match answer {
        Ok(()) => println!("{what:<18} yes"),
        Err(why) => println!("{what:<18} no: {why}"),
    }
}
