//! Whole runs: the loop over steps, what it leaves in the run folder, and how it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::evaluate::{EvaluationOptions, evaluate, mean_score};
use super::guard::off_policy;
use super::interrupt::Interrupt;
use super::policy::Policy;
use super::trainer::{Skipped, Step, Trainer};
use crate::checkpoint::{
    Best, Identity, Log, ResumeState, SavePlan, Saver, Snapshot, TrainerState, list_checkpoints,
};
use crate::data::Dataset;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::report::console::escape_control;
use crate::report::{Backlog, CompletionLengths, JsonLines, Progress, Row};
use crate::reward::RewardSet;
use crate::rollout::Watch;
use crate::rollout::sequence::FinishReason;

/// One object per optimiser step.
pub const METRICS: &str = "metrics.jsonl";
/// One object per sampled completion.
pub const COMPLETIONS: &str = "completions.jsonl";
/// One object per evaluation.
pub const EVAL_METRICS: &str = "eval_metrics.jsonl";
/// The batches of skipped steps.
pub(super) const SKIPPED_DIR: &str = "skipped";

/// Saves in a row that may be put off because the logs can't be written.
const MAX_PUT_OFF_SAVES: usize = 3;

/// Pauses of 1, 2, ... seconds after each of which the logs are tried again where there is no next step.
const LAST_PAUSES_S: u64 = 2;

/// Where a run writes, and how often.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The run folder.
    pub dir: PathBuf,
    /// How it is written.
    pub disk: Arc<dyn Disk>,
    /// A checkpoint every so many steps; 0 saves only at the end.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: Option<usize>,
    /// Checkpoints hold the model alone, and no run can resume from them.
    pub save_only_model: bool,
    /// Key of `eval_metrics.jsonl` whose largest value makes a checkpoint the best one.
    pub metric_for_best_model: String,
    /// A line on the console every so many steps, 0 for none. Every step has its row of metrics.
    pub logging_steps: usize,
    /// Whether completions are logged.
    pub log_completions: bool,
    /// Completions printed with each line.
    pub print_completions: usize,
    /// No progress on standard error.
    pub quiet: bool,
    /// What asks the run to stop.
    pub interrupt: Interrupt,
}

/// Held-out rows on which a run is measured while it goes.
pub struct Evaluation {
    /// The rows.
    pub samples: Dataset,
    /// What is measured: the mean of each reward, and of their weighted sum.
    pub rewards: RewardSet,
    /// How completions are made.
    pub options: EvaluationOptions,
    /// Optimiser steps from one evaluation to the next; 0 is never.
    pub every: u64,
}

impl Evaluation {
    /// The numbers of a row of `eval_metrics.jsonl` by which checkpoints can be compared.
    pub fn keys(rewards: &RewardSet) -> Vec<String> {
        let each = rewards.names().into_iter().map(|name| format!("eval_rewards/{name}/mean"));
        let lengths = ["eval_completions/mean_length", "eval_completions/clipped_ratio"].map(String::from);
        ["eval_reward".to_owned()].into_iter().chain(each).chain(lengths).collect()
    }

    fn is_due(&self, done: u64) -> bool {
        done > 0 && self.every > 0 && done.is_multiple_of(self.every)
    }

