//! `othink-train tasks make`.

use super::arguments::MakeCommand;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(task: &MakeCommand) -> Result<()> {
    match task {
        MakeCommand::Counting(_) => Err(Error::Internal("`tasks make counting` is not wired up".to_owned())),
        MakeCommand::Geometry(_) => Err(Error::Internal("`tasks make geometry` is not wired up".to_owned())),
    }
}
