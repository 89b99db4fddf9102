//! `othink-train score`.

use serde_json::{Map, Value};

use rayon::prelude::*;

use super::inputs;
use super::output::{OutputFile, numbers_and_bits};
use crate::batch::{Group, micro_batches};
use crate::config::ScoreConfig;
use crate::data::{self, MAX_LINE_BYTES, Part, PromptTemplate, ReadOptions, Sample};
use crate::error::{Error, Result};
use crate::processor::Prompt;
use crate::report::Progress;
use crate::report::console::escape_json;
use crate::train::policy::Policy;
use crate::train::update::{TokenScores, score};

/// Rows read and computed together. The result does not depend on it.
const ROWS_AT_ONCE: usize = 8;

/// A line of the input: as it stands, and what it asks for.
struct Line {
    object: Map<String, Value>,
    sample: Sample,
}

/// A line ready for the model.
struct Scorable {
    prompt: Prompt,
    completion: Vec<u32>,
    /// As given; the model computes with it rounded to f32.
    temperature: f64,
}

/// Runs the command.
pub fn run(options: &ScoreConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    let quiet = options.quiet.quiet;
    let lines = read(options)?;
    let mut output = options.output.as_deref().map(OutputFile::create).transpose()?;
    let policy = inputs::load_policy(&options.model, options.pixels, &placement, quiet)?;
    // Rows that are printed are progress enough.
    let progress = Progress::start("score", lines.len() as u64, quiet || output.is_none());
    for chunk in lines.chunks(ROWS_AT_ONCE) {
        let ready: Vec<_> = chunk
            .par_iter()
            .map(|line| prepare(&policy, line, options.temperature).map_err(|e| line.sample.blame(e)))
            .collect();
        // Collected as they are, so that the error is the first line's and not the first thread's.
        let ready = ready.into_iter().collect::<Result<Vec<_>>>()?;
        for ((line, ready), logps) in chunk.iter().zip(&ready).zip(log_probs(&policy, &ready)?) {
            if let Some(at) = logps.iter().position(|logp| !logp.is_finite()) {
                return Err(line.sample.blame(Error::Protect(format!(
                    "the log-prob of token {at} of the completion is {}: the model's weights or activations have overflowed",
                    logps[at]
                ))));
            }
            let row = scored(line, ready, &logps);
            match &mut output {
                Some(file) => file.append(&row)?,
                None => super::print(&format!("{}\n", escape_json(&Value::Object(row).to_string())))?,
            }
            progress.advance(1);
        }
    }
    progress.finish();
    output.map_or(Ok(()), OutputFile::finish)
}

/// The lines of the input, with their prompts as a dataset's are read.
fn read(options: &ScoreConfig) -> Result<Vec<Line>> {
    let objects = data::objects(&options.input, MAX_LINE_BYTES)?.collect::<Result<Vec<_>>>()?;
    let read = ReadOptions {
        template: PromptTemplate::None,
        image_dir: options.image_dir.clone(),
        any_absolute_image: true,
        ..ReadOptions::default()
    };
    let samples = data::read(&options.input, &read)?;
    objects
        .into_iter()
        .zip(samples.iter())
        .map(|((_, object), sample)| Ok(Line { object, sample: sample? }))
        .collect()
}

fn prepare(policy: &Policy, line: &Line, temperature: Option<f64>) -> Result<Scorable> {
    let completion = completion(policy, line)?;
    let sample = if line.sample.ends_with_assistant() { &line.sample.prompt() } else { &line.sample };
    let prompt = policy.processor.encode(sample, true)?;
    if let Some(recorded) = ids(&line.object, "prompt_ids")?
        && recorded != prompt.tokens
    {
        let shared = recorded.iter().zip(&prompt.tokens).take_while(|(a, b)| a == b).count();
        return Err(Error::Input(format!(
            "`prompt_ids` has {} tokens, but the prompt's are {}, and they differ from index {shared} on: the row was \
             made with another tokenizer, chat template or image size (--min_pixels, --max_pixels)",
            recorded.len(),
            prompt.tokens.len()
        )));
    }
    let context = policy.model.config().text.max_position_embeddings;
    if prompt.tokens.len() + completion.len() > context {
        return Err(Error::Input(format!(
            "a prompt of {} tokens and a completion of {} exceed the model's context of {context}",
            prompt.tokens.len(),
            completion.len()
        )));
    }
    Ok(Scorable { prompt, completion, temperature: self::temperature(&line.object, temperature)? })
}