    /// The row of `eval_metrics.jsonl` for the weights that optimiser step `step` left: one completion per row.
    fn row(&self, policy: &Policy, step: u64, watch: Watch<'_>) -> Result<Row> {
        let start = Instant::now();
        let results = evaluate(policy, &policy.params, &self.samples, &self.rewards, &self.options, watch)?;
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

/// Trains until the last step of `identity`, from `resumed` (what the trainer was restored from) or from the start.
/// Gives the path of the last checkpoint.
///
/// Whatever ends the run, the work done so far is saved first, except where the numbers themselves are in doubt.
///
/// # Errors
/// [`Error::Interrupted`] when a signal asked for it; [`Error::Protect`] after three skipped steps in a row; those of
/// a step and of writing.
pub fn run(
    trainer: &mut dyn Trainer,
    samples: &Dataset,
    options: &RunOptions,
    identity: Identity,
    resumed: Option<TrainerState>,
    evaluation: Option<&Evaluation>,
) -> Result<PathBuf> {
    if identity.max_steps == 0 {
        return Err(Error::Usage("a run of 0 steps trains nothing; set --max_steps to at least 1".into()));
    }
    let mut run = Run::new(trainer, samples, options, identity, resumed, evaluation)?;
    let ended = run.steps();
    run.close(ended)
}

/// A run under way.
struct Run<'a> {
    trainer: &'a mut dyn Trainer,
    samples: &'a Dataset,
    options: &'a RunOptions,
    evaluation: Option<&'a Evaluation>,
    state: TrainerState,
    logs: Logs,
    saver: Saver,
    /// Whether a save was put off and not made up for yet.
    put_off: bool,
    put_off_saves: usize,
    /// Whether the run is being ended before its last step.
    stopping: bool,
    progress: Progress,
}

/// The logs of a run.
struct Logs {
    metrics: JsonLines,
    completions: Option<JsonLines>,
    evaluations: Option<JsonLines>,
}

impl Logs {
    /// Starts the logs, or continues them where `state` stands.
    fn open(options: &RunOptions, state: &TrainerState, evaluation: Option<&Evaluation>) -> Result<Logs> {
        let (disk, done) = (&*options.disk, state.global_step);
        let open = |name: &str, first_step: u64| {
            let path = options.dir.join(name);
            if done == 0 { JsonLines::create(disk, path) } else { JsonLines::resume(disk, path, first_step) }
        };
        // An evaluation after the last step that this state does not know of is made again.
        let due = evaluation.is_some_and(|evaluation| evaluation.is_due(done));
        let evaluated = if due && state.evaluated_step < done { done.saturating_sub(1) } else { done };
        Ok(Logs {
            metrics: open(METRICS, done)?,
            completions: options.log_completions.then(|| open(COMPLETIONS, done)).transpose()?,
            evaluations: evaluation.map(|_| open(EVAL_METRICS, evaluated)).transpose()?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut JsonLines> {
        [Some(&mut self.metrics), self.completions.as_mut(), self.evaluations.as_mut()].into_iter().flatten()
    }

    fn handles(&mut self) -> Vec<Arc<dyn Log>> {
        self.all().map(|log| log.log()).collect()
    }
}

impl<'a> Run<'a> {
    fn new(
        trainer: &'a mut dyn Trainer,
        samples: &'a Dataset,
        options: &'a RunOptions,
        identity: Identity,
        resumed: Option<TrainerState>,
        evaluation: Option<&'a Evaluation>,
    ) -> Result<Run<'a>> {
        let steps = identity.max_steps;
        let label = identity.command.to_uppercase();
        // Options that may change, such as the place of the model, are those of now.
        let state = match resumed {
            Some(state) => {
                // Values of another metric say nothing of this one's.
                let best = state.best.filter(|best| best.metric == options.metric_for_best_model);
                TrainerState { identity, best, ..state }
            }
            None => TrainerState {
                global_step: 0,
                num_input_tokens_seen: 0,
                identity,
                beta: None,
                guard: Default::default(),
                evaluated_step: 0,
                best: None,
            },
        };
        let mut logs = Logs::open(options, &state, evaluation)?;
        let kept = list_checkpoints(&options.dir)?.into_iter().filter(|&s| s <= state.global_step).collect();
        let saver = Saver::new(
            options.disk.clone(),
            &options.dir,
            SavePlan::like(&trainer.policy().folder)?,
            options.save_total_limit,
            logs.handles(),
            kept,
            state.best.as_ref().map(|best| best.step),
        );
        let progress = Progress::start(&label, steps, options.quiet);
        progress.skip(state.global_step);
        Ok(Run {
            trainer,
            samples,
            options,
            evaluation,
            state,
            logs,
            saver,
            put_off: false,
            put_off_saves: 0,
            stopping: false,
            progress,
        })
    }

    /// Steps, with evaluations and checkpoints where they are due.
    fn steps(&mut self) -> Result<()> {
        loop {
            let done = self.state.global_step;
            let last = done == self.state.identity.max_steps;
            // A run that was stopped before its evaluation has saved a state that does not know of it.
            let evaluated = self.evaluate_if_due(done)?;
            let is_known = self.saver.has(done) && !evaluated;
            let every = self.options.save_steps as u64;
            let due = last || (every > 0 && done > 0 && done.is_multiple_of(every));
            // While steps are skipped, nothing takes the place of what was good.
            let in_doubt = !last && self.state.guard.skipped_in_a_row > 0;
            if due && !is_known && in_doubt {
                self.put_off = true;
            } else if due && !is_known {
                self.save(last)?;
            } else if self.put_off && !in_doubt {
                self.make_up()?;
            }
            let told = self.saver.poll()?;
            self.tell(told);
            if last {
                return Ok(());
            }
            self.options.interrupt.check()?;
            self.step(done)?;
        }
    }

    fn step(&mut self, step: u64) -> Result<()> {
        let finished = AtomicU64::new(0);
        let (progress, interrupt) = (&self.progress, &self.options.interrupt);
        let watch = |n: u64| {
            if n > 0 {
                let finished = finished.fetch_add(n, Ordering::Relaxed) + n;
                progress.note(&format!("step {}: {finished} completions", step + 1));
            }
            interrupt.check()
        };
        match self.trainer.step(step, self.samples, &watch) {
            Ok(done) => {
                // First: whatever comes, the weights have moved.
                self.state.global_step = step + 1;
                self.accept(step, done)?;
            }
            Err(Error::Protect(reason)) => {
                self.state.global_step = step + 1;
                self.skip(step, &reason)?;
            }
            Err(error) => return Err(error),
        }
        self.progress.advance(1);
        Ok(())
    }

    fn accept(&mut self, step: u64, done: Step) -> Result<()> {
        let mut told = self.state.guard.accept(step, &done.watched);
        told.extend(off_policy(step, &done.row));
        self.tell(told);
        self.log_step(done.row)?;
        if self.is_logged(step) {
            self.progress.line(&done.line);
            for record in done.completions.iter().take(self.options.print_completions) {
                self.progress.line(&format!("reward {:.2}  {}", record.reward, record.completion));
            }
        }
        self.progress.note(&done.note);
        if let Some(log) = &mut self.logs.completions {
            let results: Vec<_> = done.completions.iter().map(|record| log.append(record)).collect();
            // One report for a step: a refused line keeps those behind it waiting.
            let refused = results.into_iter().find(Result::is_err).unwrap_or(Ok(()));
            self.lenient(refused)?;
        }
        Ok(())
    }

    /// Leaves a step out: the weights stay as they were, the batch is kept to be looked at.
    fn skip(&mut self, step: u64, reason: &str) -> Result<()> {
        let Skipped { row, batch } = self.trainer.skipped(step, self.samples);
        let ended = self.state.guard.skip(reason);
        self.log_step(row)?;
        let dump = self.dump(step, &batch).unwrap_or_else(|error| format!("not written: {error}"));
        self.tell(vec![format!("step {step} is skipped: {reason}; its batch: {dump}")]);
        let Err(error) = ended else { return Ok(()) };
        let last = match self.wait() {
            Ok(Some(path)) => format!("the last checkpoint is {}", path.display()),
            Ok(None) => "no checkpoint was saved before".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Error::Protect(format!(
            "{error}; {last}; lower --learning_rate, or look at the batches in {}",
            self.options.dir.join(SKIPPED_DIR).display()
        )))
    }

    /// Writes the batch of a skipped step; gives the file's name.
    fn dump(&self, step: u64, batch: &[Row]) -> Result<String> {
        let dir = self.options.dir.join(SKIPPED_DIR);
        if !dir.is_dir() {
            self.options.disk.create_dir(&dir).map_err(|e| Error::io(&dir, "create the folder", e))?;
        }
        let path = dir.join(format!("step-{step}.jsonl"));
        let mut lines = JsonLines::create(&*self.options.disk, &path)?;
        batch.iter().try_for_each(|row| lines.append(row))?;
        Ok(path.display().to_string())
    }

    fn log_step(&mut self, mut row: Row) -> Result<()> {
        row.insert("skipped_steps".into(), self.state.guard.skipped_steps.into());
        let result = self.logs.metrics.append(&row);
        self.lenient(result)
    }

    /// A line that the disk refuses waits, and is told of; only too many of them end the run.
    fn lenient(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error @ (Error::Io { .. } | Error::Missing { .. })) => {
                if self.logs.all().any(|log| log.backlog() == Backlog::TooMuch) {
                    return Err(error);
                }
                self.tell(vec![format!("{error}; the lines wait until it works again")]);
                Ok(())
            }
            other => other,
        }
    }

