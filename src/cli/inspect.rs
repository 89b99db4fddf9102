//! `othink-train inspect`.

use crate::checkpoint::{Description, describe};
use crate::config::InspectConfig;
use crate::error::{Error, Result};
use crate::model::folder::ModelFolder;
use crate::report::console::escape_control;

/// Runs the command.
pub fn run(options: &InspectConfig) -> Result<()> {
    let description = describe(&options.path)?;
    let mut text = format!("{description}\n");
    if options.tensors {
        if let Description::Run(run) = &description {
            let names: Vec<String> =
                run.checkpoints.iter().map(|(path, _)| path.display().to_string()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::Usage(format!(
                "--tensors: {} is a run folder; name one of its checkpoints ({names})",
                options.path
            )));
        }
        text += &tensors(&ModelFolder::open(&options.path)?);
    }
    super::print(&escape_control(&text))
}

/// One line per tensor: name in the file, type, shape.
fn tensors(folder: &ModelFolder) -> String {
    let stored = folder.stored_parameters();
    let width = stored.iter().map(|p| p.stored_name.chars().count()).max().unwrap_or(0);
    let mut text = format!("tensors        {}\n", stored.len());
    for parameter in stored {
        let dtype = parameter.dtype.to_string();
        text += &format!("  {:<width$}  {dtype:<5}{:?}\n", parameter.stored_name, parameter.shape);
    }
    text
}
