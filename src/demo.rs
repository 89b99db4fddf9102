//! The first run: a task, a small model, SFT, GRPO-D, and what came of it, in minutes on a CPU.

pub mod tiny;

use crate::checkpoint::{Identity, SavePlan, replace_file};
use crate::config::{
    DemoConfig, ImportanceSamplingLevel, KlEstimator, LossType, LrSchedulerType, Options, ScaleRewards,
};
use crate::data::{self, Dataset, PromptTemplate, ReadOptions};
use crate::disk::SystemDisk;
use crate::error::{Error, Result};
use crate::kl::{BetaController, BetaSchedule, Othink};
use crate::loss::LossConfig;
use crate::nn::Params;
use crate::optim::{AdamWConfig, LrSchedule};
use crate::processor::ProcessorOptions;
use crate::report::html::{self, Accuracy, RunSummary};
use crate::report::{JsonLines, Progress, Row, read_rows};
use crate::reward::{self, Format, RewardSet};
use crate::rollout::sampler::SamplingParams;
use crate::tasks::{self, Difficulty, Task, TaskOptions, blank_sample, majority_accuracy};
use crate::tensor::Placement;
use crate::train::evaluate::{EvaluationOptions, evaluate};
use crate::train::grpo::{GrpoOptions, GrpoTrainer};
use crate::train::interrupt::Interrupt;
use crate::train::lock::{self, RunLock};
use crate::train::policy::Policy;
use crate::train::run::{self, RunOptions, save_model_checkpoint};
use crate::train::sft::{SftOptions, SftTrainer};
use crate::train::stream::Stream;
use crate::train::trainer::Trainer;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Every number of the demo's runs.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What is to be learned.
    pub task: Task,
    /// How hard it is.
    pub difficulty: Difficulty,
    /// Width and height of the images, pixels.
    pub image_side: u32,
    /// Rows of the training split, validation included.
    pub train_rows: usize,
    /// Held-out rows.
    pub test_rows: usize,
    /// Rows per SFT step.
    pub sft_batch: usize,
    /// Rows per forward and backward pass.
    pub sft_micro_batch: usize,
    /// Peak of SFT.
    pub sft_learning_rate: f64,
    /// The warm-up stops once this share of the validation rows is right: a policy that knows the form and some of
    /// the task, with something left to learn by reinforcement.
    pub sft_target: f64,
    /// SFT ends here at the latest.
    pub sft_max_steps: u64,
    /// Steps between looks at the validation rows.
    pub sft_look_steps: u64,
    /// The last rows of the training split, which SFT does not see.
    pub validation_rows: usize,
    /// Optimiser steps of GRPO-D.
    pub grpo_steps: u64,
    /// Prompts per GRPO step.
    pub prompts_per_step: usize,
    /// Completions per prompt.
    pub group: usize,
    /// Completions per forward and backward pass.
    pub grpo_micro_batch: usize,
    /// Peak of GRPO-D, falling linearly to 0.
    pub grpo_learning_rate: f64,
    /// The KL weight over the run (Eq. 3).
    pub beta: Othink,
    /// Longest completion, tokens.
    pub max_completion_tok: usize,
}

impl Recipe {
    /// Counting shapes: what a model this small learns to see within minutes.
    pub fn counting() -> Recipe {
        Recipe {
            task: Task::Counting,
            difficulty: Difficulty::Easy,
            image_side: 84,
            train_rows: 6000,
            test_rows: 400,
            sft_batch: 32,
            sft_micro_batch: 8,
            sft_learning_rate: 1.5e-3,
            sft_target: 0.5,
            sft_max_steps: 800,
            sft_look_steps: 10,
            validation_rows: 200,
            grpo_steps: 260,
            prompts_per_step: 32,
            group: 8,
            grpo_micro_batch: 64,
            grpo_learning_rate: 2.5e-4,
            beta: Othink { beta_min: 0.0, beta_max: 0.02, exploration_ratio: 0.3 },
            max_completion_tok: 48,
        }
    }
}

/// The last line of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoResult {
    /// Name of the task.
    pub task: String,
    /// Share of the commonest answer among the held-out rows.
    pub accuracy_majority: f64,
    /// The final policy's accuracy on blanked images.
    pub accuracy_blind: f64,
    /// Accuracy of the random checkpoint.
    pub accuracy_start: f64,
    /// Accuracy after SFT.
    pub accuracy_sft: f64,
    /// Accuracy after GRPO-D.
    pub accuracy_grpo: f64,
    /// Optimiser steps of GRPO-D.
    pub steps: u64,
    /// Wall time of everything.
    pub seconds: f64,
}