    /// Whether there was an evaluation.
    fn evaluate_if_due(&mut self, done: u64) -> Result<bool> {
        let Some(evaluation) = self.evaluation.filter(|evaluation| evaluation.is_due(done)) else {
            return Ok(false);
        };
        if self.state.evaluated_step == done {
            return Ok(false);
        }
        let interrupt = &self.options.interrupt;
        let row = evaluation.row(self.trainer.policy(), done - 1, &|_| interrupt.check())?;
        self.progress.line(&format!("evaluation after step {done}: {}", Value::from(row.clone())));
        let value = row.get(&self.options.metric_for_best_model).and_then(Value::as_f64);
        if let Some(log) = &mut self.logs.evaluations {
            let result = log.append(&row);
            self.lenient(result)?;
        }
        self.state.evaluated_step = done;
        // Only what is saved can be kept.
        let every = self.options.save_steps as u64;
        let is_saved = done == self.state.identity.max_steps || (every > 0 && done.is_multiple_of(every));
        if let Some(value) = value.filter(|_| is_saved)
            && self.state.best.as_ref().is_none_or(|best| value > best.value)
        {
            let metric = self.options.metric_for_best_model.clone();
            self.state.best = Some(Best { step: done, value, metric });
        }
        Ok(true)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        // A run that is stopped is to go on, whatever the options say.
        let resumes = self.stopping || !self.options.save_only_model;
        let resume = resumes.then(|| -> Result<ResumeState> {
            let parts = self.trainer.state()?;
            let state =
                TrainerState { num_input_tokens_seen: parts.tokens, beta: parts.beta, ..self.state.clone() };
            Ok(ResumeState { state, optimiser: parts.optimiser, rollout: parts.rollout })
        });
        Ok(Snapshot {
            step: self.state.global_step,
            params: self.trainer.weights()?,
            resume: resume.transpose()?,
        })
    }

