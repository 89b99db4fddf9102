//! `othink-train sft`.

use crate::config::{Options, SftConfig};
use crate::error::{Error, Result};

/// Runs the command; with `--dry_run` only prints what it would run with.
pub fn run(options: &SftConfig) -> Result<()> {
    if options.dry_run.dry_run {
        return super::print(&options.to_toml()?);
    }
    Err(Error::Internal("`sft` is not wired up".to_owned()))
}
