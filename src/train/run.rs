//! Whole runs: the loop over steps, and the folder it leaves.

use super::grpo::GrpoTrainer;
use super::policy::Policy;
use super::sft::SftTrainer;
use crate::checkpoint::{OnExisting, SavePlan, WeightRef, save_model, write_folder};
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::report::{JsonLines, Progress};
use std::path::{Path, PathBuf};

/// Where a run writes, and how often.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Optimiser steps.
    pub steps: u64,
    /// A checkpoint every so many steps; 0 saves only at the end.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: Option<usize>,
    /// A row of metrics every so many steps.
    pub logging_steps: usize,
    /// Whether completions are logged.
    pub log_completions: bool,
    /// Completions printed at each logged step.
    pub print_completions: usize,
    /// No progress on standard error.
    pub quiet: bool,
}

/// Prepares a run folder and writes its `config.toml`. A folder with content needs `overwrite`.
pub fn create_run_folder(dir: &Path, overwrite: bool, config: &str) -> Result<()> {
    let occupied = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(dir, "read the folder", e)),
    };
    if occupied && !overwrite {
        return Err(Error::Usage(format!(
            "--output_dir {} already holds files; name another folder, or add --overwrite_output_dir",
            dir.display()
        )));
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
    let path = dir.join("config.toml");
    std::fs::write(&path, config).map_err(|e| Error::io(&path, "write", e))
}

/// Saves weights as the policy's folder was loaded: same names, same config dialect, same types.
pub fn save_checkpoint(dir: &Path, plan: &SavePlan, params: &Params) -> Result<()> {
    let values: Vec<_> = params.iter().map(|(_, p)| (p, p.value.to_f32())).collect();
    write_folder(dir, OnExisting::Replace, |tmp| {
        let weights = values.iter().map(|(p, data)| WeightRef { name: &p.name, shape: p.value.shape(), data });
        save_model(tmp, plan, weights)
    })
}

/// Writes checkpoints of a run under their step, and removes the oldest beyond the limit.
struct Checkpoints<'a> {
    dir: &'a Path,
    plan: SavePlan,
    limit: Option<usize>,
    kept: Vec<PathBuf>,
}

impl Checkpoints<'_> {
    fn save(&mut self, policy: &Policy, steps: u64) -> Result<PathBuf> {
        let path = self.dir.join(format!("checkpoint-{steps}"));
        save_checkpoint(&path, &self.plan, &policy.params)?;
        self.kept.push(path.clone());
        while self.limit.is_some_and(|limit| self.kept.len() > limit) {
            let oldest = self.kept.remove(0);
            std::fs::remove_dir_all(&oldest).map_err(|e| Error::io(&oldest, "remove the old checkpoint", e))?;
        }
        Ok(path)
    }

    fn due(&mut self, policy: &Policy, done: u64, options: &RunOptions) -> Result<Option<PathBuf>> {
        let last = done == options.steps;
        if last || (options.save_steps > 0 && done.is_multiple_of(options.save_steps as u64)) {
            return self.save(policy, done).map(Some);
        }
        Ok(None)
    }
}

fn checkpoints<'a>(dir: &'a Path, policy: &Policy, options: &RunOptions) -> Result<Checkpoints<'a>> {
    Ok(Checkpoints { dir, plan: SavePlan::like(&policy.folder)?, limit: options.save_total_limit, kept: Vec::new() })
}

/// Trains by SFT. Gives the path of the last checkpoint; metrics go to `metrics`.
pub fn run_sft(
    trainer: &mut SftTrainer,
    samples: &[Sample],
    dir: &Path,
    metrics: &Path,
    options: &RunOptions,
) -> Result<PathBuf> {
    let mut checkpoints = checkpoints(dir, &trainer.policy, options)?;
    let mut rows = JsonLines::create(metrics)?;
    let progress = Progress::start("SFT", options.steps, options.quiet);
    let mut saved = None;
    for step in 0..options.steps {
        let report = trainer.step(step, samples)?;
        if (step + 1).is_multiple_of(options.logging_steps as u64) || step + 1 == options.steps {
            rows.append(&report.row())?;
        }
        progress.note(&format!("loss {:.4}", report.loss));
        progress.advance(1);
        saved = checkpoints.due(&trainer.policy, step + 1, options)?.or(saved);
    }
    progress.finish();
    saved.ok_or_else(|| Error::Usage("--max_steps 0 trains nothing".into()))
}

/// Called after a step with the steps done.
pub type AfterStep<'a> = &'a mut dyn FnMut(&GrpoTrainer, u64) -> Result<()>;

/// Trains by GRPO. Gives the path of the last checkpoint; metrics and completions go to files in `dir`.
pub fn run_grpo(
    trainer: &mut GrpoTrainer,
    samples: &[Sample],
    dir: &Path,
    options: &RunOptions,
    after: AfterStep<'_>,
) -> Result<PathBuf> {
    let mut checkpoints = checkpoints(dir, &trainer.policy, options)?;
    let mut rows = JsonLines::create(dir.join("metrics.jsonl"))?;
    let mut completions =
        if options.log_completions { Some(JsonLines::create(dir.join("completions.jsonl"))?) } else { None };
    let progress = Progress::start("GRPO", options.steps, options.quiet);
    let mut saved = None;
    for step in 0..options.steps {
        let outcome = trainer.step(step, samples, &|_| {})?;
        if (step + 1).is_multiple_of(options.logging_steps as u64) || step + 1 == options.steps {
            rows.append(&outcome.report.row())?;
            for record in outcome.completions.iter().take(options.print_completions) {
                progress.line(&format!("reward {:.2}  {}", record.reward, record.completion));
            }
        }
        if let Some(file) = &mut completions {
            outcome.completions.iter().try_for_each(|record| file.append(record))?;
        }
        progress.note(&outcome.report.line(options.steps as usize));
        progress.advance(1);
        saved = checkpoints.due(&trainer.policy, step + 1, options)?.or(saved);
        after(trainer, step + 1)?;
    }
    progress.finish();
    saved.ok_or_else(|| Error::Usage("--max_steps 0 trains nothing".into()))
}
