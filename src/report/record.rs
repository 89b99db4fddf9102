//! The records of a run: one per optimiser step, one per logged completion. Names in the files are TRL's.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::jsonl::Row;
use crate::checkpoint::Refills;
use crate::data::ImageSource;

/// What one optimiser step of GRPO measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// The optimiser step, from 0: the `s` of the KL weight's schedule (Eq. 3).
    pub step: usize,
    /// Passes over the dataset after this step.
    pub epoch: f64,
    /// The loss whose gradient was taken (Eq. 4), KL term included.
    pub loss: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate this step used.
    pub learning_rate: f64,
    /// The KL weight this step used.
    pub beta: f64,
    /// Mean KL to the reference in nats per token, by the estimator in force; `None` without a reference.
    pub kl: Option<f64>,
    /// The estimates k1 and k3 and the exact KL, each where it was measured, whichever is in force.
    pub kl_estimates: [Option<f64>; 3],
    /// What dynamic sampling did, where it is on.
    pub refills: Option<Refills>,
    /// Mean entropy of the policy over the sampled tokens, in nats.
    pub entropy: f64,
    /// Mean weighted reward.
    pub reward: f64,
    /// Standard deviation of the weighted reward, as the advantages report it.
    pub reward_std: f64,
    /// Mean and standard deviation of each reward function, unweighted.
    pub rewards: Vec<RewardStatistics>,
    /// Share of groups whose rewards are all equal: they teach nothing.
    pub frac_reward_zero_std: f64,
    /// Lengths of the completions.
    pub lengths: CompletionLengths,
    /// How often the probability ratio was clipped.
    pub clip_ratio: ClipRatio,
    /// Mean absolute difference between a token's log-prob at sampling and in training; exactly 0 here on policy.
    pub sampling_logp_difference_mean: f64,
    /// Largest such difference.
    pub sampling_logp_difference_max: f64,
    /// Tokens processed since the start of the run, prompts included.
    pub num_tokens: u64,
    /// Wall time of this step, in seconds.
    pub step_time: f64,
    /// Where it went.
    pub phases: Phases,
    /// The most bytes that the GPU's memory has held at once, by purpose; empty on the CPU.
    pub memory: Vec<(String, usize)>,
}

/// Wall time of the parts of a step, in seconds; on the further iterations over one rollout the first two are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Encoding the prompts and sampling the completions.
    pub rollout: f64,
    /// Rewards, the reference's log-probabilities, advantages.
    pub reference: f64,
    /// Forward and backward passes, loss and gradient.
    pub learn: f64,
    /// The optimiser's update.
    pub optimizer: f64,
}

/// One reward function over a step's completions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardStatistics {
    /// The reward function.
    pub name: String,
    /// Mean reward.
    pub mean: f64,
    /// Bessel-corrected standard deviation; NaN for a single completion.
    pub std: f64,
}

impl RewardStatistics {
    /// The statistics of `values`, one per completion.
    pub fn of(name: impl Into<String>, values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        RewardStatistics { name: name.into(), mean, std: (squares / (count - 1.0)).sqrt() }
    }
}

/// Lengths of a step's completions, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompletionLengths {
    /// Mean length.
    pub mean: f64,
    /// Shortest.
    pub min: f64,
    /// Longest.
    pub max: f64,
    /// Share of completions that hit the length limit.
    pub clipped_ratio: f64,
    /// Mean length of those that ended by themselves; 0 where none did, as TRL.
    pub mean_terminated: f64,
    /// Shortest of those.
    pub min_terminated: f64,
    /// Longest of those.
    pub max_terminated: f64,
}

impl CompletionLengths {
    /// From each completion's length and whether it hit the limit.
    pub fn of(completions: impl IntoIterator<Item = (usize, bool)>) -> Self {
        let (mut all, mut terminated) = (Lengths::default(), Lengths::default());
        for (length, clipped) in completions {
            all.add(length);
            if !clipped {
                terminated.add(length);
            }
        }
        let clipped = (all.count - terminated.count) as f64;
        CompletionLengths {
            mean: all.mean(),
            min: all.min as f64,
            max: all.max as f64,
            clipped_ratio: if all.count == 0 { 0.0 } else { clipped / all.count as f64 },
            mean_terminated: terminated.mean(),
            min_terminated: terminated.min as f64,
            max_terminated: terminated.max as f64,
        }
    }
}

