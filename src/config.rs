//! The options of every command, their defaults, ranges and TOML form.
//!
//! One struct per command, flattened from one struct per heading of its `--help`. Names and meaning
//! are TRL's where TRL has the option. The doc comment of a field is its help text, and its
//! `default_value` the only place where its default stands. A value goes through three stages:
//! parsed (clap, in `cli`), resolved (`Options::resolve`: what follows from other options is written
//! down) and checked (`Options::check`: ranges, and what must fit together).

use serde::Serialize;

use crate::error::{Error, Result};

pub mod check;
pub mod file;
pub mod names;

mod commands;
mod data;
mod grpo;
mod model;
mod optimiser;
mod reproduce;
mod reward;
mod rollout;
mod run;
mod tools;

pub use check::{Checked, Violation};
pub use commands::{
    EvalConfig, GenerateConfig, GrpoConfig, ParityConfig, RewardConfig, ScoreConfig, SftConfig,
};
pub use data::{DataOptions, OrderOptions, Overlong, OwnPixelOptions, PixelOptions, StoppingStrategy};
pub use grpo::{
    BetaScheduleType, GroupOptions, ImportanceSamplingLevel, KlEstimator, KlOptions, LossType, ScaleRewards,
};
pub use model::{DeviceChoice, DtypeChoice, HardwareOptions, ModelOptions};
pub use optimiser::{LrSchedulerType, OptimiserOptions};
pub use reproduce::{RecipeName, ReproduceConfig};
pub use reward::RewardOptions;
pub use rollout::{OwnRolloutOptions, RolloutOptions};
pub use run::{
    CheckpointOptions, CompletionLogOptions, DryRunOptions, EvaluationOptions, FileOptions, LoggingOptions,
    QuietOptions, ReportTo, ResumeFrom, SeedOptions, Strategy,
};
pub use tools::{
    CheckDataConfig, DemoConfig, Difficulty, DoctorConfig, InspectConfig, InspectDataConfig, MakeTaskConfig,
    RowsOptions,
};

/// All options of one command.
pub trait Options: Serialize {
    /// The command's words, as typed after the program's name.
    const COMMAND: &'static str;

    /// Writes down what follows from other options, so that the saved config says it.
    fn resolve(&mut self) {}

    /// Refuses values out of range and options that contradict each other.
    ///
    /// # Errors
    /// The first violation: option, value, allowed range.
    fn check(&self) -> Checked;

    /// The options as a config file that `--config` reads back to the same options.
    ///
    /// # Errors
    /// [`Error::Usage`] when a path is not UTF-8, which TOML cannot hold.
    fn to_toml(&self) -> Result<String> {
        let options = toml::to_string(self)
            .map_err(|error| Error::Usage(format!("the options cannot be written as TOML: {error}")))?;
        Ok(format!(
            "# Resolved options of a run. Use again: othink-train {} --config THIS_FILE\n{options}",
            Self::COMMAND
        ))
    }
}
