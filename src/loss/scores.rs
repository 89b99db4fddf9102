//! The loss over score tensors, wherever they are.
//!
//! Scores are what [`LogSoftmaxKl`](crate::ops::log_softmax_kl::LogSoftmaxKl) gives: `[T, 3]` in f32, the tokens of
//! completion after completion, each with its log-probability, its entropy and its exact KL to the reference, in nats. The
//! gradient has the same shape and stays where they are; only sums reach the host.

use super::{LossConfig, LossInputs, LossMetrics, Window, check_kl_inputs, check_offsets, cuda, grpo_loss};
use crate::error::{Error, Result};
use crate::kl::k1_penalty;
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// Log-probabilities that were kept at sampling.
#[derive(Clone, Copy, Debug)]
pub struct Sampled<'a> {
    /// In f32, nats, on the scores' device; those of any number of completions.
    pub values: &'a Tensor,
    /// Where each completion's tokens begin in `values`, `[B]`.
    pub begins: &'a [usize],
}

/// One batch of `B` completions with `T` tokens in all.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInputs<'a> {
    /// Where each completion's tokens start, and the end: `B + 1` ascending entries from 0 to `T`.
    pub offsets: &'a [usize],
    /// Scores under the policy being trained, `[T, 3]`.
    pub scores: &'a Tensor,
    /// Log-probabilities under the policy that sampled the tokens.
    pub sampled: Sampled<'a>,
    /// Whether the importance ratio is formed with `sampled`; on-policy it is only compared with.
    pub off_policy: bool,
    /// Scores under the reference, `[T, 3]`; none if there is no reference, or none but for the exact KL.
    pub reference: Option<&'a Tensor>,
    /// Whether the last column of `scores` holds the exact KL.
    pub exact_kl: bool,
    /// Completions whose tokens count, `[B]`.
    pub counts_b: &'a [bool],
    /// Advantages, `[B]`.
    pub advantages_b: &'a [f32],
    /// The accumulation window that the batch belongs to.
    pub window: Window,
}

/// The loss of a batch, its gradient, and what is logged.
#[derive(Clone, Debug)]
pub struct ScoreOutput {
    /// The batch's share of the window's loss.
    pub loss: f64,
    /// What is logged.
    pub metrics: LossMetrics,
    /// Gradient by `scores`, `[T, 3]`; 0 at tokens that don't count.
    pub dscores: Tensor,
    /// Sum of the entropies of the tokens that count, nats.
    pub entropy_sum: f64,
    /// Sum over all tokens of the distance between the log-probabilities of training and of sampling, nats.
    pub difference_sum: f64,
    /// The largest of these distances; NaN if any of them is.
    pub difference_max: f64,
}

/// The larger of two numbers; NaN is passed on.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Where the log-probabilities of completion b were kept, for all b.
///
/// # Errors
/// [`Error::Internal`] if there is not one range for each completion, or one is not inside `values`.
fn ranges(offsets: &[usize], sampled: &Sampled<'_>) -> Result<Vec<Range<usize>>> {
    let available = sampled.values.len();
    let mut ranges = Vec::with_capacity(sampled.begins.len());
    for (ends, &begin) in offsets.windows(2).zip(sampled.begins) {
        match ends[1].checked_sub(ends[0]).and_then(|len| begin.checked_add(len)) {
            Some(end) if end <= available => ranges.push(begin..end),
            _ => {
                return Err(Error::Internal(format!(
                    "a completion at {ends:?}, sampled at {begin} of {available} log-probs"
                )));
            }
        }
    }
    if sampled.begins.len() + 1 != offsets.len() || sampled.values.dtype() != DType::F32 {
        return Err(Error::Internal(format!(
            "{} log-probs in {} of {} completions, for offsets {offsets:?}",
            sampled.values.dtype().name(),
            available,
            sampled.begins.len()
        )));
    }
    Ok(ranges)
}

