//! GRPO with the dynamic KL weight of OThink-MR1 (GRPO-D).

mod estimates;
mod groups;
mod reference;
mod scored;

use super::ahead::{Ahead, READ_AHEAD};
use super::guard::Watched;
use super::policy::Policy;
use super::stream::Stream;
use super::trainer::{Skipped, Step, Trainer, TrainerParts, restore_weights, sample_row};
use super::update::{ForwardOptions, Pass, check_finite, each_micro_batch};
use crate::autograd::GradSink;
use crate::batch::MicroBatch;
use crate::checkpoint::{SavedRun, StreamPosition};
use crate::config::{KlEstimator, ScaleRewards};
use crate::cuda::Gpu;
use crate::data::{Dataset, Sample};
use crate::error::{Error, Result};
use crate::kl::BetaController;
use crate::loss::{LossConfig, LossMetrics, ScoreInputs, Window, loss_of_scores};
use crate::nn::Params;
use crate::optim::{AdamWConfig, LrSchedule, Optimiser};
use crate::processor::Prompt;
use crate::report::{ClipRatio, CompletionRecord, Phases, Row, StepReport};
use crate::reward::RewardSet;
use crate::rollout::sequence::FinishReason;
use crate::rollout::{Completion, Decoding, Watch};
use crate::tensor::Placement;
use estimates::Estimates;
use reference::Reference;
pub use reference::ReferenceSync;
use scored::Scored;
use std::sync::Arc;
use std::time::Instant;

/// What the trainer needs beside the policy and the data.
#[derive(Clone, Debug)]
pub struct GrpoOptions {
    /// Completions per prompt, G.
    pub num_generations: usize,
    /// Completions per forward and backward pass.
    pub micro_batch: usize,
    /// Passes per optimiser step.
    pub accumulation: usize,
    /// Optimiser steps per rollout.
    pub num_iterations: usize,
    /// What the centred rewards are divided by.
    pub scale_rewards: ScaleRewards,
    /// Loss, clipping, estimator. `beta` is set at every step.
    pub loss: LossConfig,
    /// Leave completions cut by the length limit out of the loss.
    pub mask_truncated: bool,
    /// Groups with equal rewards are dropped and filled up at most so many times (dynamic sampling); `None` keeps all.
    pub max_resample_times: Option<usize>,
    /// Every KL estimate is measured, at the cost of a forward pass for each rollout.
    pub log_exact_kl: bool,
    /// How the reference follows the policy, if it does.
    pub reference_sync: Option<ReferenceSync>,
    /// Longest prompt, tokens.
    pub prompt_limit: usize,
    /// Learning rate over the run.
    pub schedule: LrSchedule,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: f64,
    /// Keep only layer inputs for the backward pass.
    pub recompute: bool,
    /// Where the model is put and computes.
    pub placement: Placement,
    /// Seed of the rollouts.
    pub seed: u64,
}

/// State of a run.
pub struct GrpoTrainer {
    /// The policy being trained.
    pub policy: Policy,
    reference: Option<Reference>,
    options: GrpoOptions,
    decoding: Decoding,
    rewards: RewardSet,
    beta: BetaController,
    optimiser: Optimiser,
    stream: Stream,
    /// Where the rollout that was made last stands in the stream.
    position: StreamPosition,
    ahead: Ahead<(Sample, Prompt)>,
    tokens: u64,
    /// Whether targets without a gradient stay out of the head's backward products.
    leaves_out: bool,
    /// The rollout that the next steps of its `num_iterations` go on with.
    rollout: Option<Scored>,
    /// The completions of a rollout that a step has just failed on.
    suspect: Vec<CompletionRecord>,
}

/// What a step did: numbers, and its completions where they are new.
pub struct StepOutcome {
    /// The row of `metrics.jsonl`.
    pub report: StepReport,
    /// The rows of `completions.jsonl`; empty on the further iterations over one rollout.
    pub completions: Vec<CompletionRecord>,
    /// Groups with equal rewards that dynamic sampling could not replace.
    pub still_equal: usize,
}

