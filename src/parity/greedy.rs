//! `ex{i}.gen_*`: greedy completions by the rollout engine, nothing banned.
//!
//! | suffix | repetition penalty | ends |
//! |---|---|---|
//! | none | 1 | at the bundle's length |
//! | `_rep{p}` | p | at the bundle's length |
//! | `_stop` | 1 | with token `gen_stop_id`: number [`STOP_AT`] of the first kind |
//!
//! A bundle's length is that of its tensors: at most [`GREEDY_TOKENS`], fewer where the reference's two best scores came
//! closer than rounding can tell apart.

use super::compare::Values;
use super::examples::Example;
use super::{Context, Sink, ids_i32};
use crate::error::{Error, Result};
use crate::rollout::sampler::{Sampler, SamplingContext, SamplingParams};
use crate::rollout::sequence::{FinishReason, StopRules};
use crate::rollout::stop::StopStrings;
use crate::rollout::{Completion, Decoding, LogProbs, Request};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeSet;

/// Longest sequence of the reference.
const GREEDY_TOKENS: usize = 24;
/// Longest sequence that is generated whatever a bundle holds.
const MOST_TOKENS: usize = 4096;
/// Which token is the stop token.
const STOP_AT: usize = 5;
/// What the keys hold.
const KINDS: [&str; 3] = ["ids", "margin", "logps"];

/// Whether the key is of a greedy completion.
pub(super) fn is_greedy(key: &str) -> bool {
    key.starts_with("ex") && key.split_once('.').is_some_and(|(_, name)| name.starts_with("gen_"))
}

impl Context<'_> {
    /// Every greedy key of one example.
    pub(super) fn greedy(&self, index: usize, example: &Example, sink: &mut Sink<'_>) -> Result<()> {
        let prefix = format!("ex{index}.gen_");
        if self.dtype == DType::Bf16 || !sink.wants_any(&prefix) {
            return Ok(());
        }
        let names: Vec<&str> = self.bundle.keys().filter_map(|key| key.strip_prefix(&prefix)).collect();
        let suffixes: BTreeSet<&str> =
            names.iter().filter_map(|name| KINDS.iter().find_map(|kind| name.strip_prefix(kind))).collect();
        let length = |suffix: &str| {
            let lengths = KINDS
                .iter()
                .filter_map(|kind| self.bundle.shape(&format!("{prefix}{kind}{suffix}"))?.first());
            lengths.copied().max().unwrap_or(0).min(MOST_TOKENS)
        };
        let stops = suffixes.contains("_stop") || names.contains(&"stop_id");
        let plain_length = if stops { length("").max(STOP_AT + 1) } else { length("") };
        let plain = self.generate(example, &sampling(1.0, plain_length), None)?;
        let stop = plain.tokens.get(STOP_AT).copied().filter(|_| stops);
        if let Some(stop) = stop {
            sink.emit(&format!("{prefix}stop_id"), &[1], Values::I32(ids_i32(&[stop])?))?;
        }
        for suffix in suffixes {
            let (sampling, completion) =
                match (suffix, suffix.strip_prefix("_rep").and_then(|p| p.parse().ok())) {
                    ("", _) => (sampling(1.0, plain_length), plain.clone()),
                    ("_stop", _) => {
                        let sampling = sampling(1.0, length(suffix).max(GREEDY_TOKENS));
                        let completion = self.generate(example, &sampling, stop)?;
                        (sampling, completion)
                    }
                    (_, Some(penalty)) => {
                        let sampling = sampling(penalty, length(suffix));
                        let completion = self.generate(example, &sampling, None)?;
                        (sampling, completion)
                    }
                    _ => continue,
                };
            let n = completion.tokens.len();
            let key = |kind: &str| format!("{prefix}{kind}{suffix}");
            if sink.wants(&key("margin")) {
                let margins = self.margins(example, &completion.tokens, &sampling)?;
                sink.emit(&key("margin"), &[n], Values::F32(margins))?;
            }
            sink.emit(&key("ids"), &[n], Values::I32(ids_i32(&completion.tokens)?))?;
            sink.emit(&key("logps"), &[n], Values::F32(completion.logps.to_vec()?))?;
        }
        Ok(())
    }

    /// One greedy completion; of no token if none is asked for.
    fn generate(
        &self,
        example: &Example,
        sampling: &SamplingParams,
        stop: Option<u32>,
    ) -> Result<Completion> {
        if sampling.max_new_tokens == 0 {
            return Ok(Completion {
                tokens: Vec::new(),
                logps: LogProbs::new(Tensor::new(&[0], Vec::<f32>::new())?, 0, 0)?,
                finish: FinishReason::Length,
                text: String::new(),
            });
        }
        sampling.validate()?;
        let decoding = Decoding {
            sampling: sampling.clone(),
            stop: StopRules {
                eos: stop.into_iter().collect(),
                strings: StopStrings::default(),
                max_new_tokens: sampling.max_new_tokens,
            },
            banned: Vec::new(),
        };
        let detokenize = |ids: &[u32]| self.policy.detokenize(ids);
        let engine = self.policy.engine(&self.params, &decoding, &detokenize);
        let request = Request { place: 0, prompt: &example.prompt };
        let completion =
            engine.generate(&[request], 1, 0, &|_| Ok(()))?.pop().and_then(|mut group| group.pop());
        completion.ok_or_else(|| Error::Internal("a request without a completion".into()))
    }

    /// Best minus second score before each token, after the repetition penalty: `[n]`.
    ///
    /// From the training forward over prompt and completion; the log of a ratio of two probabilities is the difference
    /// of their scores.
    fn margins(&self, example: &Example, tokens: &[u32], sampling: &SamplingParams) -> Result<Vec<f32>> {
        let hidden = self.policy.model.infer(&self.params, &self.whole(&example.prompt, tokens)?)?;
        let (rows, vocab) = self.logits(&hidden, example.prompt.tokens.len() - 1)?;
        let mut sampler = Sampler::new();
        let mut margins = Vec::with_capacity(tokens.len());
        for (place, row) in rows.chunks_exact(vocab).take(tokens.len()).enumerate() {
            let context = SamplingContext {
                prompt: &example.prompt.tokens,
                output: &tokens[..place],
                eos: &[],
                banned: &[],
            };
            let probabilities = sampler.probabilities(row, &context, sampling)?;
            let (mut best, mut second) = (0.0_f32, 0.0_f32);
            for p in probabilities {
                if p > best {
                    (best, second) = (p, best);
                } else if p > second {
                    second = p;
                }
            }
            margins.push((f64::from(best).ln() - f64::from(second).ln()) as f32);
        }
        Ok(margins)
    }
}

fn sampling(repetition_penalty: f64, max_new_tokens: usize) -> SamplingParams {
    SamplingParams { greedy: true, repetition_penalty, max_new_tokens, ..SamplingParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_keys() {
        for key in ["ex0.gen_ids", "ex12.gen_margin_rep1.3", "ex1.gen_stop_id"] {
            assert!(is_greedy(key), "{key}");
        }
        for key in ["ex0.grad", "batch.gen_ids", "gen_ids", "ex0.logits"] {
            assert!(!is_greedy(key), "{key}");
        }
    }
}
