//! `othink-train sft`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::{inputs, training};
use crate::checkpoint::Identity;
use crate::config::{Options, SftConfig};
use crate::data::{Dataset, ReadOptions};
use crate::disk::SystemDisk;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::processor::check_images;
use crate::report::html::RunSummary;
use crate::report::read_rows;
use crate::reward::{Accuracy, RewardSet};
use crate::rollout::sampler::SamplingParams;
use crate::tensor::Placement;
use crate::train::evaluate::EvaluationOptions;
use crate::train::folder::{RunFolder, refuse_occupied};
use crate::train::interrupt::Interrupt;
use crate::train::plan::{TrainingShape, memory_plan};
use crate::train::policy::Policy;
use crate::train::resume::{dataset_hash, identity_options, model_hash};
use crate::train::run::{Evaluation, METRICS, RunOptions, run};
use crate::train::sft::{SftOptions, SftTrainer};
use crate::train::stream::{epoch_steps, total_steps};

/// Runs the command; with `--dry_run` only prints what it would run with.
pub fn train(options: &SftConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    training::check(&placement)?;
    if options.dry_run.dry_run {
        let held_out = inputs::read_held_out(&options.evaluation, &read_options(options)?)?;
        return dry_run(options, &read(options)?, held_out.map_or(0, |rows| rows.rows()), &placement);
    }
    let saved = train_until_done(options, &placement, &Interrupt::by_signals()?, None)?;
    training::finish(&options.checkpoint.output_dir, &saved)
}

/// The rows, each with its target.
fn read(options: &SftConfig) -> Result<Dataset> {
    let read = read_options(options)?;
    Ok(inputs::read_rows(&options.data, &read, options.logging.quiet.quiet)?.supervised())
}

fn read_options(options: &SftConfig) -> Result<ReadOptions> {
    Ok(ReadOptions { need_target: true, ..inputs::read_options(&options.data, false)? })
}

/// Trains where `placement` says until the last step, with an evaluation while it goes where one is given, and writes the
/// report. Gives the last checkpoint.
pub(super) fn train_until_done(
    options: &SftConfig,
    placement: &Placement,
    interrupt: &Interrupt,
    evaluation: Option<&Evaluation>,
) -> Result<PathBuf> {
    let start = Instant::now();
    let dir = &options.checkpoint.output_dir;
    let (optimiser, quiet) = (&options.optimiser, options.logging.quiet.quiet);
    let rewards = RewardSet::from_rewards(vec![Box::new(Accuracy)], &[])?;
    if evaluation.is_none() {
        let keys = [vec!["eval_loss".to_owned()], Evaluation::keys(&rewards)].concat();
        training::check_metric(&options.metric_for_best_model, &keys)?;
    }
    refuse_occupied(&options.checkpoint)?;
    let samples = read(options)?;
    let policy = training::load(
        &options.model,
        inputs::given(options.data.pixels),
        optimiser,
        false,
        placement,
        quiet,
    )?;
    let limit = max_length(options, policy.model.config());
    let fit = training::Fit { limit, supervised: true, overlong: options.order.overlong, interrupt };
    let samples = fit.keep(&policy.processor, samples, quiet)?;
    let mut own = own_evaluation(options, rewards, &fit, &policy)?;
    let stream = training::stream(&samples, &options.order, options.seed.seed)?;
    let steps = steps(options, stream.rows());
    let epoch = epoch_steps(stream.rows(), optimiser.sequences_per_step(), 1);
    if let Some(evaluation) = &mut own {
        evaluation.every = options.evaluation.every(epoch);
    }
    let trainer_options = SftOptions {
        micro_batch: optimiser.per_device_train_batch_size,
        accumulation: optimiser.gradient_accumulation_steps,
        max_length: limit,
        schedule: training::learning_rate(optimiser, steps)?,
        max_grad_norm: optimiser.max_grad_norm,
        recompute: optimiser.gradient_checkpointing,
        placement: placement.clone(),
    };
    let identity = Identity {
        command: SftConfig::COMMAND.into(),
        options: identity_options(options, placement)?,
        model_hash: model_hash(&policy, options.model.chat_template.as_deref())?,
        dataset_hash: dataset_hash(&samples)?,
        max_steps: steps,
    };
    let mut trainer = SftTrainer::new(policy, trainer_options, training::adamw(optimiser), stream)?;
    trainer.read_ahead(options.order.dataloader_num_workers);
    let folder = RunFolder::take(Arc::new(SystemDisk), &options.checkpoint, quiet)?;
    let resumed = folder.begin(&identity, &mut trainer, &samples, &options.to_toml()?)?;
    let run_options = training::run_options(
        &folder,
        &options.checkpoint,
        &options.logging,
        interrupt,
        options.to_toml()?,
        epoch,
    );
    let run_options =
        RunOptions { metric_for_best_model: options.metric_for_best_model.clone(), ..run_options };
    let evaluation = evaluation.or(own.as_ref());
    let saved = run(&mut trainer, &samples, &run_options, identity, resumed, evaluation)?;
    let (all, trained) = trainer.policy.params.count();
    let summary = RunSummary {
        title: format!("othink-train sft: {}", options.model.model),
        facts: vec![
            training::fact("model", &options.model.model),
            training::fact("dataset", format!("{} ({} rows)", options.data.names(), samples.rows())),
            training::fact("parameters", format!("{all}, {trained} of them trained")),
            training::fact("steps", format!("{steps} of {} rows", optimiser.sequences_per_step())),
            training::fact("seed", options.seed.seed),
            training::fact("seconds", format!("{:.1}", start.elapsed().as_secs_f64())),
        ],
        sft: read_rows(dir.join(METRICS))?,
        evaluations: training::evaluations(dir, evaluation.is_some())?,
        config: options.to_toml()?,
        ..RunSummary::default()
    };
    training::write_report(dir, &summary)?;
    Ok(saved)
}

