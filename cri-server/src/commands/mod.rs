//! The program's subcommands.

use std::io::Write;

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

/// Prints `text`; that the reader has read enough and gone (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(std::process::ExitCode::SUCCESS),
    }
}

/// How a list is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, for people.
    Table,
    /// An array of objects, for programs.
    Json,
}
