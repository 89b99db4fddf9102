//! The group-relative policy objective (Eq. 1, 2 and 4) and its KL term (Eq. 3 and 5).

use serde::{Deserialize, Serialize};

use super::check::{
    Checked, Violation, at_least, count, fraction, if_set, non_negative, positive, positive_fraction,
};
use super::names::boolean;

/// Groups, rewards, advantages and the clipped surrogate.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "GRPO")]
pub struct GroupOptions {
    /// Completions sampled for each prompt: the group whose mean reward is the baseline
    #[arg(long, default_value = "8", value_name = "G")]
    pub num_generations: usize,

    /// Reward functions; the reward is their weighted sum. accuracy reads the answer tag first; accuracy_r1v is R1-V's
    /// checker, which may take its number from the thinking; format asks for the tags; `othink-train reward --list` tells of
    /// all; --reward_command adds your own
    #[arg(long, num_args = 1.., value_delimiter = ',', default_values = ["accuracy", "format"], value_name = "NAME")]
    pub reward_funcs: Vec<String>,

    /// Weight of each reward function, in the same order [default: 1 each]
    #[arg(long, num_args = 1.., value_delimiter = ',', allow_negative_numbers = true, value_name = "WEIGHT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward_weights: Vec<f64>,

    /// What the advantage is divided by: the group's standard deviation, the batch's, or nothing
    #[arg(long, value_enum, default_value = "group", value_name = "HOW")]
    pub scale_rewards: ScaleRewards,

    /// How token losses are averaged; grpo is the paper's mean over completions of the mean over tokens
    #[arg(long, value_enum, default_value = "grpo", value_name = "TYPE")]
    pub loss_type: LossType,

    /// Probability ratio and clipping per token, or per sequence (GSPO)
    #[arg(long, value_enum, default_value = "token", value_name = "LEVEL")]
    pub importance_sampling_level: ImportanceSamplingLevel,

    /// The probability ratio is clipped below 1 - epsilon
    #[arg(long, default_value = "0.2", allow_negative_numbers = true, value_name = "FLOAT")]
    pub epsilon: f64,

    /// The probability ratio is clipped above 1 + epsilon_high [default: epsilon]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_high: Option<f64>,

    /// Upper bound on the unclipped ratio (two-sided clipping; should exceed 1 + epsilon_high) [default: none]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,

    /// Optimiser passes over each batch of completions; above 1 the log-probs at sampling become the old policy
    #[arg(long, default_value = "1", value_name = "N")]
    pub num_iterations: usize,

    /// Leave completions that hit the length limit out of the loss
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub mask_truncated_completions: bool,

    /// Dynamic sampling (DAPO): drop groups whose rewards are all equal, which teach nothing, and fill their places from the
    /// next rows. Uses more rows than num_train_epochs counts; verl's filter_groups, EasyR1's online_filtering
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub dynamic_sample: bool,

    /// Times that dynamic sampling fills a step's places again; then it trains with what there is
    #[arg(long, default_value = "3", value_name = "N")]
    pub max_resample_times: usize,
}

impl GroupOptions {
    /// How often places are filled again, if at all.
    pub fn resample_times(&self) -> Option<usize> {
        self.dynamic_sample.then_some(self.max_resample_times)
    }

    /// The upper clipping width: `epsilon_high`, or `epsilon` where it is not given.
    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(self.epsilon)
    }

    /// One weight per reward function: those given, or 1 each.
    pub fn weights(&self) -> Vec<f64> {
        if self.reward_weights.is_empty() {
            vec![1.0; self.reward_funcs.len()]
        } else {
            self.reward_weights.clone()
        }
    }

    pub(super) fn check(&self) -> Checked {
        if self.num_generations < 2 {
            return Err(Violation::new(
                "num_generations",
                format!(
                    "is {}, but GRPO needs at least 2: the advantage compares the completions of one prompt",
                    self.num_generations
                ),
            ));
        }
        count("num_iterations", self.num_iterations, 1000)?;
        count("max_resample_times", self.max_resample_times, 1000)?;
        positive_fraction("epsilon", self.epsilon)?;
        if_set("epsilon_high", self.epsilon_high, positive)?;
        if_set("delta", self.delta, positive)?;
        if !self.reward_weights.is_empty() && self.reward_weights.len() != self.reward_funcs.len() {
            return Err(Violation::new(
                "reward_weights",
                format!(
                    "has {} entries, but --reward_funcs has {} ({}): give one weight for each",
                    self.reward_weights.len(),
                    self.reward_funcs.len(),
                    self.reward_funcs.join(", ")
                ),
            ));
        }
        match self.reward_weights.iter().find(|weight| weight.is_nan() || weight.abs() > MAX_WEIGHT) {
            Some(weight) => Err(Violation::new(
                "reward_weights",
                format!("holds {weight}, but a weight must be from -{MAX_WEIGHT} to {MAX_WEIGHT}"),
            )),
            None => Ok(()),
        }
    }
}

