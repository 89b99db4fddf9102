//! What held-out rows say of a model: rewards of its completions, and the loss of given ones.

use super::policy::{Policy, check_length};
use super::update::scores;
use crate::batch::{Group, micro_batches};
use crate::data::{Dataset, Sample};
use crate::error::Result;
use crate::nn::Params;
use crate::report::Row;
use crate::reward::{Completed, RewardSet};
use crate::rollout::sampler::SamplingParams;
use crate::rollout::sequence::FinishReason;
use crate::rollout::{Completion, Request, Watch};
use rayon::prelude::*;
use std::sync::Arc;
use std::time::Instant;

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

/// A mean of what is added.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        self.sum += value.unwrap_or(0.0);
        self.count += usize::from(value.is_some());
    }

    /// `None` of nothing.
    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Means over the rows of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Means {
    rewards: Vec<Mean>,
    total: Mean,
    /// Rows evaluated.
    pub rows: usize,
    tokens: usize,
    cut: usize,
}

impl Means {
    /// Of one reward over the rows that it applies to, if it applies to any.
    pub fn reward(&self, reward: usize) -> Option<f64> {
        self.rewards.get(reward).copied().unwrap_or_default().value()
    }

    /// Of the weighted sum of the rewards, over the rows that one applies to, if there are any.
    pub fn total(&self) -> Option<f64> {
        self.total.value()
    }

    /// Tokens of a completion.
    pub fn length(&self) -> f64 {
        self.tokens as f64 / self.rows.max(1) as f64
    }

    /// Share of the completions that hit the limit of their length.
    pub fn clipped_ratio(&self) -> f64 {
        self.cut as f64 / self.rows.max(1) as f64
    }

    fn add(&mut self, rewards: &RewardSet, result: &Evaluated) {
        self.rewards.resize(result.scores.len(), Mean::default());
        self.rewards.iter_mut().zip(&result.scores).for_each(|(mean, score)| mean.add(*score));
        self.total.add(rewards.total(&result.scores));
        self.rows += 1;
        self.tokens += result.completion.tokens.len();
        self.cut += usize::from(result.completion.finish == FinishReason::Length);
    }
}

/// Completes and scores every sample, in order: `each` gets the results, `watch` is told of the finished ones.
///
/// # Errors
/// Those of reading a row, of the model, of the rewards, of `each` and of `watch`.
pub fn evaluate(
    policy: &Policy,
    params: &Arc<Params>,
    samples: &Dataset,
    rewards: &RewardSet,
    options: &EvaluationOptions,
    mut each: impl FnMut(Evaluated) -> Result<()>,
    watch: Watch<'_>,
) -> Result<Means> {
    let limit = policy.prompt_limit(options.max_prompt_length, options.sampling.max_new_tokens)?;
    let decoding = policy.decoding(options.sampling.clone(), &options.stop_strings, false)?;
    let detokenize = |ids: &[u32]| policy.detokenize(ids);
    let engine = policy.engine(params, &decoding, &detokenize);
    let mut means = Means::default();
    let batch = options.batch_size.max(1);
    for first in (0..samples.rows()).step_by(batch) {
        let rows = first..(first + batch).min(samples.rows());
        let chunk = rows.map(|row| samples.sample(row)).collect::<Result<Vec<Sample>>>()?;
        let prompts = policy.encode(&chunk.iter().collect::<Vec<_>>(), limit)?;
        let requests: Vec<_> =
            prompts.iter().zip(first as u32..).map(|(prompt, place)| Request { place, prompt }).collect();
        let completions = engine.generate(&requests, 1, options.seed, watch)?;
        let completions: Vec<Completion> = completions.into_iter().flatten().collect();
        let completed = chunk.iter().zip(&completions);
        let completed = completed
            .map(|(sample, c)| Completed { sample, text: &c.text, tokens: &c.tokens })
            .collect::<Vec<_>>();
        let scores = rewards.score(&completed, watch)?;
        for ((prompt, completion), scores) in prompts.into_iter().zip(completions).zip(scores) {
            let result = Evaluated { completion, prompt: prompt.text, scores };
            means.add(rewards, &result);
            each(result)?;
        }
    }
    Ok(means)
}