/// The evaluation during training: the loss of the answers of `eval_dataset`, and one greedy completion for each row that
/// has a reference answer.
fn own_evaluation(
    options: &SftConfig,
    rewards: RewardSet,
    fit: &training::Fit<'_>,
    policy: &Policy,
) -> Result<Option<Evaluation>> {
    let read = read_options(options)?;
    let Some(rows) = inputs::read_held_out(&options.evaluation, &read)? else { return Ok(None) };
    let quiet = options.logging.quiet.quiet;
    let answers = fit.keep(&policy.processor, rows.supervised(), quiet)?;
    // Found now and not in the middle of the run.
    answers.each(|_, sample| check_images(&sample?), |_, check| check)?;
    let longest = options.max_completion_length;
    let prompts = match longest {
        0 => rows.view(Vec::new()),
        _ => {
            let mut judged = Vec::new();
            for (row, sample) in (0..).zip(rows.iter()) {
                judged.extend(sample?.solution.is_some().then_some(row));
            }
            let judged = rows.view(judged).prompts();
            let limit = policy.prompt_limit(None, longest)?;
            let fit = training::Fit { limit, supervised: false, ..*fit };
            // Of conversations alone, only the loss is measured.
            if judged.rows() == 0 { judged } else { fit.keep(&policy.processor, judged, quiet)? }
        }
    };
    Ok(Some(Evaluation {
        samples: prompts,
        supervised: Some((answers, fit.limit)),
        rewards,
        options: EvaluationOptions {
            sampling: SamplingParams { greedy: true, max_new_tokens: longest, ..SamplingParams::default() },
            stop_strings: Vec::new(),
            max_prompt_length: None,
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

/// Longest row: what the options say, within the model's context.
fn max_length(options: &SftConfig, config: &ModelConfig) -> usize {
    let context = config.text.max_position_embeddings;
    options.max_length.map_or(context, |given| given.min(context))
}

fn steps(options: &SftConfig, rows: usize) -> u64 {
    let optimiser = &options.optimiser;
    total_steps(optimiser.max_steps(), optimiser.num_train_epochs, rows, optimiser.sequences_per_step(), 1)
}

/// Prints the resolved config and what a run with it would take.
fn dry_run(options: &SftConfig, samples: &Dataset, held_out: usize, placement: &Placement) -> Result<()> {
    let pixels = inputs::given(options.data.pixels);
    let quiet = options.logging.quiet.quiet;
    let measured = training::measure(&options.model, pixels, samples, true, quiet)?;
    let (config, longest) = (&measured.folder.config, measured.longest);
    let limit = max_length(options, config);
    let rows = training::stream(samples, &options.order, options.seed.seed)?.rows();
    let shape = TrainingShape {
        micro_batch: options.optimiser.per_device_train_batch_size,
        group: 1,
        prompt_tok: longest.prompt_tok().min(limit),
        completion_tok: longest.completion_tok.min(limit),
        rollout_prompts: 0,
        image_tok: longest.image_tok.min(limit),
        freeze_vision: options.optimiser.freeze_vision_modules,
        reference: false,
        reference_follows: false,
        exact_kl: false,
        truncates: false,
        recompute: options.optimiser.gradient_checkpointing,
    };
    let facts = [
        format!("{} rows, {} optimiser steps", samples.rows(), steps(options, rows)),
        format!("{held_out} rows to evaluate on"),
        format!("{} rows for each step", options.optimiser.sequences_per_step()),
        format!(
            "longest row at most {} tokens ({} of text, {} of images, {} of answer); {limit} fit",
            longest.total_tok(),
            longest.text_tok,
            longest.image_tok,
            longest.completion_tok
        ),
    ];
    training::print_dry_run(&options.to_toml()?, &facts, &memory_plan(config, shape, placement))
}
