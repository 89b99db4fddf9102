//! `othink-train eval`.

use std::time::Instant;

use serde::Serialize;

use super::output::OutputFile;
use super::{grpo, inputs};
use crate::config::EvalConfig;
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::report::Progress;
use crate::report::console::escape_json;
use crate::reward::{Accuracy, Format, RewardSet, extract};
use crate::tasks::{blank_sample, majority_accuracy};
use crate::tensor::Placement;
use crate::train::evaluate::{Evaluated, EvaluationOptions, evaluate, mean_score};
use crate::train::interrupt::Interrupt;

/// The line on standard output.
#[derive(Serialize)]
pub(super) struct Summary<'a> {
    model: &'a str,
    dataset: String,
    /// `None` where the dataset is a file.
    split: Option<&'a str>,
    pub(super) rows: usize,
    pub(super) accuracy: f64,
    pub(super) format: f64,
    /// Tokens.
    pub(super) mean_length: f64,
    /// Share of the commonest reference answer.
    accuracy_majority: f64,
    blank_images: bool,
    seconds: f64,
}

/// A row of `--output`.
#[derive(Serialize)]
struct EvaluatedRow<'a> {
    row: usize,
    /// As rendered by the chat template.
    prompt: &'a str,
    images: Vec<String>,
    completion: &'a str,
    completion_ids: &'a [u32],
    finish_reason: &'static str,
    solution: Option<&'a str>,
    answer: &'a str,
    accuracy: Option<f64>,
    format: Option<f64>,
}

/// Runs the command; its last line on standard output is the result as JSON.
pub fn run(options: &EvalConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    let summary = measure(options, &placement, &Interrupt::default())?;
    let line =
        serde_json::to_string(&summary).map_err(|e| Error::Internal(format!("the result as JSON: {e}")))?;
    super::print(&format!("{}\n", escape_json(&line)))
}

/// Measures a checkpoint where `placement` says.
pub(super) fn measure<'a>(
    options: &'a EvalConfig,
    placement: &Placement,
    interrupt: &Interrupt,
) -> Result<Summary<'a>> {
    let start = Instant::now();
    let quiet = options.quiet.quiet;
    let read = inputs::read_options(&options.data, true)?;
    let samples = inputs::read_rows(&options.data, &read, quiet)?.prompts();
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    let policy = inputs::load_policy(&options.model, inputs::given(options.data.pixels), placement, quiet)?;
    let rewards = RewardSet::from_rewards(vec![Box::new(Accuracy), Box::new(Format)], &[])?;
    let evaluation = EvaluationOptions {
        sampling: grpo::sampling(&options.rollout),
        stop_strings: options.rollout.stop_strings.clone(),
        max_prompt_length: options.rollout.max_prompt_length,
        batch_size: options.per_device_eval_batch_size,
        seed: options.seed.seed,
    };
    let shown = match options.blank_images {
        true => samples.map(|sample| blank_sample(&sample)),
        false => samples.clone(),
    };
    let progress = Progress::start("evaluate", samples.rows() as u64, quiet);
    let results = evaluate(&policy, &policy.params, &shown, &rewards, &evaluation, &|n| {
        progress.advance(n);
        interrupt.check()
    })?;
    progress.finish();
    if let Some(file) = &mut output {
        samples.iter().zip(&results).try_for_each(|(sample, result)| file.append(&row(&sample?, result)))?;
    }
    output.map_or(Ok(()), OutputFile::finish)?;
    let answers = samples.answers()?;
    let tokens: usize = results.iter().map(|r| r.completion.tokens.len()).sum();
    Ok(Summary {
        model: &options.model.model,
        dataset: options.data.names(),
        split: options
            .data
            .dataset
            .iter()
            .all(|path| path.is_dir())
            .then_some(options.data.dataset_split.as_str()),
        rows: results.len(),
        accuracy: mean_score(&results, 0),
        format: mean_score(&results, 1),
        mean_length: tokens as f64 / results.len().max(1) as f64,
        accuracy_majority: majority_accuracy(&answers),
        blank_images: options.blank_images,
        seconds: (start.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

fn row<'a>(sample: &'a Sample, result: &'a Evaluated) -> EvaluatedRow<'a> {
    let score = |i: usize| result.scores.get(i).copied().flatten();
    EvaluatedRow {
        row: sample.row,
        prompt: &result.prompt,
        images: sample.image_files().map(|path| path.display().to_string()).collect(),
        completion: &result.completion.text,
        completion_ids: &result.completion.tokens,
        finish_reason: result.completion.finish.as_str(),
        solution: sample.solution.as_deref(),
        answer: extract(&result.completion.text),
        accuracy: score(0),
        format: score(1),
    }
}