    /// Saves; puts it off while the logs can't be written, but not where there is no next step (`last`).
    fn save(&mut self, last: bool) -> Result<()> {
        // A checkpoint vouches for the lines before it.
        let mut flushed = self.flush();
        for pause_s in 1..=if last { LAST_PAUSES_S } else { 0 } {
            if flushed.is_ok() {
                break;
            }
            self.options.disk.pause(Duration::from_secs(pause_s));
            flushed = self.flush();
        }
        if let Err(error) = flushed {
            self.put_off_saves += 1;
            if last || self.put_off_saves >= MAX_PUT_OFF_SAVES {
                return Err(error);
            }
            self.put_off = true;
            let step = self.state.global_step;
            self.tell(vec![format!("the checkpoint of step {step} is put off: {error}")]);
            return Ok(());
        }
        self.save_now()
    }

    /// Makes up for a save that was put off, as soon as the logs can be written.
    fn make_up(&mut self) -> Result<()> {
        let is_good = self.state.guard.skipped_in_a_row == 0;
        if is_good && self.flush().is_ok() { self.save_now() } else { Ok(()) }
    }

    fn save_now(&mut self) -> Result<()> {
        (self.put_off, self.put_off_saves) = (false, 0);
        let best = self.state.best.as_ref().map(|best| best.step);
        let told = self.saver.save(self.snapshot()?, best)?;
        self.tell(told);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.logs.all().try_for_each(JsonLines::flush)
    }

    /// Saves what is done before an error ends the run, and waits for what is being written.
    fn close(mut self, ended: Result<()>) -> Result<PathBuf> {
        let done = self.state.global_step;
        let worth_saving = match &ended {
            Ok(()) => false,
            Err(Error::Protect(_) | Error::Internal(_)) => false,
            // Also in place of a model alone: what is stopped is to go on.
            Err(_) => done > 0 && (!self.saver.has(done) || self.options.save_only_model),
        };
        let saved = match worth_saving {
            true => self.save_and_wait(),
            false => self.wait(),
        };
        match ended {
            Ok(()) => {
                let path = saved?;
                self.flush()?;
                self.progress.finish();
                path.ok_or_else(|| Error::Internal("a run has ended without a checkpoint".into()))
            }
            Err(Error::Interrupted(reason)) => {
                let steps = self.state.identity.max_steps;
                Err(Error::Interrupted(match saved? {
                    Some(path) => format!(
                        "{reason} after step {done} of {steps}; everything is in {}: the same command with \
                         --resume_from_checkpoint goes on",
                        path.display()
                    ),
                    None => format!(
                        "{reason} before the first step was done: there is nothing to save; the same command with \
                         --resume_from_checkpoint starts again"
                    ),
                }))
            }
            Err(error) => {
                if let Err(also) = saved {
                    self.tell(vec![also.to_string()]);
                }
                Err(error)
            }
        }
    }

    fn save_and_wait(&mut self) -> Result<Option<PathBuf>> {
        self.stopping = true;
        self.save(true)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<Option<PathBuf>> {
        let (path, told) = self.saver.finish()?;
        self.tell(told);
        Ok(path)
    }

    /// Whether step number `step` (from 0) prints a line.
    fn is_logged(&self, step: u64) -> bool {
        let every = self.options.logging_steps as u64;
        every > 0 && ((step + 1).is_multiple_of(every) || step + 1 == self.state.identity.max_steps)
    }

    /// Warnings go out whatever the options say of progress.
    fn tell(&self, lines: Vec<String>) {
        for line in lines {
            if self.options.quiet {
                // A closed standard error is no reason to stop.
                let _ = writeln!(std::io::stderr(), "warning: {}", escape_control(&line));
            } else {
                self.progress.line(&format!("warning: {line}"));
            }
        }
    }
}

/// Saves weights alone ([`Trainer::weights`]), as the folder that `plan` is of: same names, same config dialect, same types.
///
/// # Errors
/// Those of [`Snapshot::write`].
pub fn save_model_checkpoint(
    disk: &dyn Disk,
    dir: &Path,
    weights: Arc<Params>,
    plan: &SavePlan,
) -> Result<()> {
    let snapshot = Snapshot { step: 0, params: weights, resume: None };
    crate::checkpoint::write_folder(disk, dir, crate::checkpoint::OnExisting::Replace, |folder| {
        snapshot.write(folder, plan)
    })
}