#[derive(Default)]
struct Lengths {
    count: usize,
    sum: usize,
    min: usize,
    max: usize,
}

impl Lengths {
    fn add(&mut self, length: usize) {
        self.min = if self.count == 0 { length } else { self.min.min(length) };
        self.max = self.max.max(length);
        self.sum += length;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
}

/// Shares of tokens (sequences, at sequence level) whose ratio was clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClipRatio {
    /// Mean share clipped from below (ratio under `1 - epsilon`, negative advantage).
    pub low_mean: f64,
    /// Smallest such share of a completion.
    pub low_min: f64,
    /// Mean share clipped from above (ratio over `1 + epsilon_high`, positive advantage).
    pub high_mean: f64,
    /// Largest such share of a completion.
    pub high_max: f64,
    /// Mean share clipped either way.
    pub region_mean: f64,
}

impl StepReport {
    /// The row of `metrics.jsonl`. Numbers that are not finite become `null`.
    pub fn row(&self) -> Row {
        let mut row = Row::new();
        let mut put = |name: &str, value: f64| row.insert(name.to_owned(), Value::from(value));
        put("epoch", self.epoch);
        put("loss", self.loss);
        put("grad_norm", self.grad_norm);
        put("learning_rate", self.learning_rate);
        put("beta", self.beta);
        put("kl", self.kl.unwrap_or(f64::NAN));
        for (name, value) in ["kl/k1", "kl/k3", "kl/exact"].into_iter().zip(self.kl_estimates) {
            if let Some(value) = value {
                put(name, value);
            }
        }
        put("entropy", self.entropy);
        put("reward", self.reward);
        put("reward_std", self.reward_std);
        for reward in &self.rewards {
            put(&format!("rewards/{}/mean", reward.name), reward.mean);
            put(&format!("rewards/{}/std", reward.name), reward.std);
        }
        put("frac_reward_zero_std", self.frac_reward_zero_std);
        if let Some(refills) = self.refills {
            put("dynamic_sample/dropped_groups", refills.dropped as f64);
            put("dynamic_sample/resample_times", refills.times as f64);
        }
        put("completions/mean_length", self.lengths.mean);
        put("completions/min_length", self.lengths.min);
        put("completions/max_length", self.lengths.max);
        put("completions/clipped_ratio", self.lengths.clipped_ratio);
        put("completions/mean_terminated_length", self.lengths.mean_terminated);
        put("completions/min_terminated_length", self.lengths.min_terminated);
        put("completions/max_terminated_length", self.lengths.max_terminated);
        put("clip_ratio/low_mean", self.clip_ratio.low_mean);
        put("clip_ratio/low_min", self.clip_ratio.low_min);
        put("clip_ratio/high_mean", self.clip_ratio.high_mean);
        put("clip_ratio/high_max", self.clip_ratio.high_max);
        put("clip_ratio/region_mean", self.clip_ratio.region_mean);
        put("sampling/sampling_logp_difference/mean", self.sampling_logp_difference_mean);
        put("sampling/sampling_logp_difference/max", self.sampling_logp_difference_max);
        put("step_time", self.step_time);
        put("step_time/rollout", self.phases.rollout);
        put("step_time/reference", self.phases.reference);
        put("step_time/learn", self.phases.learn);
        put("step_time/optimizer", self.phases.optimizer);
        for (purpose, bytes) in &self.memory {
            row.insert(format!("memory/{purpose}"), Value::from(*bytes));
        }
        row.insert("num_tokens".to_owned(), Value::from(self.num_tokens));
        first("step", self.step, row)
    }

