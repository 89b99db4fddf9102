//! `othink-train reproduce`.

use std::path::PathBuf;

use super::{eval, grpo, inputs, sft, training};
use crate::config::{EvalConfig, GrpoConfig, RecipeName, ReproduceConfig, SftConfig};
use crate::error::Result;
use crate::reproduce::{self, Commands, Measured, Recipe};
use crate::reward::{Accuracy, Format, RewardSet};
use crate::tensor::Placement;
use crate::train::evaluate::EvaluationOptions;
use crate::train::interrupt::Interrupt;
use crate::train::run::Evaluation;

/// Runs the command; with `--dry_run` only prints what it would run. On standard output: the tables.
pub fn run(options: &ReproduceConfig) -> Result<()> {
    let recipe = match options.recipe {
        RecipeName::Tiny => Recipe::tiny(),
        RecipeName::Paper => Recipe::paper(options.model.as_deref().unwrap_or_default()),
    };
    if options.dry_run {
        return super::print(&reproduce::describe(&recipe, options)?);
    }
    let placement = super::prepare(&options.hardware)?;
    training::check(&placement)?;
    let program = Program { placement, interrupt: Interrupt::by_signals()? };
    let outcome = reproduce::run(options, &recipe, &program)?;
    super::print(&format!("{}\nreport: {}\n", outcome.table, outcome.report.display()))
}

/// This program's own commands.
pub struct Program {
    /// Where they compute.
    pub placement: Placement,
    /// What stops them.
    pub interrupt: Interrupt,
}

impl Commands for Program {
    fn sft(&self, options: &SftConfig, look: Option<(&EvalConfig, u64)>) -> Result<PathBuf> {
        let evaluation = look.map(|(look, every)| evaluation(look, every)).transpose()?;
        sft::train_until_done(options, &self.placement, &self.interrupt, evaluation.as_ref())
    }

    fn grpo(&self, options: &GrpoConfig) -> Result<PathBuf> {
        grpo::train_until_done(options, &self.placement, &self.interrupt)
    }

    fn eval(&self, options: &EvalConfig) -> Result<Measured> {
        let summary = eval::measure(options, &self.placement, &self.interrupt)?;
        let eval::Summary { rows, accuracy, format, mean_length, .. } = summary;
        Ok(Measured { rows, accuracy, format, mean_length })
    }

    fn place(&self) -> String {
        let device = if self.placement.device.gpu().is_some() { "cuda" } else { "cpu" };
        format!("{device} {}", self.placement.dtype.name())
    }
}

/// The measurement of `look` as an evaluation during training.
fn evaluation(look: &EvalConfig, every: u64) -> Result<Evaluation> {
    let read = inputs::read_options(&look.data, true)?;
    Ok(Evaluation {
        samples: inputs::read_rows(&look.data, &read, look.quiet.quiet)?.prompts(),
        supervised: None,
        rewards: RewardSet::from_rewards(vec![Box::new(Accuracy), Box::new(Format)], &[])?,
        options: EvaluationOptions {
            sampling: grpo::sampling(&look.rollout),
            stop_strings: look.rollout.stop_strings.clone(),
            max_prompt_length: look.rollout.max_prompt_length,
            batch_size: look.per_device_eval_batch_size,
            seed: look.seed.seed,
        },
        every,
    })
}
