//! The GRPO loss over ragged completions, with its gradient by every log-probability.
//!
//! Equation 4 of OThink-MR1 (arXiv 2503.16081) and its later relatives, as TRL 1.16 computes
//! them. For token `t` of completion `i` with advantage `A_i`:
//!
//! ```text
//! log-weight  token level:     x_it = logp_it - old_it
//!             sequence level:  x_i  = mean over the tokens that count of (logp_it - old_it)    (GSPO)
//! ratio       rho = exp(x)
//! surrogate   l_it = -min( min(rho, delta) * A_i,  clip(rho, 1 - epsilon, 1 + epsilon_high) * A_i )
//! KL          l_it += beta * kl_it                    (rho * kl_it for k3_unbiased)
//! loss        L = sum over i of weight_i * sum over t of mask_it * l_it
//! ```
//!
//! | `loss_type` | `weight_i` | source |
//! |---|---|---|
//! | `grpo` | 1 / (sequences * tokens of i) | DeepSeekMath, OThink-MR1 |
//! | `dapo` | 1 / tokens of the accumulation window | DAPO, arXiv 2503.14476 |
//! | `bnpo` | 1 / (tokens of the micro-batch * micro-batches) | TRL |
//! | `dr_grpo` | 1 / (sequences * `max_completion_length`) | Dr. GRPO, arXiv 2503.20783 |
//!
//! Sequences and tokens are those of a whole [`Window`] of gradient accumulation, so for every
//! type but `bnpo` the losses and gradients of its parts add up to those of one big batch;
//! `bnpo` averages per micro-batch by definition. Counts of 0 are taken as 1.
//!
//! Gradients are derived by hand. Where `min` ties (the rule on-policy, where rho = 1) each
//! side gets half, and a clip passes the gradient at its very bounds, both as autograd
//! frameworks have it. Without old log-probabilities rho is 1 but still differentiated:
//! the on-policy policy gradient. Arithmetic is f64 whatever the input type.

#[allow(unsafe_code)]
pub mod cuda;
pub mod scores;
pub mod supervised;
mod surrogate;
#[cfg(test)]
mod tests;

pub use scores::{Sampled, ScoreInputs, ScoreOutput, k1_penalty_of_scores, loss_of_scores};
pub use supervised::{Supervised, supervised_loss};

use crate::error::{Error, Result};
use crate::kl::{KlEstimator, value_and_slope};
use surrogate::clipped_surrogate;

/// The two float types that log-probabilities come in: f32 in training, f64 in gradient checks.
pub trait Real: Copy + Into<f64> {
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
}

pub use crate::config::LossType;

pub use crate::config::ImportanceSamplingLevel;

/// The options of the loss; `beta` is the weight at the current step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossConfig {
    /// How token losses are averaged.
    pub loss_type: LossType,
    /// What the importance ratio belongs to.
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// The ratio is clipped below at `1 - epsilon`.
    pub epsilon: f64,
    /// The ratio is clipped above at `1 + epsilon_high`.
    pub epsilon_high: f64,
    /// An upper bound of the unclipped ratio (two-sided clipping, INTELLECT-2); useful above
    /// `1 + epsilon_high`.
    pub delta: Option<f64>,
    /// Which KL estimate is added.
    pub kl_estimator: KlEstimator,
    /// Its weight, from [`crate::kl::BetaController`].
    pub beta: f64,
    /// The constant length of `dr_grpo`.
    pub max_completion_length: usize,
}

impl LossConfig {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option.
    pub fn validate(&self) -> Result<()> {
        let check = |option: &str, value: f64, ok: bool, range: &str| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(Error::Usage(format!("{option} is {value}; it must be {range}")))
        };
        check("epsilon", self.epsilon, self.epsilon >= 0.0, "a finite number of at least 0")?;
        check("epsilon_high", self.epsilon_high, self.epsilon_high >= 0.0, "a finite number of at least 0")?;
        check("beta", self.beta, self.beta >= 0.0, "a finite number of at least 0")?;
        if let Some(delta) = self.delta {
            check("delta", delta, delta > 0.0, "a finite number above 0")?;
        }
        if self.loss_type == LossType::DrGrpo && self.max_completion_length == 0 {
            return Err(Error::Usage("max_completion_length is 0; dr_grpo divides by it".into()));
        }
        Ok(())
    }
}

