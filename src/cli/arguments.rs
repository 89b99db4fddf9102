//! From the words of the command line, and a config file where one is named, to the options of a command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::explain::explain;
use crate::config::file::{ConfigFile, KnownOption};
use crate::config::names::{normalise, option_name};
use crate::config::{
    CheckDataConfig, DemoConfig, DoctorConfig, EvalConfig, GenerateConfig, GrpoConfig, InspectConfig,
    InspectDataConfig, MakeTaskConfig, Options, ParityConfig, ReproduceConfig, RewardConfig, ScoreConfig,
    SftConfig,
};
use crate::error::{Error, Result};

pub(super) const PROGRAM: &str = "othink-train";

/// Trains Qwen2-VL-family models with GRPO and the dynamic KL weight of OThink-MR1 (GRPO-D).
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    about = "Trains Qwen2-VL-family models with GRPO and the dynamic KL weight of OThink-MR1 (GRPO-D)",
    after_help = "Start here:\n  \
        othink-train demo                             a whole run in minutes\n  \
        othink-train grpo --model DIR --dataset DIR   the paper's recipe on yours\n  \
        othink-train grpo --help                      every option and default\n  \
        ... --resume_from_checkpoint                  goes on where a run stopped\n\n\
        Option names take _ and - alike. Exit codes: 0 done, 1 bug, 2 usage or\n\
        config, 65 bad model or data, 66 input missing, 69 no such device,\n\
        folder in use or a reward command that fails, 70 stopped to protect the\n\
        run, 71 out of memory, 74 I/O error, 75 stopped by a signal and saved.",

    disable_help_subcommand = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// A command with its options.
#[derive(Subcommand, Clone, Debug, PartialEq)]
pub enum Command {
    /// A whole run on a synthetic task with a small model: SFT, then GRPO-D, accuracy before and after
    #[command(after_help = "Examples:\n  \
        othink-train demo\n  \
        othink-train demo --output_dir runs/seed7 --seed 7\n  \
        othink-train demo --output_dir runs/second --threads 2")]
    Demo(Box<DemoConfig>),

    /// Train with GRPO and dynamic KL; the defaults are the paper's recipe
    #[command(after_help = "Examples:\n  \
        othink-train grpo --model Qwen/Qwen2-VL-2B-Instruct --dataset data/clevr\n  \
        othink-train grpo --model DIR --dataset data/geoqa --beta_min 0 --beta_max 0.02 --max_samples 100\n  \
        othink-train grpo --config runs/grpo/config.toml --learning_rate 5e-7 --output_dir runs/again")]
    Grpo(Box<GrpoConfig>),

    /// Fine-tune on the dataset's answers (cross-entropy on the completion)
    #[command(after_help = "Examples:\n  \
        othink-train sft --model Qwen/Qwen2-VL-2B-Instruct --dataset data/clevr\n  \
        othink-train sft --model DIR --dataset train.jsonl --max_steps 200 --output_dir runs/warm\n  \
        othink-train sft --config sft.toml --dry_run")]
    Sft(Box<SftConfig>),

    /// Measure a checkpoint's accuracy on a dataset
    #[command(after_help = "Examples:\n  \
        othink-train eval --model runs/grpo/checkpoint-100 --dataset data/clevr/test.jsonl\n  \
        othink-train eval --model DIR --dataset test.jsonl --blank_images\n  \
        othink-train eval --model DIR --dataset test.jsonl --output answers.jsonl")]
    Eval(Box<EvalConfig>),

