//! `othink-train demo`.

use crate::config::DemoConfig;
use crate::demo::{self, Recipe};
use crate::error::{Error, Result};

/// Runs the demo; its last line on standard output is the result as JSON.
pub fn run(options: &DemoConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    super::training::check(&placement)?;
    let result = demo::run(options, &Recipe::counting(), &placement)?;
    let line =
        serde_json::to_string(&result).map_err(|e| Error::Internal(format!("the result as JSON: {e}")))?;
    super::print(&(line + "\n"))
}