/// The counts by which a loss is normalised: those of all the batches whose gradients are
/// accumulated into one optimiser step, of which a call may see any part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Completions in the window.
    pub sequences: usize,
    /// Tokens in the window that the mask lets count. (TRL takes them from the generation batch
    /// and multiplies by the share of it that one window holds, hence a real number.)
    pub tokens: f64,
    /// Micro-batches in the window.
    pub micro_batches: usize,
    /// Tokens that count in the micro-batch that this call belongs to. Used by `bnpo` only.
    pub micro_batch_tokens: f64,
}

impl Window {
    /// The window of a single batch, without accumulation.
    ///
    /// `offsets` has `B + 1` entries, `mask_t` one per token.
    pub fn of_batch(offsets: &[usize], mask_t: Option<&[bool]>) -> Self {
        let tokens = match mask_t {
            Some(mask) => mask.iter().filter(|&&on| on).count(),
            None => offsets.last().copied().unwrap_or(0),
        } as f64;
        Window {
            sequences: offsets.len().saturating_sub(1),
            tokens,
            micro_batches: 1,
            micro_batch_tokens: tokens,
        }
    }

    /// The weight of each token of a completion of which `active` tokens count.
    fn token_weight(&self, config: &LossConfig, active: usize) -> f64 {
        let sequences = self.sequences.max(1) as f64;
        1.0 / match config.loss_type {
            LossType::Grpo => sequences * active.max(1) as f64,
            LossType::Dapo => self.tokens.max(1.0),
            LossType::Bnpo => self.micro_batch_tokens.max(1.0) * self.micro_batches.max(1) as f64,
            LossType::DrGrpo => sequences * config.max_completion_length as f64,
        }
    }
}

/// One batch of `B` completions with `T` tokens in all.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a, F: Real> {
    /// Where each completion's tokens start, and the end: `B + 1` ascending entries from 0 to `T`.
    pub offsets: &'a [usize],
    /// Log-probabilities of the sampled tokens under the policy being trained, `[T]`.
    pub logp_t: &'a [F],
    /// The same under the policy that sampled them, `[T]`; none on-policy, where they are `logp_t`.
    pub old_logp_t: Option<&'a [F]>,
    /// The same under the reference model, `[T]`; none if there is no reference.
    pub ref_logp_t: Option<&'a [F]>,
    /// The exact KL at each token, `[T]`; for the estimator `full`.
    pub kl_full_t: Option<&'a [F]>,
    /// Which tokens count, `[T]`; none means all. Whatever the others hold is never read.
    pub mask_t: Option<&'a [bool]>,
    /// Advantages, `[B]`.
    pub advantages_b: &'a [f32],
    /// The accumulation window that the batch belongs to.
    pub window: Window,
}

/// The loss of a batch, its gradient, and what is logged.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput<F> {
    /// The batch's share of the window's loss.
    pub loss: f64,
    /// Gradient by `logp_t`, `[T]`; 0 at masked tokens.
    pub dlogp_t: Vec<F>,
    /// Gradient by `kl_full_t`, `[T]`; none unless the estimator is `full`.
    pub dkl_full_t: Option<Vec<F>>,
    /// What is logged.
    pub metrics: LossMetrics,
}

/// Sums behind the logged numbers; [`LossMetrics::merge`] joins those of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossMetrics {
    /// The clipped surrogate's part of the loss.
    pub surrogate_loss: f64,
    /// The part of the loss that is beta times KL; the two parts add up to the loss.
    pub kl_loss: f64,
    /// Tokens that count.
    pub tokens: usize,
    /// Ratios formed: tokens, or completions at sequence level.
    ratios: usize,
    kl_sum: Option<f64>,
    low_clipped: usize,
    high_clipped: usize,
    low_min: Option<f64>,
    high_max: Option<f64>,
}

impl LossMetrics {
    /// Adds the sums of another part of the same window.
    pub fn merge(&mut self, other: &LossMetrics) {
        self.surrogate_loss += other.surrogate_loss;
        self.kl_loss += other.kl_loss;
        self.tokens += other.tokens;
        self.ratios += other.ratios;
        self.low_clipped += other.low_clipped;
        self.high_clipped += other.high_clipped;
        self.kl_sum = either(self.kl_sum, other.kl_sum, |a, b| a + b);
        self.low_min = either(self.low_min, other.low_min, f64::min);
        self.high_max = either(self.high_max, other.high_max, f64::max);
    }

    /// Metric `kl`: mean of the estimate over the tokens that count; none without a reference.
    pub fn kl(&self) -> Option<f64> {
        self.kl_sum.map(|sum| sum / self.tokens.max(1) as f64)
    }