    /// Complete a prompt with images, with the checkpoint's own generation settings
    #[command(after_help = "Examples:\n  \
        othink-train generate --model DIR --image photo.jpg --prompt \"How many cups are there?\"\n  \
        othink-train generate --model DIR --dataset test.jsonl --prompt_template r1v --output out.jsonl\n  \
        othink-train generate --model DIR --prompt Hello --do_sample --temperature 0.7 --num_generations 4")]
    Generate(Box<GenerateConfig>),

    /// Compare every number of the model with a reference recorded from transformers
    #[command(after_help = "Examples:\n  \
        othink-train parity --model tests/bundles/qwen2_vl_a\n  \
        othink-train parity --model DIR --bundle BUNDLE --device cuda\n  \
        othink-train parity --model DIR --dump ours.safetensors")]
    Parity(Box<ParityConfig>),

    /// Per-token log-probs of given completions, from the training forward
    #[command(after_help = "Examples:\n  \
        othink-train score --model DIR --input completions.jsonl\n  \
        othink-train score --model DIR --input completions.jsonl --output scored.jsonl\n  \
        othink-train score --model DIR --input completions.jsonl --temperature 0.7")]
    Score(Box<ScoreConfig>),

    /// Rewards of given completions, built in or computed by a process of yours
    #[command(after_help = "Examples:\n  \
        othink-train reward --list\n  \
        othink-train reward --name accuracy format --input completions.jsonl\n  \
        othink-train reward --reward_command \"mine=python3 my_reward.py\" --input cases.jsonl --output scores.jsonl")]
    Reward(Box<RewardConfig>),
    /// The paper's comparison: SFT, GRPO and GRPO-D from one start over several seeds, with table and curves
    #[command(after_help = "Examples:\n  \
        othink-train reproduce --quick\n  \
        othink-train reproduce\n  \
        othink-train reproduce --recipe paper --dry_run")]
    Reproduce(Box<ReproduceConfig>),

    /// Write a synthetic dataset with images
    #[command(subcommand)]
    Tasks(TasksCommand),

    /// Look at a dataset before training on it
    #[command(subcommand)]
    Data(DataCommand),

    /// Show what a checkpoint or run folder holds
    #[command(after_help = "Examples:\n  \
        othink-train inspect runs/grpo\n  \
        othink-train inspect Qwen/Qwen2-VL-2B-Instruct\n  \
        othink-train inspect DIR --tensors")]
    Inspect(Box<InspectConfig>),

    /// Tell what of CPU, GPU, driver and kernels was found, and what is missing
    #[command(after_help = "Examples:\n  \
        othink-train doctor\n  \
        othink-train doctor --device cuda && othink-train parity --model DIR --device cuda\n  \
        CUDA_VISIBLE_DEVICES=1 othink-train doctor")]
    Doctor(Box<DoctorConfig>),
}

/// What can be done with a dataset.
#[derive(Subcommand, Clone, Debug, PartialEq)]
pub enum DataCommand {
    /// Show splits, columns, image sizes and tokens, and the first rows as the model will see them
    #[command(after_help = "Examples:\n  \
        othink-train data inspect data/clevr\n  \
        othink-train data inspect org/name@test --model Qwen/Qwen2-VL-2B-Instruct\n  \
        othink-train data inspect train.parquet --num_rows 5 --prompt_template none")]
    Inspect(Box<InspectDataConfig>),
    /// Read every row, decode every image, and list each bad row with its reason; exit code 65 if there is any
    #[command(after_help = "Examples:\n  \
        othink-train data check data/clevr\n  \
        othink-train data check data/clevr@test --need_solution\n  \
        othink-train data check a.jsonl b.parquet --output bad.jsonl")]
    Check(Box<CheckDataConfig>),
}

/// What can be done with synthetic tasks.
#[derive(Subcommand, Clone, Debug, PartialEq)]
pub enum TasksCommand {
    /// Make a dataset
    #[command(subcommand)]
    Make(MakeCommand),
}

/// The synthetic tasks.
#[derive(Subcommand, Clone, Debug, PartialEq)]
pub enum MakeCommand {
    /// Coloured shapes: how many of a kind are there?
    #[command(after_help = "Examples:\n  \
        othink-train tasks make counting --output_dir data/counting\n  \
        othink-train tasks make counting --output_dir data/hard --difficulty hard --seed 1\n  \
        othink-train tasks make counting --output_dir data/small --num_train 100 --num_test 50")]
    Counting(Box<MakeTaskConfig>),
    /// A drawn figure with labels: find an angle, a length or an area
    #[command(after_help = "Examples:\n  \
        othink-train tasks make geometry --output_dir data/geometry\n  \
        othink-train tasks make geometry --output_dir data/hard --difficulty hard --seed 1\n  \
        othink-train tasks make geometry --output_dir data/small --num_train 100 --num_test 50")]
    Geometry(Box<MakeTaskConfig>),
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Run this command.
    Run(Command),
    /// Show this text on standard output (`--help`, `--version`).
    Show(String),
}

