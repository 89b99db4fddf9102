//! Whole runs: the loop over steps, and the folder it leaves.

use super::evaluate::{EvaluationOptions, evaluate, mean_score};
use super::grpo::GrpoTrainer;
use super::policy::Policy;
use super::sft::SftTrainer;
use crate::checkpoint::{OnExisting, SavePlan, WeightRef, save_model, write_folder};
use crate::data::Sample;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::report::{CompletionLengths, JsonLines, Progress, Row};
use crate::reward::RewardSet;
use crate::rollout::sequence::FinishReason;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Where a run writes, and how often.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Optimiser steps.
    pub steps: u64,
    /// A checkpoint every so many steps; 0 saves only at the end.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: Option<usize>,
    /// A line on the console every so many steps, 0 for none. Every step has its row of metrics.
    pub logging_steps: usize,
    /// Whether completions are logged.
    pub log_completions: bool,
    /// Completions printed with each line.
    pub print_completions: usize,
    /// No progress on standard error.
    pub quiet: bool,
}

/// Logs of an earlier run, which must not be taken for those of the one that overwrites it.
const LOGS: [&str; 4] = ["metrics.jsonl", "completions.jsonl", "eval_metrics.jsonl", "report.html"];

/// Refuses a folder that holds files, unless they may be written over. Asked before anything is loaded.
///
/// # Errors
/// [`Error::Usage`] for an occupied folder, [`Error::Io`] for one that cannot be listed.
pub fn refuse_occupied(dir: &Path, overwrite: bool) -> Result<()> {
    let occupied = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(dir, "list the folder", e)),
    };
    if occupied && !overwrite {
        return Err(Error::Usage(format!(
            "--output_dir {} already holds files; name another folder, or add --overwrite_output_dir",
            dir.display()
        )));
    }
    Ok(())
}

/// Prepares a run folder and writes its `config.toml`. A folder with content needs `overwrite`; the logs of the run
/// before go, its checkpoints stay until they are replaced.
///
/// # Errors
/// As [`refuse_occupied`], and [`Error::Io`] for what cannot be written.
pub fn create_run_folder(dir: &Path, overwrite: bool, config: &str) -> Result<()> {
    refuse_occupied(dir, overwrite)?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
    for path in LOGS.map(|name| dir.join(name)) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io(&path, "remove the old log", e));
            }
            _ => {}
        }
    }
    let path = dir.join("config.toml");
    std::fs::write(&path, config).map_err(|e| Error::io(&path, "write", e))
}

/// Saves weights as the policy's folder was loaded: same names, same config dialect, same types.
pub fn save_checkpoint(dir: &Path, plan: &SavePlan, params: &Params) -> Result<()> {
    let values: Vec<_> = params.iter().map(|(_, p)| (p, p.value.to_f32())).collect();
    write_folder(dir, OnExisting::Replace, |tmp| {
        let weights =
            values.iter().map(|(p, data)| WeightRef { name: &p.name, shape: p.value.shape(), data });
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
            std::fs::remove_dir_all(&oldest)
                .map_err(|e| Error::io(&oldest, "remove the old checkpoint", e))?;
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
    Ok(Checkpoints {
        dir,
        plan: SavePlan::like(&policy.folder)?,
        limit: options.save_total_limit,
        kept: Vec::new(),
    })
}

/// Whether step number `step` (from 0) prints a line.
fn is_logged(step: u64, options: &RunOptions) -> bool {
    let every = options.logging_steps as u64;
    every > 0 && ((step + 1).is_multiple_of(every) || step + 1 == options.steps)
}

fn no_steps() -> Error {
    Error::Usage("a run of 0 steps trains nothing; set --max_steps to at least 1".into())
}

/// Trains by SFT. Gives the path of the last checkpoint; metrics go to `metrics`.
///
/// # Errors
/// Those of a step and of writing. Checkpoints that were saved before stay as they are.
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
        rows.append(&report.row())?;
        if is_logged(step, options) {
            progress.line(&report.line(options.steps as usize));
        }
        progress.note(&format!("loss {:.4}", report.loss));
        progress.advance(1);
        saved = checkpoints.due(&trainer.policy, step + 1, options)?.or(saved);
    }
    progress.finish();
    saved.ok_or_else(no_steps)
}

