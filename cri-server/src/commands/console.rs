//! `cofferdam console POD`: what the kernel of a pod's guest has said.

use std::path::Path;

use super::client::with_daemon;
use super::{Outcome, pods, print};
use crate::error::chain;

pub(crate) fn run(path: Option<&Path>, pod: &str) -> Outcome {
    with_daemon(path, |mut daemon| async move {
        let id = pods::find(&mut daemon, pod).await?;
        let config = daemon.config.sandbox();
        let text = cofferdam_sandbox::console(&config, &id).await.map_err(|error| chain(&error))?;
        if text.is_empty() {
            eprintln!("the guest's kernel has said nothing: it is quiet unless something is wrong");
        }
        // What a guest says must not move the cursor of the terminal.
        let shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        print(&text.chars().filter(shown).collect::<String>())
    })
}
