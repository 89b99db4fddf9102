//! Accuracy on held-out rows.

use super::policy::Policy;
use crate::data::{Dataset, Sample};
use crate::error::Result;
use crate::nn::Params;
use crate::reward::{Completed, RewardSet};
use crate::rollout::sampler::SamplingParams;
use crate::rollout::{Completion, Request, Watch};
use std::sync::Arc;

/// How completions are made for an evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// Greedy unless a temperature above 0 is given.
    pub sampling: SamplingParams,
    /// Texts that end a completion.
    pub stop_strings: Vec<String>,
    /// Longest prompt, tokens.
    pub max_prompt_length: Option<usize>,
    /// Prompts decoded together.
    pub batch_size: usize,
    /// Seed of the sampling.
    pub seed: u64,
}

/// One row's result.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// What the model wrote.
    pub completion: Completion,
    /// The rendered prompt.
    pub prompt: String,
    /// Each reward, unweighted.
    pub scores: Vec<Option<f64>>,
}

/// Completes and scores every sample, in order; `watch` is told of the finished ones.
pub fn evaluate(
    policy: &Policy,
    params: &Arc<Params>,
    samples: &Dataset,
    rewards: &RewardSet,
    options: &EvaluationOptions,
    watch: Watch<'_>,
) -> Result<Vec<Evaluated>> {
    let limit = policy.prompt_limit(options.max_prompt_length, options.sampling.max_new_tokens)?;
    let decoding = policy.decoding(options.sampling.clone(), &options.stop_strings, false)?;
    let detokenize = |ids: &[u32]| policy.detokenize(ids);
    let engine = policy.engine(params, &decoding, &detokenize);
    let mut results = Vec::with_capacity(samples.rows());
    let batch = options.batch_size.max(1);
    for first in (0..samples.rows()).step_by(batch) {
        let rows = first..(first + batch).min(samples.rows());
        let chunk = rows.map(|row| samples.sample(row)).collect::<Result<Vec<Sample>>>()?;
        let prompts = policy.encode(&chunk.iter().collect::<Vec<_>>(), limit)?;
        let first = results.len() as u32;
        let requests: Vec<_> =
            prompts.iter().zip(first..).map(|(prompt, place)| Request { place, prompt }).collect();
        let completions = engine.generate(&requests, 1, options.seed, watch)?;
        let completions: Vec<Completion> = completions.into_iter().flatten().collect();
        let completed = chunk.iter().zip(&completions);
        let completed = completed
            .map(|(sample, c)| Completed { sample, text: &c.text, tokens: &c.tokens })
            .collect::<Vec<_>>();
        let scores = rewards.score(&completed, watch)?;
        for ((prompt, completion), scores) in prompts.into_iter().zip(completions).zip(scores) {
            results.push(Evaluated { completion, prompt: prompt.text, scores });
        }
    }
    Ok(results)
}

/// Mean of one reward over the rows it applies to; 0 when it applies to none.
pub fn mean_score(results: &[Evaluated], reward: usize) -> f64 {
    let scores: Vec<f64> = results.iter().filter_map(|r| r.scores.get(reward).copied().flatten()).collect();
    if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}
