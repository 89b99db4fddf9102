//! `othink-train data inspect` and `othink-train data check`.

mod inspect;

use serde::Serialize;

use super::arguments::DataCommand;
use super::output::OutputFile;
use crate::config::{CheckDataConfig, RowsOptions};
use crate::data::{self, PromptTemplate, ReadOptions};
use crate::error::{Error, Result};
use crate::processor::image_sizes;
use crate::report::Progress;
use crate::report::console::one_line;

/// Runs the command.
pub fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Inspect(options) => inspect::run(options),
        DataCommand::Check(options) => check(options),
    }
}

fn read_options(options: &RowsOptions, template: PromptTemplate) -> ReadOptions {
    ReadOptions {
        split: options.dataset_split.clone(),
        image_dir: options.image_dir.clone(),
        max_samples: options.max_samples,
        template,
        ..ReadOptions::default()
    }
}

/// A row of `--output`.
#[derive(Serialize)]
struct BadRow<'a> {
    row: usize,
    error: &'a str,
}

/// Reads every row and decodes every image; one line on standard output for each bad row, and one in the end.
fn check(options: &CheckDataConfig) -> Result<()> {
    let read = ReadOptions {
        need_solution: options.need_solution,
        ..read_options(&options.rows, PromptTemplate::default())
    };
    let dataset = data::open(options.rows.datasets(), &read)?;
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    let progress = Progress::start("check rows", dataset.rows() as u64, options.quiet.quiet);
    let (mut bad, mut images, mut solutions) = (0, 0, 0);
    dataset.each(
        |_, sample| {
            let sample = sample?;
            Ok((image_sizes(&sample)?.len(), sample.solution.is_some()))
        },
        |row, checked: Result<(usize, bool)>| {
            progress.advance(1);
            match checked {
                Ok((of_row, solution)) => {
                    images += of_row;
                    solutions += usize::from(solution);
                    Ok(())
                }
                // Memory and bugs are not the row's.
                Err(error @ (Error::Memory(_) | Error::Internal(_))) => Err(error),
                Err(error) => {
                    bad += 1;
                    let text = error.to_string();
                    super::print(&format!("row {row}: {}\n", one_line(&text)))?;
                    output.as_mut().map_or(Ok(()), |file| file.append(&BadRow { row, error: &text }))
                }
            }
        },
    )?;
    progress.finish();
    output.map_or(Ok(()), OutputFile::finish)?;
    let rows = dataset.rows();
    super::print(&format!(
        "{rows} rows: {} good, {bad} bad; {images} images; {solutions} rows with a solution\n",
        rows - bad
    ))?;
    if bad > 0 {
        let names: Vec<String> =
            options.rows.datasets().iter().map(|path| path.display().to_string()).collect();
        return Err(Error::content(
            names.join(", "),
            format!(
                "{bad} of {rows} rows are bad; mend them, or leave them out in training with --max_bad_rows"
            ),
        ));
    }
    Ok(())
}