/// Parses, resolves and checks; `arguments` starts with the program's name.
///
/// The entries of a `--config` file are put before the command line's own options, which replace them.
///
/// # Errors
/// [`Error::Usage`] naming the option, the value that came and what is allowed, and the config file's line where the
/// value stands; [`Error::Missing`] or [`Error::Io`] when the config file cannot be read.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request> {
    let mut arguments = normalise(arguments.into_iter().collect());
    let top = command_line();
    let (command, depth) = selected(&top, &arguments);
    let known = known_options(command);
    let file = match config_path(&arguments[depth..]) {
        Some(path) if command.get_arguments().any(|arg| arg.get_id() == "config") => {
            Some(ConfigFile::read(&path, &known)?)
        }
        _ => None,
    };
    if let Some(file) = &file {
        let given: Vec<&str> =
            arguments[depth..].iter().filter_map(|word| option_name(word.to_str()?)).collect();
        let overridden = |option: &str| {
            let option = known.iter().find(|known| known.name == option);
            option.is_some_and(|option| given.iter().any(|name| option.answers_to(name)))
        };
        let added: Vec<OsString> = file
            .entries
            .iter()
            .filter(|entry| !overridden(&entry.option))
            .flat_map(|entry| entry.arguments.iter().cloned())
            .collect();
        arguments.splice(depth..depth, added);
    }
    let words = command_words(&arguments, depth);
    let parsed = command_line()
        .try_get_matches_from(&arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    match parsed {
        Ok(mut line) => {
            line.command.resolve_and_check(file.as_ref())?;
            Ok(Request::Run(line.command))
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelp || error.kind() == ErrorKind::DisplayVersion => {
            Ok(Request::Show(error.render().to_string()))
        }
        Err(error) => Err(Error::Usage(explain(&error, &top, command, &words, file.as_ref()))),
    }
}

/// The command line's grammar. A value may begin with a minus sign whatever its type, so that the error names the option.
fn command_line() -> clap::Command {
    fn take_negative(command: clap::Command) -> clap::Command {
        let takes = |arg: clap::Arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        command.mut_args(takes).mut_subcommands(take_negative)
    }
    take_negative(CommandLine::command())
}

impl Command {
    fn resolve_and_check(&mut self, file: Option<&ConfigFile>) -> Result<()> {
        match self {
            Command::Demo(options) => settle(options.as_mut(), file),
            Command::Grpo(options) => settle(options.as_mut(), file),
            Command::Sft(options) => settle(options.as_mut(), file),
            Command::Eval(options) => settle(options.as_mut(), file),
            Command::Generate(options) => settle(options.as_mut(), file),
            Command::Parity(options) => settle(options.as_mut(), file),
            Command::Score(options) => settle(options.as_mut(), file),
            Command::Reward(options) => settle(options.as_mut(), file),
            Command::Tasks(TasksCommand::Make(
                MakeCommand::Counting(options) | MakeCommand::Geometry(options),
            )) => settle(options.as_mut(), file),
            Command::Reproduce(options) => settle(options.as_mut(), file),
            Command::Data(DataCommand::Inspect(options)) => settle(options.as_mut(), file),
            Command::Data(DataCommand::Check(options)) => settle(options.as_mut(), file),
            Command::Inspect(options) => settle(options.as_mut(), file),
            Command::Doctor(options) => settle(options.as_mut(), file),
        }
    }
}

fn settle(options: &mut impl Options, file: Option<&ConfigFile>) -> Result<()> {
    options.resolve();
    options.check().map_err(|violation| {
        let origin = file.and_then(|file| file.origin(violation.option));
        match (origin, Error::from(violation)) {
            (Some(origin), Error::Usage(message)) => Error::Usage(format!("{origin}: {message}")),
            (_, error) => error,
        }
    })
}

/// The command that the leading words select, and the number of words up to it, the program's name included.
fn selected<'a>(top: &'a clap::Command, arguments: &[OsString]) -> (&'a clap::Command, usize) {
    let mut command = top;
    let mut depth = arguments.len().min(1);
    while let Some(next) = arguments.get(depth).and_then(|word| command.find_subcommand(word)) {
        command = next;
        depth += 1;
    }
    (command, depth)
}