    /// Metric `clip_ratio/low_mean`: share of ratios below the clip range with A < 0.
    pub fn clip_ratio_low_mean(&self) -> f64 {
        self.low_clipped as f64 / self.ratios.max(1) as f64
    }

    /// Metric `clip_ratio/high_mean`: share of ratios above the clip range with A > 0.
    pub fn clip_ratio_high_mean(&self) -> f64 {
        self.high_clipped as f64 / self.ratios.max(1) as f64
    }

    /// Metric `clip_ratio/region_mean`: share of ratios clipped on either side.
    pub fn clip_ratio_region_mean(&self) -> f64 {
        (self.low_clipped + self.high_clipped) as f64 / self.ratios.max(1) as f64
    }

    /// Metric `clip_ratio/low_min`: the least share of low-clipped ratios in any completion.
    pub fn clip_ratio_low_min(&self) -> Option<f64> {
        self.low_min
    }

    /// Metric `clip_ratio/high_max`: the greatest share of high-clipped ratios in any completion.
    pub fn clip_ratio_high_max(&self) -> Option<f64> {
        self.high_max
    }

    /// Counts one completion's clipped ratios.
    fn count(&mut self, low: usize, high: usize, ratios: usize) {
        self.low_clipped += low;
        self.high_clipped += high;
        self.ratios += ratios;
        if ratios > 0 {
            self.low_min = either(self.low_min, Some(low as f64 / ratios as f64), f64::min);
            self.high_max = either(self.high_max, Some(high as f64 / ratios as f64), f64::max);
        }
    }
}

/// Joins two optional numbers.
fn either(a: Option<f64>, b: Option<f64>, join: impl Fn(f64, f64) -> f64) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(join(a, b)),
        (a, b) => a.or(b),
    }
}

/// The GRPO loss of a batch and its gradient. Formulas: the module.
///
/// A log-probability that is NaN makes the loss NaN; stopping the run is the caller's part.
/// The KL is measured (not differentiated) even where `beta` is 0 and for `k1`, which acts in
/// the reward.
///
/// # Errors
/// [`Error::Usage`] from [`LossConfig::validate`]; [`Error::Internal`] if lengths disagree or
/// the KL's input is missing while `beta` is not 0.
pub fn grpo_loss<F: Real>(config: &LossConfig, inputs: &LossInputs<F>) -> Result<LossOutput<F>> {
    config.validate()?;
    check_lengths(config, inputs)?;
    let tokens = inputs.logp_t.len();
    let full = config.kl_estimator == KlEstimator::Full;
    let mut output = LossOutput {
        loss: 0.0,
        dlogp_t: vec![F::from_f64(0.0); tokens],
        dkl_full_t: full.then(|| vec![F::from_f64(0.0); tokens]),
        metrics: LossMetrics::default(),
    };
    for (ends, &advantage) in inputs.offsets.windows(2).zip(inputs.advantages_b) {
        completion(config, inputs, ends[0]..ends[1], f64::from(advantage), &mut output);
    }
    output.loss = output.metrics.surrogate_loss + output.metrics.kl_loss;
    Ok(output)
}

