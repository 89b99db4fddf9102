//! A rollout, scored: what all iterations over it share.

use super::GrpoTrainer;
use crate::advantage::{Advantages, group_advantages, group_advantages_on};
use crate::batch::{Group, MicroBatch, micro_batches};
use crate::checkpoint::{Refills, SavedRollout};
use crate::config::KlEstimator;
use crate::cuda::Purpose;
use crate::data::Sample;
use crate::error::Result;
use crate::loss::{Sampled, k1_penalty_of_scores};
use crate::processor::Prompt;
use crate::report::{CompletionLengths, CompletionRecord, RewardStatistics};
use crate::reward::parsed;
use crate::rollout::sequence::FinishReason;
use crate::rollout::{Completion, LogProbs, Watch};
use crate::tensor::{Device, Tensor};
use crate::train::update::{scores, scores_of_both};
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3Default;

/// A rollout with its rewards and advantages: what all iterations over it share.
pub(super) struct Scored {
    /// The KL weight at the step that sampled it, which `k1` penalises with.
    pub(super) beta: f64,
    /// The rows, with their places in the stream, `[P]`.
    pub(super) chosen: Vec<(u64, Sample)>,
    /// What dynamic sampling did.
    pub(super) refills: Refills,
    pub(super) prompts: Vec<Prompt>,
    /// `[P][G]`.
    pub(super) completions: Vec<Vec<Completion>>,
    /// Each reward of each completion, unweighted, `[P * G]`.
    pub(super) scores: Vec<Vec<Option<f64>>>,
    /// What the loss uses; with `k1`, of the penalised rewards.
    pub(super) advantages: Advantages,
    /// What is logged: statistics of the rewards themselves.
    pub(super) judged: Advantages,
    pub(super) statistics: Vec<RewardStatistics>,
    pub(super) lengths: CompletionLengths,
    pub(super) batches: Vec<MicroBatch>,
    /// The log-probabilities of sampling.
    pub(super) sampled: Kept,
    /// The reference's scores of each micro-batch, `[T, 3]`.
    pub(super) reference: Option<Vec<Tensor>>,
    /// The policy's, with the exact KL to the reference, where they were asked for beside another estimator.
    pub(super) exact: Option<Vec<Tensor>>,
    /// Mean and largest difference between the log-probabilities of sampling and of the first training pass.
    pub(super) difference: Option<(f64, f64)>,
}

/// The log-probabilities that sampling kept, beside the weights.
pub(super) struct Kept {
    /// Those of all completions, one behind the other.
    values: Tensor,
    /// How many they are; `values` may hold others too.
    pub(super) tokens: usize,
    /// Where each completion's begin, `[P * G]`.
    begins: Vec<usize>,
}

impl Kept {
    /// The tensor that the completions share, as they come from a rollout; a copy on `device`, as they come from a checkpoint.
    fn of(completions: &[Vec<Completion>], device: &Device) -> Result<Kept> {
        let all: Vec<&LogProbs> = completions.iter().flatten().map(|c| &c.logps).collect();
        let tokens = all.iter().map(|logps| logps.len()).sum();
        let shared = all.first().map(|first| first.values()).filter(|values| {
            values.device() == *device && all.iter().all(|logps| logps.values().shares_storage(values))
        });
        if let Some(values) = shared {
            let begins = all.iter().map(|logps| logps.begin()).collect();
            return Ok(Kept { values: values.clone(), begins, tokens });
        }
        let each = all.iter().map(|logps| logps.to_vec()).collect::<Result<Vec<_>>>()?;
        let copies = LogProbs::of_host(&each)?;
        let begins = copies.iter().map(|logps| logps.begin()).collect();
        let values = Tensor::new(&[tokens], each.concat())?.to_device(device, Purpose::Inputs)?;
        Ok(Kept { values, begins, tokens })
    }

