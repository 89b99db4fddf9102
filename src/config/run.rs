//! The run itself: its folder, checkpoints, logs, seed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

    /// When to save a checkpoint: every save_steps optimiser steps, after every epoch, or only at the end (no)
    #[arg(long, value_enum, default_value = "steps", value_name = "WHEN")]
    pub save_strategy: Strategy,

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
    /// Optimiser steps from one checkpoint to the next where an epoch has `epoch_steps`; 0 saves only at the end.
    pub fn every(&self, epoch_steps: u64) -> u64 {
        match self.save_strategy {
            Strategy::No => 0,
            Strategy::Steps => self.save_steps as u64,
            Strategy::Epoch => epoch_steps,
        }
    }

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

    /// Print a line after the first optimiser step too
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub logging_first_step: bool,

    /// Who gets the numbers, completions and images of every run beside metrics.jsonl: tensorboard (event files in
    /// OUTPUT_DIR/runs) or none. Weights & Biases and trackio read these files too (wandb sync OUTPUT_DIR/runs)
    #[arg(long, default_value = "tensorboard", value_parser = ReportTo::parse, value_name = "WHERE")]
    pub report_to: ReportTo,

    /// Name of the run: its event files stand in OUTPUT_DIR/runs/NAME [default: the name of output_dir]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_name: Option<String>,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub quiet: QuietOptions,
}

/// Who is told of a run.
#[derive(Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ReportTo {
    /// Event files.
    #[default]
    Tensorboard,
    /// Nobody beside the run folder's own logs.
    None,
}

impl ReportTo {
    /// Hugging Face's names, as far as there is something behind them.
    fn parse(text: &str) -> Result<ReportTo, String> {
        match text {
            "tensorboard" | "all" => Ok(ReportTo::Tensorboard),
            "none" => Ok(ReportTo::None),
            "wandb" | "trackio" | "mlflow" | "comet_ml" | "swanlab" | "clearml" | "neptune" => Err(format!(
                "this program has no client of {text}: leave tensorboard, whose event files it can import (for wandb: \
                 wandb sync OUTPUT_DIR/runs)"
            )),
            _ => Err("expected tensorboard or none".to_owned()),
        }
    }
}

impl LoggingOptions {
    /// The name of the run in `output_dir`.
    pub fn run_name(&self, output_dir: &Path) -> String {
        let last = || output_dir.canonicalize().unwrap_or_default().file_name().map(OsString::from);
        let own = || output_dir.file_name().map(OsString::from).or_else(last);
        let name = self.run_name.clone().map(OsString::from).or_else(own);
        name.map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    pub(super) fn check(&self) -> Checked {
        if let Some(name) = &self.run_name
            && (name.is_empty()
                || name.len() > 200
                || name.starts_with('.')
                || name.contains(['/', '\\', '\0']))
        {
            return Err(Violation::new(
                "run_name",
                format!(
                    "is {name:?}, but must be the name of a folder: no path, no leading dot, at most 200 bytes"
                ),
            ));
        }
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

    /// Key of eval_metrics.jsonl whose largest value (of a loss the smallest) makes a checkpoint the best one, which
    /// save_total_limit keeps
    #[arg(long, default_value = "eval_reward", value_name = "KEY")]
    pub metric_for_best_model: String,
}

/// Evaluation while a run goes.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Evaluation")]
pub struct EvaluationOptions {
    /// Rows to evaluate on during training: a file, a folder, or ORG/NAME; its split test, else validation,
    /// unless PATH@SPLIT says another
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<PathBuf>,

    /// When to evaluate: every eval_steps optimiser steps, after every epoch, or not; with either also after the last step
    /// [default: steps where eval_steps is above 0, else epoch where there is an eval_dataset, else no]
    #[arg(long, value_enum, value_name = "WHEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_strategy: Option<Strategy>,

    /// Evaluate on eval_dataset every N optimiser steps; 0 is never
    #[arg(long, default_value = "0", value_name = "STEPS")]
    pub eval_steps: usize,

    /// Rows evaluated together; the result does not depend on it [default: per_device_train_batch_size]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_device_eval_batch_size: Option<usize>,
}

/// When something is done while a run goes.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many optimiser steps.
    Steps,
    /// After every pass over the rows.
    Epoch,
}

impl EvaluationOptions {
    /// What is in force.
    pub fn strategy(&self) -> Strategy {
        self.eval_strategy.unwrap_or(match (self.eval_steps, &self.eval_dataset) {
            (1.., _) => Strategy::Steps,
            (0, Some(_)) => Strategy::Epoch,
            (0, None) => Strategy::No,
        })
    }

    /// Optimiser steps from one evaluation to the next where an epoch has `epoch_steps`; 0 is never.
    pub fn every(&self, epoch_steps: u64) -> u64 {
        match self.strategy() {
            Strategy::No => 0,
            Strategy::Steps => self.eval_steps as u64,
            Strategy::Epoch => epoch_steps,
        }
    }

    pub(super) fn check(&self) -> Checked {
        if_set("per_device_eval_batch_size", self.per_device_eval_batch_size, |option, value| {
            at_least(option, value, 1)
        })?;
        let (option, says) = match self.eval_strategy {
            Some(Strategy::Steps) if self.eval_steps == 0 => {
                return Err(Violation::new(
                    "eval_strategy",
                    "is steps, but --eval_steps is 0: give their number",
                ));
            }
            Some(Strategy::No | Strategy::Epoch) if self.eval_steps > 0 => {
                return Err(Violation::new(
                    "eval_steps",
                    format!(
                        "is {}, but only --eval_strategy steps takes it: drop one of them",
                        self.eval_steps
                    ),
                ));
            }
            Some(Strategy::Epoch) => ("eval_strategy", "epoch".to_owned()),
            _ => ("eval_steps", self.eval_steps.to_string()),
        };
        if self.strategy() != Strategy::No && self.eval_dataset.is_none() {
            return Err(Violation::new(
                option,
                format!("is {says}, but there is nothing to evaluate on: give --eval_dataset"),
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
