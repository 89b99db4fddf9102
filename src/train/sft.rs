//! Supervised fine-tuning: cross-entropy on completion tokens, over the same data path as GRPO.

use super::policy::{Policy, check_length};
use super::stream::Stream;
use super::update::{
    ForwardOptions, check_grad_norm, check_loss, each_micro_batch, forward, param_groups, update,
};
use crate::autograd::ParamGrads;
use crate::batch::{Group, MicroBatch, micro_batches};
use crate::data::Sample;
use crate::error::Result;
use crate::optim::{AdamW, AdamWConfig, LrSchedule};
use crate::report::SftReport;
use rayon::prelude::*;
use std::time::Instant;

/// What the trainer needs beside the policy and the data.
#[derive(Clone, Debug)]
pub struct SftOptions {
    /// Rows per forward and backward pass.
    pub micro_batch: usize,
    /// Passes per optimiser step.
    pub accumulation: usize,
    /// Longest row, tokens; prompt, images and answer together.
    pub max_length: usize,
    /// Learning rate over the run.
    pub schedule: LrSchedule,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: f64,
    /// Keep only layer inputs for the backward pass.
    pub recompute: bool,
}

/// State of a run.
pub struct SftTrainer {
    /// The policy being trained.
    pub policy: Policy,
    options: SftOptions,
    optimiser: AdamW,
    stream: Stream,
    tokens: u64,
}

impl SftTrainer {
    /// A run over `rows` rows in the order of `stream`.
    pub fn new(
        policy: Policy,
        options: SftOptions,
        adamw: AdamWConfig,
        stream: Stream,
    ) -> Result<SftTrainer> {
        let optimiser = AdamW::new(adamw, param_groups(&policy.params, false))?;
        Ok(SftTrainer { policy, options, optimiser, stream, tokens: 0 })
    }

    /// One optimiser step: the mean negative log-likelihood of all completion tokens of the step's rows.
    pub fn step(&mut self, step: u64, samples: &[Sample]) -> Result<SftReport> {
        let start = Instant::now();
        let size = self.options.micro_batch * self.options.accumulation;
        let first = step * size as u64;
        let chosen: Vec<&Sample> =
            (first..first + size as u64).map(|place| &samples[self.stream.row(place)]).collect();
        let encoded = chosen
            .par_iter()
            .map(|sample| {
                let (prompt, completion) = self.policy.processor.encode_with_completion(sample)?;
                check_length(sample, prompt.tokens.len() + completion.len(), self.options.max_length)?;
                Ok((prompt, completion))
            })
            .collect::<Result<Vec<_>>>()?;
        let groups: Vec<Group<'_>> = encoded
            .iter()
            .map(|(prompt, completion)| Group { prompt, completions: vec![completion.as_slice()] })
            .collect();
        let total: usize = encoded.iter().map(|(_, completion)| completion.len()).sum();
        let weight = 1.0 / total.max(1) as f64;
        let mut grads = ParamGrads::default();
        let mut loss = 0.0;
        let batches = micro_batches(&groups, self.options.micro_batch, self.policy.layout())?;
        self.tokens += batches.iter().map(|b| b.packed.len() as u64).sum::<u64>();
        let options = ForwardOptions { temperature: 1.0, recompute: self.options.recompute };
        let (model, params) = (&self.policy.model, &self.policy.params);
        let work = |_: usize, batch: &MicroBatch| {
            let (scores, pass) = forward(model, params, batch, options, None)?;
            let nll = -scores.logp_t.iter().map(|&l| f64::from(l)).sum::<f64>() * weight;
            Ok((nll, pass.backward(&vec![-weight as f32; scores.logp_t.len()], None)?))
        };
        each_micro_batch(params, &batches, work, |(nll, part)| {
            loss += nll;
            grads.merge(part)
        })?;
        check_loss(loss, step)?;
        let learning_rate = self.options.schedule.learning_rate(step);
        let done = update(
            &mut self.policy.params,
            &mut self.optimiser,
            &grads,
            learning_rate,
            self.options.max_grad_norm,
        )?;
        check_grad_norm(done.grad_norm, step)?;
        Ok(SftReport {
            step: step as usize,
            epoch: (first + size as u64) as f64 / self.stream.rows() as f64,
            loss,
            grad_norm: done.grad_norm,
            learning_rate,
            mean_token_accuracy: None,
            num_tokens: self.tokens,
            step_time: start.elapsed().as_secs_f64(),
        })
    }
}