/// Why a rollout was not made, and what of the stream it has used.
struct StepFailure {
    position: StreamPosition,
    error: Error,
}

impl GrpoTrainer {
    /// A run in the order of `stream`. The reference is the policy as it is now, unless the KL weight is 0 throughout.
    pub fn new(
        mut policy: Policy,
        options: GrpoOptions,
        decoding: Decoding,
        rewards: RewardSet,
        beta: BetaController,
        adamw: AdamWConfig,
        stream: Stream,
    ) -> Result<GrpoTrainer> {
        let optimiser = Optimiser::new(adamw, &mut policy.params, false, &options.placement)?;
        let reference = match beta.needs_reference() {
            true => Some(Reference::of(&policy.params)?),
            false => None,
        };
        let groups = options.micro_batch * options.accumulation / options.num_generations;
        Ok(GrpoTrainer {
            policy,
            reference,
            options,
            decoding,
            rewards,
            beta,
            optimiser,
            stream,
            position: StreamPosition { rollout: 0, first: 0, used: groups as u64 },
            ahead: Ahead::new(READ_AHEAD),
            tokens: 0,
            leaves_out: true,
            rollout: None,
            suspect: Vec::new(),
        })
    }

    /// Sets how many threads make the next rollout's prompts ready; 0 makes them ready at the step.
    pub fn read_ahead(&mut self, workers: usize) {
        self.ahead = Ahead::new(workers);
    }

    /// From now on also computes gradients that are known to be 0, as a check that leaving them out changes no bit.
    pub fn leave_nothing_out(&mut self) {
        self.leaves_out = false;
    }

    fn prompts_per_rollout(&self) -> usize {
        self.options.micro_batch * self.options.accumulation / self.options.num_generations
    }

    /// One optimiser step: rollout, rewards, advantages (on the first of `num_iterations`), loss, gradient, update.
    ///
    /// `watch` is told of finished completions.
    ///
    /// # Errors
    /// [`Error::Protect`] for a log-probability, loss, KL or gradient that is NaN or infinite; those of rows that cannot
    /// be read, and of `watch`. The trainer is as it was then.
    pub fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<StepOutcome> {
        let start = Instant::now();
        self.follow_policy(step)?;
        let beta = self.beta.beta(step);
        let kept = self.rollout.take().filter(|_| self.iteration(step) > 0);
        let is_new = kept.is_none();
        let rolled = match kept {
            Some(rollout) => Ok((rollout, self.position, [0.0; 2])),
            None => self.roll_out(step, samples, beta, watch),
        };
        let (mut rollout, position, sampling_seconds) =
            rolled.map_err(|StepFailure { position, error }| {
                // What a step that is skipped has used of the stream is gone.
                if matches!(error, Error::Protect(_)) {
                    self.position = position;
                }
                error
            })?;
        // As TRL counts: every completion with its whole prompt, though the prompt is computed once.
        let tokens = self.tokens + if is_new { rollout.tokens() } else { 0 };
        let learned = self.learn(step, beta, tokens, &mut rollout, watch);
        if matches!(learned, Ok(_) | Err(Error::Protect(_))) {
            self.position = position;
        }
        let completions = match (&learned, is_new) {
            (Ok(_), true) | (Err(Error::Protect(_)), _) => self.records(step, &rollout),
            _ => Vec::new(),
        };
        let more = self.iteration(step + 1) > 0;
        match learned {
            Ok(mut report) => {
                self.tokens = tokens;
                let still_equal = rollout.refills.still_equal;
                self.rollout = more.then_some(rollout);
                report.epoch = self.epoch(step);
                report.step_time = start.elapsed().as_secs_f64();
                [report.phases.rollout, report.phases.reference] =
                    if is_new { sampling_seconds } else { [0.0; 2] };
                report.memory =
                    self.options.placement.device.gpu().map_or_else(Vec::new, |gpu| gpu.ledger().peaks());
                Ok(StepOutcome { report, completions, still_equal: if is_new { still_equal } else { 0 } })
            }
            Err(error) => {
                self.suspect = completions;
                // A step that is skipped is over. One that was stopped is made again, over the same rollout: the
                // weights that sampled it are gone.
                let is_over = matches!(error, Error::Protect(_));
                self.rollout = (!is_new && (more || !is_over)).then_some(rollout);
                Err(error)
            }
        }
    }

