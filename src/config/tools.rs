//! All options of the commands around training: synthetic tasks, inspection, the demonstration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::{Checked, at_least, count, if_set};
use super::names::boolean;
use super::{FileOptions, HardwareOptions, Options, PixelOptions, QuietOptions, SeedOptions};

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

/// `data inspect` and `data check`: which rows are looked at.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct RowsOptions {
    /// A file, a folder with splits, or ORG/NAME in the local Hugging Face cache; PATH@SPLIT names the split
    #[arg(value_name = "FILE|DIR|ORG/NAME", required_unless_present = "dataset", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathBuf>,

    /// The same by the name that it has in training
    #[arg(long, conflicts_with = "paths", value_name = "FILE|DIR|ORG/NAME", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset: Vec<PathBuf>,

    /// Which split of a dataset folder that names none
    #[arg(long, default_value = "train", value_name = "SPLIT")]
    pub dataset_split: String,

    /// A second folder that images may lie in, besides the dataset's own [default: none]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dir: Option<PathBuf>,

    /// Use only the first N rows, of each dataset if there are several [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<usize>,
}

impl RowsOptions {
    /// The datasets, however they were given.
    pub fn datasets(&self) -> &[PathBuf] {
        if self.dataset.is_empty() { &self.paths } else { &self.dataset }
    }

    fn check(&self) -> Checked {
        if_set("max_samples", self.max_samples, |option, value| at_least(option, value, 1))
    }
}

/// `data inspect`: what a dataset holds, and what becomes of it.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct InspectDataConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub rows: RowsOptions,

    /// Text around each problem, as in training: r1v, r1v_superclevr, r1v_geoqa, vlm_r1, vlm_r1_rec or none
    #[arg(long, default_value = "r1v", value_name = "NAME", help_heading = "Data")]
    pub prompt_template: String,

    /// Show the first N rows as the model will see them
    #[arg(long, default_value = "2", value_name = "N", help_heading = "Data")]
    pub num_rows: usize,

    #[command(flatten)]
    #[serde(flatten)]
    pub pixels: PixelOptions,

    /// Checkpoint whose chat template, tokenizer and patch size are used; no weights are read [default: none, and the
    /// sizes of Qwen2-VL]
    #[arg(long, value_name = "DIR|ORG/NAME", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl Options for InspectDataConfig {
    const COMMAND: &'static str = "data inspect";

    fn check(&self) -> Checked {
        self.rows.check()?;
        self.pixels.check()
    }
}

/// `data check`: reads and decodes everything, and lists what is bad.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct CheckDataConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub rows: RowsOptions,

    /// Also count rows without a reference answer as bad, which eval and the reward accuracy need
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", require_equals = true,
          value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Data")]
    pub need_solution: bool,

    /// Write the bad rows to this JSONL file too: row, error [default: nowhere]
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
}

impl Options for CheckDataConfig {
    const COMMAND: &'static str = "data check";

    fn check(&self) -> Checked {
        self.rows.check()
    }
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
