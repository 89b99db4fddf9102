//! Rewards: what a completion is worth, by named functions and their weighted sum.
//!
//! Eq. 1 of OThink-MR1 is `R = R_acc + alpha * R_format`: the set `accuracy, format` with
//! weights `1, alpha`. A new reward is one file with a [`Reward`] and one line in [`NAMES`]
//! and `by_name`.

mod accuracy;
mod accuracy_r1v;
pub mod answer;
mod format;

use crate::data::{Sample, nearest};
use crate::error::{Error, Result};

pub use accuracy::Accuracy;
pub use accuracy_r1v::AccuracyR1v;
pub use answer::{extract, is_correct, parsed};
pub use format::Format;

/// A named reward function.
pub trait Reward: Send + Sync {
    /// The name in options and metrics (`rewards/<name>/mean`).
    fn name(&self) -> &str;

    /// The worth of `completion`, the decoded text without special tokens, for `sample`.
    ///
    /// `None` when the reward does not apply (no reference answer): the completion then gets
    /// nothing from this reward, as in TRL. Time is linear in the completion's length.
    fn score(&self, sample: &Sample, completion: &str) -> Option<f64>;

    /// Whether a row needs a reference answer for this reward to apply.
    fn needs_solution(&self) -> bool {
        false
    }
}

/// The known reward names.
pub const NAMES: [&str; 3] = ["accuracy", "accuracy_r1v", "format"];

fn by_name(name: &str) -> Option<Box<dyn Reward>> {
    match name {
        "accuracy" => Some(Box::new(Accuracy)),
        "accuracy_r1v" => Some(Box::new(AccuracyR1v)),
        "format" => Some(Box::new(Format)),
        _ => None,
    }
}

/// Rewards with their weights.
pub struct RewardSet {
    rewards: Vec<Box<dyn Reward>>,
    weights: Vec<f64>,
}

impl RewardSet {
    /// The rewards called `names`; an empty `weights` means 1 for each.
    ///
    /// # Errors
    /// `Usage` for an unknown name (with the nearest known one), a name given twice, no name
    /// at all, a number of weights other than the number of names, or a weight not finite.
    pub fn new(names: &[String], weights: &[f64]) -> Result<Self> {
        let mut rewards = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(Error::Usage(format!(
                    "the reward `{name}` is given twice; use a weight instead"
                )));
            }
            rewards.push(by_name(name).ok_or_else(|| {
                let hint = nearest(name, NAMES).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                Error::Usage(format!("unknown reward `{name}`{hint} (known: {})", NAMES.join(", ")))
            })?);
        }
        Self::from_rewards(rewards, weights)
    }

    /// A set of the caller's own rewards; `weights` as in [`RewardSet::new`].
    ///
    /// # Errors
    /// `Usage` as for [`RewardSet::new`].
    pub fn from_rewards(rewards: Vec<Box<dyn Reward>>, weights: &[f64]) -> Result<Self> {
        if rewards.is_empty() {
            return Err(Error::Usage(format!("no reward is given (known: {})", NAMES.join(", "))));
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

    /// Each reward of `completion`, unweighted.
    pub fn score(&self, sample: &Sample, completion: &str) -> Vec<Option<f64>> {
        self.rewards.iter().map(|r| r.score(sample, completion)).collect()
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
mod tests {
    use super::*;
    use crate::data::PromptTemplate;

    fn set(names: &[&str], weights: &[f64]) -> Result<RewardSet> {
        RewardSet::new(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), weights)
    }

    fn sample(solution: Option<&str>) -> Sample {
        Sample::from_problem(0, vec![], "?", PromptTemplate::None, solution.map(str::to_string))
    }

    #[test]
    fn eq1_is_the_weighted_sum() {
        let rewards = set(&["accuracy", "format"], &[1.0, 0.25]).unwrap();
        assert_eq!(rewards.names(), ["accuracy", "format"]);
        let gold = sample(Some("<answer> 3 </answer>"));
        let total = |text: &str| rewards.total(&rewards.score(&gold, text));
        assert_eq!(total("<think>a</think><answer>3</answer>"), Some(1.25));
        assert_eq!(total("<think>a</think><answer>4</answer>"), Some(0.25));
        assert_eq!(total("<answer>3</answer>"), Some(1.0));
        assert_eq!(total(""), Some(0.0));
        // Without weights, alpha = 1 (the paper).
        let plain = set(&["accuracy", "format"], &[]).unwrap();
        assert_eq!(plain.total(&plain.score(&gold, "<think>a</think><answer>3</answer>")), Some(2.0));
    }

    #[test]
    fn a_reward_that_does_not_apply_adds_nothing() {
        let rewards = set(&["accuracy", "format"], &[]).unwrap();
        let scores = rewards.score(&sample(None), "<think>a</think><answer>3</answer>");
        assert_eq!(scores, [None, Some(1.0)]);
        assert_eq!(rewards.total(&scores), Some(1.0));
        assert_eq!(rewards.total(&[None, None]), None);
    }

    #[test]
    fn wrong_sets_are_refused() {
        let message = |names: &[&str], weights: &[f64]| {
            let error = set(names, weights).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(message(&["acuracy"], &[]).contains("did you mean `accuracy`?"));
        assert!(message(&["zzz"], &[]).contains("known: accuracy, accuracy_r1v, format"));
        assert!(message(&["format", "format"], &[]).contains("twice"));
        assert!(message(&[], &[]).contains("no reward"));
        assert!(message(&["format"], &[1.0, 2.0]).contains("2 reward weights for 1 rewards"));
        assert!(message(&["format"], &[f64::NAN]).contains("finite"));
    }

    #[test]
    fn rewards_that_compare_need_a_solution() {
        assert!(set(&["format", "accuracy"], &[]).unwrap().needs_solution());
        assert!(set(&["accuracy_r1v"], &[]).unwrap().needs_solution());
        assert!(!set(&["format"], &[]).unwrap().needs_solution());
    }
}
