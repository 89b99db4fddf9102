//! What `grpo` and `sft` share: from options to trainer parts, the rows that fit, the dry run, the report.

use std::path::Path;

use super::inputs;
use crate::config::{
    CheckpointOptions, LoggingOptions, ModelOptions, OptimiserOptions, OrderOptions, Overlong,
    OwnPixelOptions, ReportTo,
};
use crate::data::{Dataset, Part, Sample, nearest};
use crate::error::{Error, Result};
use crate::model::folder::ModelFolder;
use crate::optim::schedule::warmup_steps;
use crate::optim::{AdamWConfig, LrSchedule};
use crate::processor::Processor;
use crate::report::html::{self, RunSummary};
use crate::report::{MemoryPlan, Progress, Row, read_rows};
use crate::tensor::{DType, Device, Placement};
use crate::train::folder::RunFolder;
use crate::train::interrupt::Interrupt;
use crate::train::plan::{
    RowLength, VISION_PREFIX, available_memory, check_memory, image_tokens_at_most, weights_plan,
};
use crate::train::policy::{Policy, check_length};
use crate::train::run::{EVAL_METRICS, Events, RunOptions};
use crate::train::stream::Stream;

/// Refuses a storage type that training does not have.
///
/// # Errors
/// [`Error::Usage`] for bf16 on the CPU.
pub(super) fn check(placement: &Placement) -> Result<()> {
    match placement {
        Placement { device: Device::Cpu, dtype: DType::Bf16 } => Err(Error::Usage(
            "--dtype is bf16, but training on the CPU computes in f32: leave --dtype out (a checkpoint stored in bf16 \
             is trained in f32 and saved in bf16 again); eval, generate and score take bf16"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// Loads the checkpoint for training into host memory, if the memory of its device has room for it; with a `reference` for twice
/// its weights.
pub(super) fn load(
    model: &ModelOptions,
    pixels: OwnPixelOptions,
    optimiser: &OptimiserOptions,
    reference: bool,
    placement: &Placement,
    quiet: bool,
) -> Result<Policy> {
    let config = ModelFolder::open(&model.model)?.config;
    let available = match placement.device.gpu() {
        None => available_memory(),
        Some(gpu) => Some(gpu.free_bytes()? as u64),
    };
    check_memory(&weights_plan(&config, optimiser.freeze_vision_modules, reference, placement), available)?;
    let mut policy = inputs::load_policy(model, pixels, &Placement::HOST, quiet)?;
    if optimiser.freeze_vision_modules {
        std::sync::Arc::make_mut(&mut policy.params).freeze(VISION_PREFIX);
    }
    Ok(policy)
}

/// AdamW's hyper-parameters.
pub(super) fn adamw(options: &OptimiserOptions) -> AdamWConfig {
    AdamWConfig {
        beta1: options.adam_beta1,
        beta2: options.adam_beta2,
        epsilon: options.adam_epsilon,
        weight_decay: options.weight_decay,
    }
}

/// The learning rate over a run of `total_steps`.
pub(super) fn learning_rate(options: &OptimiserOptions, total_steps: u64) -> Result<LrSchedule> {
    Ok(LrSchedule {
        scheduler_type: options.lr_scheduler_type,
        peak: options.learning_rate,
        warmup_steps: warmup_steps(options.warmup_steps as u64, options.warmup_ratio, total_steps)?,
        total_steps,
    })
}

/// The order in which a run sees its rows.
pub(super) fn stream(samples: &Dataset, order: &OrderOptions, seed: u64) -> Result<Stream> {
    Stream::over(samples, &order.dataset_weights, order.stopping_strategy, seed, order.shuffle_dataset)
}

/// Where a run writes, and how often, an epoch having `epoch_steps`; completions are not logged.
pub(super) fn run_options(
    folder: &RunFolder,
    checkpoint: &CheckpointOptions,
    logging: &LoggingOptions,
    interrupt: &Interrupt,
    config: String,
    epoch_steps: u64,
) -> RunOptions {
    let dir = &checkpoint.output_dir;
    let events = || Events { dir: dir.join("runs").join(logging.run_name(dir)), config };
    RunOptions {
        events: (logging.report_to == ReportTo::Tensorboard).then(events),
        dir: checkpoint.output_dir.clone(),
        disk: folder.disk.clone(),
        interrupt: interrupt.clone(),
        save_steps: checkpoint.every(epoch_steps) as usize,
        save_total_limit: checkpoint.save_total_limit,
        save_only_model: checkpoint.save_only_model,
        metric_for_best_model: String::new(),
        logging_steps: logging.logging_steps,
        logging_first_step: logging.logging_first_step,
        log_completions: false,
        print_completions: 0,
        quiet: logging.quiet.quiet,
    }
}

/// How long rows may be, and what becomes of longer ones.
pub(super) struct Fit<'a> {
    /// Most tokens of a prompt, or, in supervised training, of prompt and answer together.
    pub limit: usize,
    /// Whether the assistant's last message is the answer.
    pub supervised: bool,
    /// What becomes of a longer row.
    pub overlong: Overlong,
    /// What may stop the measuring.
    pub interrupt: &'a Interrupt,
}

impl Fit<'_> {
    /// The rows to train on, before any time is spent on training: one that is too long is an error, or, with
    /// `--overlong skip`, left out, which is said.
    ///
    /// Only a row that might be too long is tokenised, and only one that still might has its images decoded.
    ///
    /// # Errors
    /// Those of reading a row; [`Error::Input`] for one that is too long, or when none is left.
    pub(super) fn keep(&self, processor: &Processor, samples: Dataset, quiet: bool) -> Result<Dataset> {
        self.interrupt.check()?;
        let rows = samples.rows();
        let at_most = self.bound(processor, &samples)?;
        let progress = Progress::start("measure rows", rows as u64, quiet);
        let mut kept = Vec::new();
        let fits = |_, sample: Result<Sample>| {
            self.interrupt.check()?;
            let sample = sample?;
            if at_most(&sample) <= self.limit {
                return Ok(true);
            }
            let tokens = self.tokens(processor, &sample)?;
            if self.overlong == Overlong::Error {
                check_length(&sample, tokens, self.limit)?;
            }
            Ok(tokens <= self.limit)
        };
        samples.each(fits, |row, fits: Result<bool>| {
            progress.advance(1);
            if fits? {
                kept.push(row as u32);
            }
            Ok(())
        })?;
        if kept.is_empty() {
            return Err(Error::Input(format!(
                "all {rows} rows are longer than {} tokens, so that --overlong skip leaves none; lower --max_pixels or \
                 allow longer rows",
                self.limit
            )));
        }
        let left_out = rows - kept.len();
        if left_out > 0 {
            progress.line(&format!("left out {left_out} of {rows} rows longer than {} tokens", self.limit));
        }
        progress.finish();
        Ok(if left_out > 0 { samples.view(kept) } else { samples })
    }

    /// A bound on the tokens of a row that a glance gives. A token is at least one byte of normalised text, which has at
    /// most three times the bytes of the text; around each message stand at most as many tokens as the first row has.
    fn bound(
        &self,
        processor: &Processor,
        samples: &Dataset,
    ) -> Result<impl Fn(&Sample) -> usize + Sync + use<>> {
        let around = RowLength::of(processor, &samples.sample(0)?, self.supervised)?.text_tok;
        let per_image = image_tokens_at_most(processor.image_config());
        let bytes = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Image(_) => 0,
        };
        Ok(move |sample: &Sample| {
            let text: usize = sample.messages.iter().flat_map(|m| &m.content).map(bytes).sum();
            3 * text + (1 + sample.messages.len()) * around + sample.images.len() * per_image
        })
    }

    /// Tokens of a row: exact, or a bound where that is within the limit.
    fn tokens(&self, processor: &Processor, sample: &Sample) -> Result<usize> {
        let at_most = RowLength::of(processor, sample, self.supervised)?.total_tok();
        if at_most <= self.limit {
            return Ok(at_most);
        }
        Ok(match self.supervised {
            true => {
                let (prompt, completion) = processor.encode_with_completion(sample)?;
                prompt.tokens.len() + completion.len()
            }
            false => processor.encode(sample, true)?.tokens.len(),
        })
    }
}

/// What a dry run knows of a checkpoint and its rows, without weights or pixels.
pub(super) struct Measured {
    /// The checkpoint's sizes.
    pub folder: ModelFolder,
    /// The longest of each part over all rows.
    pub longest: RowLength,
}

/// Opens the checkpoint and measures the rows.
pub(super) fn measure(
    model: &ModelOptions,
    pixels: OwnPixelOptions,
    samples: &Dataset,
    supervised: bool,
    quiet: bool,
) -> Result<Measured> {
    let folder = ModelFolder::open(&model.model)?;
    let processor = Processor::load(&folder.dir, &inputs::processor_options(model, pixels))?;
    inputs::warn(&processor, quiet);
    let progress = Progress::start("measure rows", samples.rows() as u64, quiet);
    let mut longest = RowLength::default();
    samples.each(
        |_, sample| RowLength::of(&processor, &sample?, supervised),
        |_, length| {
            progress.advance(1);
            longest = longest.max(length?);
            Ok(())
        },
    )?;
    progress.finish();
    Ok(Measured { folder, longest })
}

/// Prints a dry run: the config as TOML, then facts and memory plan as comments, so that the whole is a config file.
pub(super) fn print_dry_run(config: &str, facts: &[String], plan: &MemoryPlan) -> Result<()> {
    let mut text = format!("{config}\n");
    for line in facts.iter().map(String::as_str).chain(plan.to_string().lines()) {
        text += &format!("# {line}\n");
    }
    super::print(&text)
}

/// A fact of a run's report.
pub(super) fn fact(name: &str, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}

/// Writes the run's report.
pub(super) fn write_report(dir: &Path, summary: &RunSummary) -> Result<()> {
    html::write(dir.join(REPORT), summary)
}

const REPORT: &str = "report.html";

/// Says where the report is and where the last checkpoint is.
pub(super) fn finish(dir: &Path, saved: &Path) -> Result<()> {
    super::print(&format!("checkpoint: {}\nreport: {}\n", saved.display(), dir.join(REPORT).display()))
}

/// The rows of a run's evaluations, where there were to be any.
pub(super) fn evaluations(dir: &Path, are_made: bool) -> Result<Vec<Row>> {
    if are_made { read_rows(dir.join(EVAL_METRICS)) } else { Ok(Vec::new()) }
}

/// Refuses a metric that no evaluation has.
///
/// # Errors
/// [`Error::Usage`] with the nearest of the `known` ones.
pub(super) fn check_metric(metric: &str, known: &[String]) -> Result<()> {
    if known.iter().any(|name| name == metric) {
        return Ok(());
    }
    let hint = nearest(metric, known.iter().map(String::as_str));
    let hint = hint.map_or(String::new(), |name| format!("; did you mean {name}?"));
    Err(Error::Usage(format!(
        "--metric_for_best_model {metric} is no key of eval_metrics.jsonl, which has {}{hint}",
        known.join(", ")
    )))
}
