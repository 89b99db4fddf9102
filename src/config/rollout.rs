//! How completions are sampled.

use serde::Serialize;

use super::check::{Checked, Violation, at_least, fraction, if_set, positive_f32, positive_fraction};
use super::names::{boolean, limit};

/// Sampling of completions, as transformers defines each option.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Rollout")]
pub struct RolloutOptions {
    /// Longest prompt, in tokens, images included [default: what the model's context leaves beside the completion]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prompt_length: Option<usize>,

    /// Longest completion, in tokens
    #[arg(long, visible_alias = "max_new_tokens", default_value = "512", value_name = "TOKENS")]
    pub max_completion_length: usize,

    /// Shortest completion, in tokens: until then the end token is not sampled
    #[arg(long, default_value = "0", value_name = "TOKENS")]
    pub min_new_tokens: usize,

    /// Softmax temperature; 0 takes the likeliest token (not in training)
    #[arg(long, default_value = "1.0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub temperature: f64,

    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, default_value = "1.0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub top_p: f64,

    /// Sample from this many likeliest tokens; 0 is no limit
    #[arg(long, default_value = "0", allow_negative_numbers = true, value_parser = limit, value_name = "N")]
    pub top_k: usize,

    /// Leave out tokens less probable than this share of the likeliest one [default: none]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,

    /// Divide (multiply, if negative) the logits of tokens already seen by this; 1 is off
    #[arg(long, default_value = "1.0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub repetition_penalty: f64,

    /// Texts that end a completion, besides the end tokens of generation_config.json
    #[arg(long, visible_alias = "stop", num_args = 1.., value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_strings: Vec<String>,
}

impl RolloutOptions {
    pub(super) fn check(&self) -> Checked {
        if_set("max_prompt_length", self.max_prompt_length, |option, value| at_least(option, value, 1))?;
        check_lengths(self.max_completion_length, self.min_new_tokens)?;
        temperature("temperature", self.temperature)?;
        positive_fraction("top_p", self.top_p)?;
        if_set("min_p", self.min_p, fraction)?;
        positive_f32("repetition_penalty", self.repetition_penalty)?;
        check_stop_strings(&self.stop_strings)
    }

    /// As `check`, and greedy decoding is refused: a group of equal completions teaches nothing.
    pub(super) fn check_for_training(&self) -> Checked {
        positive_f32("temperature", self.temperature)?;
        self.check()
    }
}

/// Sampling for `generate`: what is not given comes from the checkpoint's `generation_config.json`.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Rollout")]
pub struct OwnRolloutOptions {
    /// Completions for each prompt
    #[arg(long, default_value = "1", value_name = "G")]
    pub num_generations: usize,

    /// Longest completion, in tokens [default: generation_config.json, else 512]
    #[arg(long, visible_alias = "max_new_tokens", value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_length: Option<usize>,

    /// Shortest completion, in tokens: until then the end token is not sampled [default: generation_config.json, else
    /// 0]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_new_tokens: Option<usize>,

    /// Sample; false takes the likeliest token each time [default: generation_config.json, else false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = boolean, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,

    /// Softmax temperature; 0 takes the likeliest token [default: generation_config.json, else 1]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,

    /// Sample from the likeliest tokens that together have this probability [default: generation_config.json, else 1]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,

    /// Sample from this many likeliest tokens; 0 is no limit [default: generation_config.json, else 50 as
    /// transformers]
    #[arg(long, allow_negative_numbers = true, value_parser = limit, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,

    /// Leave out tokens less probable than this share of the likeliest one [default: generation_config.json, else
    /// none]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,

    /// Divide (multiply, if negative) the logits of tokens already seen by this [default: generation_config.json,
    /// else 1]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,

    /// Texts that end a completion, besides the end tokens of generation_config.json
    #[arg(long, visible_alias = "stop", num_args = 1.., value_name = "TEXT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_strings: Vec<String>,
}

impl OwnRolloutOptions {
    pub(super) fn check(&self) -> Checked {
        at_least("num_generations", self.num_generations, 1)?;
        if_set("max_completion_length", self.max_completion_length, |option, value| {
            at_least(option, value, 1)
        })?;
        if let (Some(most), Some(least)) = (self.max_completion_length, self.min_new_tokens) {
            check_lengths(most, least)?;
        }
        if_set("temperature", self.temperature, temperature)?;
        if_set("top_p", self.top_p, positive_fraction)?;
        if_set("min_p", self.min_p, fraction)?;
        if_set("repetition_penalty", self.repetition_penalty, positive_f32)?;
        check_stop_strings(&self.stop_strings)
    }
}

/// 0 (greedy), or what logits can be divided by.
fn temperature(option: &'static str, value: f64) -> Checked {
    if value == 0.0 { Ok(()) } else { positive_f32(option, value) }
}

fn check_lengths(max_completion_length: usize, min_new_tokens: usize) -> Checked {
    at_least("max_completion_length", max_completion_length, 1)?;
    if min_new_tokens > max_completion_length {
        return Err(Violation::new(
            "min_new_tokens",
            format!("is {min_new_tokens}, but --max_completion_length is {max_completion_length}"),
        ));
    }
    Ok(())
}

fn check_stop_strings(stop_strings: &[String]) -> Checked {
    if stop_strings.iter().any(String::is_empty) {
        return Err(Violation::new(
            "stop_strings",
            "holds an empty text, which would end every completion at once",
        ));
    }
    Ok(())
}
