//! All options of each command that trains or runs a model.

use std::path::PathBuf;

use serde::Serialize;

use super::check::{Checked, Violation, at_least, if_set, positive};
use super::names::boolean;
use super::{
    CheckpointOptions, CompletionLogOptions, DataOptions, DryRunOptions, EvaluationOptions, FileOptions,
    GroupOptions, HardwareOptions, KlOptions, LoggingOptions, ModelOptions, OptimiserOptions, Options,
    OrderOptions, OwnPixelOptions, OwnRolloutOptions, QuietOptions, RewardOptions, RolloutOptions,
    SeedOptions,
};

/// `grpo`: with the defaults, the recipe of OThink-MR1 on R1-V.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct GrpoConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub order: OrderOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub group: GroupOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub rewards: RewardOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub kl: KlOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub rollout: RolloutOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub optimiser: OptimiserOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoint: CheckpointOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub logging: LoggingOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub completions: CompletionLogOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub seed: SeedOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub dry_run: DryRunOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl GrpoConfig {
    /// Prompts that one optimiser step takes: completions per step over completions per prompt.
    pub fn prompts_per_step(&self) -> usize {
        self.optimiser.sequences_per_step() / self.group.num_generations.max(1)
    }
}

impl Options for GrpoConfig {
    const COMMAND: &'static str = "grpo";

    fn resolve(&mut self) {
        self.rewards.resolve(self.rollout.max_completion_length, &mut self.group.reward_funcs);
        self.kl.resolve();
    }

    fn check(&self) -> Checked {
        self.data.check()?;
        self.order.check(self.data.dataset.len())?;
        self.rewards.check()?;
        self.group.check()?;
        self.kl.check()?;
        self.rollout.check_for_training()?;
        self.optimiser.check()?;
        self.checkpoint.check()?;
        self.logging.check()?;
        self.evaluation.check()?;
        self.hardware.check()?;
        let (batch, accumulation) =
            (self.optimiser.per_device_train_batch_size, self.optimiser.gradient_accumulation_steps);
        let (step, group) = (self.optimiser.sequences_per_step(), self.group.num_generations);
        if !step.is_multiple_of(group) {
            return Err(Violation::new(
                "per_device_train_batch_size",
                format!(
                    "is {batch}, times --gradient_accumulation_steps {accumulation} makes {step} completions a step, \
                     which must be a multiple of --num_generations {group}: groups are never split over steps"
                ),
            ));
        }
        let (every, iterations) = (self.kl.ref_model_sync_steps, self.group.num_iterations);
        if self.kl.sync_ref_model && !every.is_multiple_of(iterations) {
            return Err(Violation::new(
                "ref_model_sync_steps",
                format!(
                    "is {every}, but must be a multiple of --num_iterations {iterations}: a rollout is learned from with one \
                     reference"
                ),
            ));
        }
        Ok(())
    }
}

/// `sft`: cross-entropy on the completion, with R1-V's settings by default.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(
    rename_all = "snake_case",
    mut_arg("learning_rate", |arg| arg.default_value("2e-5")),
    mut_arg("lr_scheduler_type", |arg| arg.default_value("cosine")),
    mut_arg("warmup_ratio", |arg| arg.default_value("0.1")),
    mut_arg("num_train_epochs", |arg| arg.default_value("1")),
    mut_arg("per_device_train_batch_size", |arg| arg.default_value("4").help("Rows in one forward and backward pass")),
    mut_arg("gradient_accumulation_steps", |arg| arg.default_value("4")
        .help("Passes whose gradients are summed into one step; with the defaults a step sees 4 x 4 rows")),
    mut_arg("output_dir", |arg| arg.default_value("runs/sft")
        .help("Run folder: config.toml, metrics.jsonl, checkpoints, report.html")),
)]
#[allow(missing_docs)]
pub struct SftConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub order: OrderOptions,
    /// Longest row, in tokens, prompt, images and answer together [default: the model's context]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub optimiser: OptimiserOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoint: CheckpointOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub logging: LoggingOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationOptions,
    /// Longest completion in an evaluation, which completes the rows with a reference answer greedily; 0 makes none
    #[arg(long, default_value = "512", value_name = "TOKENS", help_heading = "Evaluation")]
    pub max_completion_length: usize,
    /// Key of eval_metrics.jsonl whose best value makes a checkpoint the best one, which save_total_limit keeps: the largest,
    /// of a loss the smallest
    #[arg(long, default_value = "eval_loss", value_name = "KEY", help_heading = "Evaluation")]
    pub metric_for_best_model: String,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub seed: SeedOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub dry_run: DryRunOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for SftConfig {
    const COMMAND: &'static str = "sft";

    fn check(&self) -> Checked {
        self.data.check()?;
        self.order.check(self.data.dataset.len())?;
        if_set("max_length", self.max_length, |option, value| at_least(option, value, 2))?;
        self.optimiser.check()?;
        self.checkpoint.check()?;
        self.logging.check()?;
        self.evaluation.check()?;
        self.hardware.check()
    }
}

