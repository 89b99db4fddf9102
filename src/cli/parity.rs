//! `othink-train parity`.

use crate::config::ParityConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &ParityConfig) -> Result<()> {
    Err(Error::Internal("`parity` is not wired up".to_owned()))
}