/// Adds one completion to the output. Lengths have been checked.
fn completion<F: Real>(
    config: &LossConfig,
    inputs: &LossInputs<F>,
    range: std::ops::Range<usize>,
    advantage: f64,
    output: &mut LossOutput<F>,
) {
    let counts = |&t: &usize| inputs.mask_t.is_none_or(|mask| mask[t]);
    let logp = |t: usize| -> f64 { inputs.logp_t[t].into() };
    let log_ratio = |t: usize| inputs.old_logp_t.map_or(0.0, |old| logp(t) - old[t].into());
    // Value and slope by the log-probability, before the ratio of k3_unbiased.
    let kl = |t: usize| -> Option<(f64, f64)> {
        match (config.kl_estimator, inputs.kl_full_t, inputs.ref_logp_t) {
            (KlEstimator::Full, Some(kl_full), _) => Some((kl_full[t].into(), 0.0)),
            (KlEstimator::Full, None, _) | (_, _, None) => None,
            (estimator, _, Some(reference)) => Some(value_and_slope(estimator, logp(t), reference[t].into())),
        }
    };
    // k1 acts in the reward; here it is only measured.
    let beta = if config.kl_estimator == KlEstimator::K1 { 0.0 } else { config.beta };
    let active = range.clone().filter(counts).count();
    let weight = inputs.window.token_weight(config, active);
    let unbiased = config.kl_estimator == KlEstimator::K3Unbiased;

    // At sequence level the ratio, and with it the KL's effect through the ratio, is shared by
    // all tokens of the completion, so it has to be known before the first token's gradient.
    let shared = (config.importance_sampling_level == ImportanceSamplingLevel::Sequence).then(|| {
        let n = active.max(1) as f64;
        let log_ratio = range.clone().filter(counts).map(log_ratio).sum::<f64>() / n;
        let mean_kl = match unbiased {
            true => range.clone().filter(counts).filter_map(kl).map(|(value, _)| value).sum::<f64>() / n,
            false => 0.0,
        };
        (clipped_surrogate(config, log_ratio.exp(), advantage), log_ratio.exp(), mean_kl)
    });

    let metrics = &mut output.metrics;
    let (mut low, mut high) = (0, 0);
    for t in range.clone().filter(counts) {
        let (surrogate, ratio, shared_kl) = match shared {
            Some((surrogate, ratio, mean_kl)) => (surrogate, ratio, Some(mean_kl)),
            None => {
                let ratio = log_ratio(t).exp();
                let surrogate = clipped_surrogate(config, ratio, advantage);
                low += usize::from(surrogate.low_clipped);
                high += usize::from(surrogate.high_clipped);
                (surrogate, ratio, None)
            }
        };
        metrics.surrogate_loss += weight * surrogate.loss;
        // Sequence level: n equal losses, each with 1/n of its slope at every token.
        let mut dlogp = weight * surrogate.slope;
        if let Some((value, slope)) = kl(t) {
            let (value, slope) = match unbiased {
                true => (ratio * value, ratio * (slope + shared_kl.unwrap_or(value))),
                false => (value, slope),
            };
            *metrics.kl_sum.get_or_insert(0.0) += value;
            // Not at beta 0, where an overflowing k3 would turn into NaN.
            if beta != 0.0 {
                metrics.kl_loss += weight * beta * value;
                dlogp += weight * beta * slope;
            }
        }
        output.dlogp_t[t] = F::from_f64(dlogp);
        if let Some(dkl_full_t) = &mut output.dkl_full_t {
            dkl_full_t[t] = F::from_f64(weight * beta);
        }
    }
    metrics.tokens += active;
    match shared {
        Some((surrogate, ..)) => {
            metrics.count(usize::from(surrogate.low_clipped), usize::from(surrogate.high_clipped), 1);
        }
        None => metrics.count(low, high, active),
    }
}

/// Refuses arrays of unequal length, offsets that do not partition them, and a missing reference.
fn check_lengths<F: Real>(config: &LossConfig, inputs: &LossInputs<F>) -> Result<()> {
    let tokens = inputs.logp_t.len();
    let wrong = |what: &str, len: usize, want: usize| {
        Err(Error::Internal(format!("loss over {want} entries was given {len} of {what}")))
    };
    for (what, len) in [
        ("old_logp_t", inputs.old_logp_t.map(<[F]>::len)),
        ("ref_logp_t", inputs.ref_logp_t.map(<[F]>::len)),
        ("kl_full_t", inputs.kl_full_t.map(<[F]>::len)),
        ("mask_t", inputs.mask_t.map(<[bool]>::len)),
    ] {
        if let Some(len) = len.filter(|&len| len != tokens) {
            return wrong(what, len, tokens);
        }
    }
    check_offsets(inputs.offsets, tokens, inputs.advantages_b.len())?;
    check_kl_inputs(config, inputs.ref_logp_t.is_some(), inputs.kl_full_t.is_some())
}

/// Refuses offsets that do not cut the tokens into so many completions.
fn check_offsets(offsets: &[usize], tokens: usize, sequences: usize) -> Result<()> {
    let ends = (offsets.first(), offsets.last());
    if offsets.len() == sequences + 1 && ends == (Some(&0), Some(&tokens)) && offsets.is_sorted() {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "completion offsets {offsets:?} of {tokens} tokens in {sequences} completions"
    )))
}

/// Refuses a KL that is to act but can't be formed.
fn check_kl_inputs(config: &LossConfig, reference: bool, exact_kl: bool) -> Result<()> {
    let missing = match config.kl_estimator {
        KlEstimator::K1 => None,
        KlEstimator::K2 | KlEstimator::K3 | KlEstimator::K3Unbiased => {
            (!reference).then_some("reference log-probs")
        }
        KlEstimator::Full => (!exact_kl).then_some("the exact KL"),
    };
    match missing {
        Some(what) if config.beta != 0.0 => {
            Err(Error::Internal(format!("beta is {} but {what} were not given", config.beta)))
        }
        _ => Ok(()),
    }
}