    /// The console line of this step, of `total` steps.
    pub fn line(&self, total: usize) -> String {
        let mut line = format!("{}  reward {:.3}", counter(self.step, total), self.reward);
        for reward in &self.rewards {
            line += &format!("  {} {:.3}", reward.name, reward.mean);
        }
        if let Some(kl) = self.kl {
            line += &format!("  kl {kl:.4}");
        }
        line + &format!(
            "  beta {:.4}  loss {:+.4}  grad {:.3}  len {:.1}  entropy {:.3}  lr {:.2e}  {:.2} s",
            self.beta,
            self.loss,
            self.grad_norm,
            self.lengths.mean,
            self.entropy,
            self.learning_rate,
            self.step_time
        )
    }
}

/// What one optimiser step of supervised fine-tuning measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SftReport {
    /// The optimiser step, from 0.
    pub step: usize,
    /// Passes over the dataset after this step.
    pub epoch: f64,
    /// Mean cross-entropy of the completion tokens, in nats.
    pub loss: f64,
    /// Mean entropy of the predictions of the completion tokens, in nats.
    pub entropy: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate this step used.
    pub learning_rate: f64,
    /// Tokens processed since the start of the run, prompts included.
    pub num_tokens: u64,
    /// Wall time of this step, in seconds.
    pub step_time: f64,
}

impl SftReport {
    /// The row of `metrics.jsonl`. Numbers that are not finite become `null`.
    pub fn row(&self) -> Row {
        let mut row = Row::new();
        let mut put = |name: &str, value: f64| row.insert(name.to_owned(), Value::from(value));
        put("epoch", self.epoch);
        put("loss", self.loss);
        put("entropy", self.entropy);
        put("grad_norm", self.grad_norm);
        put("learning_rate", self.learning_rate);
        put("step_time", self.step_time);
        row.insert("num_tokens".to_owned(), Value::from(self.num_tokens));
        first("step", self.step, row)
    }

    /// The console line of this step, of `total` steps.
    pub fn line(&self, total: usize) -> String {
        format!(
            "{}  loss {:.4}  grad {:.3}  lr {:.2e}  {:.2} s",
            counter(self.step, total),
            self.loss,
            self.grad_norm,
            self.learning_rate,
            self.step_time
        )
    }
}

fn first(name: &str, value: usize, rest: Row) -> Row {
    std::iter::once((name.to_owned(), Value::from(value))).chain(rest).collect()
}

/// `step  3/120`, the number as wide as the total; people count steps from 1.
fn counter(step: usize, total: usize) -> String {
    let width = total.to_string().len();
    format!("step {:>width$}/{total}", step + 1)
}

/// One completion as logged in `completions.jsonl`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct CompletionRecord {
    /// The optimiser step, from 0.
    pub step: usize,
    /// The prompt's place in the shuffled stream, from 0: completions with the same one are a group.
    pub prompt_index: usize,
    /// The prompt's row in its dataset, from 0.
    pub row: usize,
    /// The user's text, template included.
    pub prompt: String,
    /// The prompt's image files.
    pub images: Vec<String>,
    /// The prompt's images, for who shows them; not in the file.
    #[serde(skip)]
    pub pictures: Vec<ImageSource>,
    /// The sampled text.
    pub completion: String,
    /// Tokens sampled.
    pub length: usize,
    /// Whether the length limit cut it off.
    pub truncated: bool,
    /// The dataset's reference answer.
    pub solution: Option<String>,
    /// The answer that the accuracy reward reads from the completion, where there is one.
    #[serde(alias = "answer", default)]
    pub parsed: Option<String>,
    /// Each reward function's value, unweighted; NaN (`null` in the file) where it does not apply.
    #[serde(with = "rewards_by_name")]
    pub rewards: Vec<(String, f64)>,
    /// The weighted sum; NaN (`null` in the file) where no reward applies.
    #[serde(with = "null_for_nan")]
    pub reward: f64,
    /// The advantage (Eq. 2).
    pub advantage: f64,
}

