//! Rewards: what a completion is worth, by named functions and their weighted sum.
//!
//! Eq. 1 of OThink-MR1 is `R = R_acc + alpha * R_format`: the set `accuracy, format` with
//! weights `1, alpha`. A new reward is one file with a [`Reward`], one line in [`KNOWN`] and one
//! in `by_name`.

mod accuracy;
mod accuracy_r1v;
pub mod answer;
mod cosine;
#[cfg(unix)]
mod external;
mod format;
mod iou;
mod repetition;
mod soft_overlong;
mod think_format;

use std::sync::Arc;

use crate::config::RewardOptions;
use crate::data::{Sample, nearest};
use crate::error::{Error, Result};
use crate::rollout::Watch;

pub use accuracy::Accuracy;
pub use accuracy_r1v::AccuracyR1v;
pub use answer::{extract, is_correct, parsed};
pub use cosine::{Cosine, Length};
#[cfg(unix)]
pub use external::External;
pub use format::Format;
pub use iou::Iou;
pub use repetition::Repetition;
pub use soft_overlong::SoftOverlong;
pub use think_format::ThinkFormat;

/// Where a note to the user goes. Texts come as they are: whoever shows them escapes them.
pub type Notes = Arc<dyn Fn(&str) + Send + Sync>;

/// A completion to score.
#[derive(Clone, Copy, Debug)]
pub struct Completed<'a> {
    /// The row it answers.
    pub sample: &'a Sample,
    /// The decoded text, without special tokens.
    pub text: &'a str,
    /// The token ids, the end-of-sequence token included.
    pub tokens: &'a [u32],
}

/// How far training is; zeros outside of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps of the run.
    pub max_steps: u64,
    /// Passes over the rows done, with the begun one's share.
    pub epoch: f64,
}

/// A named reward function.
pub trait Reward: Send + Sync {
    /// The name in options and metrics (`rewards/<name>/mean`).
    fn name(&self) -> &str;

    /// The worth of each completion, in order; finite numbers.
    ///
    /// `None` where the reward does not apply (no reference answer): the completion then gets
    /// nothing from this reward, as in TRL. A score is a function of its completion (and of
    /// [`Reward::progress`]) alone, not of the others of the batch. What takes long asks `watch` meanwhile.
    ///
    /// # Errors
    /// Whatever keeps the reward from being known; those of `watch`.
    fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>>;

    /// Gets ready what takes time, so that what cannot work is known before the work begins. Asks `watch` meanwhile.
    ///
    /// # Errors
    /// Those that [`Reward::score`] would have.
    fn start(&self, _watch: Watch<'_>) -> Result<()> {
        Ok(())
    }

    /// Learns how far training is at what is scored from now on.
    fn progress(&self, _progress: Progress) {}

    /// Whether a row needs a reference answer for this reward to apply.
    fn needs_solution(&self) -> bool {
        false
    }

    /// Whether the score depends on [`Completed::tokens`].
    fn needs_tokens(&self) -> bool {
        false
    }
}

/// The built-in rewards: names, and what each is worth. `n` is the completion's length in tokens.
pub const KNOWN: [(&str, &str); 9] = [
    ("accuracy", "1 if the answer in the completion equals the solution's, else 0"),
    ("accuracy_r1v", "as accuracy, by R1-V's rule, which may take its number from the thinking"),
    ("format", "1 if all of it matches <think>.*?</think>\\s*<answer>.*?</answer>, else 0"),
    ("think_format", "1 if it begins with <think>, </think> follows and no second <think>, else 0 (TRL)"),
    (
        "cosine",
        "end + (start - end) / 2 * (1 + cos(pi * min(n / max_len, 1))): a right answer from cosine_max_value_correct \
                to cosine_min_value_correct, a wrong one from cosine_min_value_wrong to cosine_max_value_wrong (TRL)",
    ),
    ("length", "0.5 + 0.25 * (1 + cos(pi * min(n / 1024, 1))), right or wrong (VLM-R1)"),
    (
        "soft_overlong",
        "0 up to n = max_completion_len - soft_punish_cache, then falling linearly to -1 at max_completion_len (DAPO, TRL)",
    ),
    (
        "repetition",
        "repetition_max_penalty * (1 - distinct / all) over the n-grams of repetition_n_grams tokens (TRL)",
    ),
    (
        "iou",
        "intersection over union of the first boxes [x1, y1, x2, y2] of answer tag and solution (VLM-R1)",
    ),
];