/// Fails unless the tensor is `[tokens, 3]` in f32 beside the sampled log-probabilities.
fn check_scores(what: &str, scores: &Tensor, tokens: usize, sampled: &Sampled<'_>) -> Result<()> {
    if scores.shape() == [tokens, 3] && scores.dtype() == DType::F32 && scores.gpu() == sampled.values.gpu() {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "{what} {} {:?} on {:?} of {tokens} tokens whose sampled log-probs are on {:?}",
        scores.dtype().name(),
        scores.shape(),
        scores.device(),
        sampled.values.device()
    )))
}

/// Sampled log-probabilities, completion after completion.
fn gathered(values: &[f32], ranges: &[Range<usize>]) -> Vec<f32> {
    ranges.iter().flat_map(|range| values[range.clone()].iter().copied()).collect()
}

fn column(scores: &Tensor, c: usize) -> Vec<f32> {
    scores.real::<f32>().chunks_exact(3).map(|row| row[c]).collect()
}

/// [`grpo_loss`] of scores, and what else is logged of them.
///
/// On a GPU too everything is f64 until a gradient is stored; only the order of the sums is another.
///
/// # Errors
/// Those of [`grpo_loss`]; [`Error::Internal`] if shapes, types or devices disagree.
pub fn loss_of_scores(config: &LossConfig, inputs: &ScoreInputs<'_>) -> Result<ScoreOutput> {
    let &ScoreInputs { offsets, scores, sampled, counts_b, .. } = inputs;
    let tokens = offsets.last().copied().unwrap_or(0);
    let ranges = ranges(offsets, &sampled)?;
    check_scores("scores", scores, tokens, &sampled)?;
    if let Some(reference) = inputs.reference {
        check_scores("reference scores", reference, tokens, &sampled)?;
    }
    if counts_b.len() + 1 != offsets.len() {
        return Err(Error::Internal(format!("{} mask entries for offsets {offsets:?}", counts_b.len())));
    }
    if let Some(gpu) = scores.gpu() {
        config.validate()?;
        check_offsets(offsets, tokens, inputs.advantages_b.len())?;
        check_kl_inputs(config, inputs.reference.is_some(), inputs.exact_kl)?;
        return cuda::loss(gpu, config, inputs, &ranges);
    }
    let sampled_t = gathered(&sampled.values.real::<f32>(), &ranges);
    let [logp_t, entropy_t, kl_t] = [0, 1, 2].map(|c| column(scores, c));
    let reference_t = inputs.reference.map(|reference| column(reference, 0));
    let mask_t: Vec<bool> = offsets
        .windows(2)
        .zip(counts_b)
        .flat_map(|(ends, &counts)| std::iter::repeat_n(counts, ends[1] - ends[0]))
        .collect();
    let output = grpo_loss(
        config,
        &LossInputs {
            offsets,
            logp_t: &logp_t,
            old_logp_t: inputs.off_policy.then_some(sampled_t.as_slice()),
            ref_logp_t: reference_t.as_deref(),
            kl_full_t: inputs.exact_kl.then_some(kl_t.as_slice()),
            mask_t: Some(&mask_t),
            advantages_b: inputs.advantages_b,
            window: inputs.window,
        },
    )?;
    let dscores = output.dlogp_t.iter().enumerate().flat_map(|(t, &dlogp)| {
        let dkl = output.dkl_full_t.as_ref().map_or(0.0, |dkl| dkl[t]);
        [dlogp, 0.0, dkl]
    });
    let counted = entropy_t.iter().zip(&mask_t).filter(|(_, counts)| **counts);
    let (mut difference_sum, mut difference_max) = (0.0, 0.0);
    for (logp, sampled) in logp_t.iter().zip(&sampled_t) {
        let difference = f64::from((logp - sampled).abs());
        difference_sum += difference;
        difference_max = larger(difference_max, difference);
    }
    Ok(ScoreOutput {
        loss: output.loss,
        metrics: output.metrics,
        dscores: Tensor::new(&[tokens, 3], dscores.collect::<Vec<f32>>())?,
        entropy_sum: counted.map(|(&entropy, _)| f64::from(entropy)).sum(),
        difference_sum,
        difference_max,
    })
}

