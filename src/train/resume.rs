//! What a run is, and whether a checkpoint is of it.

use std::path::Path;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::policy::Policy;
use crate::checkpoint::{Identity, SavePlan};
use crate::data::{Dataset, ImageSource, Part, nearest};
use crate::error::{Error, Result};
use crate::tensor::Placement;

/// Hash of all that a model folder says: the weights in f32 with their names and shapes, `config.json`, and the files of
/// tokenizer, templates, processor and generation; and of a template that stands in for the folder's.
///
/// # Errors
/// Those of reading these files.
pub fn model_hash(policy: &Policy, chat_template: Option<&Path>) -> Result<String> {
    let mut hasher = Xxh3Default::new();
    SavePlan::like(&policy.folder)?.each_file(|name, bytes| {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    });
    if let Some(path) = chat_template {
        hasher.update(&std::fs::read(path).map_err(|e| Error::io(path, "read", e))?);
    }
    for (_, p) in policy.params.iter() {
        hasher.update(p.name.as_bytes());
        p.value.shape().iter().for_each(|&size| hasher.update(&(size as u64).to_le_bytes()));
        hasher.update(bytemuck::cast_slice(&p.value.to_f32()));
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

/// Hash of what a run sees of its rows: texts, solutions, other columns, and the names of the images, or their bytes where
/// the dataset holds them. The folder may have moved, and a broken image file may have been mended.
///
/// # Errors
/// Those of reading the rows.
pub fn dataset_hash(samples: &Dataset) -> Result<String> {
    let mut hasher = Xxh3Default::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for sample in samples.iter() {
        let sample = sample?;
        for message in &sample.messages {
            text(&message.role);
            for part in &message.content {
                match part {
                    Part::Text(words) => text(words),
                    Part::Image(n) => text(&format!("image {n}")),
                }
            }
        }
        for image in &sample.images {
            match image {
                ImageSource::File(path) => {
                    // The name and the folder that it stands in.
                    let mut parts: Vec<_> = path.components().rev().take(2).collect();
                    parts.reverse();
                    parts.iter().for_each(|part| text(&part.as_os_str().to_string_lossy()));
                }
                ImageSource::Bytes(bytes) => text(&format!("{:032x}", xxh3_128(bytes))),
            }
        }
        text(sample.solution.as_deref().unwrap_or_default());
        text(&Value::from(sample.columns).to_string());
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

/// What a changed option does to a run that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Where and how a run writes and tells, or what changes no bit of it.
    None,
    /// How it learns from here on.
    Tuning,
    /// What the run is: the steps before and after would belong to different runs.
    Identity,
}

/// The meaning of an option; one that is not known here is taken to be the run's identity.
fn meaning(option: &str) -> Meaning {
    match option {
        "output_dir"
        | "save_steps"
        | "save_total_limit"
        | "save_only_model"
        | "metric_for_best_model"
        | "logging_steps"
        | "logging_first_step"
        | "report_to"
        | "log_exact_kl"
        | "run_name"
        | "log_completions"
        | "num_completions_to_print"
        | "quiet"
        | "eval_strategy"
        | "eval_steps"
        | "eval_dataset"
        | "per_device_eval_batch_size"
        | "save_strategy"
        | "threads"
        | "gradient_checkpointing"
        | "dataloader_num_workers"
        | "reward_timeout" => Meaning::None,
        "device" | "dtype" | "learning_rate" | "lr_scheduler_type" | "warmup_ratio" | "warmup_steps"
        | "weight_decay" | "adam_beta1" | "adam_beta2" | "adam_epsilon" | "max_grad_norm" => Meaning::Tuning,
        _ => Meaning::Identity,
    }
}

/// Compares what a checkpoint belongs to with what is asked for. Gives a line for each option that differs.
///
/// Options that say where the model or the data lie may differ when model and data are the same.
///
/// # Errors
/// [`Error::Usage`] for a difference that changes what the run is and that `allowed` does not name.
pub fn compare(saved: &Identity, asked: &Identity, allowed: &[String]) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let mut refused = Vec::new();
    let mut differs = |option: &str, was: String, is: String, meaning: Meaning| {
        let line = format!("{option} was {was} and is {is}");
        if meaning == Meaning::Identity && !allowed.iter().any(|name| name.replace('-', "_") == option) {
            refused.push((option.to_owned(), line));
        } else {
            told.push(line);
        }
    };
    if saved.command != asked.command {
        return Err(Error::Usage(format!(
            "the checkpoint is one of `{}`, and this is `{}`: start from it with --model instead",
            saved.command, asked.command
        )));
    }
    let known = || saved.options.keys().chain(asked.options.keys()).map(String::as_str);
    for name in allowed {
        if !known().any(|option| option == name.replace('-', "_")) {
            let hint = nearest(name, known()).map_or(String::new(), |name| format!("; did you mean {name}?"));
            return Err(Error::Usage(format!("--allow_change {name}: there is no such option{hint}")));
        }
    }
    let (same_model, same_data) =
        (saved.model_hash == asked.model_hash, saved.dataset_hash == asked.dataset_hash);
    let mut names: Vec<&String> = saved.options.keys().chain(asked.options.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (was, is) = (saved.options.get(name), asked.options.get(name));
        if was == is {
            continue;
        }
        let meaning = match name.as_str() {
            "model" if same_model => Meaning::None,
            "dataset" | "dataset_split" | "image_dir" | "max_samples" | "max_bad_rows" | "overlong"
                if same_data =>
            {
                Meaning::None
            }
            // What the first two come to is compared below; the last is a matter of this start alone.
            "max_steps" | "num_train_epochs" | "quiet" => continue,
            name => meaning(name),
        };
        differs(name, show(was), show(is), meaning);
    }
    if !same_model && saved.options.get("model") == asked.options.get("model") {
        differs(
            "model",
            "another".into(),
            "changed since (weights, config or other files)".into(),
            Meaning::Identity,
        );
    }
    if !same_data && saved.options.get("dataset") == asked.options.get("dataset") {
        differs("dataset", "of other rows".into(), "changed since".into(), Meaning::Identity);
    }
    if saved.max_steps != asked.max_steps {
        differs("max_steps", saved.max_steps.to_string(), asked.max_steps.to_string(), Meaning::Identity);
    }
    if refused.is_empty() {
        return Ok(told);
    }
    let (names, lines): (Vec<_>, Vec<_>) = refused.into_iter().unzip();
    Err(Error::Usage(format!(
        "this is not the run that the checkpoint belongs to: {}; put it back, or allow the change with --allow_change {}",
        lines.join("; "),
        names.join(",")
    )))
}

fn show(value: Option<&Value>) -> String {
    value.map_or("not set".to_owned(), Value::to_string)
}

/// The options of a run as its identity, with the device and the type that they came to: `auto` may mean another on another machine.
///
/// # Errors
/// [`Error::Internal`] for options that are no object.
pub fn identity_options(
    options: &impl serde::Serialize,
    placement: &Placement,
) -> Result<Map<String, Value>> {
    let mut row = fields(options)?;
    let device = if placement.device.gpu().is_some() { "cuda" } else { "cpu" };
    row.insert("device".into(), device.into());
    row.insert("dtype".into(), placement.dtype.name().into());
    Ok(row)
}

/// The options of a command as an object.
///
/// # Errors
/// [`Error::Internal`] for what is no object.
fn fields(options: &impl serde::Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(options) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(Error::Internal("the options are no object".into())),
    }
}
