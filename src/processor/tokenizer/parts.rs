//! What a `tokenizer.json` is made of, looked at before the library builds it.
//!
//! The steps of a tokenizer are a small language, and some files in it are traps: a few replacements in a row make a text of
//! any length out of one letter, each byte-level step doubles a text that is not ASCII, a pattern with lookaround can take
//! seconds for a word, dropout gives other ids each time, ids need not be near each other. So only what byte-level BPE tokenizers of the Qwen family (and their relatives)
//! are made of is let through.

use std::fmt;

use regex::Regex;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::files::shown;

/// Most steps in a row.
const MAX_STEPS: usize = 16;
/// Most bytes that all added tokens have together: they become one regular expression.
const MAX_ADDED_BYTES: usize = 128 << 10;

#[derive(Deserialize)]
pub(super) struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    pub(super) model: Model,
}

#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    pub(super) vocab: Vocab,
}

/// The ids of `{token: id}`.
#[derive(Default)]
pub(super) struct Vocab {
    /// One more than the largest.
    pub(super) limit: usize,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

impl Parts {
    /// What is wrong, as the middle of a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let Model { kind, dropout, .. } = &self.model;
        if kind != "BPE" {
            return Err(format!("its model is {kind:?}, not \"BPE\" as in the Qwen2-VL family"));
        }
        if dropout.is_some_and(|share| share != 0.0) {
            return Err("it has a dropout, so that a text would have other ids each time".into());
        }
        let normalizers = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents"];
        check_steps("normalizer", &self.normalizer, "normalizers", &normalizers)?;
        check_steps(
            "pre_tokenizer",
            &self.pre_tokenizer,
            "pretokenizers",
            &["Split", "Digits", "ByteLevel"],
        )?;
        check_steps("decoder", &self.decoder, "decoders", &["ByteLevel", "ByteFallback", "Fuse"])?;
        let added: usize = self.added_tokens.iter().map(|token| token.content.len()).sum();
        if added > MAX_ADDED_BYTES {
            return Err(format!(
                "its added tokens have {added} bytes; at most {MAX_ADDED_BYTES} are supported"
            ));
        }
        Ok(())
    }
}

/// Checks a step, or a sequence of steps under the key `list`: each of a kind in `supported`, and no byte-level step twice.
fn check_steps(what: &str, step: &Value, list: &str, supported: &[&str]) -> Result<(), String> {
    let mut kinds = Vec::new();
    let mut open = vec![step];
    while let Some(step) = open.pop() {
        if step.is_null() {
            continue;
        }
        match step.get("type").and_then(Value::as_str) {
            Some("Sequence") => open.extend(step.get(list).and_then(Value::as_array).into_iter().flatten()),
            Some(kind) if supported.contains(&kind) => {
                kinds.push(kind);
                if let Some(pattern) = step.pointer("/pattern/Regex").and_then(Value::as_str) {
                    check_pattern(pattern)?;
                }
            }
            kind => {
                return Err(format!("its {what} {:?} is not supported", kind.unwrap_or("without a type")));
            }
        }
    }
    let byte_level = kinds.iter().filter(|kind| **kind == "ByteLevel").count();
    if byte_level > 1 || kinds.len() > MAX_STEPS {
        return Err(format!("its {what} has {} steps, {byte_level} of them byte-level", kinds.len()));
    }
    Ok(())
}

/// Refuses what cannot be matched in linear time. The one lookaround in the patterns of this family (and of GPT-2 and its
/// followers) is an alternative by itself, white space that is not before a word.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let (before, after) = pattern.split_once(r"|\s+(?!\S)").unwrap_or((pattern, ""));
    for part in [before, after.strip_prefix('|').unwrap_or(after)] {
        Regex::new(part).map_err(|_| {
            let pattern = shown(&Value::String(pattern.to_owned()));
            format!("its pattern {pattern} is no regular expression that is matched in linear time")
        })?;
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vocab, A::Error> {
                let mut limit = 0;
                while let Some((_, id)) = entries.next_entry::<IgnoredAny, u32>()? {
                    limit = limit.max(id as usize + 1);
                }
                Ok(Vocab { limit })
            }
        }
        json.deserialize_map(Ids)
    }
}