/// Held-out rows on which a run is measured while it goes.
pub struct Evaluation {
    /// The rows.
    pub samples: Vec<Sample>,
    /// What is measured: the mean of each reward, and of their weighted sum.
    pub rewards: RewardSet,
    /// How completions are made.
    pub options: EvaluationOptions,
    /// Optimiser steps from one evaluation to the next; 0 is never.
    pub every: usize,
}

impl Evaluation {
    /// The row of `eval_metrics.jsonl` for the weights that optimiser step `step` left: one completion per row.
    fn row(&self, policy: &Policy, step: u64) -> Result<Row> {
        let start = Instant::now();
        let results = evaluate(policy, &policy.params, &self.samples, &self.rewards, &self.options, &|_| {})?;
        let totals: Vec<f64> = results.iter().filter_map(|r| self.rewards.total(&r.scores)).collect();
        let mean = totals.iter().sum::<f64>() / totals.len().max(1) as f64;
        let lengths = CompletionLengths::of(
            results.iter().map(|r| (r.completion.tokens.len(), r.completion.finish == FinishReason::Length)),
        );
        let mut row = Row::new();
        row.insert("step".into(), step.into());
        row.insert("eval_reward".into(), mean.into());
        for (i, name) in self.rewards.names().iter().enumerate() {
            row.insert(format!("eval_rewards/{name}/mean"), mean_score(&results, i).into());
        }
        row.insert("eval_completions/mean_length".into(), lengths.mean.into());
        row.insert("eval_completions/clipped_ratio".into(), lengths.clipped_ratio.into());
        row.insert("eval_runtime".into(), start.elapsed().as_secs_f64().into());
        Ok(row)
    }
}

/// Trains by GRPO. Gives the path of the last checkpoint; metrics, completions and evaluations go to files in `dir`.
///
/// # Errors
/// Those of a step and of writing. Checkpoints that were saved before stay as they are.
pub fn run_grpo(
    trainer: &mut GrpoTrainer,
    samples: &[Sample],
    dir: &Path,
    options: &RunOptions,
    evaluation: Option<&Evaluation>,
) -> Result<PathBuf> {
    let mut checkpoints = checkpoints(dir, &trainer.policy, options)?;
    let mut rows = JsonLines::create(dir.join("metrics.jsonl"))?;
    let mut completions =
        if options.log_completions { Some(JsonLines::create(dir.join("completions.jsonl"))?) } else { None };
    let evaluation = evaluation.filter(|evaluation| evaluation.every > 0);
    let mut evaluations =
        if evaluation.is_some() { Some(JsonLines::create(dir.join("eval_metrics.jsonl"))?) } else { None };
    let progress = Progress::start("GRPO", options.steps, options.quiet);
    let mut saved = None;
    for step in 0..options.steps {
        let finished = AtomicU64::new(0);
        let outcome = trainer.step(step, samples, &|n| {
            let finished = finished.fetch_add(n, Ordering::Relaxed) + n;
            progress.note(&format!("step {}: {finished} completions", step + 1));
        })?;
        rows.append(&outcome.report.row())?;
        if is_logged(step, options) {
            progress.line(&outcome.report.line(options.steps as usize));
            for record in outcome.completions.iter().take(options.print_completions) {
                progress.line(&format!("reward {:.2}  {}", record.reward, record.completion));
            }
        }
        if let Some(file) = &mut completions {
            outcome.completions.iter().try_for_each(|record| file.append(record))?;
        }
        progress.note(&format!("reward {:.3}", outcome.report.reward));
        progress.advance(1);
        saved = checkpoints.due(&trainer.policy, step + 1, options)?.or(saved);
        if let (Some(evaluation), Some(file)) = (evaluation, &mut evaluations)
            && (step + 1).is_multiple_of(evaluation.every as u64)
        {
            let row = evaluation.row(&trainer.policy, step)?;
            progress.line(&format!("evaluation after step {}: {}", step + 1, Value::from(row.clone())));
            file.append(&row)?;
        }
    }
    progress.finish();
    saved.ok_or_else(no_steps)
}