fn by_name(name: &str, options: &RewardOptions) -> Option<Arc<dyn Reward>> {
    Some(match name {
        "accuracy" => Arc::new(Accuracy),
        "accuracy_r1v" => Arc::new(AccuracyR1v),
        "format" => Arc::new(Format),
        "think_format" => Arc::new(ThinkFormat),
        "cosine" => Arc::new(Cosine {
            min_value_wrong: options.cosine_min_value_wrong,
            max_value_wrong: options.cosine_max_value_wrong,
            min_value_correct: options.cosine_min_value_correct,
            max_value_correct: options.cosine_max_value_correct,
            max_len: options.cosine_max_len?,
        }),
        "length" => Arc::new(Length),
        "soft_overlong" => {
            Arc::new(SoftOverlong { max_len: options.max_completion_len?, cache: options.soft_punish_cache? })
        }
        "repetition" => Arc::new(Repetition {
            n_grams: options.repetition_n_grams,
            max_penalty: options.repetition_max_penalty,
        }),
        "iou" => Arc::new(Iou),
        _ => return None,
    })
}

/// A reward that a process of the user's computes.
#[cfg(unix)]
fn by_command(name: &str, command: &str, timeout: f64, notes: &Notes) -> Result<Arc<dyn Reward>> {
    let timeout = std::time::Duration::from_secs_f64(timeout);
    Ok(Arc::new(External::new(name, command, timeout, notes.clone())))
}

#[cfg(not(unix))]
fn by_command(name: &str, _: &str, _: f64, _: &Notes) -> Result<Arc<dyn Reward>> {
    Err(Error::Usage(format!("--reward_command {name}: commands are run on Unix systems only")))
}

/// Rewards with their weights. Clones share the rewards, and so their processes.
#[derive(Clone)]
pub struct RewardSet {
    rewards: Vec<Arc<dyn Reward>>,
    weights: Vec<f64>,
}

