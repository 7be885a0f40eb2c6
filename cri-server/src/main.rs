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

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod apparmor;
mod commands;
mod config;
mod container_log;
mod deadline;
mod door;
mod error;
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

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "A Kubernetes node daemon that runs each pod in a microVM of its own")]
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
    /// Says whether this node can run vm and host pods, and what to do if not; status 0 when it can.
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
}

#[derive(clap::Args)]
struct From {
    /// Configuration file; files of `conf.d` beside it are added in the order of their names.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { from } => commands::serve::run(from.config.as_deref()),
        Command::Check { from, kind } => commands::check::run(from.config.as_deref(), kind.as_deref()),
        Command::Config { from } => commands::config::run(from.config.as_deref()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cofferdam: {}", error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
