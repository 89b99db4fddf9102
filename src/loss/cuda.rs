//! Launches of `kernels/grpo_loss.cu`.
//!
//! Everything per token and per completion stays in device memory; one row of totals for the batch comes back.

use super::scores::{ScoreInputs, ScoreOutput};
use super::{ImportanceSamplingLevel, LossConfig, LossMetrics};
use crate::cuda::kernels::grpo_loss as kernels;
use crate::cuda::{Buffer, Const, Gpu, Grid, Purpose};
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::ops::Cost;
use crate::tensor::Tensor;
use std::ops::Range;

/// Threads of a block (the kernels' launch bounds).
const THREADS: u32 = 128;

/// Sums of a completion (SUMS in the kernels).
const SUMS: usize = 8;

/// Totals of all completions (columns in the kernels).
const TOTALS: usize = 10;

/// Operations and bytes of the loss of `tokens` tokens, with a reference or without.
pub fn cost(tokens: usize, reference: bool) -> Cost {
    // Scores and gradients are rows of three numbers, of the reference's one counts; exponentials are counted as one operation.
    let numbers = 3 + 3 + 1 + usize::from(reference);
    Cost { flops: 30 * tokens as u64, bytes: (4 * numbers * tokens) as u64 }
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Internal(format!("grpo_loss: an offset of {n}")))
}

/// What the kernels know of each completion: first token, tokens, tokens that count, first sampled log-probability.
fn completions(
    gpu: &Gpu,
    offsets: &[usize],
    ranges: &[Range<usize>],
    counts: impl Fn(usize) -> bool,
) -> Result<Buffer<i32>> {
    let mut columns = Vec::with_capacity(4 * ranges.len());
    for (b, (&first, range)) in offsets.iter().zip(ranges).enumerate() {
        let active = if counts(b) { range.len() } else { 0 };
        columns.extend([int(first)?, int(range.len())?, int(active)?, int(range.start)?]);
    }
    gpu.upload(&columns, Purpose::Inputs)
}

/// [`loss_of_scores`](super::loss_of_scores) where the scores are in device memory; the caller has checked the inputs.
pub(super) fn loss(
    gpu: &Gpu,
    config: &LossConfig,
    inputs: &ScoreInputs<'_>,
    ranges: &[Range<usize>],
) -> Result<ScoreOutput> {
    let (tokens, batch) = (inputs.scores.len() / 3, ranges.len());
    let active = |b: usize| if inputs.counts_b[b] { ranges[b].len() } else { 0 };
    let numbers: Vec<f64> = inputs
        .advantages_b
        .iter()
        .enumerate()
        .flat_map(|(b, &advantage)| {
            let weight = inputs.window.token_weight(config, active(b));
            [f64::from(advantage), weight, 1.0 / active(b).max(1) as f64]
        })
        .collect();
    let estimator = match (config.kl_estimator, inputs.exact_kl, inputs.reference) {
        (KlEstimator::Full, true, _) => 5,
        (KlEstimator::Full, false, _) | (_, _, None) => 0,
        (KlEstimator::K1, _, Some(_)) => 1,
        (KlEstimator::K2, _, Some(_)) => 2,
        (KlEstimator::K3, _, Some(_)) => 3,
        (KlEstimator::K3Unbiased, _, Some(_)) => 4,
    };
    // k1 acts in the reward; here it is only measured.
    let beta = if config.kl_estimator == KlEstimator::K1 { 0.0 } else { config.beta };
    let by_sequence = config.importance_sampling_level == ImportanceSamplingLevel::Sequence;
    let kernel = match by_sequence {
        true => kernels::grpo_loss_by_sequence_forward_f32,
        false => kernels::grpo_loss_forward_f32,
    };
    let mut dscores = gpu.alloc::<f32>(3 * tokens, Purpose::Activations)?;
    let mut totals = [0.0; TOTALS];
    if batch > 0 {
        let mut sums = gpu.alloc::<f64>(SUMS * batch, Purpose::Workspace)?;
        let mut to = gpu.alloc::<f64>(TOTALS, Purpose::Workspace)?;
        let completions = completions(gpu, inputs.offsets, ranges, |b| inputs.counts_b[b])?;
        let numbers = gpu.upload(&numbers, Purpose::Inputs)?;
        let reference =
            inputs.reference.map_or(Ok(Const::null()), |r| Ok::<_, Error>(r.buffer::<f32>()?.ptr()))?;
        // SAFETY: scores, the reference's (if they are read) and dscores hold the tokens of all completions, the sampled
        // log-probabilities every range; there is a row of both tables and of the sums for each completion, and room for the totals.
        unsafe {
            kernel(
                gpu,
                Grid::new(batch, THREADS)?,
                inputs.scores.buffer::<f32>()?.ptr(),
                inputs.sampled.values.buffer::<f32>()?.ptr(),
                reference,
                completions.ptr(),
                numbers.ptr(),
                dscores.ptr_mut(),
                sums.ptr_mut(),
                estimator,
                i32::from(inputs.off_policy),
                1.0 - config.epsilon,
                1.0 + config.epsilon_high,
                config.delta.unwrap_or(f64::INFINITY),
                beta,
            )?;
            kernels::grpo_loss_totals_f64(
                gpu,
                Grid::new(1, THREADS)?,
                sums.ptr(),
                completions.ptr(),
                to.ptr_mut(),
                int(batch)?,
                i32::from(by_sequence),
            )?;
        }
        totals.copy_from_slice(&to.download()?);
    }
    let [
        surrogate_loss,
        kl_loss,
        kl,
        low,
        high,
        entropy_sum,
        difference_sum,
        difference_max,
        least,
        greatest,
    ] = totals;
    let counted: usize = (0..batch).map(active).sum();
    let ratios = if by_sequence { batch } else { counted };
    let metrics = LossMetrics {
        surrogate_loss,
        kl_loss,
        tokens: counted,
        ratios,
        kl_sum: (estimator > 0 && counted > 0).then_some(kl),
        low_clipped: low as usize,
        high_clipped: high as usize,
        low_min: (ratios > 0).then_some(least),
        high_max: (ratios > 0).then_some(greatest),
    };
    Ok(ScoreOutput {
        loss: surrogate_loss + kl_loss,
        metrics,
        dscores: Tensor::from_buffer(&[tokens, 3], dscores)?,
        entropy_sum,
        difference_sum,
        difference_max,
    })
}

/// [`k1_penalty_of_scores`](super::k1_penalty_of_scores) in device memory; the caller has checked the inputs.
pub(super) fn k1_penalty(
    gpu: &Gpu,
    offsets: &[usize],
    sampled: &Tensor,
    ranges: &[Range<usize>],
    reference: &Tensor,
) -> Result<Vec<f64>> {
    if ranges.is_empty() {
        return Ok(Vec::new());
    }
    let completions = completions(gpu, offsets, ranges, |_| true)?;
    let mut penalties = gpu.alloc::<f64>(ranges.len(), Purpose::Workspace)?;
    // SAFETY: the reference's scores hold the tokens of all completions, the sampled log-probabilities every range; there is a row
    // of the table and a penalty for each completion.
    unsafe {
        kernels::k1_penalty_forward_f32(
            gpu,
            Grid::new(ranges.len(), THREADS)?,
            sampled.buffer::<f32>()?.ptr(),
            reference.buffer::<f32>()?.ptr(),
            completions.ptr(),
            penalties.ptr_mut(),
        )?;
    }
    penalties.download()
}