impl RewardSet {
    /// The rewards called `names`, built in or among the commands of `options` (resolved); an empty
    /// `weights` means 1 for each. `notes` is told what the user should know of the commands.
    ///
    /// # Errors
    /// `Usage` for an unknown name (with the nearest known one), a name given twice, a command with
    /// the name of a built-in reward, no name at all, a number of weights other than the number of
    /// names, or a weight not finite.
    pub fn new(names: &[String], weights: &[f64], options: &RewardOptions, notes: &Notes) -> Result<Self> {
        let built_in = || KNOWN.iter().map(|(name, _)| *name);
        if let Some((name, _)) = options.commands().find(|(name, _)| built_in().any(|known| known == *name)) {
            return Err(Error::Usage(format!(
                "--reward_command {name}=.. has the name of a built-in reward; give it another"
            )));
        }
        let mut rewards = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(Error::Usage(format!(
                    "the reward `{name}` is given twice; use a weight instead"
                )));
            }
            if let Some((_, command)) = options.commands().find(|(known, _)| known == name) {
                rewards.push(by_command(name, command, options.reward_timeout, notes)?);
                continue;
            }
            rewards.push(by_name(name, options).ok_or_else(|| {
                let known: Vec<&str> = built_in().chain(options.commands().map(|(name, _)| name)).collect();
                let hint = nearest(name, known.iter().copied());
                let hint = hint.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
                Error::Usage(format!(
                    "unknown reward `{name}`{hint} (known: {}; `othink-train reward --list` tells what each is, \
                     --reward_command adds your own)",
                    known.join(", ")
                ))
            })?);
        }
        Self::of(rewards, weights)
    }

    /// A set of the caller's own rewards; `weights` as in [`RewardSet::new`].
    ///
    /// # Errors
    /// `Usage` as for [`RewardSet::new`].
    pub fn from_rewards(rewards: Vec<Box<dyn Reward>>, weights: &[f64]) -> Result<Self> {
        Self::of(rewards.into_iter().map(Arc::from).collect(), weights)
    }

    fn of(rewards: Vec<Arc<dyn Reward>>, weights: &[f64]) -> Result<Self> {
        if rewards.is_empty() {
            let known = KNOWN.map(|(name, _)| name);
            return Err(Error::Usage(format!("no reward is given (known: {})", known.join(", "))));
        }
        let weights = if weights.is_empty() { vec![1.0; rewards.len()] } else { weights.to_vec() };
        if weights.len() != rewards.len() {
            return Err(Error::Usage(format!(
                "{} reward weights for {} rewards; give one weight for each",
                weights.len(),
                rewards.len()
            )));
        }
        if let Some(bad) = weights.iter().find(|w| !w.is_finite()) {
            return Err(Error::Usage(format!("the reward weight {bad} is not a finite number")));
        }
        Ok(RewardSet { rewards, weights })
    }

    /// Gets ready what takes time, so that what cannot work is known before the work begins.
    ///
    /// # Errors
    /// Those of [`Reward::start`].
    pub fn start(&self, watch: Watch<'_>) -> Result<()> {
        self.rewards.iter().try_for_each(|reward| reward.start(watch))
    }

    /// Tells the rewards how far training is, as [`Reward::progress`].
    pub fn progress(&self, progress: Progress) {
        self.rewards.iter().for_each(|reward| reward.progress(progress));
    }

    /// The names, in the order of [`RewardSet::score`].
    pub fn names(&self) -> Vec<&str> {
        self.rewards.iter().map(|r| r.name()).collect()
    }

    /// The weights, in the same order.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Whether every row has to have a reference answer.
    pub fn needs_solution(&self) -> bool {
        self.rewards.iter().any(|r| r.needs_solution())
    }

    /// Whether any score depends on the tokens; if so, the name of the first such reward.
    pub fn needs_tokens(&self) -> Option<&str> {
        self.rewards.iter().find(|r| r.needs_tokens()).map(|r| r.name())
    }

    /// Each reward of each completion, unweighted: one list for each completion.
    ///
    /// # Errors
    /// Those of the rewards and of `watch`; `Protect` for a score that is NaN or infinite.
    pub fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Vec<Option<f64>>>> {
        let mut scores = vec![Vec::with_capacity(self.rewards.len()); completions.len()];
        for reward in &self.rewards {
            let column = reward.score(completions, watch)?;
            if column.len() != completions.len() {
                return Err(Error::Internal(format!(
                    "the reward `{}` gave {} scores for {} completions",
                    reward.name(),
                    column.len(),
                    completions.len()
                )));
            }
            if let Some(bad) = column.iter().flatten().find(|score| !score.is_finite()) {
                return Err(Error::Protect(format!("the reward `{}` gave {bad}", reward.name())));
            }
            scores.iter_mut().zip(column).for_each(|(row, score)| row.push(score));
        }
        Ok(scores)
    }

    /// `R = sum_k weight_k * score_k` over the rewards that apply; `None` if none does.
    pub fn total(&self, scores: &[Option<f64>]) -> Option<f64> {
        let mut total = None;
        for (weight, score) in self.weights.iter().zip(scores) {
            if let Some(score) = score {
                total = Some(total.unwrap_or(0.0) + weight * score);
            }
        }
        total
    }
}

#[cfg(test)]
mod tests;
