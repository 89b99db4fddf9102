//! `othink-train generate`.

use std::fs;
use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use super::inputs;
use super::output::{OutputFile, numbers_and_bits, prompt_row};
use crate::config::{GenerateConfig, OwnRolloutOptions};
use crate::data::{self, Dataset, ImageSource, PromptTemplate, ReadOptions, Sample};
use crate::error::{Error, Result};
use crate::model::generation::GenerationConfig;
use crate::processor::Prompt;
use crate::report::Progress;
use crate::report::console::escape_control;
use crate::rollout::sampler::SamplingParams;
use crate::rollout::{Completion, Request};

/// Prompts encoded and completed together. The result does not depend on it.
const PROMPTS_AT_ONCE: usize = 16;

/// What transformers keeps of the likeliest tokens when neither caller nor checkpoint says.
const DEFAULT_TOP_K: usize = 50;

/// Longest completion when neither caller nor checkpoint says.
const DEFAULT_MAX_NEW_TOKENS: usize = 512;

/// A row of `--output`. `score` takes it as it is.
#[derive(Serialize)]
struct GeneratedRow<'a> {
    row: usize,
    completion_index: usize,
    prompt: Value,
    images: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    solution: Option<&'a str>,
    prompt_ids: &'a [u32],
    completion: &'a str,
    completion_ids: &'a [u32],
    finish_reason: &'static str,
    /// At which the log-probabilities were taken.
    temperature: f32,
    logps: Vec<f64>,
    logps_hex: Vec<String>,
}

/// Runs the command.
pub fn run(options: &GenerateConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    let quiet = options.quiet.quiet;
    let samples = samples(options)?;
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    let policy = inputs::load_policy(&options.model, options.pixels, &placement, quiet)?;
    let sampling = sampling(&options.rollout, &policy.folder.generation)?;
    warn_of_unused(&options.rollout, &sampling, quiet);
    warn_of_not_followed(&policy.folder.generation, quiet);
    let limit = policy.prompt_limit(None, sampling.max_new_tokens)?;
    let temperature = sampling.score_temperature();
    let group = options.rollout.num_generations;
    let total = samples.rows() * group;
    let mut decoding = policy.decoding(sampling, &options.rollout.stop_strings, false)?;
    decoding.banned.extend(&policy.folder.generation.suppress_tokens);
    let detokenize = |ids: &[u32]| policy.detokenize(ids);
    let engine = policy.engine(&policy.params, &decoding, &detokenize);
    // Completions that are printed are progress enough.
    let progress = Progress::start("generate", total as u64, quiet || output.is_none());
    for first in (0..samples.rows()).step_by(PROMPTS_AT_ONCE) {
        let rows = first..(first + PROMPTS_AT_ONCE).min(samples.rows());
        let chunk = rows.map(|row| samples.sample(row)).collect::<Result<Vec<_>>>()?;
        let prompts = policy.encode(&chunk.iter().collect::<Vec<_>>(), limit)?;
        let requests: Vec<_> =
            prompts.iter().zip(first as u32..).map(|(prompt, place)| Request { place, prompt }).collect();
        let groups = engine.generate(&requests, group, options.seed.seed, &|n| {
            progress.advance(n);
            Ok(())
        })?;
        for ((sample, prompt), completions) in chunk.iter().zip(&prompts).zip(&groups) {
            for (index, completion) in completions.iter().enumerate() {
                match &mut output {
                    Some(file) => file.append(&row(sample, prompt, index, completion, temperature)?)?,
                    None => show(sample, index, completion, total)?,
                }
            }
        }
    }
    progress.finish();
    output.map_or(Ok(()), OutputFile::finish)
}