impl CompletionRecord {
    /// The prompt's images: as they are known, else the files that are named.
    pub fn sources(&self) -> impl Iterator<Item = ImageSource> {
        let named = self.images.iter().filter(|_| self.pictures.is_empty());
        self.pictures.iter().cloned().chain(named.map(|path| ImageSource::File(path.into())))
    }
}

/// A number that JSON has only where it is one.
mod null_for_nan {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// A list of (name, value) as a JSON object, in order.
mod rewards_by_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Row, Value};

    pub fn serialize<S: Serializer>(rewards: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(rewards.iter().map(|(name, value)| (name, value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, f64)>, D::Error> {
        let rewards = Row::deserialize(deserializer)?;
        rewards
            .into_iter()
            .map(|(name, value)| match value {
                Value::Number(number) => Ok((name, number.as_f64().unwrap_or(f64::NAN))),
                Value::Null => Ok((name, f64::NAN)),
                _ => Err(D::Error::custom(format!("reward `{name}` is not a number"))),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reward_statistics_are_bessel_corrected() {
        // Mean 2, squared deviations 1 + 1 + 4 = 6, over 2.
        let statistics = RewardStatistics::of("accuracy", &[1.0, 1.0, 4.0]);
        assert_eq!((statistics.mean, statistics.std), (2.0, 3f64.sqrt()));
        assert!(RewardStatistics::of("accuracy", &[1.0]).std.is_nan());
    }

    #[test]
    fn lengths_separate_the_terminated() {
        let lengths = CompletionLengths::of([(4, false), (8, true), (2, false), (8, true)]);
        assert_eq!((lengths.mean, lengths.min, lengths.max), (5.5, 2.0, 8.0));
        assert_eq!(lengths.clipped_ratio, 0.5);
        assert_eq!(
            (lengths.mean_terminated, lengths.min_terminated, lengths.max_terminated),
            (3.0, 2.0, 4.0)
        );
        assert_eq!(CompletionLengths::of([(5, true)]).mean_terminated, 0.0);
        assert_eq!(CompletionLengths::of([]), CompletionLengths::default());
    }

    #[test]
    fn step_row_has_trl_names_and_null_for_nan() {
        let report = StepReport {
            step: 3,
            beta: 0.04,
            grad_norm: f64::NAN,
            rewards: vec![RewardStatistics { name: "format".into(), mean: 0.5, std: 0.25 }],
            num_tokens: 12,
            ..StepReport::default()
        };
        let row = report.row();
        assert_eq!(row.keys().next().map(String::as_str), Some("step"));
        assert_eq!(row["step"], 3);
        assert_eq!(row["beta"], 0.04);
        assert_eq!(row["kl"], Value::Null);
        assert_eq!(row["grad_norm"], Value::Null);
        assert_eq!(row["rewards/format/mean"], 0.5);
        assert_eq!(row["sampling/sampling_logp_difference/max"], 0.0);
        for name in [
            "reward",
            "reward_std",
            "loss",
            "entropy",
            "learning_rate",
            "completions/mean_length",
            "frac_reward_zero_std",
            "num_tokens",
            "step_time",
            "epoch",
        ] {
            assert!(row.contains_key(name), "{name}");
        }
    }

    #[test]
    fn lines_count_from_one() {
        let report = StepReport { step: 8, kl: Some(0.25), ..StepReport::default() };
        let line = report.line(120);
        assert!(line.starts_with("step   9/120  reward 0.000  kl 0.2500  beta 0.0000"), "{line}");
        assert!(SftReport { loss: 1.5, ..SftReport::default() }.line(9).starts_with("step 1/9  loss 1.5000"));
    }

    #[test]
    fn completion_record_round_trips() {
        let record = CompletionRecord {
            step: 1,
            images: vec!["a.png".into()],
            rewards: vec![("format".into(), 1.0), ("accuracy".into(), 0.0)],
            advantage: -0.5,
            ..CompletionRecord::default()
        };
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""rewards":{"format":1.0,"accuracy":0.0}"#), "{text}");
        assert_eq!(serde_json::from_str::<CompletionRecord>(&text).unwrap(), record);
    }
}