/// Runs the demo where `placement` says and gives its result; files go to `options.output_dir`.
pub fn run(options: &DemoConfig, recipe: &Recipe, placement: &Placement) -> Result<DemoResult> {
    let start = Instant::now();
    let dir = &options.output_dir;
    let (quiet, seed) = (options.quiet.quiet, options.seed.seed);
    lock::refuse_in_use(dir)?;
    if !options.overwrite_output_dir && lock::is_occupied(dir)? {
        return Err(Error::Usage(format!(
            "--output_dir {} already holds files; name another folder, or add --overwrite_output_dir",
            dir.display()
        )));
    }
    let _held = RunLock::take(&SystemDisk, dir)?;
    lock::clear(&SystemDisk, dir)?;
    replace_file(&SystemDisk, &dir.join("config.toml"), options.to_toml()?.as_bytes())?;
    let data_dir = make_data(recipe, dir, seed, quiet)?;
    let read = |split: &str| {
        data::read(
            &data_dir,
            &ReadOptions {
                split: split.into(),
                template: TEMPLATE,
                need_solution: true,
                ..ReadOptions::default()
            },
        )
    };
    let (train, test) = (read("train")?, read("test")?);
    let taught = train.rows() - recipe.validation_rows;
    let supervised = train.view((0..taught as u32).collect()).supervised();
    let validation = train.view((taught as u32..train.rows() as u32).collect());
    let start_dir = dir.join("checkpoint-start");
    tiny::write(&start_dir, &supervised, recipe.image_side as usize, seed)?;

    let measure = |checkpoint: &Path, samples: &Dataset, name: &str| {
        let policy = load(checkpoint, placement)?;
        accuracy(&policy, &policy.params, samples, recipe, name, quiet)
    };
    // Training starts from the weights in host memory.
    let host = &Placement::HOST;
    let accuracy_start = measure(&start_dir, &test, "evaluate start")?;
    let run = Run { recipe, dir, placement, seed, quiet };
    let (sft_dir, sft_steps) = run.train_sft(load(&start_dir, host)?, &supervised, &validation)?;
    let accuracy_sft = measure(&sft_dir, &test, "evaluate SFT")?;
    let grpo_dir = run.train_grpo(load(&sft_dir, host)?, &train)?;
    let accuracy_grpo = measure(&grpo_dir, &test, "evaluate GRPO-D")?;
    let blanked = test.map(|sample| blank_sample(&sample));
    let accuracy_blind = measure(&grpo_dir, &blanked, "evaluate blind")?;
    let answers = test.answers()?;
    let result = DemoResult {
        task: recipe.task.name().into(),
        accuracy_majority: majority_accuracy(&answers),
        accuracy_blind,
        accuracy_start,
        accuracy_sft,
        accuracy_grpo,
        steps: recipe.grpo_steps,
        seconds: (start.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    };
    write_report(dir, recipe, &load(&grpo_dir, host)?, sft_steps, &result, &options.to_toml()?, seed)?;
    let path = dir.join("result.json");
    let line =
        serde_json::to_string(&result).map_err(|e| Error::Internal(format!("the result as JSON: {e}")))?;
    std::fs::write(&path, line + "\n").map_err(|e| Error::io(&path, "write", e))?;
    Ok(result)
}

/// AdamW for runs of a few hundred steps: with the usual beta2 of 0.999 the large gradients of the first steps, spent on
/// the form of the answers, would slow the rest. Reinforcement has noisier gradients and averages longer.
const SFT_ADAMW: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.0 };
const GRPO_ADAMW: AdamWConfig = AdamWConfig { beta2: 0.99, ..SFT_ADAMW };

/// Said around the questions, in training and evaluation.
const TEMPLATE: PromptTemplate = PromptTemplate::R1v;

fn make_data(recipe: &Recipe, dir: &Path, seed: u64, quiet: bool) -> Result<PathBuf> {
    let data_dir = dir.join("data");
    if data_dir.exists() {
        std::fs::remove_dir_all(&data_dir).map_err(|e| Error::io(&data_dir, "remove the old data", e))?;
    }
    let options = TaskOptions {
        difficulty: recipe.difficulty,
        seed,
        train: recipe.train_rows,
        test: recipe.test_rows,
        image_size: recipe.image_side,
        question_type: None,
    };
    let progress = Progress::start("draw images", (recipe.train_rows + recipe.test_rows) as u64, quiet);
    tasks::write(recipe.task, &options, &data_dir, &|| progress.advance(1))?;
    progress.finish();
    Ok(data_dir)
}

