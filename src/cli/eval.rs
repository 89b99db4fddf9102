//! `othink-train eval`.

use crate::config::EvalConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &EvalConfig) -> Result<()> {
    Err(Error::Internal("`eval` is not wired up".to_owned()))
}
