//! What commands start from: a checkpoint and rows.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::config::{DataOptions, EvaluationOptions, ModelOptions, OwnPixelOptions, PixelOptions, Strategy};
use crate::data::{self, Dataset, ReadOptions};
use crate::error::{Error, Result};
use crate::processor::{Processor, ProcessorOptions, check_images};
use crate::report::Progress;
use crate::report::console::one_line;
use crate::reward::Notes;
use crate::tensor::Placement;
use crate::train::policy::Policy;

/// Bounds on image size that are always in force, in the form of those that may be left to the checkpoint.
pub(super) fn given(pixels: PixelOptions) -> OwnPixelOptions {
    OwnPixelOptions { min_pixels: Some(pixels.min_pixels), max_pixels: Some(pixels.max_pixels) }
}

/// What the options set over the checkpoint's processor files.
pub(super) fn processor_options(model: &ModelOptions, pixels: OwnPixelOptions) -> ProcessorOptions {
    ProcessorOptions {
        min_pixels: pixels.min_pixels.map(|n| n as u64),
        max_pixels: pixels.max_pixels.map(|n| n as u64),
        chat_template_path: model.chat_template.clone(),
        ..ProcessorOptions::default()
    }
}

/// The processor of a checkpoint's folder, without its weights.
pub(super) fn processor(folder: &Path, pixels: OwnPixelOptions) -> Result<Processor> {
    let options = ProcessorOptions {
        min_pixels: pixels.min_pixels.map(|n| n as u64),
        max_pixels: pixels.max_pixels.map(|n| n as u64),
        ..ProcessorOptions::default()
    };
    Processor::load(folder, &options)
}

/// Loads the checkpoint and says on standard error what its user should know.
pub(super) fn load_policy(
    model: &ModelOptions,
    pixels: OwnPixelOptions,
    placement: &Placement,
    quiet: bool,
) -> Result<Policy> {
    let policy = Policy::load(&model.model, &processor_options(model, pixels), placement)?;
    warn(&policy.processor, quiet);
    Ok(policy)
}

/// Prints the processor's warnings, each once.
pub(super) fn warn(processor: &Processor, quiet: bool) {
    if quiet {
        return;
    }
    for warning in processor.warnings() {
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "warning: {}", one_line(&warning));
    }
}

/// Where rewards put what the user should know: on standard error, one line each.
pub(super) fn notes(quiet: bool) -> Notes {
    Arc::new(move |text| {
        if !quiet {
            // A closed standard error is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{}", one_line(text));
        }
    })
}

/// How the options say a dataset is read.
///
/// # Errors
/// [`crate::error::Error::Usage`] for an unknown template.
pub(super) fn read_options(options: &DataOptions, need_solution: bool) -> Result<ReadOptions> {
    Ok(ReadOptions {
        split: options.dataset_split.clone(),
        template: options.prompt_template.parse()?,
        image_dir: options.image_dir.clone(),
        need_solution,
        max_samples: options.max_samples,
        ..ReadOptions::default()
    })
}

/// The rows that the options name, each read once, so that what is wrong is found before anything is done with them.
///
/// With `--max_bad_rows` above 0, every image is decoded too; rows that cannot be used are left out, and listed on standard
/// error one line each.
///
/// # Errors
/// That of the first bad row, or [`Error::Content`] when there are more than `max_bad_rows`.
pub(super) fn read_rows(options: &DataOptions, read: &ReadOptions, quiet: bool) -> Result<Dataset> {
    let all = data::open(&options.dataset, read)?;
    let progress = Progress::start("check rows", all.rows() as u64, quiet);
    let advance = |n| progress.advance(n);
    let usable = match options.max_bad_rows {
        0 => all.usable(|_| Ok(()), advance, Err)?,
        _ => {
            let mut bad = BadRows { options, found: 0 };
            all.usable(check_images, advance, |error| bad.add(error))?
        }
    };
    if usable.rows() == 0 {
        return Err(Error::content(
            options.names(),
            format!("has {} rows, and none can be used", all.rows()),
        ));
    }
    progress.finish();
    Ok(usable)
}

/// The rows of `eval_dataset`, if there is to be an evaluation; each is read once.
///
/// # Errors
/// Those of [`data::read`].
pub(super) fn read_held_out(options: &EvaluationOptions, read: &ReadOptions) -> Result<Option<Dataset>> {
    let Some(source) = options.eval_dataset.as_ref().filter(|_| options.strategy() != Strategy::No) else {
        return Ok(None);
    };
    let split = data::held_out_split(source)?;
    data::read(source, &ReadOptions { split, max_samples: None, ..read.clone() }).map(Some)
}

/// The rows left out so far.
struct BadRows<'a> {
    options: &'a DataOptions,
    found: usize,
}

impl BadRows<'_> {
    /// Lists a bad row, or fails where it is one too many.
    fn add(&mut self, error: Error) -> Result<()> {
        self.found += 1;
        let allowed = self.options.max_bad_rows;
        if self.found > allowed {
            return Err(Error::content(
                self.options.names(),
                format!(
                    "more than {allowed} bad rows, all that --max_bad_rows allows; the next one: {error}"
                ),
            ));
        }
        // Also where no progress is shown: what is trained on is another dataset. A closed standard error is no reason
        // to stop.
        let _ = writeln!(std::io::stderr(), "left out: {}", one_line(&error.to_string()));
        Ok(())
    }
}