fn load(dir: &Path, placement: &Placement) -> Result<Policy> {
    let path = dir.to_str().ok_or_else(|| Error::Usage(format!("{} is not valid UTF-8", dir.display())))?;
    Policy::load(path, &ProcessorOptions::default(), placement)
}

fn accuracy(
    policy: &Policy,
    params: &Arc<Params>,
    samples: &Dataset,
    recipe: &Recipe,
    label: &str,
    quiet: bool,
) -> Result<f64> {
    let rewards = RewardSet::from_rewards(vec![Box::new(reward::Accuracy)], &[])?;
    let options = EvaluationOptions {
        sampling: SamplingParams {
            greedy: true,
            max_new_tokens: recipe.max_completion_tok,
            ..SamplingParams::default()
        },
        stop_strings: Vec::new(),
        max_prompt_length: None,
        batch_size: 64,
        seed: 0,
    };
    let progress = Progress::start(label, samples.rows() as u64, quiet);
    let watch = |n| {
        progress.advance(n);
        Ok(())
    };
    let means = evaluate(policy, params, samples, &rewards, &options, |_| Ok(()), &watch)?;
    progress.finish();
    Ok(means.reward(0).unwrap_or(0.0))
}

/// What all parts of a demo share.
struct Run<'a> {
    recipe: &'a Recipe,
    dir: &'a Path,
    placement: &'a Placement,
    seed: u64,
    quiet: bool,
}

impl Run<'_> {
    /// Gives the checkpoint's folder and the steps it took.
    fn train_sft(&self, policy: Policy, samples: &Dataset, validation: &Dataset) -> Result<(PathBuf, u64)> {
        let Run { recipe, dir, placement, seed, quiet } = *self;
        let options = SftOptions {
            micro_batch: recipe.sft_micro_batch,
            accumulation: recipe.sft_batch / recipe.sft_micro_batch,
            max_length: policy.model.config().text.max_position_embeddings,
            schedule: LrSchedule {
                scheduler_type: LrSchedulerType::ConstantWithWarmup,
                peak: recipe.sft_learning_rate,
                warmup_steps: 10,
                total_steps: recipe.sft_max_steps,
            },
            max_grad_norm: 1.0,
            recompute: false,
            placement: placement.clone(),
        };
        let plan = SavePlan::like(&policy.folder)?;
        let stream = Stream::new(samples.rows(), seed, true)?;
        let mut trainer = SftTrainer::new(policy, options, SFT_ADAMW, stream)?;
        let mut rows = JsonLines::create(&SystemDisk, dir.join("sft_metrics.jsonl"))?;
        let progress = Progress::start("SFT", recipe.sft_max_steps, quiet);
        let mut steps = 0;
        while steps < recipe.sft_max_steps {
            let report = trainer.step(steps, samples, &|_| Ok(()))?;
            rows.append(&report.row())?;
            steps += 1;
            progress.advance(1);
            if steps.is_multiple_of(recipe.sft_look_steps) {
                let policy = &trainer.policy;
                let right = accuracy(policy, &policy.params, validation, recipe, "look", true)?;
                progress.note(&format!("loss {:.3}, validation accuracy {right:.2}", report.loss));
                if right >= recipe.sft_target {
                    break;
                }
            }
        }
        progress.finish();
        let sft_dir = dir.join("checkpoint-sft");
        save_model_checkpoint(&SystemDisk, &sft_dir, trainer.weights()?, &plan)?;
        Ok((sft_dir, steps))
    }

    fn train_grpo(&self, policy: Policy, samples: &Dataset) -> Result<PathBuf> {
        let Run { recipe, dir, placement, seed, quiet } = *self;
        let sampling =
            SamplingParams { max_new_tokens: recipe.max_completion_tok, ..SamplingParams::default() };
        let decoding = policy.decoding(sampling, &[], true)?;
        let rewards = RewardSet::from_rewards(vec![Box::new(reward::Accuracy), Box::new(Format)], &[])?;
        let completions = recipe.prompts_per_step * recipe.group;
        let options = GrpoOptions {
            num_generations: recipe.group,
            micro_batch: recipe.grpo_micro_batch,
            accumulation: completions / recipe.grpo_micro_batch,
            num_iterations: 1,
            scale_rewards: ScaleRewards::Group,
            loss: LossConfig {
                loss_type: LossType::Grpo,
                importance_sampling_level: ImportanceSamplingLevel::Token,
                epsilon: 0.2,
                epsilon_high: 0.2,
                delta: None,
                kl_estimator: KlEstimator::K3,
                beta: 0.0,
                max_completion_length: recipe.max_completion_tok,
            },
            mask_truncated: false,
            max_resample_times: None,
            log_exact_kl: false,
            reference_sync: None,
            prompt_limit: policy.prompt_limit(None, recipe.max_completion_tok)?,
            schedule: LrSchedule {
                scheduler_type: LrSchedulerType::Linear,
                peak: recipe.grpo_learning_rate,
                warmup_steps: 0,
                total_steps: recipe.grpo_steps,
            },
            max_grad_norm: 1.0,
            recompute: false,
            placement: placement.clone(),
            seed,
        };
        let stream = Stream::new(samples.rows(), seed, true)?;
        let beta = BetaController::new(BetaSchedule::Othink(recipe.beta), recipe.grpo_steps)?;
        let mut trainer = GrpoTrainer::new(policy, options, decoding, rewards, beta, GRPO_ADAMW, stream)?;
        let identity = Identity {
            command: "grpo".into(),
            options: Row::new(),
            model_hash: String::new(),
            dataset_hash: String::new(),
            max_steps: recipe.grpo_steps,
        };
        let saved = run::run(&mut trainer, samples, &run_options(dir, quiet), identity, None, None)?;
        rename(&saved, &dir.join("checkpoint-grpo"))
    }
}

