//! What commands start from: a checkpoint and rows.

use std::io::Write;
use std::sync::Arc;

use rayon::prelude::*;

use crate::config::{DataOptions, ModelOptions, OwnPixelOptions, PixelOptions};
use crate::data::{self, ReadOptions, Sample};
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

/// Rows whose images are decoded between two looks at how many were bad.
const CHECKED_AT_ONCE: usize = 256;

/// The rows that the options name.
///
/// With `--max_bad_rows` above 0, every image is decoded now; rows that cannot be used are left out, and listed on standard
/// error one line each.
///
/// # Errors
/// That of the first bad row, or [`Error::Content`] when there are more than `max_bad_rows`.
pub(super) fn read_rows(options: &DataOptions, read: &ReadOptions, quiet: bool) -> Result<Vec<Sample>> {
    if options.max_bad_rows == 0 {
        return data::read(&options.dataset, read);
    }
    let mut bad = BadRows { options, found: 0 };
    let samples = data::read_usable(&options.dataset, read, |error| bad.add(error))?;
    let progress = Progress::start("check rows", samples.len() as u64, quiet);
    let mut usable = Vec::with_capacity(samples.len());
    let mut rest = samples.into_iter();
    loop {
        let chunk: Vec<Sample> = rest.by_ref().take(CHECKED_AT_ONCE).collect();
        if chunk.is_empty() {
            break;
        }
        let checks: Vec<Result<()>> = chunk.par_iter().map(check_images).collect();
        progress.advance(chunk.len() as u64);
        for (sample, check) in chunk.into_iter().zip(checks) {
            match check {
                Ok(()) => usable.push(sample),
                Err(error) => bad.add(error)?,
            }
        }
    }
    progress.finish();
    if usable.is_empty() {
        let message = format!("has {} rows, and none can be used", bad.found);
        return Err(Error::content(&options.dataset, message));
    }
    Ok(usable)
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
                &self.options.dataset,
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

/// Rows as prompts: an assistant's closing message, the answer for SFT, is left out.
pub(super) fn prompts(samples: Vec<Sample>) -> Vec<Sample> {
    samples.into_iter().map(|s| if s.ends_with_assistant() { s.prompt() } else { s }).collect()
}
