//! Whole runs: the loop over steps, what it leaves in the run folder, and how it ends.

mod logs;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

pub use super::evaluate::Evaluation;
use super::guard::off_policy;
use super::interrupt::Interrupt;
use super::trainer::{Skipped, Step, Trainer};
use crate::checkpoint::{
    Best, Identity, ResumeState, SavePlan, Saver, Snapshot, TrainerState, list_checkpoints,
};
use crate::data::Dataset;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::report::console::escape_control;
use crate::report::{Backlog, CompletionRecord, JsonLines, Progress, Row};
use crate::reward;
use logs::Logs;

/// One object per optimiser step.
pub const METRICS: &str = "metrics.jsonl";
/// One object per sampled completion.
pub const COMPLETIONS: &str = "completions.jsonl";
/// One object per evaluation.
pub const EVAL_METRICS: &str = "eval_metrics.jsonl";
/// What a step's row of metrics holds though the step could not be made.
const KNOWN_WITHOUT_A_STEP: [&str; 5] = ["step", "epoch", "learning_rate", "beta", "num_tokens"];

/// The batches of skipped steps.
pub(super) const SKIPPED_DIR: &str = "skipped";

/// Saves in a row that may be put off because the logs can't be written.
const MAX_PUT_OFF_SAVES: usize = 3;

/// Pauses of 1, 2, ... seconds after each of which the logs are tried again where there is no next step.
const LAST_PAUSES_S: u64 = 2;

/// Times in a run at which completions are shown in the event file, beside its first and last step.
const SHOWN_COMPLETIONS: u64 = 20;

/// TensorBoard's event files of a run.
#[derive(Clone, Debug)]
pub struct Events {
    /// Their folder.
    pub dir: PathBuf,
    /// The resolved options, as they are shown.
    pub config: String,
}

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
    /// Key of `eval_metrics.jsonl` whose largest value (of a loss the smallest) makes a checkpoint the best one.
    pub metric_for_best_model: String,
    /// A line on the console every so many steps, 0 for none. Every step has its row of metrics.
    pub logging_steps: usize,
    /// A line after the first step too.
    pub logging_first_step: bool,
    /// What TensorBoard gets, if anything.
    pub events: Option<Events>,
    /// Whether completions are logged.
    pub log_completions: bool,
    /// Completions printed with each line.
    pub print_completions: usize,
    /// No progress on standard error.
    pub quiet: bool,
    /// What asks the run to stop.
    pub interrupt: Interrupt,
}

