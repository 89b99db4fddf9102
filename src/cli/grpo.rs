//! `othink-train grpo`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{inputs, training};
use crate::checkpoint::Identity;
use crate::config::{BetaScheduleType, GrpoConfig, KlEstimator, KlOptions, Options, RolloutOptions};
use crate::data::{Dataset, ImageSource, ReadOptions};
use crate::disk::SystemDisk;
use crate::error::Result;
use crate::kl::{Adaptive, BetaController, BetaSchedule, Constant, Cosine, Linear, Othink};
use crate::loss::LossConfig;
use crate::processor::check_images;
use crate::report::html::{RunSummary, sample_completions};
use crate::report::{CompletionRecord, read_rows};
use crate::reward::RewardSet;
use crate::rollout::Limits;
use crate::rollout::sampler::SamplingParams;
use crate::tensor::Placement;
use crate::train::evaluate::EvaluationOptions;
use crate::train::folder::{RunFolder, refuse_occupied};
use crate::train::grpo::{GrpoOptions, GrpoTrainer, ReferenceSync};
use crate::train::interrupt::Interrupt;
use crate::train::plan::{TrainingShape, memory_plan};
use crate::train::policy::{Policy, prompt_limit};
use crate::train::resume::{dataset_hash, identity_options, model_hash};
use crate::train::run::{COMPLETIONS, Evaluation, METRICS, RunOptions, run};
use crate::train::stream::{Stream, epoch_steps, total_steps};

/// Groups whose completions are shown in the report, for each of three steps.
const REPORTED_GROUPS: usize = 3;

/// Runs the command; with `--dry_run` only prints what it would run with.
pub fn train(options: &GrpoConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    training::check(&placement)?;
    if options.dry_run.dry_run {
        let rewards = rewards(options)?;
        training::check_metric(&options.completions.metric_for_best_model, &Evaluation::keys(&rewards))?;
        let read = inputs::read_options(&options.data, rewards.needs_solution())?;
        let samples = inputs::read_rows(&options.data, &read, options.logging.quiet.quiet)?.prompts();
        let held_out =
            evaluation(options, &read, &rewards)?.map_or(0, |evaluation| evaluation.samples.rows());
        return dry_run(options, &samples, held_out, &placement);
    }
    let saved = train_until_done(options, &placement, &Interrupt::by_signals()?)?;
    training::finish(&options.checkpoint.output_dir, &saved)
}

/// Trains where `placement` says until the last step, and writes the report. Gives the last checkpoint.
pub(super) fn train_until_done(
    options: &GrpoConfig,
    placement: &Placement,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let start = Instant::now();
    let quiet = options.logging.quiet.quiet;
    let rewards = rewards(options)?;
    training::check_metric(&options.completions.metric_for_best_model, &Evaluation::keys(&rewards))?;
    let read = inputs::read_options(&options.data, rewards.needs_solution())?;
    let dir = &options.checkpoint.output_dir;
    refuse_occupied(&options.checkpoint)?;
    let samples = inputs::read_rows(&options.data, &read, quiet)?.prompts();
    rewards.start(&|_| interrupt.check())?;
    let mut evaluation = evaluation(options, &read, &rewards)?;
    let policy = training::load(
        &options.model,
        inputs::given(options.data.pixels),
        &options.optimiser,
        options.kl.needs_reference(),
        placement,
        quiet,
    )?;
    let limit =
        policy.prompt_limit(options.rollout.max_prompt_length, options.rollout.max_completion_length)?;
    interrupt.check()?;
    let fit = training::Fit { limit, supervised: false, overlong: options.order.overlong, interrupt };
    let samples = fit.keep(&policy.processor, samples, quiet)?;
    if let Some(evaluation) = &mut evaluation {
        // Found now and not in the middle of the run.
        evaluation.samples = fit.keep(&policy.processor, evaluation.samples.clone(), quiet)?;
        evaluation.samples.each(|_, sample| check_images(&sample?), |_, check| check)?;
    }
    let stream = training::stream(&samples, &options.order, options.seed.seed)?;
    let steps = steps(options, stream.rows());
    let epoch = epoch_steps(stream.rows(), options.prompts_per_step(), options.group.num_iterations);
    if let Some(evaluation) = &mut evaluation {
        evaluation.every = options.evaluation.every(epoch);
    }
    let identity = Identity {
        command: GrpoConfig::COMMAND.into(),
        options: identity_options(options, placement)?,
        model_hash: model_hash(&policy, options.model.chat_template.as_deref())?,
        dataset_hash: dataset_hash(&samples)?,
        max_steps: steps,
    };
    let mut trainer = trainer(options, placement, policy, rewards, limit, stream, steps)?;
    trainer.read_ahead(options.order.dataloader_num_workers);
    let folder = RunFolder::take(Arc::new(SystemDisk), &options.checkpoint, quiet)?;
    let resumed = folder.begin(&identity, &mut trainer, &samples, &options.to_toml()?)?;
    let run_options = RunOptions {
        log_completions: options.completions.log_completions,
        print_completions: options.completions.num_completions_to_print,
        metric_for_best_model: options.completions.metric_for_best_model.clone(),
        ..training::run_options(
            &folder,
            &options.checkpoint,
            &options.logging,
            interrupt,
            options.to_toml()?,
            epoch,
        )
    };
    let saved = run(&mut trainer, &samples, &run_options, identity, resumed, evaluation.as_ref())?;
    let summary = RunSummary {
        title: format!("othink-train grpo: {}", options.model.model),
        facts: facts(options, &trainer, samples.rows(), steps, start),
        grpo: read_rows(dir.join(METRICS))?,
        evaluations: training::evaluations(dir, evaluation.is_some())?,
        completions: match run_options.log_completions {
            true => shown(options, dir, &samples)?,
            false => Vec::new(),
        },
        config: options.to_toml()?,
        ..RunSummary::default()
    };
    training::write_report(dir, &summary)?;
    Ok(saved)
}