    /// Lets the reference follow the policy where that is due before `step`; a step that is made again finds it done.
    fn follow_policy(&mut self, step: u64) -> Result<()> {
        let (Some(sync), Some(reference)) = (&self.options.reference_sync, &mut self.reference) else {
            return Ok(());
        };
        if reference.is_due(sync, step) {
            reference.follow(&self.policy.params, sync.mixup_alpha, step)?;
            if sync.resets_optimizer {
                self.optimiser.forget()?;
            }
        }
        Ok(())
    }

    /// Which of the `num_iterations` over its rollout a step is, from 0.
    fn iteration(&self, step: u64) -> u64 {
        step % self.options.num_iterations as u64
    }

    /// Passes over the rows after the rollout of `step`.
    fn epoch(&self, step: u64) -> f64 {
        self.next_place(step) as f64 / self.stream.rows() as f64
    }

    /// Waits for a GPU, so that what follows is not timed with what was asked for before.
    fn finish_work(&self) -> Result<()> {
        self.options.placement.device.gpu().map_or(Ok(()), Gpu::synchronize)
    }

    /// Loss and gradient over the micro-batches, then the optimiser's step.
    fn learn(
        &mut self,
        step: u64,
        beta: f64,
        tokens_seen: u64,
        rollout: &mut Scored,
        watch: Watch<'_>,
    ) -> Result<StepReport> {
        let start = Instant::now();
        let completions = rollout.flat();
        let loss_config = LossConfig { beta, ..self.options.loss };
        let counts = |c: &Completion| !(self.options.mask_truncated && c.finish == FinishReason::Length);
        let counted =
            |range: &[&Completion]| range.iter().filter(|c| counts(c)).map(|c| c.tokens.len()).sum::<usize>();
        let window_tokens = counted(&completions) as f64;
        let on_policy = self.options.num_iterations == 1;
        let first_iteration = self.iteration(step) == 0;
        let options = ForwardOptions {
            temperature: f64::from(self.decoding.sampling.score_temperature()),
            recompute: self.options.recompute,
        };
        let mut metrics = LossMetrics::default();
        let (mut loss, mut entropy, mut tokens) = (0.0, 0.0, 0_usize);
        let (mut difference_sum, mut difference_max) = (0.0, 0.0_f64);
        let exact = self.options.loss.kl_estimator == KlEstimator::Full;
        let leaves_out = self.leaves_out;
        // Whether the KL moves the policy at this step, and not the rewards (k1).
        let kl_pulls = beta != 0.0 && self.options.loss.kl_estimator != KlEstimator::K1;
        let (model, params) = (&self.policy.model, &self.policy.params);
        let reference = self.reference.as_ref().map(|reference| &reference.params).filter(|_| exact);
        let work = |i: usize, batch: &MicroBatch, sink: &mut dyn GradSink| {
            watch(0)?;
            let members = &completions[batch.members.clone()];
            let counts_b: Vec<bool> = members.iter().map(|c| counts(c)).collect();
            let advantages_b = &rollout.advantages.advantages_pg[batch.members.clone()];
            let teaches = |(&counts, &advantage): (&bool, &f32)| counts && (advantage != 0.0 || kl_pulls);
            let teaches = counts_b.iter().zip(advantages_b).map(teaches);
            let frozen = members.iter().zip(teaches);
            let frozen =
                frozen.flat_map(|(c, teaches)| std::iter::repeat_n(leaves_out && !teaches, c.tokens.len()));
            let pass = Pass::run(model, params, batch, options, reference, frozen.collect())?;
            let inputs = ScoreInputs {
                offsets: &batch.offsets,
                scores: pass.scores(),
                sampled: rollout.sampled.of_batch(batch),
                off_policy: !on_policy,
                reference: rollout.reference.as_ref().map(|r| &r[i]),
                exact_kl: reference.is_some(),
                counts_b: &counts_b,
                advantages_b,
                window: Window {
                    sequences: completions.len(),
                    tokens: window_tokens,
                    micro_batches: rollout.batches.len(),
                    micro_batch_tokens: counted(members) as f64,
                },
            };
            let output = loss_of_scores(&loss_config, &inputs)?;
            check_finite("loss", output.loss, step)?;
            // Later passes over a rollout have other weights than those whose exact KL was taken.
            let exact = rollout.exact.as_ref().filter(|_| first_iteration).map(|exact| &exact[i]);
            let estimates = Estimates::of(&loss_config, &inputs, &output.metrics, exact)?;
            pass.backward_by(output.dscores.clone(), sink)?;
            Ok((counted(members), output, estimates))
        };
        self.optimiser.begin()?;
        let mut estimates = Estimates::default();
        each_micro_batch(params, &rollout.batches, &mut self.optimiser, work, |(counted, output, part)| {
            estimates.merge(&part);
            difference_sum += output.difference_sum;
            difference_max = match output.difference_max <= difference_max || difference_max.is_nan() {
                true => difference_max,
                false => output.difference_max,
            };
            entropy += output.entropy_sum;
            tokens += counted;
            loss += output.loss;
            metrics.merge(&output.metrics);
        })?;
        // Later passes over the same rollout compare with weights that have moved: they repeat the first one's figure.
        let measured = (difference_sum / rollout.sampled.tokens.max(1) as f64, difference_max);
        let difference = if first_iteration { measured } else { rollout.difference.unwrap_or(measured) };
        if let Some(kl) = metrics.kl() {
            check_finite("KL", kl, step)?;
        }
        self.finish_work()?;
        let learned = start.elapsed().as_secs_f64();
        let learning_rate = self.options.schedule.learning_rate(step);
        let grad_norm =
            self.optimiser.step(&mut self.policy.params, learning_rate, self.options.max_grad_norm)?;
        let phases = Phases {
            learn: learned,
            optimizer: start.elapsed().as_secs_f64() - learned,
            ..Phases::default()
        };
        check_finite("gradient norm", grad_norm, step)?;
        if let Some(kl) = metrics.kl() {
            self.beta.observe(kl, completions.len())?;
        }
        rollout.difference = Some(difference);
        Ok(StepReport {
            step: step as usize,
            loss,
            grad_norm,
            learning_rate,
            beta,
            kl: metrics.kl(),
            kl_estimates: estimates.means(),
            refills: self.options.max_resample_times.map(|_| rollout.refills),
            entropy: entropy / tokens.max(1) as f64,
            reward: rollout.judged.reward.unwrap_or(f64::NAN),
            reward_std: rollout.judged.reward_std.unwrap_or(f64::NAN),
            rewards: rollout.statistics.clone(),
            frac_reward_zero_std: rollout.judged.frac_reward_zero_std,
            lengths: rollout.lengths,
            clip_ratio: ClipRatio {
                low_mean: metrics.clip_ratio_low_mean(),
                low_min: metrics.clip_ratio_low_min().unwrap_or(0.0),
                high_mean: metrics.clip_ratio_high_mean(),
                high_max: metrics.clip_ratio_high_max().unwrap_or(0.0),
                region_mean: metrics.clip_ratio_region_mean(),
            },
            sampling_logp_difference_mean: difference.0,
            sampling_logp_difference_max: difference.1,
            num_tokens: tokens_seen,
            phases,
            ..StepReport::default()
        })
    }
}

