//! `generation_config.json`: when generation stops and how tokens are sampled.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::shown;

/// The settings of `generation_config.json` that this program knows; `None` where the file is silent.
///
/// Training takes only `eos_token_ids` (the published file's temperature 0.01 and top_k 1 would
/// make every completion of a group the same); `generate` follows the rest too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a completion. If the file names none, those of `config.json`; empty if
    /// that names none either (then only the length limit ends a completion).
    pub eos_token_ids: Vec<u32>,
    /// Token that a text starts with.
    pub bos_token_id: Option<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// Whether to sample instead of taking the likeliest token.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens may be sampled.
    pub top_k: Option<usize>,
    /// Probability mass that may be sampled.
    pub top_p: Option<f64>,
    /// Least probability, relative to the likeliest token's, that may be sampled.
    pub min_p: Option<f64>,
    /// Penalty on tokens that occurred already, 1 for none.
    pub repetition_penalty: Option<f64>,
    /// Longest completion, tokens.
    pub max_new_tokens: Option<usize>,
    /// Completions do not end before this many tokens.
    pub min_new_tokens: Option<usize>,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Further settings of the file by which transformers would generate otherwise and this program doesn't.
    pub not_followed: Vec<String>,
}

/// Settings of transformers that this program has no place for, with the value that changes nothing.
const ELSEWHERE: [(&str, Option<f64>); 20] = [
    ("max_length", None),
    ("min_length", Some(0.0)),
    ("num_beams", Some(1.0)),
    ("num_beam_groups", Some(1.0)),
    ("diversity_penalty", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("exponential_decay_length_penalty", None),
    ("sequence_bias", None),
    ("guidance_scale", Some(1.0)),
    ("typical_p", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("penalty_alpha", Some(0.0)),
    ("stop_strings", None),
];

impl GenerationConfig {
    /// Reads the parsed `generation_config.json` at `path` (if there is one), with the end tokens of
    /// `model`, the parsed `config.json` at `model_path`, as the fallback.
    ///
    /// # Errors
    /// [`Error::Content`] naming the key that has a value of the wrong kind or out of range.
    pub fn from_json(file: Option<(&Path, &Value)>, model_path: &Path, model: &Value) -> Result<Self> {
        let mut settings = match file {
            None => Self::default(),
            Some((path, value)) => read(value).map_err(|message| Error::content(path, message))?,
        };
        if settings.eos_token_ids.is_empty() {
            let places = [model.get("eos_token_id"), model.pointer("/text_config/eos_token_id")];
            if let Some(value) = places.into_iter().flatten().find(|v| !v.is_null()) {
                settings.eos_token_ids = token_ids("eos_token_id", value)
                    .map_err(|message| Error::content(model_path, message))?;
            }
        }
        Ok(settings)
    }
}

fn read(value: &Value) -> std::result::Result<GenerationConfig, String> {
    let Value::Object(map) = value else {
        return Err(format!("must be a JSON object, got {}", shown(value)));
    };
    let one_token = |key: &str| token_list(map, key).map(|ids| ids.first().copied());
    Ok(GenerationConfig {
        eos_token_ids: token_list(map, "eos_token_id")?,
        bos_token_id: one_token("bos_token_id")?,
        pad_token_id: one_token("pad_token_id")?,
        do_sample: setting(map, "do_sample", "true or false", Value::as_bool)?,
        temperature: setting(map, "temperature", "a number from 0", within(0.0, f64::MAX))?,
        top_k: setting(map, "top_k", "a whole number", whole)?,
        top_p: setting(map, "top_p", "a number from 0 to 1", within(0.0, 1.0))?,
        min_p: setting(map, "min_p", "a number from 0 to 1", within(0.0, 1.0))?,
        repetition_penalty: setting(
            map,
            "repetition_penalty",
            "a positive number",
            within(f64::MIN_POSITIVE, f64::MAX),
        )?,
        max_new_tokens: setting(map, "max_new_tokens", "a whole number", whole)?,
        min_new_tokens: setting(map, "min_new_tokens", "a whole number", whole)?,
        suppress_tokens: token_list(map, "suppress_tokens")?,
        not_followed: not_followed(map),
    })
}

fn not_followed(map: &Map<String, Value>) -> Vec<String> {
    let changes = |(key, neutral): &(&str, Option<f64>)| {
        map.get(*key)
            .is_some_and(|value| !value.is_null() && (neutral.is_none() || value.as_f64() != *neutral))
    };
    // What max_new_tokens says goes before.
    let is_told =
        |key: &str| key == "max_length" && map.get("max_new_tokens").is_some_and(|value| !value.is_null());
    let all = ELSEWHERE.iter().filter(|setting| changes(setting)).map(|(key, _)| *key);
    all.filter(|key| !is_told(key)).map(str::to_owned).collect()
}

fn within(least: f64, most: f64) -> impl Fn(&Value) -> Option<f64> {
    move |value| value.as_f64().filter(|number| (least..=most).contains(number))
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|v| usize::try_from(v).ok())
}

/// The value of `key`, `None` where it is absent or null.
fn setting<T>(
    map: &Map<String, Value>,
    key: &str,
    expected: &str,
    convert: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Option<T>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match convert(value) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{key} must be {expected}, got {}", shown(value))),
        },
    }
}