/// The rewards that the options name.
fn rewards(options: &GrpoConfig) -> Result<RewardSet> {
    let (names, weights) = (&options.group.reward_funcs, options.group.weights());
    RewardSet::new(names, &weights, &options.rewards, &inputs::notes(options.logging.quiet.quiet))
}

/// The completions of the report, with the images of their rows.
fn shown(options: &GrpoConfig, dir: &Path, samples: &Dataset) -> Result<Vec<CompletionRecord>> {
    let mut stream = training::stream(samples, &options.order, options.seed.seed)?;
    let mut records = sample_completions(dir.join(COMPLETIONS), REPORTED_GROUPS)?;
    let mut group: Option<(usize, Vec<ImageSource>)> = None;
    for record in &mut records {
        let place = record.prompt_index;
        let pictures = match group.take().filter(|(of, _)| *of == place) {
            Some((_, pictures)) => pictures,
            // Of rows that have changed since, what is named is shown.
            None => samples.sample(stream.row(place as u64)).map(|row| row.images).unwrap_or_default(),
        };
        record.pictures = pictures.clone();
        group = Some((place, pictures));
    }
    Ok(records)
}

fn steps(options: &GrpoConfig, rows: usize) -> u64 {
    let optimiser = &options.optimiser;
    let (prompts, updates) = (options.prompts_per_step(), options.group.num_iterations);
    total_steps(optimiser.max_steps(), optimiser.num_train_epochs, rows, prompts, updates)
}

fn trainer(
    options: &GrpoConfig,
    placement: &Placement,
    policy: Policy,
    rewards: RewardSet,
    prompt_limit: usize,
    stream: Stream,
    steps: u64,
) -> Result<GrpoTrainer> {
    let (group, optimiser) = (&options.group, &options.optimiser);
    let trainer_options = GrpoOptions {
        num_generations: group.num_generations,
        micro_batch: optimiser.per_device_train_batch_size,
        accumulation: optimiser.gradient_accumulation_steps,
        num_iterations: group.num_iterations,
        scale_rewards: group.scale_rewards,
        loss: LossConfig {
            loss_type: group.loss_type,
            importance_sampling_level: group.importance_sampling_level,
            epsilon: group.epsilon,
            epsilon_high: group.epsilon_high(),
            delta: group.delta,
            kl_estimator: options.kl.estimator(),
            // Set at every step by the controller.
            beta: 0.0,
            max_completion_length: options.rollout.max_completion_length,
        },
        mask_truncated: group.mask_truncated_completions,
        max_resample_times: group.resample_times(),
        log_exact_kl: options.kl.log_exact_kl,
        reference_sync: options.kl.sync_ref_model.then_some(ReferenceSync {
            every: options.kl.ref_model_sync_steps as u64,
            mixup_alpha: options.kl.ref_model_mixup_alpha,
            resets_optimizer: options.kl.ref_model_sync_resets_optimizer,
        }),
        prompt_limit,
        schedule: training::learning_rate(optimiser, steps)?,
        max_grad_norm: optimiser.max_grad_norm,
        recompute: optimiser.gradient_checkpointing,
        placement: placement.clone(),
        seed: options.seed.seed,
    };
    trainer_options.loss.validate()?;
    let decoding = policy.decoding(sampling(&options.rollout), &options.rollout.stop_strings, true)?;
    let beta = BetaController::new(beta_schedule(&options.kl), steps)?;
    GrpoTrainer::new(policy, trainer_options, decoding, rewards, beta, training::adamw(optimiser), stream)
}

/// Sampling as the options say; temperature 0 is greedy.
pub(super) fn sampling(rollout: &RolloutOptions) -> SamplingParams {
    SamplingParams {
        temperature: rollout.temperature,
        top_p: rollout.top_p,
        top_k: rollout.top_k,
        min_p: rollout.min_p.unwrap_or(0.0),
        repetition_penalty: rollout.repetition_penalty,
        min_new_tokens: rollout.min_new_tokens,
        max_new_tokens: rollout.max_completion_length,
        greedy: rollout.temperature == 0.0,
    }
}