    /// Those of a micro-batch.
    pub(super) fn of_batch(&self, batch: &MicroBatch) -> Sampled<'_> {
        Sampled { values: &self.values, begins: &self.begins[batch.members.clone()] }
    }
}

/// Scores of each micro-batch, `[T, 3]`, as far as they are needed.
#[derive(Default)]
struct AgainstReference {
    /// The reference's.
    reference: Option<Vec<Tensor>>,
    /// The policy's, with the exact KL to the reference.
    exact: Option<Vec<Tensor>>,
}

impl Scored {
    /// Tokens of all completions that were sampled, each with its whole prompt.
    pub(super) fn tokens(&self) -> u64 {
        let groups = self.prompts.iter().zip(&self.completions);
        let tokens = groups.flat_map(|(p, cs)| cs.iter().map(|c| p.tokens.len() + c.tokens.len()));
        tokens.sum::<usize>() as u64 + self.refills.dropped_tokens
    }

    /// What a checkpoint keeps of it, in host memory.
    ///
    /// # Errors
    /// Those of copying device memory.
    pub(super) fn saved(&self) -> Result<SavedRollout> {
        let each = self.flat().iter().map(|c| c.logps.to_vec()).collect::<Result<Vec<_>>>()?;
        let mut logps = LogProbs::of_host(&each)?.into_iter();
        let mut completions = self.completions.clone();
        completions.iter_mut().flatten().zip(&mut logps).for_each(|(c, logps)| c.logps = logps);
        Ok(SavedRollout {
            beta: self.beta,
            places: self.chosen.iter().map(|(place, _)| *place).collect(),
            refills: self.refills,
            prompts: self.prompts.iter().map(prompt_hash).collect(),
            completions,
            scores: self.scores.clone(),
            difference: self.difference,
        })
    }

    /// All completions in order.
    pub(super) fn flat(&self) -> Vec<&Completion> {
        self.completions.iter().flatten().collect()
    }
}