/// The completion's tokens: `completion_ids` as they are, else those of its text, in which control tokens count.
fn completion(policy: &Policy, line: &Line) -> Result<Vec<u32>> {
    if let Some(ids) = ids(&line.object, "completion_ids")? {
        let vocabulary = policy.model.config().text.vocab_size;
        return match ids.iter().find(|&&id| id as usize >= vocabulary) {
            None => Ok(ids),
            Some(id) => Err(Error::Input(format!(
                "`completion_ids` holds {id}, but the model's vocabulary has {vocabulary} tokens"
            ))),
        };
    }
    match (line.object.get("completion"), line.sample.messages.last()) {
        (Some(Value::String(text)), _) => policy.processor.encode_completion(text),
        (_, Some(message)) if message.role == "assistant" => {
            let texts = message.content.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            });
            policy.processor.encode_completion(&texts.collect::<String>())
        }
        _ => Err(Error::Input(
            "there is nothing to score: give the row a `completion` (text) or `completion_ids` (token ids)"
                .into(),
        )),
    }
}

/// A column of token ids, `None` where it is absent or null.
fn ids(object: &Map<String, Value>, column: &str) -> Result<Option<Vec<u32>>> {
    let wrong = || Error::Input(format!("`{column}` has to be a list of token ids"));
    match object.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
            list.iter().map(id).collect::<Result<_>>().map(Some)
        }
        Some(_) => Err(wrong()),
    }
}

/// The option, else the row's own `temperature`, else 1.
fn temperature(object: &Map<String, Value>, option: Option<f64>) -> Result<f64> {
    let given = match (option, object.get("temperature")) {
        (Some(given), _) => given,
        (None, None | Some(Value::Null)) => 1.0,
        (None, Some(value)) => value.as_f64().unwrap_or(f64::NAN),
    };
    if given > 0.0 && (given as f32).is_normal() {
        return Ok(given);
    }
    Err(Error::Input("`temperature` has to be a number above 0; log-probs need one".into()))
}

/// Log-probabilities of each row's completion, by the forward pass of training.
///
/// Neighbouring rows with the same prompt share it, as the completions of a group do in training.
fn log_probs(policy: &Policy, rows: &[Scorable]) -> Result<Vec<Vec<f32>>> {
    let mut logps = Vec::with_capacity(rows.len());
    for same in rows.chunk_by(|a, b| a.temperature == b.temperature) {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in same {
            match groups.last_mut() {
                Some(group) if *group.prompt == row.prompt => group.completions.push(&row.completion),
                _ => groups.push(Group { prompt: &row.prompt, completions: vec![&row.completion] }),
            }
        }
        let temperature = same.first().map_or(1.0, |row| f64::from(row.temperature as f32));
        for batch in micro_batches(&groups, ROWS_AT_ONCE, policy.layout())? {
            let scores = match batch.targets.is_empty() {
                true => TokenScores::default(),
                false => score(&policy.model, &policy.params, &batch, temperature)?,
            };
            logps.extend(batch.offsets.windows(2).map(|w| scores.logp_t[w[0]..w[1]].to_vec()));
        }
    }
    Ok(logps)
}

/// The line with what was computed.
fn scored(line: &Line, ready: &Scorable, logps: &[f32]) -> Map<String, Value> {
    let mut row = line.object.clone();
    let (numbers, bits) = numbers_and_bits(logps);
    row.insert("prompt_ids".into(), ready.prompt.tokens.clone().into());
    row.insert("completion_ids".into(), ready.completion.clone().into());
    row.insert("temperature".into(), ready.temperature.into());
    row.insert("logps".into(), numbers.into());
    row.insert("logps_hex".into(), bits.into());
    row
}