/// [`k1_penalty`] of the sampled log-probabilities and the reference's scores `[T, 3]`: `[B]` in nats.
///
/// # Errors
/// [`Error::Internal`] if shapes, types or devices disagree.
pub fn k1_penalty_of_scores(
    offsets: &[usize],
    sampled: &Sampled<'_>,
    reference: &Tensor,
) -> Result<Vec<f64>> {
    let ranges = ranges(offsets, sampled)?;
    check_scores("reference scores", reference, offsets.last().copied().unwrap_or(0), sampled)?;
    if let Some(gpu) = reference.gpu() {
        check_offsets(offsets, reference.len() / 3, ranges.len())?;
        return cuda::k1_penalty(gpu, offsets, sampled.values, &ranges, reference);
    }
    let sampled_t = gathered(&sampled.values.real::<f32>(), &ranges);
    k1_penalty(offsets, &sampled_t, &column(reference, 0), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ImportanceSamplingLevel, LossType};
    use crate::kl::KlEstimator;

    fn config(kl_estimator: KlEstimator) -> LossConfig {
        LossConfig {
            loss_type: LossType::Grpo,
            importance_sampling_level: ImportanceSamplingLevel::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            kl_estimator,
            beta: 0.5,
            max_completion_length: 4,
        }
    }

    /// Three completions of 1, 2 and 1 tokens, the last one left out; each is kept somewhere else.
    const OFFSETS: [usize; 4] = [0, 1, 3, 4];
    const BEGINS: [usize; 3] = [5, 1, 0];
    const COUNTS: [bool; 3] = [true, true, false];

    fn tensors() -> Result<[Tensor; 3]> {
        let scores = vec![-1.0_f32, 0.5, 0.1, -2.0, 1.5, 0.2, -0.5, 0.25, 0.3, -9.0, 7.0, 0.4];
        let reference = vec![-1.5_f32, 0.0, 0.0, -2.25, 0.0, 0.0, -0.75, 0.0, 0.0, -8.0, 0.0, 0.0];
        let sampled = vec![-9.5_f32, -1.9, -0.6, 100.0, 100.0, -1.0];
        Ok([Tensor::new(&[4, 3], scores)?, Tensor::new(&[4, 3], reference)?, Tensor::new(&[6], sampled)?])
    }

    #[test]
    fn equals_the_loss_of_arrays() -> Result<()> {
        let [scores, reference, sampled] = tensors()?;
        let mask = [true, true, true, false];
        let window = Window::of_batch(&OFFSETS, Some(&mask));
        for (kl_estimator, off_policy) in [(KlEstimator::K3, true), (KlEstimator::Full, false)] {
            let config = config(kl_estimator);
            let exact_kl = kl_estimator == KlEstimator::Full;
            let inputs = ScoreInputs {
                offsets: &OFFSETS,
                scores: &scores,
                sampled: Sampled { values: &sampled, begins: &BEGINS },
                off_policy,
                reference: (!exact_kl).then_some(&reference),
                exact_kl,
                counts_b: &COUNTS,
                advantages_b: &[1.0, -2.0, 4.0],
                window,
            };
            let output = loss_of_scores(&config, &inputs)?;
            let want = grpo_loss(
                &config,
                &LossInputs {
                    offsets: &OFFSETS,
                    logp_t: &[-1.0_f32, -2.0, -0.5, -9.0],
                    old_logp_t: off_policy.then_some(&[-1.0, -1.9, -0.6, -9.5]),
                    ref_logp_t: (!exact_kl).then_some(&[-1.5, -2.25, -0.75, -8.0]),
                    kl_full_t: exact_kl.then_some(&[0.1, 0.2, 0.3, 0.4]),
                    mask_t: Some(&mask),
                    advantages_b: &[1.0, -2.0, 4.0],
                    window,
                },
            )?;
            assert_eq!((output.loss, output.metrics), (want.loss, want.metrics));
            assert_eq!(column(&output.dscores, 0), want.dlogp_t);
            assert_eq!(column(&output.dscores, 1), [0.0; 4]);
            assert_eq!(column(&output.dscores, 2), want.dkl_full_t.unwrap_or(vec![0.0; 4]));
            assert_eq!(output.entropy_sum, 2.25);
            let differences = [0.0_f32, -1.9_f32 + 2.0, -0.5_f32 + 0.6, 0.5].map(f64::from);
            assert_eq!(output.difference_sum, differences.iter().sum::<f64>());
            assert_eq!(output.difference_max, 0.5);
        }
        Ok(())
    }

    #[test]
    fn a_difference_that_is_no_number_stays() -> Result<()> {
        let [scores, reference, _] = tensors()?;
        let sampled = Tensor::new(&[6], vec![0.0_f32, f32::NAN, 0.0, 0.0, 0.0, 0.0])?;
        let inputs = ScoreInputs {
            offsets: &OFFSETS,
            scores: &scores,
            sampled: Sampled { values: &sampled, begins: &BEGINS },
            off_policy: false,
            reference: Some(&reference),
            exact_kl: false,
            counts_b: &COUNTS,
            advantages_b: &[1.0, -2.0, 4.0],
            window: Window::of_batch(&OFFSETS, None),
        };
        let output = loss_of_scores(&config(KlEstimator::K3), &inputs)?;
        assert!(output.difference_max.is_nan() && output.difference_sum.is_nan() && output.loss.is_finite());
        Ok(())
    }

    #[test]
    fn penalties_by_hand() -> Result<()> {
        let [_, reference, sampled] = tensors()?;
        let sampled = Sampled { values: &sampled, begins: &BEGINS };
        let penalties = k1_penalty_of_scores(&OFFSETS, &sampled, &reference)?;
        let want = [0.5, f64::from(-1.9_f32) + 2.25 + (f64::from(-0.6_f32) + 0.75), -1.5];
        assert_eq!(penalties, want);
        Ok(())
    }

    #[test]
    fn broken_promises_are_named() -> Result<()> {
        let [scores, reference, values] = tensors()?;
        let inputs = ScoreInputs {
            offsets: &OFFSETS,
            scores: &scores,
            sampled: Sampled { values: &values, begins: &BEGINS },
            off_policy: true,
            reference: Some(&reference),
            exact_kl: false,
            counts_b: &COUNTS,
            advantages_b: &[1.0, -2.0, 4.0],
            window: Window::of_batch(&OFFSETS, None),
        };
        let message = |inputs: ScoreInputs<'_>| match loss_of_scores(&config(KlEstimator::K3), &inputs) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(message(inputs), "");
        let short = Sampled { values: &values, begins: &BEGINS[1..] };
        assert!(message(ScoreInputs { sampled: short, ..inputs }).contains("of 2 completions"));
        let outside = Sampled { values: &values, begins: &[5, 5, 0] };
        assert!(message(ScoreInputs { sampled: outside, ..inputs }).contains("sampled at 5 of 6"));
        assert!(message(ScoreInputs { scores: &values, ..inputs }).contains("scores float32 [6]"));
        assert!(message(ScoreInputs { reference: Some(&values), ..inputs }).contains("reference scores"));
        assert!(message(ScoreInputs { counts_b: &COUNTS[1..], ..inputs }).contains("2 mask entries"));
        let sampled = Sampled { values: &values, begins: &[0; 3] };
        assert!(message(ScoreInputs { offsets: &[0, 2, 1, 4], sampled, ..inputs }).contains("[2, 1]"));
        assert!(message(ScoreInputs { reference: None, ..inputs }).contains("reference log-probs"));
        let wide = scores.to_dtype(DType::F64);
        assert!(message(ScoreInputs { scores: &wide, ..inputs }).contains("float64"));
        Ok(())
    }
}
