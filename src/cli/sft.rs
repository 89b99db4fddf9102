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
use crate::report::html::RunSummary;
use crate::report::read_rows;
use crate::tensor::Placement;
use crate::train::folder::{RunFolder, refuse_occupied};
use crate::train::interrupt::Interrupt;
use crate::train::plan::{TrainingShape, memory_plan};
use crate::train::resume::{dataset_hash, identity_options, model_hash};
use crate::train::run::{Evaluation, METRICS, run};
use crate::train::sft::{SftOptions, SftTrainer};
use crate::train::stream::total_steps;

/// Runs the command; with `--dry_run` only prints what it would run with.
pub fn train(options: &SftConfig) -> Result<()> {
    let placement = super::prepare(&options.hardware)?;
    training::check(&placement)?;
    if options.dry_run.dry_run {
        return dry_run(options, &read(options)?, &placement);
    }
    let saved = train_until_done(options, &placement, &Interrupt::by_signals()?, None)?;
    training::finish(&options.checkpoint.output_dir, &saved)
}

/// The rows, each with its target.
fn read(options: &SftConfig) -> Result<Dataset> {
    let read = ReadOptions { need_target: true, ..inputs::read_options(&options.data, false)? };
    Ok(inputs::read_rows(&options.data, &read, options.logging.quiet.quiet)?.supervised())
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
    let stream = training::stream(&samples, &options.order, options.seed.seed)?;
    let steps = steps(options, stream.rows());
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
    let run_options = training::run_options(&folder, &options.checkpoint, &options.logging, interrupt);
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
        config: options.to_toml()?,
        ..RunSummary::default()
    };
    training::write_report(dir, &summary)?;
    Ok(saved)
}

/// Longest row: what the options say, within the model's context.
fn max_length(options: &SftConfig, config: &ModelConfig) -> usize {
    let context = config.text.max_position_embeddings;
    options.max_length.map_or(context, |given| given.min(context))
}

fn steps(options: &SftConfig, rows: usize) -> u64 {
    let optimiser = &options.optimiser;
    total_steps(optimiser.max_steps, optimiser.num_train_epochs, rows, optimiser.sequences_per_step(), 1)
}

/// Prints the resolved config and what a run with it would take.
fn dry_run(options: &SftConfig, samples: &Dataset, placement: &Placement) -> Result<()> {
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
        exact_kl: false,
        truncates: false,
        recompute: options.optimiser.gradient_checkpointing,
    };
    let facts = [
        format!("{} rows, {} optimiser steps", samples.rows(), steps(options, rows)),
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