impl GrpoTrainer {
    /// What all iterations over a rollout share: micro-batches, the reference's log-probabilities, advantages.
    pub(super) fn scored(
        &self,
        chosen: Vec<(u64, Sample)>,
        prompts: Vec<Prompt>,
        rollout: SavedRollout,
        watch: Watch<'_>,
    ) -> Result<Scored> {
        let SavedRollout { beta, refills, completions, scores: rewards_of_each, difference, .. } = rollout;
        let (group, device) = (self.options.num_generations, &self.options.placement.device);
        let groups: Vec<Group<'_>> = prompts
            .iter()
            .zip(&completions)
            .map(|(prompt, cs)| Group {
                prompt,
                completions: cs.iter().map(|c| c.tokens.as_slice()).collect(),
            })
            .collect();
        let batches = micro_batches(&groups, self.options.micro_batch, self.policy.layout())?;
        let AgainstReference { reference, exact } = self.reference_scores(&batches, watch)?;
        let rewards: Vec<f64> =
            rewards_of_each.iter().map(|s| self.rewards.total(s).unwrap_or(f64::NAN)).collect();
        let statistics = self
            .rewards
            .names()
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let values: Vec<f64> = rewards_of_each.iter().filter_map(|s| s[i]).collect();
                RewardStatistics::of(*name, &values)
            })
            .collect();
        let sampled = Kept::of(&completions, device)?;
        let judged = group_advantages(&rewards, group, self.options.scale_rewards)?;
        let mut penalised = rewards;
        if let (KlEstimator::K1, Some(reference)) = (self.options.loss.kl_estimator, &reference) {
            for (batch, reference) in batches.iter().zip(reference) {
                let penalty = k1_penalty_of_scores(&batch.offsets, &sampled.of_batch(batch), reference)?;
                for (reward, penalty) in penalised[batch.members.clone()].iter_mut().zip(penalty) {
                    *reward -= beta * penalty;
                }
            }
        }
        let advantages = group_advantages_on(device, &penalised, group, self.options.scale_rewards)?;
        let lengths = CompletionLengths::of(
            completions.iter().flatten().map(|c| (c.tokens.len(), c.finish == FinishReason::Length)),
        );
        drop(groups);
        Ok(Scored {
            beta,
            chosen,
            refills,
            prompts,
            completions,
            scores: rewards_of_each,
            advantages,
            judged,
            statistics,
            lengths,
            batches,
            sampled,
            reference,
            exact,
            difference,
        })
    }

    /// The reference's scores of each micro-batch, and where every KL estimate is asked for the policy's own with the exact
    /// KL. Where the exact KL is in force the training pass takes it, and only who asks gets anything here.
    fn reference_scores(&self, batches: &[MicroBatch], watch: Watch<'_>) -> Result<AgainstReference> {
        let in_force = self.options.loss.kl_estimator == KlEstimator::Full;
        let Some(reference) = self.reference.as_ref().filter(|_| !in_force || self.options.log_exact_kl)
        else {
            return Ok(AgainstReference::default());
        };
        let temperature = f64::from(self.decoding.sampling.score_temperature());
        let (model, policy) = (&self.policy.model, &self.policy.params);
        let with_exact = self.options.log_exact_kl && !in_force;
        let score = |batch: &MicroBatch| {
            watch(0)?;
            if with_exact {
                let [of_reference, of_policy] =
                    scores_of_both(model, &reference.params, policy, batch, temperature)?;
                return Ok((of_reference, Some(of_policy)));
            }
            Ok((scores(model, &reference.params, batch, temperature)?, None))
        };
        // Side by side, micro-batches on a GPU would only hold more memory.
        let both = match self.options.placement.device {
            Device::Cpu => batches.par_iter().map(score).collect::<Result<Vec<_>>>()?,
            Device::Cuda(_) => batches.iter().map(score).collect::<Result<Vec<_>>>()?,
        };
        let (of_reference, of_policy): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let exact = with_exact.then(|| of_policy.into_iter().flatten().collect());
        Ok(AgainstReference { reference: Some(of_reference), exact })
    }

    /// The rows of `completions.jsonl`.
    pub(super) fn records(&self, step: u64, rollout: &Scored) -> Vec<CompletionRecord> {
        let names = self.rewards.names();
        let mut records = Vec::new();
        for (p, ((place, sample), completions)) in rollout.chosen.iter().zip(&rollout.completions).enumerate()
        {
            for (g, completion) in completions.iter().enumerate() {
                let scores = &rollout.scores[p * completions.len() + g];
                records.push(CompletionRecord {
                    step: step as usize,
                    prompt_index: *place as usize,
                    row: sample.row,
                    prompt: rollout.prompts[p].text.clone(),
                    images: sample.image_files().map(|f| f.display().to_string()).collect(),
                    pictures: sample.images.clone(),
                    completion: completion.text.clone(),
                    length: completion.tokens.len(),
                    truncated: completion.finish == FinishReason::Length,
                    solution: sample.solution.clone(),
                    parsed: parsed(&completion.text),
                    reward: self.rewards.total(scores).unwrap_or(f64::NAN),
                    rewards: names
                        .iter()
                        .zip(scores)
                        .map(|(n, s)| ((*n).to_string(), s.unwrap_or(f64::NAN)))
                        .collect(),
                    advantage: f64::from(rollout.advantages.advantages_pg[p * completions.len() + g]),
                });
            }
        }
        records
    }
}

/// What tells one prompt from another: a hash of its tokens and its images' pixels.
pub(super) fn prompt_hash(prompt: &Prompt) -> String {
    let mut hasher = Xxh3Default::new();
    hasher.update(bytemuck::cast_slice(&prompt.tokens));
    prompt.images.iter().for_each(|image| hasher.update(&image.bytes));
    format!("{:032x}", hasher.digest128())
}