/// The prompts: the one of the command line, or a dataset's.
fn samples(options: &GenerateConfig) -> Result<Dataset> {
    let template: PromptTemplate = options.prompt_template.parse()?;
    if let Some(dataset) = &options.dataset {
        let read = ReadOptions {
            split: options.dataset_split.clone(),
            template,
            image_dir: options.image_dir.clone(),
            ..ReadOptions::default()
        };
        return Ok(data::read(dataset, &read)?.prompts());
    }
    let images = options.image.iter().map(|path| {
        let found = fs::canonicalize(path).map_err(|e| Error::io(path, "read the image", e))?;
        Ok(ImageSource::File(found))
    });
    let prompt = options.prompt.as_deref().unwrap_or_default();
    let sample = Sample::from_problem(0, images.collect::<Result<_>>()?, prompt, template, None);
    Ok(Dataset::from_samples(vec![sample]))
}

/// What the options say, else the checkpoint's `generation_config.json`, else transformers' defaults.
///
/// # Errors
/// [`Error::Usage`] for several completions without sampling: they would be equal.
fn sampling(options: &OwnRolloutOptions, file: &GenerationConfig) -> Result<SamplingParams> {
    let sampled = options.do_sample.or(file.do_sample).unwrap_or(false);
    let greedy = !sampled || options.temperature.or(file.temperature) == Some(0.0);
    if greedy && options.num_generations > 1 {
        return Err(Error::Usage(format!(
            "--num_generations is {}, but without sampling all completions of a prompt are the same: add --do_sample \
             and a --temperature above 0",
            options.num_generations
        )));
    }
    // A file's temperature is for sampling; greedily it would only scale the log-probabilities.
    let own = if greedy { None } else { file.temperature };
    let max_new_tokens = options
        .max_completion_length
        .or(file.max_new_tokens.filter(|&n| n > 0))
        .unwrap_or(DEFAULT_MAX_NEW_TOKENS);
    // What is given counts as it is, what a file says as far as there is room.
    let own_min_new_tokens = file.min_new_tokens.unwrap_or(0).min(max_new_tokens);
    Ok(SamplingParams {
        temperature: options.temperature.or(own).unwrap_or(1.0),
        top_p: options.top_p.or(file.top_p).unwrap_or(1.0),
        top_k: options.top_k.or(file.top_k).unwrap_or(DEFAULT_TOP_K),
        min_p: options.min_p.or(file.min_p).unwrap_or(0.0),
        repetition_penalty: options.repetition_penalty.or(file.repetition_penalty).unwrap_or(1.0),
        min_new_tokens: options.min_new_tokens.unwrap_or(own_min_new_tokens),
        max_new_tokens,
        greedy,
    })
}

/// Says which given options greedy decoding does not look at.
fn warn_of_unused(options: &OwnRolloutOptions, sampling: &SamplingParams, quiet: bool) {
    let given = [
        ("temperature", options.temperature.is_some_and(|t| t > 0.0)),
        ("top_p", options.top_p.is_some()),
        ("top_k", options.top_k.is_some()),
        ("min_p", options.min_p.is_some()),
    ];
    let names: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if quiet || !sampling.greedy || names.is_empty() {
        return;
    }
    // A closed standard error is no reason to stop.
    let _ = writeln!(
        std::io::stderr(),
        "warning: the likeliest token is taken each time, so --{} chooses nothing; add --do_sample",
        names.join(" and --")
    );
}

fn warn_of_not_followed(file: &GenerationConfig, quiet: bool) {
    if !quiet && !file.not_followed.is_empty() {
        let names = file.not_followed.join(", ");
        let _ = writeln!(
            std::io::stderr(),
            "warning: generation_config.json sets {names}, which generate does not follow"
        );
    }
}

fn row<'a>(
    sample: &'a Sample,
    prompt: &'a Prompt,
    completion_index: usize,
    completion: &'a Completion,
    temperature: f32,
) -> Result<GeneratedRow<'a>> {
    let (text, images) = prompt_row(sample);
    let (logps, logps_hex) = numbers_and_bits(&completion.logps.to_vec()?);
    Ok(GeneratedRow {
        row: sample.row,
        completion_index,
        prompt: text,
        images,
        solution: sample.solution.as_deref(),
        prompt_ids: &prompt.tokens,
        completion: &completion.text,
        completion_ids: &completion.tokens,
        finish_reason: completion.finish.as_str(),
        temperature,
        logps,
        logps_hex,
    })
}