/// Mean negative log-likelihood of the answers' tokens over all rows, nats: what SFT minimises.
///
/// # Errors
/// Those of reading a row, of one longer than `max_length` tokens, and of `watch`.
pub fn supervised_loss_of(
    policy: &Policy,
    samples: &Dataset,
    batch_size: usize,
    max_length: usize,
    watch: Watch<'_>,
) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0_usize);
    let size = batch_size.max(1);
    for first in (0..samples.rows()).step_by(size) {
        let rows = first..(first + size).min(samples.rows());
        let encoded = rows
            .into_par_iter()
            .map(|row| {
                let sample = samples.sample(row)?;
                let (prompt, completion) = policy.processor.encode_with_completion(&sample)?;
                check_length(&sample, prompt.tokens.len() + completion.len(), max_length)?;
                Ok((prompt, completion))
            })
            .collect::<Result<Vec<_>>>()?;
        let groups: Vec<Group<'_>> = encoded
            .iter()
            .map(|(prompt, completion)| Group { prompt, completions: vec![completion.as_slice()] })
            .collect();
        for batch in micro_batches(&groups, batch_size, policy.layout())? {
            watch(0)?;
            let scores = scores(&policy.model, &policy.params, &batch, 1.0)?.to_cpu()?;
            sum -= scores.to_f32().chunks_exact(3).map(|score| f64::from(score[0])).sum::<f64>();
            tokens += batch.targets.len();
        }
    }
    Ok(sum / tokens.max(1) as f64)
}

/// Held-out rows on which a run is measured while it goes.
pub struct Evaluation {
    /// The rows, as prompts; without any no completions are made.
    pub samples: Dataset,
    /// The rows with their answers, and the most tokens of one, where the loss of these is measured.
    pub supervised: Option<(Dataset, usize)>,
    /// What is measured: the mean of each reward, and of their weighted sum.
    pub rewards: RewardSet,
    /// How completions are made.
    pub options: EvaluationOptions,
    /// Optimiser steps from one evaluation to the next, the last one after the last step; 0 is never.
    pub every: u64,
}

impl Evaluation {
    /// The numbers of a row of `eval_metrics.jsonl` by which checkpoints can be compared.
    pub fn keys(rewards: &RewardSet) -> Vec<String> {
        let each = rewards.names().into_iter().map(|name| format!("eval_rewards/{name}/mean"));
        let lengths = ["eval_completions/mean_length", "eval_completions/clipped_ratio"].map(String::from);
        ["eval_reward".to_owned()].into_iter().chain(each).chain(lengths).collect()
    }

    /// Whether there is one after `done` steps of `steps`.
    pub(super) fn is_due(&self, done: u64, steps: u64) -> bool {
        done > 0 && self.every > 0 && (done.is_multiple_of(self.every) || done == steps)
    }

    /// The row of `eval_metrics.jsonl` for the weights that optimiser step `step` left.
    pub(super) fn row(&self, policy: &Policy, step: u64, watch: Watch<'_>) -> Result<Row> {
        let start = Instant::now();
        let mut row = Row::new();
        row.insert("step".into(), step.into());
        if let Some((samples, max_length)) = &self.supervised {
            let loss = supervised_loss_of(policy, samples, self.options.batch_size, *max_length, watch)?;
            row.insert("eval_loss".into(), loss.into());
        }
        if self.samples.rows() > 0 {
            self.complete(policy, &mut row, watch)?;
        }
        row.insert("eval_runtime".into(), start.elapsed().as_secs_f64().into());
        Ok(row)
    }

    /// What one completion of each row says.
    fn complete(&self, policy: &Policy, row: &mut Row, watch: Watch<'_>) -> Result<()> {
        let (rewards, options) = (&self.rewards, &self.options);
        let means = evaluate(policy, &policy.params, &self.samples, rewards, options, |_| Ok(()), watch)?;
        // Null where no reward applies to any row.
        row.insert("eval_reward".into(), means.total().into());
        for (i, name) in rewards.names().iter().enumerate() {
            row.insert(format!("eval_rewards/{name}/mean"), means.reward(i).into());
        }
        row.insert("eval_completions/mean_length".into(), means.length().into());
        row.insert("eval_completions/clipped_ratio".into(), means.clipped_ratio().into());
        Ok(())
    }
}
