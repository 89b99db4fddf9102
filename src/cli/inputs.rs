//! What commands start from: a checkpoint and rows.

use std::io::Write;

use crate::config::{DataOptions, DtypeChoice, ModelOptions, OwnPixelOptions, PixelOptions};
use crate::data::{self, ReadOptions, Sample};
use crate::error::Result;
use crate::processor::{Processor, ProcessorOptions};
use crate::report::console::escape_line;
use crate::tensor::DType;
use crate::train::policy::Policy;

/// The storage type that `--dtype` means on the CPU.
pub(super) fn storage(dtype: DtypeChoice) -> DType {
    match dtype {
        DtypeChoice::Auto | DtypeChoice::F32 => DType::F32,
        DtypeChoice::Bf16 => DType::Bf16,
    }
}

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
    dtype: DType,
    quiet: bool,
) -> Result<Policy> {
    let policy = Policy::load(&model.model, &processor_options(model, pixels), dtype)?;
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
        let _ = writeln!(std::io::stderr(), "warning: {}", escape_line(&warning));
    }
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
        ..ReadOptions::default()
    })
}

/// The rows that the options name, at most `max_samples` of them.
pub(super) fn read_rows(options: &DataOptions, read: &ReadOptions) -> Result<Vec<Sample>> {
    let mut samples = data::read(&options.dataset, read)?;
    samples.truncate(options.max_samples.unwrap_or(usize::MAX));
    Ok(samples)
}

/// Rows as prompts: an assistant's closing message, the answer for SFT, is left out.
pub(super) fn prompts(samples: Vec<Sample>) -> Vec<Sample> {
    samples.into_iter().map(|s| if s.ends_with_assistant() { s.prompt() } else { s }).collect()
}