fn run_options(dir: &Path, quiet: bool) -> RunOptions {
    RunOptions {
        dir: dir.to_path_buf(),
        disk: Arc::new(SystemDisk),
        interrupt: Interrupt::default(),
        save_steps: 0,
        save_total_limit: None,
        save_only_model: true,
        metric_for_best_model: String::new(),
        logging_steps: 0,
        logging_first_step: false,
        events: None,
        log_completions: true,
        print_completions: 0,
        quiet,
    }
}

fn rename(from: &Path, to: &Path) -> Result<PathBuf> {
    if to.exists() {
        std::fs::remove_dir_all(to).map_err(|e| Error::io(to, "remove the old checkpoint", e))?;
    }
    std::fs::rename(from, to).map_err(|e| Error::io(to, "rename the checkpoint", e))?;
    Ok(to.to_path_buf())
}

fn write_report(
    dir: &Path,
    recipe: &Recipe,
    policy: &Policy,
    sft_steps: u64,
    result: &DemoResult,
    config: &str,
    seed: u64,
) -> Result<()> {
    let accuracy =
        |name: &str, accuracy: f64, note: &str| Accuracy { name: name.into(), accuracy, note: note.into() };
    let fact = |name: &str, value: String| (name.to_string(), value);
    let summary = RunSummary {
        title: format!("othink-train demo: {}", result.task),
        facts: vec![
            fact(
                "task",
                format!("{} ({}), {} px", recipe.task.name(), recipe.difficulty.name(), recipe.image_side),
            ),
            fact("held-out images", recipe.test_rows.to_string()),
            fact("parameters", policy.params.count().0.to_string()),
            fact("SFT", format!("{sft_steps} steps of {} rows", recipe.sft_batch)),
            fact(
                "GRPO-D",
                format!(
                    "{} steps of {} prompts x {} completions",
                    recipe.grpo_steps, recipe.prompts_per_step, recipe.group
                ),
            ),
            fact("seed", seed.to_string()),
            fact("seconds", result.seconds.to_string()),
        ],
        accuracies: vec![
            accuracy("majority", result.accuracy_majority, "always the commonest answer"),
            accuracy("blind", result.accuracy_blind, "the final policy on blank images"),
            accuracy("start", result.accuracy_start, "random weights"),
            accuracy("SFT", result.accuracy_sft, "after supervised warm-up"),
            accuracy("GRPO-D", result.accuracy_grpo, "after reinforcement learning"),
        ],
        sft: read_rows(dir.join("sft_metrics.jsonl"))?,
        grpo: read_rows(dir.join("metrics.jsonl"))?,
        evaluations: Vec::new(),
        completions: html::sample_completions(dir.join("completions.jsonl"), 3)?,
        config: config.to_string(),
    };
    html::write(dir.join("report.html"), &summary)
}