impl Trainer for GrpoTrainer {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn step(&mut self, step: u64, samples: &Dataset, watch: Watch<'_>) -> Result<Step> {
        let StepOutcome { report, completions, still_equal } = GrpoTrainer::step(self, step, samples, watch)?;
        let mut watched = vec![
            Watched { name: "loss", floor: 0.1, value: report.loss },
            Watched { name: "grad_norm", floor: 0.0, value: report.grad_norm },
        ];
        watched.extend(report.kl.map(|value| Watched { name: "kl", floor: 0.1, value }));
        let mut told = Vec::new();
        if still_equal > 0 {
            told.push(format!(
                "step {step}: {still_equal} of {} groups have equal rewards after {} refills, and teach nothing",
                self.prompts_per_rollout(),
                self.options.max_resample_times.unwrap_or(0)
            ));
        }
        if report.reward.is_nan() {
            told.push(format!(
                "step {step}: no reward applies to any completion, so that nothing is learned"
            ));
        }
        Ok(Step {
            line: report.line(self.options.schedule.total_steps as usize),
            note: format!("reward {:.3}", report.reward),
            row: report.row(),
            completions,
            watched,
            told,
        })
    }

    fn skipped(&mut self, step: u64, samples: &Dataset) -> Skipped {
        let report = StepReport {
            step: step as usize,
            epoch: self.epoch(step),
            loss: f64::NAN,
            grad_norm: f64::NAN,
            learning_rate: self.options.schedule.learning_rate(step),
            beta: self.beta.beta(step),
            entropy: f64::NAN,
            reward: f64::NAN,
            reward_std: f64::NAN,
            num_tokens: self.tokens,
            ..StepReport::default()
        };
        let completions = std::mem::take(&mut self.suspect);
        let as_row = |record| match serde_json::to_value(record) {
            Ok(serde_json::Value::Object(row)) => row,
            _ => Row::new(),
        };
        // Without completions the rollout itself has failed.
        let batch = if completions.is_empty() {
            let places = self.first_places(step);
            let chosen = self.rows_at(&places, samples).unwrap_or_default();
            chosen.iter().map(|(_, sample)| sample_row(sample)).collect()
        } else {
            completions.into_iter().map(as_row).collect()
        };
        Skipped { row: report.row(), batch }
    }

