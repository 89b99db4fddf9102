//! `othink-train eval`.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::output::OutputFile;
use super::{grpo, inputs};
use crate::config::EvalConfig;
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::report::Progress;
use crate::report::console::escape_json;
use crate::reward::{RewardSet, extract};
use crate::tasks::{blank_sample, majority_accuracy};
use crate::tensor::Placement;
use crate::train::evaluate::{Evaluated, EvaluationOptions, evaluate};
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
    /// Means of the further rewards by their names; null for one that applies to no row.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rewards: BTreeMap<String, Option<f64>>,
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
    /// The further rewards.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rewards: BTreeMap<String, Option<f64>>,
}

/// The rewards that every evaluation measures.
const ALWAYS: [&str; 2] = ["accuracy", "format"];

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
    let names = ALWAYS.iter().map(|name| (*name).to_owned());
    let further = options.reward_funcs.iter().filter(|name| !ALWAYS.contains(&name.as_str())).cloned();
    let names: Vec<String> = names.chain(further).collect();
    let rewards = RewardSet::new(&names, &[], &options.rewards, &inputs::notes(quiet))?;
    let samples = inputs::read_rows(&options.data, &read, quiet)?.prompts();
    rewards.start(&|_| interrupt.check())?;
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    let policy = inputs::load_policy(&options.model, inputs::given(options.data.pixels), placement, quiet)?;
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
    let watch = |n| {
        progress.advance(n);
        interrupt.check()
    };
    let mut next = 0;
    let each = |result: Evaluated| {
        let place = next;
        next += 1;
        let Some(file) = &mut output else { return Ok(()) };
        file.append(&row(&samples.sample(place)?, &result, &names))
    };
    let means = evaluate(&policy, &policy.params, &shown, &rewards, &evaluation, each, &watch)?;
    progress.finish();
    output.map_or(Ok(()), OutputFile::finish)?;
    let further = names.iter().enumerate().skip(ALWAYS.len());
    Ok(Summary {
        model: &options.model.model,
        dataset: options.data.names(),
        split: options
            .data
            .dataset
            .iter()
            .all(|path| path.is_dir())
            .then_some(options.data.dataset_split.as_str()),
        rows: means.rows,
        accuracy: means.reward(0).unwrap_or(0.0),
        format: means.reward(1).unwrap_or(0.0),
        rewards: further.map(|(i, name)| (name.clone(), means.reward(i))).collect(),
        mean_length: means.length(),
        accuracy_majority: majority_accuracy(&samples.answers()?),
        blank_images: options.blank_images,
        seconds: (start.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

fn row<'a>(sample: &'a Sample, result: &'a Evaluated, names: &[String]) -> EvaluatedRow<'a> {
    let further = names.iter().zip(&result.scores).skip(ALWAYS.len());
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
        rewards: further.map(|(name, score)| (name.clone(), *score)).collect(),
    }
}
