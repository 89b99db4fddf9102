//! The logs of a run: JSON lines, and TensorBoard's event files.

use std::sync::Arc;

use super::{COMPLETIONS, EVAL_METRICS, Evaluation, Events, METRICS, RunOptions};
use crate::checkpoint::{Log, TrainerState};
use crate::error::{Error, Result};
use crate::report::{Appended, EventLog, JsonLines};

/// The logs of a run.
pub(super) struct Logs {
    pub(super) metrics: JsonLines,
    pub(super) completions: Option<JsonLines>,
    pub(super) evaluations: Option<JsonLines>,
    pub(super) events: Option<EventLog>,
}

impl Logs {
    /// Starts the logs, or continues them where `state` stands.
    pub(super) fn open(
        options: &RunOptions,
        state: &TrainerState,
        evaluation: Option<&Evaluation>,
    ) -> Result<Logs> {
        let (disk, done) = (&*options.disk, state.global_step);
        let open = |name: &str, first_step: u64| {
            let path = options.dir.join(name);
            if done == 0 { JsonLines::create(disk, path) } else { JsonLines::resume(disk, path, first_step) }
        };
        // An evaluation after the last step that this state does not know of is made again.
        let due = evaluation.is_some_and(|evaluation| evaluation.is_due(done, state.identity.max_steps));
        let is_made_again = due && state.evaluated_step < done;
        let evaluated = if is_made_again { done.saturating_sub(1) } else { done };
        let events = options.events.as_ref().map(|Events { dir, config }| {
            let log = EventLog::begin(disk, dir, done, is_made_again)?;
            if done == 0 {
                log.config(config)?;
            }
            Ok::<_, Error>(log)
        });
        Ok(Logs {
            metrics: open(METRICS, done)?,
            completions: options.log_completions.then(|| open(COMPLETIONS, done)).transpose()?,
            evaluations: evaluation.map(|_| open(EVAL_METRICS, evaluated)).transpose()?,
            events: events.transpose()?,
        })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Appended>> {
        let lines = [Some(&self.metrics), self.completions.as_ref(), self.evaluations.as_ref()];
        let lines = lines.into_iter().flatten().map(JsonLines::file);
        lines.chain(self.events.as_ref().map(EventLog::file))
    }

    pub(super) fn handles(&self) -> Vec<Arc<dyn Log>> {
        self.all().map(|file| Arc::clone(file) as Arc<dyn Log>).collect()
    }
}
