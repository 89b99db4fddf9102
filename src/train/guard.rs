//! What watches the numbers of a run.

use crate::checkpoint::GuardState;
use crate::error::{Error, Result};
use crate::report::Row;

/// Steps skipped in a row after which the run stops.
pub const MAX_SKIPPED: u64 = 3;

/// Values whose median is what a number usually is.
const WINDOW: usize = 32;

/// Fewer values than this say nothing.
const FEWEST: usize = 8;

/// A value this many times the median is a spike.
const SPIKE: f64 = 10.0;

/// A number to be watched for spikes.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Values of a smaller magnitude are never a spike: a KL that begins at 0 multiplies at first.
    pub floor: f64,
    /// The value at this step.
    pub value: f64,
}

impl GuardState {
    /// Takes the numbers of a step that was made; gives a line for each spike.
    pub fn accept(&mut self, step: u64, numbers: &[Watched]) -> Vec<String> {
        self.skipped_in_a_row = 0;
        numbers.iter().filter_map(|number| self.watch(step, *number)).collect()
    }

    fn watch(&mut self, step: u64, Watched { name, floor, value }: Watched) -> Option<String> {
        let recent = self.recent.entry(name.to_owned()).or_default();
        let mut sorted: Vec<f64> = recent.iter().map(|value| value.abs()).collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let spike = sorted.len() >= FEWEST && value.abs() > floor && value.abs() > SPIKE * median;
        recent.push(value);
        if recent.len() > WINDOW {
            recent.remove(0);
        }
        spike.then(|| {
            format!(
                "step {step}: {name} is {value:.4}, more than {SPIKE} times its median of the last {} steps ({median:.4})",
                sorted.len()
            )
        })
    }

    /// Counts a step that was skipped because of `reason`.
    ///
    /// # Errors
    /// [`Error::Protect`] when it is the third in a row.
    pub fn skip(&mut self, reason: &str) -> Result<()> {
        self.skipped_steps += 1;
        self.skipped_in_a_row += 1;
        if self.skipped_in_a_row < MAX_SKIPPED {
            return Ok(());
        }
        Err(Error::Protect(format!(
            "{MAX_SKIPPED} steps in a row could not be made, the last because {reason}: the run stops before more is lost"
        )))
    }

    /// Whether any of the first `steps` steps was made.
    pub fn has_made_any(&self, steps: u64) -> bool {
        self.skipped_steps < steps
    }

    /// What a run of `steps` steps comes to.
    ///
    /// # Errors
    /// [`Error::Protect`] when its last steps were skipped.
    pub fn verdict(&self, steps: u64) -> Result<()> {
        let skipped = self.skipped_in_a_row;
        if skipped == 0 {
            return Ok(());
        }
        let made = steps - skipped;
        let saved = if self.has_made_any(steps) {
            format!("the weights saved are those of step {made} and may be spoilt")
        } else {
            "nothing is saved".to_owned()
        };
        Err(Error::Protect(format!(
            "the last {skipped} of {steps} steps could not be made, because of NaN or infinity as the warnings say: {saved} (lower \
             the learning rate, or start from weights whose logits are finite)"
        )))
    }
}

/// A line if the first pass over a rollout did not give the log-probabilities that were sampled with: their ratio is
/// exactly 1 by construction.
pub fn off_policy(step: u64, row: &Row) -> Option<String> {
    let key = "sampling/sampling_logp_difference/max";
    let difference = row.get(key)?.as_f64().filter(|&difference| difference > 0.0)?;
    Some(format!(
        "step {step}: {key} is {difference:e}, so sampling and training disagree: this is a bug in othink-train; please \
         report it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_55_spikes_are_told_against_the_median() {
        let mut guard = GuardState::default();
        let mut told = Vec::new();
        for step in 0..40 {
            let value = if step == 20 { -50.0 } else { 1.0 + (step % 3) as f64 };
            told.extend(guard.accept(step, &[Watched { name: "loss", floor: 0.1, value }]));
        }
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("step 20: loss is -50.0000"), "{told:?}");
        assert_eq!(guard.recent["loss"].len(), WINDOW);
        // Below the floor nothing is a spike, and the first values are not either.
        let mut kl = |step, value| guard.accept(step, &[Watched { name: "kl", floor: 0.1, value }]).len();
        assert_eq!((0..9).map(|step| kl(step, 1e-9)).sum::<usize>(), 0);
        assert_eq!((kl(9, 0.09), kl(10, 0.11)), (0, 1));
    }

    #[test]
    fn case_56_a_ratio_that_is_not_one_is_told() {
        let row = |difference: f64| -> Row {
            [("sampling/sampling_logp_difference/max".to_owned(), difference.into())].into_iter().collect()
        };
        assert!(off_policy(7, &row(1e-6)).is_some_and(|line| line.starts_with("step 7: ")));
        assert_eq!((off_policy(7, &row(0.0)), off_policy(7, &Row::new())), (None, None));
    }

    #[test]
    fn three_in_a_row_end_the_run() {
        let mut guard = GuardState::default();
        assert!(guard.skip("the loss is NaN").is_ok() && guard.skip("the loss is NaN").is_ok());
        guard.accept(2, &[]);
        assert!(guard.skip("x").is_ok() && guard.skip("x").is_ok());
        let error = guard.skip("the gradient norm is inf").unwrap_err();
        assert_eq!(error.exit_code(), 70);
        assert!(error.to_string().contains("the gradient norm is inf"), "{error}");
        assert_eq!(guard.skipped_steps, 5);
    }
}