    fn weights(&self) -> Result<Arc<Params>> {
        self.optimiser.weights(&self.policy.params)
    }

    fn state(&self) -> Result<TrainerParts> {
        let rollout = self.rollout.as_ref().map(Scored::saved).transpose()?;
        Ok(TrainerParts {
            optimiser: self.optimiser.state()?,
            tokens: self.tokens,
            beta: Some(self.beta.state()),
            rollout,
            stream: self.options.max_resample_times.map(|_| self.position),
            reference: self.reference.as_ref().map_or(Ok(None), Reference::saved)?,
        })
    }

    fn restore(&mut self, saved: SavedRun, samples: &Dataset) -> Result<()> {
        restore_weights(&mut self.policy, &mut self.optimiser, &saved)?;
        self.tokens = saved.state.num_input_tokens_seen;
        if let Some(beta) = saved.state.beta {
            self.beta.restore(beta)?;
        }
        if let Some(position) = saved.state.stream {
            self.position = position;
        }
        if let (Some(reference), Some(synced), Some(weights)) =
            (&mut self.reference, saved.state.reference_synced, saved.reference)
        {
            reference.restore(synced, weights)?;
        }
        if let Some(rollout) = saved.rollout {
            self.rollout = Some(self.resume_rollout(saved.state.global_step, rollout, samples)?);
        }
        Ok(())
    }
}
