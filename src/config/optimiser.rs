//! Batches, steps, AdamW and the learning rate.

use serde::{Deserialize, Serialize};

use super::check::{Checked, Violation, count, decay, fraction, non_negative, positive};
use super::names::boolean;

/// AdamW, its learning rate over the run, and how much data a step takes.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Optimiser")]
pub struct OptimiserOptions {
    /// Peak learning rate
    #[arg(long, default_value = "1e-6", allow_negative_numbers = true, value_name = "FLOAT")]
    pub learning_rate: f64,

    /// Shape of the learning rate after warm-up
    #[arg(long, value_enum, default_value = "linear", value_name = "NAME")]
    pub lr_scheduler_type: LrSchedulerType,

    /// Share of the steps over which the learning rate rises from 0
    #[arg(long, default_value = "0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub warmup_ratio: f64,

    /// Steps over which the learning rate rises from 0; above 0 it replaces warmup_ratio
    #[arg(long, default_value = "0", value_name = "STEPS")]
    pub warmup_steps: usize,

    /// Sequences in one forward and backward pass; for GRPO these are completions, as in TRL
    #[arg(long, default_value = "8", value_name = "N")]
    pub per_device_train_batch_size: usize,

    /// Passes whose gradients are summed into one step; with the defaults a GRPO step sees 8 x 16 completions of 16
    /// prompts
    #[arg(long, default_value = "16", value_name = "N")]
    pub gradient_accumulation_steps: usize,

    /// Passes over the dataset
    #[arg(long, default_value = "2", allow_negative_numbers = true, value_name = "FLOAT")]
    pub num_train_epochs: f64,

    /// Optimiser steps, in place of num_train_epochs; -1 is none
    #[arg(long, default_value = "-1", allow_negative_numbers = true, value_name = "STEPS")]
    #[serde(skip_serializing_if = "is_none")]
    pub max_steps: i64,

    /// The gradient is scaled down to this L2 norm; 0 is off
    #[arg(long, default_value = "1.0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub max_grad_norm: f64,

    /// Decoupled weight decay (not on biases and norms)
    #[arg(long, default_value = "0", allow_negative_numbers = true, value_name = "FLOAT")]
    pub weight_decay: f64,

    /// Decay of AdamW's first moment
    #[arg(long, default_value = "0.9", allow_negative_numbers = true, value_name = "FLOAT")]
    pub adam_beta1: f64,

    /// Decay of AdamW's second moment
    #[arg(long, default_value = "0.999", allow_negative_numbers = true, value_name = "FLOAT")]
    pub adam_beta2: f64,

    /// AdamW's epsilon
    #[arg(long, default_value = "1e-8", allow_negative_numbers = true, value_name = "FLOAT")]
    pub adam_epsilon: f64,

    /// Keep the vision tower as it is and train only the language model
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub freeze_vision_modules: bool,

    /// Compute each layer's activations again in the backward pass instead of keeping them; changes memory and time,
    /// not one bit of the result
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub gradient_checkpointing: bool,
}

impl OptimiserOptions {
    /// Sequences that one optimiser step takes: micro-batch times accumulation.
    pub fn sequences_per_step(&self) -> usize {
        self.per_device_train_batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The steps that the run is to have, if it is not for the epochs to say.
    pub fn max_steps(&self) -> Option<usize> {
        usize::try_from(self.max_steps).ok()
    }

    pub(super) fn check(&self) -> Checked {
        non_negative("learning_rate", self.learning_rate)?;
        fraction("warmup_ratio", self.warmup_ratio)?;
        count("per_device_train_batch_size", self.per_device_train_batch_size, 1 << 20)?;
        count("gradient_accumulation_steps", self.gradient_accumulation_steps, 1 << 20)?;
        let sequences = self.sequences_per_step();
        if sequences > 1 << 20 {
            let message = format!("makes {sequences} sequences a step, but at most {} are possible", 1 << 20);
            return Err(Violation::new("gradient_accumulation_steps", message));
        }
        positive("num_train_epochs", self.num_train_epochs)?;
        if self.num_train_epochs > MAX_EPOCHS {
            let message = format!("is {}, but must be at most {MAX_EPOCHS}", self.num_train_epochs);
            return Err(Violation::new("num_train_epochs", message));
        }
        if !is_none(&self.max_steps) && !(1..=i64::from(u32::MAX)).contains(&self.max_steps) {
            let message =
                format!("is {}, but must be from 1 to {}, or -1 for none", self.max_steps, u32::MAX);
            return Err(Violation::new("max_steps", message));
        }
        non_negative("max_grad_norm", self.max_grad_norm)?;
        non_negative("weight_decay", self.weight_decay)?;
        decay("adam_beta1", self.adam_beta1)?;
        decay("adam_beta2", self.adam_beta2)?;
        positive("adam_epsilon", self.adam_epsilon)
    }
}

/// Whether a number of steps is transformers' word for none.
fn is_none(steps: &i64) -> bool {
    *steps == -1
}

/// Most passes over a dataset: the number of steps stays countable.
const MAX_EPOCHS: f64 = 1e6;

/// Shape of the learning rate after warm-up, with transformers' names.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// A straight line down to 0.
    #[default]
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// The peak, also during warm-up.
    Constant,
    /// The peak, after warm-up.
    ConstantWithWarmup,
}
