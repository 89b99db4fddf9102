//! `othink-train generate`.

use crate::config::GenerateConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &GenerateConfig) -> Result<()> {
    Err(Error::Internal("`generate` is not wired up".to_owned()))
}