fn command_words(arguments: &[OsString], depth: usize) -> String {
    let words = arguments[..depth].iter().skip(1).map(|word| word.to_string_lossy());
    std::iter::once(PROGRAM.into()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Every long option of a command that a config file may hold.
pub(super) fn known_options(command: &clap::Command) -> Vec<KnownOption> {
    command
        .get_arguments()
        .filter(|arg| arg.get_id() != "config")
        .filter_map(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            Some(KnownOption {
                name: arg.get_long()?.to_owned(),
                aliases: aliases.into_iter().map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// The value of the last `--config`.
fn config_path(options: &[OsString]) -> Option<PathBuf> {
    let mut path = None;
    for (index, word) in options.iter().enumerate() {
        if word == "--" {
            break;
        }
        if word == "--config" {
            path = options.get(index + 1).map(PathBuf::from);
        } else if let Some(value) = word.to_str().and_then(|word| word.strip_prefix("--config=")) {
            path = Some(PathBuf::from(value));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BetaScheduleType, DeviceChoice, KlEstimator, LossType, LrSchedulerType};

    fn request(words: &[&str]) -> Result<Request> {
        parse(std::iter::once("othink-train").chain(words.iter().copied()).map(OsString::from))
    }

    fn grpo(options: &[&str]) -> GrpoConfig {
        let words: Vec<&str> =
            ["grpo", "--model", "m", "--dataset", "d"].iter().chain(options).copied().collect();
        match request(&words) {
            Ok(Request::Run(Command::Grpo(config))) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn grpo_error(options: &[&str]) -> String {
        let words: Vec<&str> =
            ["grpo", "--model", "m", "--dataset", "d"].iter().chain(options).copied().collect();
        let error = request(&words).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn every_definition_is_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn grpo_without_options_is_the_papers_recipe() {
        let config = grpo(&[]);
        assert_eq!(config.optimiser.learning_rate, 1e-6);
        assert_eq!(config.optimiser.lr_scheduler_type, LrSchedulerType::Linear);
        assert_eq!(config.optimiser.max_grad_norm, 1.0);
        assert_eq!(config.optimiser.weight_decay, 0.0);
        assert_eq!(config.optimiser.num_train_epochs, 2.0);
        assert_eq!((config.optimiser.warmup_ratio, config.optimiser.warmup_steps), (0.0, 0));
        assert_eq!(
            (config.optimiser.adam_beta1, config.optimiser.adam_beta2, config.optimiser.adam_epsilon),
            (0.9, 0.999, 1e-8)
        );
        assert_eq!(config.prompts_per_step(), 16);
        assert_eq!(config.group.num_generations, 8);
        assert_eq!(config.group.loss_type, LossType::Grpo);
        assert_eq!(config.group.reward_funcs, ["accuracy", "format"]);
        assert_eq!(config.group.weights(), [1.0, 1.0]);
        assert_eq!((config.group.epsilon, config.group.epsilon_high()), (0.2, 0.2));
        assert_eq!(config.group.num_iterations, 1);
        assert_eq!(config.kl.schedule(), BetaScheduleType::Othink);
        assert_eq!(
            (config.kl.beta_min, config.kl.beta_max, config.kl.beta_exploration_ratio),
            (0.04, 0.1, 0.3)
        );
        assert_eq!(config.kl.estimator(), KlEstimator::K3);
        assert_eq!((config.rollout.max_completion_length, config.rollout.temperature), (512, 1.0));
        assert_eq!((config.data.pixels.min_pixels, config.data.pixels.max_pixels), (3136, 401408));
        assert_eq!(config.data.prompt_template, "r1v");
        assert_eq!(config.seed.seed, 42);
        assert_eq!(config.hardware.device, DeviceChoice::Auto);
    }

    #[test]
    fn sft_and_eval_have_their_own_defaults() {
        let Ok(Request::Run(Command::Sft(sft))) = request(&["sft", "--model", "m", "--dataset", "d"]) else {
            panic!("sft did not parse")
        };
        assert_eq!(sft.optimiser.learning_rate, 2e-5);
        assert_eq!(sft.optimiser.lr_scheduler_type, LrSchedulerType::Cosine);
        assert_eq!(sft.optimiser.warmup_ratio, 0.1);
        assert_eq!(sft.optimiser.sequences_per_step(), 16);
        assert_eq!(sft.checkpoint.output_dir, PathBuf::from("runs/sft"));
        let Ok(Request::Run(Command::Eval(eval))) = request(&["eval", "--model", "m", "--dataset", "d"])
        else {
            panic!("eval did not parse")
        };
        assert_eq!(eval.rollout.temperature, 0.0);
        assert_eq!((sft.data.dataset_split.as_str(), eval.data.dataset_split.as_str()), ("train", "test"));
    }

    #[test]
    fn booleans_take_every_huggingface_form() {
        let value = |words: &[&str]| grpo(words).optimiser.gradient_checkpointing;
        assert!(
            value(&[]) && value(&["--gradient_checkpointing"]) && value(&["--gradient-checkpointing=True"])
        );
        assert!(!value(&["--gradient_checkpointing", "false"]) && !value(&["--gradient_checkpointing=0"]));
        assert!(grpo(&["--freeze_vision_modules", "--seed", "1"]).optimiser.freeze_vision_modules);
    }

    #[test]
    fn lists_take_spaces_and_commas() {
        assert_eq!(grpo(&["--reward_funcs", "format", "--seed=1"]).group.reward_funcs, ["format"]);
        let config = grpo(&["--reward_funcs", "a,b", "--reward_weights", "1", "-0.5"]);
        assert_eq!(
            (config.group.reward_funcs, config.group.reward_weights),
            (vec!["a".into(), "b".into()], vec![1.0, -0.5])
        );
    }

    #[test]
    fn beta_alone_is_the_constant_schedule() {
        let kl = grpo(&["--beta", "0.01"]).kl;
        assert_eq!((kl.schedule(), kl.beta()), (BetaScheduleType::Constant, 0.01));
        assert!(!grpo(&["--beta", "0"]).kl.needs_reference());
        let linear = grpo(&["--beta_schedule", "linear", "--beta_end", "0"]).kl;
        assert_eq!((linear.beta_start(), linear.beta_end()), (0.04, 0.0));
        assert!(linear.needs_reference());
        assert!(grpo_error(&["--beta_end", "0"]).starts_with("--beta_end is 0, but only"));
        assert!(grpo(&["--beta_min", "0", "--beta_max", "0.02"]).kl.needs_reference());
        assert!(
            grpo_error(&["--beta", "0.01", "--beta_schedule", "othink"]).starts_with("--beta is 0.01, but")
        );
        assert_eq!(grpo(&["--use_bias_correction_kl"]).kl.estimator(), KlEstimator::K3Unbiased);
        assert!(grpo_error(&["--use_bias_correction_kl", "--kl_estimator=k2"]).contains("another estimator"));
    }

    #[test]
    fn case_78_ranges_are_refused_with_option_value_and_range() {
        for (words, message) in [
            (
                &["--learning_rate=nan"][..],
                "--learning_rate is NaN, but must be a finite number of at least 0",
            ),
            (&["--learning_rate", "-1"], "--learning_rate is -1, but must be a finite number of at least 0"),
            (&["--beta", "-0.1"], "--beta is -0.1, but must be a finite number of at least 0"),
            (&["--epsilon", "1.5"], "--epsilon is 1.5, but must be above 0 and at most 1"),
            (&["--beta_min", "0.2"], "--beta_min is 0.2, but must not exceed --beta_max, which is 0.1"),
            (
                &["--temperature", "0"],
                "--temperature is 0, but must be a number above 0 that 32 bits can hold",
            ),
            (
                &["--temperature", "1e39"],
                &format!("--temperature is {}, but must be a number above 0 that 32 bits can hold", 1e39),
            ),
            (&["--num_iterations", "0"], "--num_iterations is 0, but must be from 1 to 1000"),
            (&["--num_train_epochs", "1e7"], "--num_train_epochs is 10000000, but must be at most 1000000"),
            (&["--max_steps", "0"], "--max_steps is 0, but must be from 1 to 4294967295, or -1 for none"),
            (&["--min_pixels", "99999999"], "--min_pixels is 99999999, but must be from 1 to 67108864"),
            (
                &["--reward_weights", "1", "-2e6"],
                "--reward_weights holds -2000000, but a weight must be from -1000000 to 1000000",
            ),
            (
                &["--max_pixels", "100"],
                "--max_pixels is 100, but must be at least --min_pixels, which is 3136",
            ),
        ] {
            assert_eq!(grpo_error(words), message);
        }
        assert!(grpo_error(&["--num_generations", "1"]).contains("needs at least 2"));
        let batch = grpo_error(&["--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "1"]);
        assert!(
            batch.contains("makes 3 completions a step, which must be a multiple of --num_generations 8"),
            "{batch}"
        );
    }

    #[test]
    fn case_78_mistakes_get_one_line_with_the_nearest_name() {
        assert_eq!(
            grpo_error(&["--learnin-rate", "1"]),
            "unknown option --learnin_rate; did you mean --learning_rate? (see `othink-train grpo --help`)"
        );
        assert_eq!(
            grpo_error(&["--bf16", "true"]),
            "unknown option --bf16: --dtype names the type that the model computes in (see `othink-train grpo --help`)"
        );
        assert!(grpo_error(&["--bundle", "x"]).contains("`othink-train parity` has it"));
        assert_eq!(
            grpo_error(&["--loss_type", "gpro"]),
            "--loss_type is 'gpro', but must be one of grpo, dapo, bnpo, dr_grpo; did you mean grpo?"
        );
        assert!(
            grpo_error(&["--learning_rate", "fast"]).starts_with("--learning_rate is 'fast': invalid float")
        );
        assert!(grpo_error(&["--learning_rate"]).starts_with("--learning_rate needs a value"));
        assert!(grpo_error(&["--seed", "1", "--seed", "2"]).starts_with("--seed is given more than once"));
        let error = request(&["grop"]).unwrap_err().to_string();
        assert!(error.starts_with("unknown command 'grop'; did you mean `grpo`?"), "{error}");
        let error = request(&["grpo", "--dataset", "d"]).unwrap_err().to_string();
        assert!(error.starts_with("required: --model"), "{error}");
    }

    #[test]
    fn resolved_config_reads_back_to_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let options = [
            "--beta-schedule=adaptive",
            "--reward_weights",
            "1",
            "0.5",
            "--stop_strings",
            "</answer>",
            "--device",
            "cuda:1",
            "--learning_rate=3e-7",
            "--max_steps",
            "7",
            "--use_bias_correction_kl",
        ];
        let mut first = grpo(&options);
        std::fs::write(&path, first.to_toml().unwrap()).unwrap();
        let config = format!("--config={}", path.display());
        let Ok(Request::Run(Command::Grpo(mut second))) = request(&["grpo", &config]) else {
            panic!("no read-back")
        };
        // The estimator that the alias means is saved under its own name; the file's path is no part of the run.
        first.kl.use_bias_correction_kl = false;
        second.file.config = None;
        assert_eq!(first, *second);
    }

    #[test]
    fn command_line_overrides_the_config_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, "seed = 1\nlearning-rate = 1e-4\nreward_funcs = ['format']\nepsilon = 3\n")
            .unwrap();
        let config = path.to_str().unwrap();
        let parsed = grpo(&["--config", config, "--seed", "2", "--reward_funcs=accuracy", "--epsilon=0.1"]);
        assert_eq!(parsed.seed.seed, 2);
        assert_eq!(parsed.optimiser.learning_rate, 1e-4);
        assert_eq!(parsed.group.reward_funcs, ["accuracy"]);
        let error = grpo_error(&["--config", config]);
        assert_eq!(error, format!("{config}:4: --epsilon is 3, but must be above 0 and at most 1"));
        std::fs::write(&path, "loss_type = 'x'").unwrap();
        assert!(
            grpo_error(&["--config", config]).starts_with(&format!("{config}:1: --loss_type is 'x', but"))
        );
        let error = request(&["grpo", "--config", "nowhere.toml"]).unwrap_err();
        assert_eq!(error.exit_code(), 66);
    }
}