/// Trains until the last step of `identity`, from `resumed` (what the trainer was restored from) or from the start.
/// Gives the path of the last checkpoint.
///
/// Whatever ends the run, the work done so far is saved first, except where the numbers themselves are in doubt.
///
/// # Errors
/// [`Error::Interrupted`] when a signal asked for it; [`Error::Protect`] after three skipped steps in a row, or when the last ones
/// were skipped; those of a step and of writing.
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
    /// Passes over the rows after the last step logged.
    epoch: f64,
    progress: Progress,
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
                stream: None,
                reference_synced: None,
            },
        };
        let logs = Logs::open(options, &state, evaluation)?;
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
            epoch: 0.0,
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
            let is_nothing = last && !self.state.guard.has_made_any(done);
            if due && !is_known && in_doubt {
                self.put_off = true;
            } else if is_nothing {
                // The weights are those that the run began with.
            } else if due && !is_known {
                self.save(last)?;
            } else if self.put_off && !in_doubt {
                self.make_up()?;
            }
            let told = self.saver.poll()?;
            self.tell(told);
            if last {
                return self.state.guard.verdict(done);
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
        told.extend(done.told);
        self.tell(told);
        self.log_step(done.row)?;
        if self.is_logged(step) {
            self.progress.line(&done.line);
            for record in done.completions.iter().take(self.options.print_completions) {
                self.progress.line(&format!("reward {:.2}  {}", record.reward, record.completion));
            }
        }
        self.progress.note(&done.note);
        self.log_completions(step, &done.completions)
    }

    fn log_completions(&mut self, step: u64, completions: &[CompletionRecord]) -> Result<()> {
        let Some(log) = &mut self.logs.completions else { return Ok(()) };
        let mut results: Vec<_> = completions.iter().map(|record| log.append(record)).collect();
        let steps = self.state.identity.max_steps;
        let every = steps.div_ceil(SHOWN_COMPLETIONS);
        if let Some(events) = &self.logs.events
            && (step.is_multiple_of(every) || step + 1 == steps)
        {
            results.push(events.completions(completions));
        }
        // One report for a step: what is refused keeps what is behind it waiting.
        let refused = results.into_iter().find(Result::is_err).unwrap_or(Ok(()));
        self.lenient(refused)
    }

    /// Leaves a step out: the weights stay as they were, the batch is kept to be looked at.
    fn skip(&mut self, step: u64, reason: &str) -> Result<()> {
        let Skipped { mut row, batch } = self.trainer.skipped(step, self.samples);
        for (key, value) in row.iter_mut() {
            if !KNOWN_WITHOUT_A_STEP.contains(&key.as_str()) {
                *value = serde_json::Value::Null;
            }
        }
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
        self.epoch = row.get("epoch").and_then(Value::as_f64).unwrap_or(self.epoch);
        row.insert("skipped_steps".into(), self.state.guard.skipped_steps.into());
        let result = self.logs.metrics.append(&row);
        let shown = self.logs.events.as_ref().map_or(Ok(()), |events| events.row(&row));
        self.lenient(result.and(shown))
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
        let steps = self.state.identity.max_steps;
        let Some(evaluation) = self.evaluation.filter(|evaluation| evaluation.is_due(done, steps)) else {
            return Ok(false);
        };
        if self.state.evaluated_step == done {
            return Ok(false);
        }
        let interrupt = &self.options.interrupt;
        let progress = reward::Progress { step: done, max_steps: steps, epoch: self.epoch };
        evaluation.rewards.progress(progress);
        let row = evaluation.row(self.trainer.policy(), done - 1, &|_| interrupt.check())?;
        self.progress.line(&format!("evaluation after step {done}: {}", Value::from(row.clone())));
        let value = row.get(&self.options.metric_for_best_model).and_then(Value::as_f64);
        let result = self.logs.evaluations.as_mut().map_or(Ok(()), |log| log.append(&row));
        let shown = self.logs.events.as_ref().map_or(Ok(()), |events| events.row(&row));
        self.lenient(result.and(shown))?;
        self.state.evaluated_step = done;
        // Only what is saved can be kept.
        let every = self.options.save_steps as u64;
        let is_saved = done == self.state.identity.max_steps || (every > 0 && done.is_multiple_of(every));
        if let Some(value) = value.filter(|_| is_saved)
            && self.state.best.as_ref().is_none_or(|best| self.is_better(value, best.value))
        {
            let metric = self.options.metric_for_best_model.clone();
            self.state.best = Some(Best { step: done, value, metric });
        }
        Ok(true)
    }

    /// As Hugging Face's trainer compares: a loss is better the smaller it is.
    fn is_better(&self, value: f64, than: f64) -> bool {
        if self.options.metric_for_best_model.ends_with("loss") { value < than } else { value > than }
    }

    fn snapshot(&self) -> Result<Snapshot> {
        // A run that is stopped is to go on, whatever the options say.
        let resumes = self.stopping || !self.options.save_only_model;
        let resume = resumes.then(|| -> Result<ResumeState> {
            let parts = self.trainer.state()?;
            let state = TrainerState {
                num_input_tokens_seen: parts.tokens,
                beta: parts.beta,
                stream: parts.stream,
                reference_synced: parts.reference.as_ref().map(|reference| reference.synced),
                ..self.state.clone()
            };
            let reference = parts.reference.map(|reference| reference.weights);
            Ok(ResumeState { state, optimiser: parts.optimiser, rollout: parts.rollout, reference })
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
        self.logs.all().try_for_each(|file| file.flush())
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
        let is_first = step == 0 && self.options.logging_first_step;
        every > 0
            && (is_first || (step + 1).is_multiple_of(every) || step + 1 == self.state.identity.max_steps)
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
