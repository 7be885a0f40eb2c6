//! The program's subcommands.

pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod serve;

/// What a subcommand ends with.
pub(crate) type Outcome = Result<std::process::ExitCode, Box<dyn std::error::Error>>;
