//! Supervised fine-tuning: cross-entropy on completion tokens, over the same data path as GRPO.

use super::ahead::{Ahead, READ_AHEAD};
use super::guard::Watched;
use super::policy::{Policy, check_length};
use super::stream::Stream;
use super::trainer::{Skipped, Step, Trainer, TrainerParts, restore_weights, sample_row};
use super::update::{ForwardOptions, Pass, check_finite, each_micro_batch};
use crate::autograd::GradSink;
use crate::batch::{Group, MicroBatch, micro_batches};
use crate::checkpoint::SavedRun;
use crate::data::Dataset;
use crate::error::Result;
use crate::loss::{Supervised, supervised_loss};
use crate::nn::Params;
use crate::optim::{AdamWConfig, LrSchedule, Optimiser};
use crate::processor::Prompt;
use crate::report::SftReport;
use crate::rollout::Watch;
use crate::tensor::Placement;
use std::sync::Arc;
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
    /// Where the model is put and computes.
    pub placement: Placement,
}

/// State of a run.
pub struct SftTrainer {
    /// The policy being trained.
    pub policy: Policy,
    options: SftOptions,
    optimiser: Optimiser,
    stream: Stream,
    ahead: Ahead<(Prompt, Vec<u32>)>,
    tokens: u64,
}

impl SftTrainer {
    /// A run over `rows` rows in the order of `stream`.
    pub fn new(
        mut policy: Policy,
        options: SftOptions,
        adamw: AdamWConfig,
        stream: Stream,
    ) -> Result<SftTrainer> {
        let optimiser = Optimiser::new(adamw, &mut policy.params, false, &options.placement)?;
        Ok(SftTrainer { policy, options, optimiser, stream, ahead: Ahead::new(READ_AHEAD), tokens: 0 })
    }

    /// Sets how many threads make the next step's rows ready; 0 makes them ready at the step.
    pub fn read_ahead(&mut self, workers: usize) {
        self.ahead = Ahead::new(workers);
    }

    /// One optimiser step: the mean negative log-likelihood of all completion tokens of the step's rows.
    ///
    /// # Errors
    /// [`Error::Protect`](crate::error::Error::Protect) for a loss or gradient that is NaN or infinite; those of rows
    /// that cannot be read, and of `watch`. The trainer is as it was then.
    pub fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<SftReport> {
        let start = Instant::now();
        let (processor, limit, dataset) =
            (self.policy.processor.clone(), self.options.max_length, samples.clone());
        let ready = move |row| {
            let sample = dataset.sample(row)?;
            let (prompt, completion) = processor.encode_with_completion(&sample)?;
            check_length(&sample, prompt.tokens.len() + completion.len(), limit)?;
            Ok((prompt, completion))
        };
        let chosen = self.chosen(step);
        let encoded = self.ahead.take(&chosen, &ready)?;
        if step + 1 < self.options.schedule.total_steps {
            let next = self.chosen(step + 1);
            self.ahead.start(next, ready);
        }
        let groups: Vec<Group<'_>> = encoded
            .iter()
            .map(|(prompt, completion)| Group { prompt, completions: vec![completion.as_slice()] })
            .collect();
        let total: usize = encoded.iter().map(|(_, completion)| completion.len()).sum();
        let weight = 1.0 / total.max(1) as f64;
        let (mut loss, mut entropy) = (0.0, 0.0);
        let batches = micro_batches(&groups, self.options.micro_batch, self.policy.layout())?;
        let tokens = batches.iter().map(|b| b.packed.len() as u64).sum::<u64>();
        let options = ForwardOptions { temperature: 1.0, recompute: self.options.recompute };
        let (model, params) = (&self.policy.model, &self.policy.params);
        let work = |_: usize, batch: &MicroBatch, sink: &mut dyn GradSink| {
            watch(0)?;
            let pass = Pass::run(model, params, batch, options, None, Vec::new())?;
            let Supervised { loss, entropy, dscores } = supervised_loss(pass.scores(), weight)?;
            pass.backward_by(dscores, sink)?;
            Ok([loss, entropy * weight])
        };
        self.optimiser.begin()?;
        each_micro_batch(params, &batches, &mut self.optimiser, work, |[nll, spread]| {
            loss += nll;
            entropy += spread;
        })?;
        check_finite("loss", loss, step)?;
        let learning_rate = self.options.schedule.learning_rate(step);
        let grad_norm =
            self.optimiser.step(&mut self.policy.params, learning_rate, self.options.max_grad_norm)?;
        check_finite("gradient norm", grad_norm, step)?;
        self.tokens += tokens;
        Ok(SftReport {
            step: step as usize,
            epoch: self.epoch(step),
            loss,
            entropy,
            grad_norm,
            learning_rate,
            num_tokens: self.tokens,
            step_time: start.elapsed().as_secs_f64(),
        })
    }

    fn rows_per_step(&self) -> u64 {
        (self.options.micro_batch * self.options.accumulation) as u64
    }

    /// Passes over the rows after `step`.
    fn epoch(&self, step: u64) -> f64 {
        ((step + 1) * self.rows_per_step()) as f64 / self.stream.rows() as f64
    }

    /// The numbers of the rows of a step.
    fn chosen(&mut self, step: u64) -> Vec<usize> {
        let size = self.rows_per_step();
        (step * size..(step + 1) * size).map(|place| self.stream.row(place)).collect()
    }
}

impl Trainer for SftTrainer {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step> {
        let report = SftTrainer::step(self, step, samples, watch)?;
        Ok(Step {
            line: report.line(self.options.schedule.total_steps as usize),
            note: format!("loss {:.4}", report.loss),
            row: report.row(),
            completions: Vec::new(),
            watched: vec![
                Watched { name: "loss", floor: 0.1, value: report.loss },
                Watched { name: "grad_norm", floor: 0.0, value: report.grad_norm },
            ],
            told: Vec::new(),
        })
    }

    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped {
        let report = SftReport {
            step: step as usize,
            epoch: self.epoch(step),
            loss: f64::NAN,
            entropy: f64::NAN,
            grad_norm: f64::NAN,
            learning_rate: self.options.schedule.learning_rate(step),
            num_tokens: self.tokens,
            ..SftReport::default()
        };
        let rows = self.chosen(step).into_iter().filter_map(|row| samples.sample(row).ok());
        let batch = rows.map(|sample| sample_row(&sample)).collect();
        Skipped { row: report.row(), batch }
    }

    fn weights(&self) -> Result<Arc<Params>> {
        self.optimiser.weights(&self.policy.params)
    }

    fn state(&self) -> Result<TrainerParts> {
        Ok(TrainerParts::new(self.optimiser.state()?, self.tokens))
    }

    fn restore(&mut self, saved: SavedRun, _: &Dataset) -> Result<()> {
        restore_weights(&mut self.policy, &mut self.optimiser, &saved)?;
        self.tokens = saved.state.num_input_tokens_seen;
        Ok(())
    }
}
