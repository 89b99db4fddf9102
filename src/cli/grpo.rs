//! `othink-train grpo`.

use crate::config::{GrpoConfig, Options};
use crate::error::{Error, Result};

/// Runs the command; with `--dry_run` only prints what it would run with.
pub fn run(options: &GrpoConfig) -> Result<()> {
    if options.dry_run.dry_run {
        return super::print(&options.to_toml()?);
    }
    Err(Error::Internal("`grpo` is not wired up".to_owned()))
}
