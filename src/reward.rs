//! Rewards: what a completion is worth, by named functions and their weighted sum.
//!
//! Eq. 1 of OThink-MR1 is `R = R_acc + alpha * R_format`: the set `accuracy, format` with
//! weights `1, alpha`. A new reward is one file with a [`Reward`] and one line in [`NAMES`]
//! and `by_name`.

mod accuracy;
mod accuracy_r1v;
mod answer;
mod format;
mod number;

use crate::data::{Sample, nearest};
use crate::error::{Error, Result};
use crate::rollout::Watch;

pub use accuracy::{Accuracy, is_correct};
pub use accuracy_r1v::AccuracyR1v;
pub use answer::extract;
pub use format::Format;

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

/// A named reward function.
pub trait Reward: Send + Sync {
    /// The name in options and metrics (`rewards/<name>/mean`).
    fn name(&self) -> &str;

    /// The worth of each completion, in order; finite numbers.
    ///
    /// `None` where the reward does not apply (no reference answer): the completion then gets
    /// nothing from this reward, as in TRL. A score is a function of its completion alone,
    /// not of the others of the batch. What takes long asks `watch` meanwhile.
    ///
    /// # Errors
    /// Whatever keeps the reward from being known; those of `watch`.
    fn score(&self, completions: &[Completed<'_>], watch: Watch<'_>) -> Result<Vec<Option<f64>>>;

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
mod tests {
    use super::*;
    use crate::data::PromptTemplate;

    fn set(names: &[&str], weights: &[f64]) -> Result<RewardSet> {
        RewardSet::new(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), weights)
    }

    fn sample(solution: Option<&str>) -> Sample {
        Sample::from_problem(0, vec![], "?", PromptTemplate::None, solution.map(str::to_string))
    }

    fn score(rewards: &RewardSet, sample: &Sample, text: &str) -> Vec<Option<f64>> {
        rewards.score(&[Completed { sample, text, tokens: &[] }], &|_| Ok(())).unwrap().remove(0)
    }

    /// What a reward gives that is told what to give.
    struct Gives(Vec<Option<f64>>);

    impl Reward for Gives {
        fn name(&self) -> &str {
            "gives"
        }

        fn score(&self, _: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn scores_stand_in_the_order_of_completions_and_rewards() {
        let rewards: Vec<Box<dyn Reward>> = vec![Box::new(Gives(vec![Some(1.0), None])), Box::new(Format)];
        let rewards = RewardSet::from_rewards(rewards, &[]).unwrap();
        let sample = sample(None);
        let completions = ["", "<think></think><answer></answer>"];
        let completions = completions.map(|text| Completed { sample: &sample, text, tokens: &[] });
        let scores = rewards.score(&completions, &|_| Ok(())).unwrap();
        assert_eq!(scores, [[Some(1.0), Some(0.0)], [None, Some(1.0)]]);
    }

    #[test]
    fn scores_that_cannot_be_are_refused() {
        let sample = sample(None);
        let code = |given: Vec<Option<f64>>| {
            let rewards = RewardSet::from_rewards(vec![Box::new(Gives(given))], &[]).unwrap();
            let completion = Completed { sample: &sample, text: "", tokens: &[] };
            rewards.score(&[completion], &|_| Ok(())).err().map(|error| error.exit_code())
        };
        assert_eq!(code(vec![Some(1.0)]), None);
        assert_eq!(code(vec![Some(f64::NAN)]), Some(70));
        assert_eq!(code(vec![Some(f64::INFINITY)]), Some(70));
        assert_eq!(code(vec![]), Some(1));
    }

    #[test]
    fn eq1_is_the_weighted_sum() {
        let rewards = set(&["accuracy", "format"], &[1.0, 0.25]).unwrap();
        assert_eq!(rewards.names(), ["accuracy", "format"]);
        let gold = sample(Some("<answer> 3 </answer>"));
        let total = |text: &str| rewards.total(&score(&rewards, &gold, text));
        assert_eq!(total("<think>a</think><answer>3</answer>"), Some(1.25));
        assert_eq!(total("<think>a</think><answer>4</answer>"), Some(0.25));
        assert_eq!(total("<answer>3</answer>"), Some(1.0));
        assert_eq!(total(""), Some(0.0));
        // Without weights, alpha = 1 (the paper).
        let plain = set(&["accuracy", "format"], &[]).unwrap();
        assert_eq!(plain.total(&score(&plain, &gold, "<think>a</think><answer>3</answer>")), Some(2.0));
    }

    #[test]
    fn a_reward_that_does_not_apply_adds_nothing() {
        let rewards = set(&["accuracy", "format"], &[]).unwrap();
        let scores = score(&rewards, &sample(None), "<think>a</think><answer>3</answer>");
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
