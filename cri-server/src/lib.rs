//! `cofferdam`: the daemon that the kubelet talks to.
//!
//! ```text
//!  kubelet ── gRPC ──► runtime_service/, image_service/     one file per verb
//!                          │        │
//!                 translate/        │                       CRI messages → what a pod or an agent is asked
//!                          ▼        ▼
//!                       node/  Pod · Container · watcher    what there is now; records/ keeps it over a kill
//!                          │        │
//!                 cofferdam-sandbox · cofferdam-image-store
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test may block: nothing else waits for its thread"))]

mod apparmor;
mod commands;
mod config;
mod container_log;
mod deadline;
mod door;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod image_service;
mod journal;
mod node;
mod panics;
mod records;
mod runtime_service;
mod stats;
mod streaming;
mod telemetry;
mod translate;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use commands::Format;

/// The release and the commit that it was built from.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COFFERDAM_COMMIT"), ")");

#[derive(Parser)]
#[command(version = VERSION, about = "A Kubernetes node daemon that runs each pod in a microVM of its own")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves CRI until it is told to end; pods go on without it.
    Serve {
        #[command(flatten)]
        from: From,
    },
    /// Says whether this node can run vm and host pods, and what to do if not; status 0 when it
    /// can.
    Check {
        #[command(flatten)]
        from: From,
        /// Only this kind counts for the status.
        #[arg(value_parser = ["vm", "host"])]
        kind: Option<String>,
    },
    /// Prints the configuration in effect.
    Config {
        #[command(flatten)]
        from: From,
    },
    /// Lists the pods of this node: handler, state, restarts, memory and CPU on the node, size of
    /// the guest.
    Pods {
        #[command(flatten)]
        from: From,
        /// How the list is printed.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Lists the images of the store, or pulls and removes some.
    Images {
        #[command(flatten)]
        from: From,
        /// How the list is printed.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
        #[command(subcommand)]
        work: Option<commands::images::Work>,
    },
    /// Prints the last 32 KiB that the kernel of a vm pod's guest has said on its serial console.
    Console {
        #[command(flatten)]
        from: From,
        /// The pod: its id or the beginning of it, NAME, or NAMESPACE/NAME.
        pod: String,
    },
    /// Collects what a bug report needs.
    Debug {
        #[command(subcommand)]
        work: Debug,
    },
    /// Prints a script that completes this program's words in a shell.
    Completion {
        /// Which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum Debug {
    /// Writes one archive with versions, configuration, lists, the daemon's journal and the state
    /// of the node; no secrets, and nothing that pods were given or have said.
    Bundle {
        #[command(flatten)]
        from: From,
        /// Where it goes; a name with the time if not given.
        #[arg(long, value_name = "PATH")]
        out: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct From {
    /// Configuration file; files of `conf.d` beside it are added in the order of their names.
    #[arg(long, value_name = "PATH", global = true)]
    config: Option<PathBuf>,
}

/// The whole program.
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { from } => commands::serve::run(from.config.as_deref()),
        Command::Check { from, kind } => commands::check::run(from.config.as_deref(), kind.as_deref()),
        Command::Config { from } => commands::config::run(from.config.as_deref()),
        Command::Pods { from, output } => commands::pods::run(from.config.as_deref(), output),
        Command::Images { from, output, work } => commands::images::run(from.config.as_deref(), output, work),
        Command::Console { from, pod } => commands::console::run(from.config.as_deref(), &pod),
        Command::Debug { work: Debug::Bundle { from, out } } => commands::bundle::run(from.config.as_deref(), out),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "cofferdam", &mut script);
            commands::print(&String::from_utf8_lossy(&script))
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cofferdam: {}", error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_unless_something_else_is_to_be_done() {
        let parsed = |words: &str| Arguments::try_parse_from(words.split(' ')).map(|arguments| arguments.command);
        Arguments::command().debug_assert();
        assert!(matches!(parsed("cofferdam images -o json"), Ok(Command::Images { work: None, .. })));
        let Ok(Command::Images { from, work: Some(commands::images::Work::Pull { reference }), .. }) =
            parsed("cofferdam images pull --config /etc/a.toml registry.example/a:1")
        else {
            panic!("no pull");
        };
        assert_eq!((from.config, &*reference), (Some("/etc/a.toml".into()), "registry.example/a:1"));
        for bad in ["cofferdam images pull", "cofferdam images prune x", "cofferdam images pul x"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