/// The KL weight's schedule that the options name.
fn beta_schedule(kl: &KlOptions) -> BetaSchedule {
    let (start, end) = (kl.beta_start(), kl.beta_end());
    match kl.schedule() {
        BetaScheduleType::Othink => BetaSchedule::Othink(Othink {
            beta_min: kl.beta_min,
            beta_max: kl.beta_max,
            exploration_ratio: kl.beta_exploration_ratio,
        }),
        BetaScheduleType::Constant => BetaSchedule::Constant(Constant { beta: kl.beta() }),
        BetaScheduleType::Linear => BetaSchedule::Linear(Linear { start, end }),
        BetaScheduleType::Cosine => BetaSchedule::Cosine(Cosine { start, end }),
        BetaScheduleType::Adaptive => BetaSchedule::Adaptive(Adaptive {
            initial: kl.beta(),
            target: kl.kl_target,
            horizon: kl.kl_horizon,
        }),
    }
}

/// The evaluation during training: one greedy completion for each row of `eval_dataset`, as `eval` makes it.
fn evaluation(options: &GrpoConfig, read: &ReadOptions, rewards: &RewardSet) -> Result<Option<Evaluation>> {
    let Some(rows) = inputs::read_held_out(&options.evaluation, read)? else { return Ok(None) };
    Ok(Some(Evaluation {
        samples: rows.prompts(),
        supervised: None,
        rewards: rewards.clone(),
        options: EvaluationOptions {
            sampling: SamplingParams {
                greedy: true,
                max_new_tokens: options.rollout.max_completion_length,
                ..SamplingParams::default()
            },
            stop_strings: options.rollout.stop_strings.clone(),
            max_prompt_length: options.rollout.max_prompt_length,
            batch_size: options
                .evaluation
                .per_device_eval_batch_size
                .unwrap_or(options.optimiser.per_device_train_batch_size),
            seed: options.seed.seed,
        },
        // Known when the rows are.
        every: 0,
    }))
}

/// Prints the resolved config and what a run with it would take.
fn dry_run(options: &GrpoConfig, samples: &Dataset, held_out: usize, placement: &Placement) -> Result<()> {
    let pixels = inputs::given(options.data.pixels);
    let quiet = options.logging.quiet.quiet;
    let measured = training::measure(&options.model, pixels, samples, false, quiet)?;
    let (config, longest) = (&measured.folder.config, measured.longest);
    let completion_tok = options.rollout.max_completion_length;
    let limit = prompt_limit(config, options.rollout.max_prompt_length, completion_tok)?;
    let (group, prompts) = (options.group.num_generations, options.prompts_per_step());
    let shape = TrainingShape {
        micro_batch: options.optimiser.per_device_train_batch_size,
        group,
        prompt_tok: longest.prompt_tok().min(limit),
        completion_tok,
        rollout_prompts: prompts.min(Limits::of(&placement.device).prompts(group)),
        image_tok: longest.image_tok.min(limit),
        freeze_vision: options.optimiser.freeze_vision_modules,
        reference: options.kl.needs_reference(),
        reference_follows: options.kl.sync_ref_model,
        exact_kl: options.kl.needs_reference()
            && (options.kl.log_exact_kl || options.kl.estimator() == KlEstimator::Full),
        truncates: options.rollout.top_k > 0 || options.rollout.top_p < 1.0,
        recompute: options.optimiser.gradient_checkpointing,
    };
    let rows = training::stream(samples, &options.order, options.seed.seed)?.rows();
    let facts = [
        format!("{} rows, {} optimiser steps", samples.rows(), steps(options, rows)),
        format!("{held_out} rows to evaluate on"),
        format!("{prompts} prompts x {group} completions for each rollout"),
        format!(
            "longest prompt at most {} tokens ({} of text, {} of images); {limit} fit",
            longest.prompt_tok(),
            longest.text_tok,
            longest.image_tok
        ),
    ];
    training::print_dry_run(&options.to_toml()?, &facts, &memory_plan(config, shape, placement))
}

fn facts(
    options: &GrpoConfig,
    trainer: &GrpoTrainer,
    rows: usize,
    steps: u64,
    start: Instant,
) -> Vec<(String, String)> {
    use training::fact;
    let (all, trained) = trainer.policy.params.count();
    let (prompts, group) = (options.prompts_per_step(), options.group.num_generations);
    vec![
        fact("model", &options.model.model),
        fact("dataset", format!("{} ({rows} rows)", options.data.names())),
        fact("parameters", format!("{all}, {trained} of them trained")),
        fact("steps", format!("{steps} of {prompts} prompts x {group} completions")),
        fact("seed", options.seed.seed),
        fact("seconds", format!("{:.1}", start.elapsed().as_secs_f64())),
    ]
}