/// Prints a completion, under a heading where there are several.
fn show(sample: &Sample, index: usize, completion: &Completion, total: usize) -> Result<()> {
    let heading = match total {
        1 => String::new(),
        _ => format!("--- row {}, completion {index}\n", sample.row),
    };
    super::print(&format!("{heading}{}\n", escape_control(&completion.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> OwnRolloutOptions {
        OwnRolloutOptions {
            num_generations: 1,
            max_completion_length: Some(8),
            min_new_tokens: None,
            do_sample: None,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            stop_strings: Vec::new(),
        }
    }

    /// The file published with Qwen2-VL.
    fn published() -> GenerationConfig {
        GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.01),
            top_k: Some(1),
            top_p: Some(0.001),
            repetition_penalty: Some(1.0),
            ..GenerationConfig::default()
        }
    }

    #[test]
    fn the_checkpoints_settings_hold_unless_overridden() {
        let own = sampling(&options(), &published()).unwrap();
        assert_eq!((own.greedy, own.temperature, own.top_k, own.top_p), (false, 0.01, 1, 0.001));
        let given = OwnRolloutOptions { temperature: Some(0.7), top_k: Some(0), ..options() };
        let mixed = sampling(&given, &published()).unwrap();
        assert_eq!((mixed.greedy, mixed.temperature, mixed.top_k, mixed.top_p), (false, 0.7, 0, 0.001));
        let none = sampling(&options(), &GenerationConfig::default()).unwrap();
        assert_eq!((none.greedy, none.temperature, none.top_k), (true, 1.0, 50));
        let greedy =
            sampling(&OwnRolloutOptions { do_sample: Some(false), ..options() }, &published()).unwrap();
        assert_eq!((greedy.greedy, greedy.temperature), (true, 1.0));
        let zero =
            sampling(&OwnRolloutOptions { temperature: Some(0.0), ..options() }, &published()).unwrap();
        assert!(zero.greedy && zero.score_temperature() == 1.0);
    }

    #[test]
    fn a_files_shortest_completion_gives_way_to_the_longest_asked_for() {
        let file = GenerationConfig { min_new_tokens: Some(20), ..GenerationConfig::default() };
        assert_eq!(sampling(&options(), &file).unwrap().min_new_tokens, 8);
        let given = OwnRolloutOptions { min_new_tokens: Some(3), ..options() };
        assert_eq!(sampling(&given, &file).unwrap().min_new_tokens, 3);
    }

    #[test]
    fn a_files_longest_completion_holds_unless_one_is_given() {
        let file = GenerationConfig { max_new_tokens: Some(20), ..GenerationConfig::default() };
        let silent = OwnRolloutOptions { max_completion_length: None, ..options() };
        let longest = |options: &OwnRolloutOptions, file: &GenerationConfig| {
            sampling(options, file).unwrap().max_new_tokens
        };
        assert_eq!(longest(&silent, &file), 20);
        assert_eq!(longest(&options(), &file), 8);
        assert_eq!(longest(&silent, &GenerationConfig::default()), 512);
    }

    #[test]
    fn a_temperature_of_0_takes_the_likeliest_token() {
        let file =
            GenerationConfig { do_sample: Some(true), temperature: Some(0.0), ..GenerationConfig::default() };
        let own = sampling(&options(), &file).unwrap();
        assert!(own.greedy && own.temperature == 1.0);
    }

    #[test]
    fn equal_completions_are_refused() {
        let several = OwnRolloutOptions { num_generations: 4, ..options() };
        assert_eq!(sampling(&several, &GenerationConfig::default()).unwrap_err().exit_code(), 2);
        assert!(sampling(&several, &published()).is_ok());
    }
}