/// `eval`: accuracy of a checkpoint on a dataset, greedy by default.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(
    rename_all = "snake_case",
    mut_arg("dataset_split", |arg| arg.default_value("test")),
    mut_arg("temperature", |arg| arg.default_value("0").help("Softmax temperature; 0 takes the likeliest token")),
)]
#[allow(missing_docs)]
pub struct EvalConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataOptions,
    /// Replace every image by a blank one of its size: what is left of the accuracy does not come from seeing
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Data")]
    pub blank_images: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub rollout: RolloutOptions,
    /// Prompts decoded together; the result does not depend on it
    #[arg(long, default_value = "8", value_name = "N", help_heading = "Rollout")]
    pub per_device_eval_batch_size: usize,
    /// Reward functions to measure besides accuracy and format; `othink-train reward --list` tells of all, --reward_command
    /// adds your own [default: none]
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "NAME", help_heading = "Rewards")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward_funcs: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub rewards: RewardOptions,
    /// Write each row's completion, parsed answer and rewards to this JSONL file [default: nowhere]
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
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

impl Options for EvalConfig {
    const COMMAND: &'static str = "eval";

    fn resolve(&mut self) {
        self.rewards.resolve(self.rollout.max_completion_length, &mut self.reward_funcs);
    }

    fn check(&self) -> Checked {
        self.data.check()?;
        self.rewards.check()?;
        self.rollout.check()?;
        at_least("per_device_eval_batch_size", self.per_device_eval_batch_size, 1)?;
        self.hardware.check()
    }
}

/// `generate`: completions for one prompt or a dataset, with the checkpoint's own generation settings.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct GenerateConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    /// The user's text
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = "Data",
        required_unless_present = "dataset",
        conflicts_with = "dataset"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// An image before the text; repeat for several
    #[arg(long, num_args = 1.., value_name = "FILE", help_heading = "Data", conflicts_with = "dataset")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image: Vec<PathBuf>,
    /// Prompts from a JSONL file or folder instead, as for grpo
    #[arg(long, visible_alias = "dataset_name", value_name = "FILE|DIR", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<PathBuf>,
    /// Which split of a dataset folder
    #[arg(long, default_value = "test", value_name = "SPLIT", help_heading = "Data")]
    pub dataset_split: String,
    /// A second folder that images may lie in, besides that of the rows' file [default: none]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dir: Option<PathBuf>,
    /// Text around each prompt: none, or r1v as in training
    #[arg(long, default_value = "none", value_name = "NAME", help_heading = "Data")]
    pub prompt_template: String,
    #[command(flatten)]
    #[serde(flatten)]
    pub pixels: OwnPixelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub rollout: OwnRolloutOptions,
    /// Write a JSONL of prompt, images, completion, tokens and log-probs here [default: print the completions]
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
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

impl Options for GenerateConfig {
    const COMMAND: &'static str = "generate";

    fn check(&self) -> Checked {
        self.pixels.check()?;
        self.rollout.check()?;
        self.hardware.check()
    }
}

/// `parity`: this program's numbers against a recorded reference's.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", mut_arg("dtype", |arg| arg.default_value("f32")))]
#[allow(missing_docs)]
pub struct ParityConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    /// Folder with inputs.json and expected.safetensors [default: the model's folder]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// Write what was computed here, under the keys of the reference [default: nowhere]
    #[arg(long, value_name = "OUT.safetensors", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for ParityConfig {
    const COMMAND: &'static str = "parity";

    fn check(&self) -> Checked {
        self.hardware.check()
    }
}

/// `score`: the training forward's log-probs of given completions.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct ScoreConfig {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelOptions,
    /// JSONL of prompt, images, and completion or completion_ids, such as `generate --output` writes
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub input: PathBuf,
    /// A second folder that relative image paths may be meant from, besides the JSONL file's own [default: none]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dir: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub pixels: OwnPixelOptions,
    /// The logits are divided by this before the log-softmax [default: the row's own `temperature`, else 1]
    #[arg(long, allow_negative_numbers = true, value_name = "FLOAT", help_heading = "Rollout")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Write the rows with their log-probs here [default: standard output]
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub hardware: HardwareOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for ScoreConfig {
    const COMMAND: &'static str = "score";

    fn check(&self) -> Checked {
        self.pixels.check()?;
        if_set("temperature", self.temperature, positive)?;
        self.hardware.check()
    }
}

/// `reward`: rewards of given completions.
#[derive(clap::Args, Serialize, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case")]
#[allow(missing_docs)]
pub struct RewardConfig {
    /// Rewards to compute, as in reward_funcs; those of reward_command besides
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "NAME", help_heading = "Rewards",
          required_unless_present_any = ["list", "reward_command"])]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<String>,
    /// JSONL of completion (a text or messages), solution, other columns, such as generate, eval and grpo write
    #[arg(long, value_name = "FILE", help_heading = "Data", required_unless_present = "list")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<PathBuf>,
    /// Checkpoint whose tokenizer makes the tokens of rows without completion_ids, which then have no end token [default: none]
    #[arg(long, visible_alias = "model_name_or_path", value_name = "DIR|NAME", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Longest completion of the run that the rewards are for
    #[arg(long, default_value = "512", value_name = "TOKENS", help_heading = "Rewards")]
    pub max_completion_length: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub rewards: RewardOptions,
    /// Tell what each built-in reward is, and stop
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Rewards")]
    #[serde(skip)]
    pub list: bool,
    /// Write the rows here [default: standard output]
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub quiet: QuietOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub file: FileOptions,
}

impl Options for RewardConfig {
    const COMMAND: &'static str = "reward";

    fn resolve(&mut self) {
        self.rewards.resolve(self.max_completion_length, &mut self.name);
    }

    fn check(&self) -> Checked {
        at_least("max_completion_length", self.max_completion_length, 1)?;
        self.rewards.check()
    }
}
