//! `othink-train inspect`.

use crate::config::InspectConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &InspectConfig) -> Result<()> {
    Err(Error::Internal("`inspect` is not wired up".to_owned()))
}