/// Largest weight of a reward, either way: sums and squares of rewards stay finite.
const MAX_WEIGHT: f64 = 1e6;

/// What the centred rewards are divided by.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group (Eq. 2).
    #[default]
    #[value(alias = "true")]
    Group,
    /// The standard deviation of the whole batch.
    Batch,
    /// Nothing (Dr. GRPO).
    #[value(alias = "false")]
    None,
}

/// How the token losses are averaged.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over completions of the mean over their tokens (Eq. 4).
    #[default]
    Grpo,
    /// Sum over all tokens, divided by the number of tokens of the whole step.
    Dapo,
    /// Sum over all tokens, divided by the number of tokens of the micro-batch.
    Bnpo,
    /// Sum over all tokens, divided by completions x max_completion_length.
    DrGrpo,
}

/// What the probability ratio is taken over.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSamplingLevel {
    /// One ratio per token.
    #[default]
    Token,
    /// One ratio per completion: the geometric mean of its tokens' (GSPO).
    Sequence,
}

/// The weight of the KL term over the run (Eq. 3) and its estimator (Eq. 5).
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "KL")]
pub struct KlOptions {
    /// KL weight over the run: othink falls from the middle of [beta_min, beta_max] to beta_min while exploring,
    /// then rises to beta_max (Eq. 3); linear and cosine go from beta_start to beta_end; adaptive steers the KL to
    /// kl_target [default: othink, or constant where --beta is given]
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_schedule: Option<BetaScheduleType>,

    /// Smallest KL weight (paper: counting 0.04, geometry 0)
    #[arg(long, default_value = "0.04", allow_negative_numbers = true, value_name = "FLOAT")]
    pub beta_min: f64,

    /// Largest KL weight (paper: counting 0.10, geometry 0.02)
    #[arg(long, default_value = "0.1", allow_negative_numbers = true, value_name = "FLOAT")]
    pub beta_max: f64,

    /// Share of the run spent exploring, while the othink weight falls
    #[arg(long, default_value = "0.3", allow_negative_numbers = true, value_name = "FLOAT")]
    pub beta_exploration_ratio: f64,

    /// First KL weight of the linear and cosine schedules [default: beta_min]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,

    /// Last KL weight of the linear and cosine schedules [default: beta_max]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,

    /// KL weight of the constant schedule, first weight of the adaptive one; 0 without a schedule drops the reference
    /// model [default: 0.04]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,

    /// KL that the adaptive schedule aims at, in nats per token
    #[arg(long, default_value = "0.1", allow_negative_numbers = true, value_name = "NATS")]
    pub kl_target: f64,

    /// Completions over which the adaptive schedule moves beta by its own size, at full error
    #[arg(long, default_value = "10000", allow_negative_numbers = true, value_name = "N")]
    pub kl_horizon: f64,

    /// KL estimator: k3 (the paper), k2, or k3_unbiased in the loss, k1 in the reward, full for the exact KL over the
    /// vocabulary [default: k3]
    #[arg(long, value_enum, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,

    /// TRL's name for --kl_estimator k3_unbiased
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    #[serde(skip)]
    pub use_bias_correction_kl: bool,

    /// Log the exact KL beside the sampled estimates k1 and k3 (kl/exact, kl/k1, kl/k3), whichever is in force: one forward
    /// pass of the policy more for each rollout. Changes nothing else
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub log_exact_kl: bool,

    /// Let the reference follow the policy: every ref_model_sync_steps it becomes ref_model_mixup_alpha x policy + (1 -
    /// ref_model_mixup_alpha) x reference
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub sync_ref_model: bool,

    /// The policy's share in the new reference; 1 resets the reference to the policy
    #[arg(long, default_value = "0.6", allow_negative_numbers = true, value_name = "FLOAT")]
    pub ref_model_mixup_alpha: f64,

    /// Optimiser steps from one such update to the next
    #[arg(long, default_value = "512", value_name = "STEPS")]
    pub ref_model_sync_steps: usize,

    /// Begin AdamW's moments anew at each such update, as ProRL does with its resets
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub ref_model_sync_resets_optimizer: bool,
}

/// KL weight of the constant schedule where none is given: TRL's at the time of the paper, and R1-V's.
const DEFAULT_BETA: f64 = 0.04;

impl KlOptions {
    /// The schedule in force: the one named, else `constant` where `beta` is given, else the paper's.
    pub fn schedule(&self) -> BetaScheduleType {
        let unnamed = if self.beta.is_some() { BetaScheduleType::Constant } else { BetaScheduleType::Othink };
        self.beta_schedule.unwrap_or(unnamed)
    }

    /// The weight of the constant schedule and the first of the adaptive one.
    pub fn beta(&self) -> f64 {
        self.beta.unwrap_or(DEFAULT_BETA)
    }

    /// Where the linear and cosine schedules start.
    pub fn beta_start(&self) -> f64 {
        self.beta_start.unwrap_or(self.beta_min)
    }

