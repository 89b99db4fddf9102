//! The run itself: its folder, checkpoints, logs, seed.

use std::path::PathBuf;

use serde::Serialize;

use super::check::{Checked, Violation, at_least, if_set};
use super::names::boolean;

/// The config file that options come from.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Run")]
pub struct FileOptions {
    /// TOML file with any of these options (names with _ or -); the command line overrides it
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// The seed.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Run")]
pub struct SeedOptions {
    /// Seed of everything random: the same seed gives the same run, bit for bit
    // A TOML integer is an i64.
    #[arg(long, default_value = "42", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64),
          value_name = "N")]
    pub seed: u64,
}

/// Look before leaping.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Run")]
pub struct DryRunOptions {
    /// Print the resolved config and a memory plan in bytes, and stop
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    #[serde(skip)]
    pub dry_run: bool,
}

/// What a training run leaves on disk.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Checkpoint")]
pub struct CheckpointOptions {
    /// Run folder: config.toml, metrics.jsonl, completions.jsonl, checkpoints, report.html
    #[arg(long, default_value = "runs/grpo", value_name = "DIR")]
    pub output_dir: PathBuf,

    /// Write into an output_dir that already holds files
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    #[serde(skip)]
    pub overwrite_output_dir: bool,

    /// Save a checkpoint every N optimiser steps; 0 saves only at the end
    #[arg(long, default_value = "100", value_name = "STEPS")]
    pub save_steps: usize,

    /// Keep only the newest N checkpoints, and the best one where evaluations tell which it is [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_total_limit: Option<usize>,

    /// Save the model alone, without the optimiser's state (8 to 12 bytes a parameter): no run can resume from that
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub save_only_model: bool,

    /// Go on where a run stopped, to the bit: from the newest whole checkpoint in output_dir (from the start if it has
    /// none yet), or from the checkpoint given
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "DIR")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,

    /// Options that may differ from those of the run that is resumed, though they change what it is
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    #[serde(skip)]
    pub allow_change: Vec<String>,
}

/// Where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumeFrom {
    /// A new run.
    Nothing,
    /// The newest checkpoint of the run folder.
    Newest,
    /// This checkpoint.
    Checkpoint(PathBuf),
}

impl CheckpointOptions {
    /// What `resume_from_checkpoint` says; `true` and `false` are Hugging Face's words for the newest and for none.
    pub fn resume_from(&self) -> ResumeFrom {
        match self.resume_from_checkpoint.as_deref() {
            None | Some("false" | "False") => ResumeFrom::Nothing,
            Some("true" | "True") => ResumeFrom::Newest,
            Some(path) => ResumeFrom::Checkpoint(path.into()),
        }
    }

    pub(super) fn check(&self) -> Checked {
        if self.overwrite_output_dir && self.resume_from() != ResumeFrom::Nothing {
            return Err(Violation::new(
                "overwrite_output_dir",
                "would remove the run that --resume_from_checkpoint is to go on with: give one of them",
            ));
        }
        if_set("save_total_limit", self.save_total_limit, |option, value| at_least(option, value, 1))
    }
}

/// What a training run tells while it goes.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Logging")]
pub struct LoggingOptions {
    /// Print a line every N optimiser steps (metrics.jsonl gets every step)
    #[arg(long, default_value = "1", value_name = "STEPS")]
    pub logging_steps: usize,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub quiet: QuietOptions,
}

impl LoggingOptions {
    pub(super) fn check(&self) -> Checked {
        at_least("logging_steps", self.logging_steps, 1)
    }
}

/// Completions and evaluations in the log of a GRPO run.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Logging")]
pub struct CompletionLogOptions {
    /// Write every completion with its rewards and advantage to completions.jsonl
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub log_completions: bool,

    /// Print this many completions with each line
    #[arg(long, default_value = "0", value_name = "N")]
    pub num_completions_to_print: usize,

    /// Key of eval_metrics.jsonl whose largest value makes a checkpoint the best one, which save_total_limit keeps
    #[arg(long, default_value = "eval_reward", value_name = "KEY")]
    pub metric_for_best_model: String,

    /// Evaluate on eval_dataset every N optimiser steps; 0 is never
    #[arg(long, default_value = "0", value_name = "STEPS")]
    pub eval_steps: usize,

    /// Rows to evaluate on during training: a file, a folder, or ORG/NAME; split test unless PATH@SPLIT says another
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<PathBuf>,
}

impl CompletionLogOptions {
    pub(super) fn check(&self) -> Checked {
        if self.eval_steps > 0 && self.eval_dataset.is_none() {
            return Err(Violation::new(
                "eval_steps",
                format!("is {}, but there is nothing to evaluate on: give --eval_dataset", self.eval_steps),
            ));
        }
        Ok(())
    }
}

/// Silence.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Logging")]
pub struct QuietOptions {
    /// No progress bars and no lines per step; errors and results only
    #[arg(long, short, num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub quiet: bool,
}
