//! `grpo_e2e.*`: clipped GRPO with k3 KL on completions of example 0's prompt, which the model sees once.

use super::bundle::GrpoInput;
use super::compare::{Row, Values, Verdict};
use super::examples::Example;
use super::{Context, Sink, ids_i32};
use crate::advantage::group_advantages;
use crate::autograd::ParamGrads;
use crate::batch::{Group, micro_batches};
use crate::config::{ImportanceSamplingLevel, KlEstimator, LossType, ScaleRewards};
use crate::cuda::Purpose;
use crate::error::Result;
use crate::loss::{LossConfig, Sampled, ScoreInputs, Window, loss_of_scores};
use crate::tensor::{DType, Tensor};
use crate::train::update::forward;

/// The given tensors, which have no other source than the bundle.
const GIVEN: [&str; 3] = ["grpo_e2e.rewards", "grpo_e2e.old_logps", "grpo_e2e.ref_logps"];

/// Whether the key is of the case's gradients.
pub(super) fn is_gradient(key: &str) -> bool {
    key.starts_with("grpo_e2e.grad")
}

impl Context<'_> {
    /// Every key of the GRPO case.
    pub(super) fn grpo(&self, examples: &[Example], sink: &mut Sink<'_>) -> Result<()> {
        let (Some(case), Some(example)) = (self.bundle.grpo(), examples.first()) else { return Ok(()) };
        if !sink.wants_any("grpo_e2e.") {
            return Ok(());
        }
        let encode = |text: &String| self.policy.processor.encode_completion(text);
        let completions = case.completions.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let (group, longest) = (completions.len(), completions.iter().map(Vec::len).max().unwrap_or(0));
        let shape = [group, longest];
        let mut ids = vec![self.pad()?; group * longest];
        let mut mask = vec![0; group * longest];
        for (g, completion) in completions.iter().enumerate() {
            let own = g * longest..g * longest + completion.len();
            ids[own.clone()].copy_from_slice(&ids_i32(completion)?);
            mask[own].fill(1);
        }
        sink.emit("grpo_e2e.completion_ids", &shape, Values::I32(ids))?;
        sink.emit("grpo_e2e.completion_mask", &shape, Values::I32(mask))?;

        let [rewards, old, reference] = GIVEN;
        let (Some(rewards), Some(old), Some(reference)) = (
            self.bundle.given(rewards, &[group])?,
            self.bundle.given(old, &shape)?,
            self.bundle.given(reference, &shape)?,
        ) else {
            return self.without_given(sink);
        };
        for (key, shape, values) in [
            (GIVEN[0], &shape[..1], &rewards),
            (GIVEN[1], &shape[..], &old),
            (GIVEN[2], &shape[..], &reference),
        ] {
            sink.given(key, shape, values);
        }
        let rewards: Vec<f64> = rewards.iter().map(|&reward| f64::from(reward)).collect();
        let advantages = group_advantages(&rewards, group, ScaleRewards::Group)?.advantages_pg;
        sink.emit("grpo_e2e.advantages", &[group], Values::F32(advantages.clone()))?;

        let part =
            Group { prompt: &example.prompt, completions: completions.iter().map(Vec::as_slice).collect() };
        let Some(batch) = micro_batches(&[part], group, self.policy.layout())?.pop() else { return Ok(()) };
        let (scores, pass) = forward(&self.policy.model, &self.params, &batch, self.forward_options(), None)?;
        // The given arrays without their padding.
        let ragged = |padded: &[f32]| -> Vec<f32> {
            let rows = padded.chunks_exact(longest.max(1)).zip(&completions);
            rows.flat_map(|(row, completion)| row[..completion.len()].iter().copied()).collect()
        };
        let (old, reference) = (ragged(&old), ragged(&reference));
        let tokens = old.len();
        // Of the reference's scores only the log-probability is looked at.
        let reference = reference.iter().flat_map(|&logp| [logp, 0.0, 0.0]).collect::<Vec<f32>>();
        // Beside the scores, so that the loss is the one of their device.
        let placed = |x: Tensor| x.to_device(&pass.scores().device(), Purpose::Inputs);
        let old = placed(Tensor::new(&[tokens], old)?)?;
        let reference = placed(Tensor::new(&[tokens, 3], reference)?)?;
        let output = loss_of_scores(
            &loss_config(case),
            &ScoreInputs {
                offsets: &batch.offsets,
                scores: pass.scores(),
                sampled: Sampled { values: &old, begins: &batch.offsets[..group] },
                off_policy: true,
                reference: Some(&reference),
                exact_kl: false,
                counts_b: &vec![true; group],
                advantages_b: &advantages,
                window: Window::of_batch(&batch.offsets, None),
            },
        )?;
        let mut logps = vec![0.0; group * longest];
        for (row, ends) in logps.chunks_exact_mut(longest.max(1)).zip(batch.offsets.windows(2)) {
            row[..ends[1] - ends[0]].copy_from_slice(&scores.logp_t[ends[0]..ends[1]]);
        }
        sink.emit("grpo_e2e.logps", &shape, Values::F32(logps))?;
        let kl = output.metrics.kl().unwrap_or(0.0);
        for (key, value) in [
            ("grpo_e2e.loss", output.loss),
            ("grpo_e2e.kl_mean", kl),
            ("grpo_e2e.clip_frac", output.metrics.clip_ratio_region_mean()),
        ] {
            sink.emit(key, &[1], Values::F32(vec![value as f32]))?;
        }
        if self.dtype == DType::Bf16 {
            return Ok(());
        }
        let mut grads = ParamGrads::default();
        pass.backward_by(output.dscores, &mut grads)?;
        self.gradients("grpo_e2e.", &grads, sink)
    }

    /// Fails the keys that need what the bundle lacks.
    fn without_given(&self, sink: &mut Sink<'_>) -> Result<()> {
        let left: Vec<String> = self
            .bundle
            .keys()
            .filter(|key| key.starts_with("grpo_e2e.") && !sink.seen.contains(*key))
            .map(str::to_owned)
            .collect();
        for key in left {
            let shape = self.bundle.shape(&key).unwrap_or_default().to_vec();
            let verdict = match GIVEN.contains(&key.as_str()) {
                true => Verdict::Given,
                false => Verdict::Fail(format!("cannot be computed without {}", GIVEN.join(", "))),
            };
            sink.push(Row { key, shape, measured: None, verdict });
        }
        Ok(())
    }
}

/// The loss of the case.
fn loss_config(case: &GrpoInput) -> LossConfig {
    LossConfig {
        loss_type: LossType::Grpo,
        importance_sampling_level: ImportanceSamplingLevel::Token,
        epsilon: case.epsilon_low,
        epsilon_high: case.epsilon_high,
        delta: None,
        kl_estimator: KlEstimator::K3,
        beta: case.beta,
        max_completion_length: 0,
    }
}
