//! `othink-train score`.

use crate::config::ScoreConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &ScoreConfig) -> Result<()> {
    Err(Error::Internal("`score` is not wired up".to_owned()))
}