    /// Where the linear and cosine schedules end.
    pub fn beta_end(&self) -> f64 {
        self.beta_end.unwrap_or(self.beta_max)
    }

    /// The estimator in force.
    pub fn estimator(&self) -> KlEstimator {
        let unnamed = if self.use_bias_correction_kl { KlEstimator::K3Unbiased } else { KlEstimator::K3 };
        self.kl_estimator.unwrap_or(unnamed)
    }

    /// Whether any step of the run can have a KL weight above 0, so that a reference model is needed.
    ///
    /// Decided by the schedule, never by one step's value: `othink` from 0 to 0.02 passes through 0.
    pub fn needs_reference(&self) -> bool {
        match self.schedule() {
            BetaScheduleType::Constant | BetaScheduleType::Adaptive => self.beta() > 0.0,
            BetaScheduleType::Othink => self.beta_max > 0.0,
            BetaScheduleType::Linear | BetaScheduleType::Cosine => {
                self.beta_start() > 0.0 || self.beta_end() > 0.0
            }
        }
    }

    /// Writes what is in force where nothing was given, so that the saved config says it.
    pub(super) fn resolve(&mut self) {
        let schedule = self.schedule();
        if matches!(schedule, BetaScheduleType::Constant | BetaScheduleType::Adaptive) {
            self.beta = Some(self.beta());
        }
        if matches!(schedule, BetaScheduleType::Linear | BetaScheduleType::Cosine) {
            self.beta_start = Some(self.beta_start());
            self.beta_end = Some(self.beta_end());
        }
        self.beta_schedule = Some(schedule);
        // A contradiction is left for `check` to refuse.
        self.kl_estimator = Some(self.estimator());
    }

    pub(super) fn check(&self) -> Checked {
        non_negative("beta_min", self.beta_min)?;
        non_negative("beta_max", self.beta_max)?;
        if self.beta_min > self.beta_max {
            return Err(Violation::new(
                "beta_min",
                format!("is {}, but must not exceed --beta_max, which is {}", self.beta_min, self.beta_max),
            ));
        }
        fraction("beta_exploration_ratio", self.beta_exploration_ratio)?;
        if_set("beta", self.beta, non_negative)?;
        if_set("beta_start", self.beta_start, non_negative)?;
        if_set("beta_end", self.beta_end, non_negative)?;
        positive_fraction("ref_model_mixup_alpha", self.ref_model_mixup_alpha)?;
        at_least("ref_model_sync_steps", self.ref_model_sync_steps, 1)?;
        for (option, is_on) in [("sync_ref_model", self.sync_ref_model), ("log_exact_kl", self.log_exact_kl)]
        {
            if is_on && !self.needs_reference() {
                return Err(Violation::new(
                    option,
                    "is on, but beta is 0 throughout, so that there is no reference: give a KL weight above 0",
                ));
            }
        }
        if self.ref_model_sync_resets_optimizer && !self.sync_ref_model {
            return Err(Violation::new(
                "ref_model_sync_resets_optimizer",
                "does nothing without --sync_ref_model",
            ));
        }
        positive("kl_target", self.kl_target)?;
        positive("kl_horizon", self.kl_horizon)?;
        let takes_beta = matches!(self.schedule(), BetaScheduleType::Constant | BetaScheduleType::Adaptive);
        if let (Some(beta), false) = (self.beta, takes_beta) {
            return Err(Violation::new(
                "beta",
                format!(
                    "is {beta}, but only the constant and adaptive schedules take it: drop it or --beta_schedule"
                ),
            ));
        }
        let takes_ends = matches!(self.schedule(), BetaScheduleType::Linear | BetaScheduleType::Cosine);
        for (option, value) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if let (Some(value), false) = (value, takes_ends) {
                return Err(Violation::new(
                    option,
                    format!("is {value}, but only --beta_schedule linear and cosine take it"),
                ));
            }
        }
        if self.use_bias_correction_kl && self.estimator() != KlEstimator::K3Unbiased {
            return Err(Violation::new(
                "use_bias_correction_kl",
                "means --kl_estimator k3_unbiased, but another estimator is given too: drop one of the two",
            ));
        }
        Ok(())
    }
}

/// How the KL weight moves over the run.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum BetaScheduleType {
    /// OThink-MR1's V (Eq. 3).
    #[default]
    Othink,
    /// One weight.
    Constant,
    /// A straight line from `beta_start` to `beta_end`.
    Linear,
    /// Half a cosine from `beta_start` to `beta_end`.
    Cosine,
    /// Ziegler's controller.
    Adaptive,
}

/// How the KL between policy and reference is estimated, and where it enters.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `pi - ref`, in the reward.
    K1,
    /// `(pi - ref)^2 / 2`, in the loss.
    K2,
    /// `exp(ref - pi) - (ref - pi) - 1`, in the loss (Eq. 5).
    #[default]
    K3,
    /// k3 weighted by the probability ratio: the unbiased gradient of the reverse KL.
    K3Unbiased,
    /// The exact KL over the whole vocabulary, in the loss.
    Full,
}
