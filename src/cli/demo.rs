//! `othink-train demo`.

use crate::config::DemoConfig;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_options: &DemoConfig) -> Result<()> {
    Err(Error::Internal("`demo` is not wired up".to_owned()))
}
