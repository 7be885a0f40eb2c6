//! The program's subcommands.

pub(crate) mod bundle;
pub(crate) mod check;
mod client;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod images;
pub(crate) mod pods;
pub(crate) mod serve;
mod table;

/// What a subcommand ends with.
pub(crate) type Outcome = Result<std::process::ExitCode, Box<dyn std::error::Error>>;

/// How a list is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, for people.
    Table,
    /// An array of objects, for programs.
    Json,
}
