//! All options of the commands around training: synthetic tasks, inspection, the demonstration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::{Checked, at_least, count};
use super::names::boolean;
use super::{FileOptions, HardwareOptions, Options, QuietOptions, SeedOptions};

/// `tasks make counting` and `tasks make geometry`: a synthetic dataset with its images.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct MakeTaskConfig {
    /// New folder to write: train.jsonl, test.jsonl and images/
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub output_dir: PathBuf,
    /// Rows for training
    #[arg(long, default_value = "2000", value_name = "N", help_heading = "Data")]
    pub num_train: usize,
    /// Held-out rows; no image of them occurs in training
    #[arg(long, default_value = "500", value_name = "N", help_heading = "Data")]
    pub num_test: usize,
    /// How hard the questions are
    #[arg(long, value_enum, default_value = "easy", value_name = "LEVEL", help_heading = "Data")]
    pub difficulty: Difficulty,
    /// Width and height of each image
    #[arg(long, default_value = "224", value_name = "PIXELS", help_heading = "Data")]
    pub image_size: u32,
    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub seed: SeedOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for MakeTaskConfig {
    const COMMAND: &'static str = "tasks make";

    fn check(&self) -> Checked {
        count("num_train", self.num_train, 10_000_000)?;
        count("num_test", self.num_test, 10_000_000)?;
        at_least("image_size", self.image_size as usize, 1)
    }
}

/// How hard the questions of a synthetic task are.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    /// Few objects, plain figures.
    #[default]
    Easy,
    /// In between.
    Medium,
    /// Many objects, several steps of reasoning.
    Hard,
}

/// `inspect`: what a checkpoint or run folder holds.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
pub struct InspectConfig {
    /// Checkpoint folder, ORG/NAME in the local Hugging Face cache, or run folder
    #[arg(value_name = "DIR|ORG/NAME")]
    pub path: String,
    /// Also list every tensor with its shape and type
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", require_equals = true,
          value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub tensors: bool,
}

impl Options for InspectConfig {
    const COMMAND: &'static str = "inspect";

    fn check(&self) -> Checked {
        Ok(())
    }
}

/// `doctor`: what of CPU, GPU, driver and kernels was found.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct DoctorConfig {
    /// cuda: fail with exit code 69 unless a GPU can be used. auto: only tell
    #[arg(long, default_value = "auto", value_parser = ["auto", "cuda"])]
    pub device: String,
}

impl Options for DoctorConfig {
    const COMMAND: &'static str = "doctor";

    fn check(&self) -> Checked {
        Ok(())
    }
}

/// `demo`: a whole run on a synthetic task with a small model, on the CPU, in minutes.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct DemoConfig {
    /// Folder to write: the dataset, the checkpoints before and after, metrics, report.html
    #[arg(long, default_value = "runs/demo", value_name = "DIR", help_heading = "Checkpoint")]
    pub output_dir: PathBuf,
    /// Write into an output_dir that already holds files
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Checkpoint")]
    #[serde(skip)]
    pub overwrite_output_dir: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub seed: SeedOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for DemoConfig {
    const COMMAND: &'static str = "demo";

    fn check(&self) -> Checked {
        self.hardware.check()
    }
}
