//! `cofferdam config`.

use std::path::Path;
use std::process::ExitCode;

use super::Outcome;
use crate::config::load;

pub(crate) fn run(path: Option<&Path>) -> Outcome {
    let (settings, _) = load(path)?;
    print!("{}", toml::to_string(&settings.without_secrets())?);
    Ok(ExitCode::SUCCESS)
}