fn token_list(map: &Map<String, Value>, key: &str) -> std::result::Result<Vec<u32>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => token_ids(key, value),
    }
}

/// One token id, or a list of them.
fn token_ids(key: &str, value: &Value) -> std::result::Result<Vec<u32>, String> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let ids =
        list.iter().map(|v| v.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<Vec<u32>>>();
    ids.ok_or_else(|| format!("{key} must be a token id or a list of them, got {}", shown(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(file: Option<Value>, model: &Value) -> Result<GenerationConfig> {
        let file = file.as_ref().map(|value| (Path::new("generation_config.json"), value));
        GenerationConfig::from_json(file, Path::new("config.json"), model)
    }

    #[test]
    fn published_file() {
        let file = json!({
            "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true,
            "eos_token_id": [151645, 151643], "repetition_penalty": 1.0,
            "temperature": 0.01, "top_p": 0.001, "top_k": 1, "transformers_version": "4.37.0"
        });
        let settings = parse(Some(file), &json!({"eos_token_id": 7})).expect("valid");
        let expected = GenerationConfig {
            eos_token_ids: vec![151_645, 151_643],
            bos_token_id: Some(151_643),
            pad_token_id: Some(151_643),
            do_sample: Some(true),
            temperature: Some(0.01),
            top_k: Some(1),
            top_p: Some(0.001),
            repetition_penalty: Some(1.0),
            ..GenerationConfig::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let file = json!({
            "num_beams": 4, "num_beam_groups": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "min_length": null,
            "max_length": 20, "bad_words_ids": [[5]], "suppress_tokens": [7, 8]
        });
        let settings = parse(Some(file), &json!({})).expect("valid");
        assert_eq!(settings.not_followed, ["max_length", "num_beams", "bad_words_ids"]);
        assert_eq!(settings.suppress_tokens, [7, 8]);
        let settings =
            parse(Some(json!({"max_length": 20, "max_new_tokens": 5})), &json!({})).expect("valid");
        assert_eq!((settings.not_followed, settings.max_new_tokens), (Vec::new(), Some(5)));
    }

    #[test]
    fn end_tokens_fall_back_to_the_model() {
        assert_eq!(parse(None, &json!({"eos_token_id": 5})).expect("flat").eos_token_ids, [5]);
        let nested = json!({"text_config": {"eos_token_id": [5, 6]}});
        assert_eq!(parse(Some(json!({})), &nested).expect("nested").eos_token_ids, [5, 6]);
        assert_eq!(parse(None, &json!({"eos_token_id": null})).expect("none").eos_token_ids, [0u32; 0]);
    }

    #[test]
    fn wrong_kinds_and_ranges_are_named() {
        for (key, value) in [
            ("eos_token_id", json!("<|im_end|>")),
            ("eos_token_id", json!([1, -1])),
            ("top_k", json!(1.5)),
            ("temperature", json!("hot")),
            ("temperature", json!(-1)),
            ("top_p", json!(1.5)),
            ("repetition_penalty", json!(0)),
            ("do_sample", json!(1)),
        ] {
            let error = parse(Some(json!({ key: value })), &json!({})).expect_err(key);
            assert_eq!(error.exit_code(), 65);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
