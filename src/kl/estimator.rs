//! Estimators of the KL divergence between policy and reference, and what their gradients are.
//!
//! With `r = pi_ref(t) / pi(t)` at a sampled token `t` (Schulman, "Approximating KL
//! divergence", 2020):
//!
//! ```text
//! k1 = -log r        k2 = (log r)^2 / 2        k3 = r - 1 - log r
//! ```
//!
//! `k1` and `k3` are unbiased as *values*. What matters in training is the expected
//! *gradient*, which differs from the gradient of the expected value, because the sampling
//! distribution moves too (arXiv 2510.01555, 2512.21852; each row is a test below):
//!
//! | option | where it acts | expected gradient on-policy |
//! |---|---|---|
//! | `k1` | in the reward, detached | that of KL(pi, ref), the stated objective, up to the advantage's scaling |
//! | `k2` | in the loss | that of KL(pi, ref) |
//! | `k3` | in the loss (the paper, R1-V; default) | that of KL(ref, pi), the *forward* KL; equal to the reverse one only to first order near the reference |
//! | `k3_unbiased` | in the loss, times the ratio pi / pi_old | that of KL(pi, ref) |
//! | `full` | in the loss, summed over the whole vocabulary | that of KL(pi, ref), without sampling noise |
//!
//! (`k1` in the loss has expected gradient 0, `k3` in the reward neither of the two; they are
//! not offered.) All loss forms are local to a token: the effect of a token on the KL of later
//! ones is only seen by `k1` in the reward. A beta is therefore comparable only within one
//! estimator and length normalisation; the paper's ranges belong to `k3` with `loss_type grpo`.

use crate::error::{Error, Result};

pub use crate::config::KlEstimator;

/// The estimate at one sampled token and its derivative by the policy's log-probability.
///
/// The importance ratio of `k3_unbiased` is not included (it may belong to the whole
/// sequence), and `full` needs the whole vocabulary: for both this is plain `k3`.
pub fn value_and_slope(estimator: KlEstimator, logp: f64, ref_logp: f64) -> (f64, f64) {
    let log_r = ref_logp - logp;
    match estimator {
        KlEstimator::K1 => (-log_r, 1.0),
        KlEstimator::K2 => (0.5 * log_r * log_r, -log_r),
        KlEstimator::K3 | KlEstimator::K3Unbiased | KlEstimator::Full => {
            // exp_m1 keeps the digits that exp(x) - 1 - x loses near the reference.
            let r_minus_1 = log_r.exp_m1();
            (r_minus_1 - log_r, -r_minus_1)
        }
    }
}

/// `k1` summed over each completion, `[B]` in nats: the caller subtracts `beta` times this from
/// the completion's reward before advantages are formed.
///
/// `offsets` has `B + 1` entries into the token arrays; `logp_t` and `ref_logp_t` are `[T]`;
/// tokens whose mask is false do not count.
///
/// As a detached reward it gives the gradient of the sequence's reverse KL. But it then goes
/// through the advantage: under `scale_rewards = group` the penalty is divided by the group's
/// deviation as well, and a group whose task rewards are all equal is driven by the penalty
/// alone at full strength. `scale_rewards = batch` or `none` avoids that.
///
/// # Errors
/// [`Error::Internal`] if the lengths disagree.
pub fn k1_penalty(
    offsets: &[usize],
    logp_t: &[f32],
    ref_logp_t: &[f32],
    mask_t: Option<&[bool]>,
) -> Result<Vec<f64>> {
    if ref_logp_t.len() != logp_t.len() || mask_t.is_some_and(|mask| mask.len() != logp_t.len()) {
        return Err(Error::Internal(format!(
            "k1 penalty over {} log-probs, {} of the reference, {:?} mask entries",
            logp_t.len(),
            ref_logp_t.len(),
            mask_t.map(<[bool]>::len)
        )));
    }
    offsets
        .windows(2)
        .map(|pair| {
            let (Some(logp), Some(reference)) =
                (logp_t.get(pair[0]..pair[1]), ref_logp_t.get(pair[0]..pair[1]))
            else {
                return Err(Error::Internal(format!("completion range {pair:?} of {} tokens", logp_t.len())));
            };
            let active = |t: usize| mask_t.is_none_or(|mask| mask[pair[0] + t]);
            Ok(logp
                .iter()
                .zip(reference)
                .enumerate()
                .filter(|(t, _)| active(*t))
                .map(|(_, (&logp, &reference))| f64::from(logp) - f64::from(reference))
                .sum())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 5] = [0.3, -1.1, 0.8, 2.0, -0.4];
    const REF_LOGITS: [f64; 5] = [1.0, 0.2, -0.7, 1.1, 0.5];

    fn log_softmax(logits: &[f64; 5]) -> [f64; 5] {
        let log_z = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.map(|l| l - log_z)
    }

    fn kl(p: &[f64; 5], q: &[f64; 5]) -> f64 {
        p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    /// Central differences of `f` by each logit of the policy.
    fn numerical_gradient(f: impl Fn(&[f64; 5]) -> f64) -> [f64; 5] {
        let h = 1e-5;
        std::array::from_fn(|j| {
            let moved = |by: f64| {
                let mut logits = LOGITS;
                logits[j] += by;
                f(&log_softmax(&logits))
            };
            (moved(h) - moved(-h)) / (2.0 * h)
        })
    }

    /// The exact expectation over sampled tokens of `slope(x) * grad log pi(x)`.
    fn expected_gradient(slope: impl Fn(f64, f64) -> f64) -> [f64; 5] {
        let (pi, reference) = (log_softmax(&LOGITS), log_softmax(&REF_LOGITS));
        std::array::from_fn(|j| {
            (0..5)
                .map(|x| {
                    let score = f64::from(u8::from(x == j)) - pi[j].exp();
                    pi[x].exp() * slope(pi[x], reference[x]) * score
                })
                .sum()
        })
    }

    fn near(got: [f64; 5], want: [f64; 5]) -> bool {
        got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-9)
    }

    fn reverse() -> [f64; 5] {
        numerical_gradient(|pi| kl(pi, &log_softmax(&REF_LOGITS)))
    }

    fn forward() -> [f64; 5] {
        numerical_gradient(|pi| kl(&log_softmax(&REF_LOGITS), pi))
    }

    #[test]
    fn slopes_are_the_derivatives() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            for (logp, reference) in [(-1.0, -1.3), (-0.2, -2.5), (-3.0, -0.1), (-1.0, -1.0)] {
                let value = |logp| value_and_slope(estimator, logp, reference).0;
                let slope = (value(logp + 1e-5) - value(logp - 1e-5)) / 2e-5;
                let got = value_and_slope(estimator, logp, reference).1;
                assert!((got - slope).abs() < 1e-8, "{estimator:?} {logp} {reference}: {got} {slope}");
            }
        }
    }

    #[test]
    fn values_are_unbiased_for_k1_and_k3_only() {
        let (pi, reference) = (log_softmax(&LOGITS), log_softmax(&REF_LOGITS));
        let mean = |estimator: KlEstimator| -> f64 {
            pi.iter().zip(&reference).map(|(p, q)| p.exp() * value_and_slope(estimator, *p, *q).0).sum()
        };
        let exact = kl(&pi, &reference);
        assert!((mean(KlEstimator::K1) - exact).abs() < 1e-14);
        assert!((mean(KlEstimator::K3) - exact).abs() < 1e-14);
        // Here KL(pi, ref) is 0.39397.
        assert!((mean(KlEstimator::K2) - 0.386_846_071_276_5).abs() < 1e-12);
    }

    #[test]
    fn k1_in_the_loss_does_nothing_in_the_reward_it_is_reverse_kl() {
        assert!(near(expected_gradient(|p, q| value_and_slope(KlEstimator::K1, p, q).1), [0.0; 5]));
        assert!(near(expected_gradient(|p, q| value_and_slope(KlEstimator::K1, p, q).0), reverse()));
    }

    #[test]
    fn k2_in_the_loss_is_reverse_kl() {
        assert!(near(expected_gradient(|p, q| value_and_slope(KlEstimator::K2, p, q).1), reverse()));
    }

    #[test]
    fn k3_in_the_loss_is_forward_kl_and_in_the_reward_neither() {
        let in_loss = expected_gradient(|p, q| value_and_slope(KlEstimator::K3, p, q).1);
        assert!(near(in_loss, forward()) && !near(in_loss, reverse()));
        let in_reward = expected_gradient(|p, q| value_and_slope(KlEstimator::K3, p, q).0);
        assert!(!near(in_reward, forward()) && !near(in_reward, reverse()));
    }

    #[test]
    fn ratio_weighted_k3_is_reverse_kl() {
        // At ratio 1 the derivative of ratio * k3 is k3 + its slope.
        let slope = |p, q| {
            let (value, slope) = value_and_slope(KlEstimator::K3Unbiased, p, q);
            value + slope
        };
        assert!(near(expected_gradient(slope), reverse()));
    }

    #[test]
    fn k3_keeps_its_digits_near_the_reference() {
        // x^2 / 2 for x = 1e-7, up to a relative x / 3; exp(x) - 1 - x would be off by a percent.
        let (value, _) = value_and_slope(KlEstimator::K3, -1.0 - 1e-7, -1.0);
        assert!((value / 5e-15 - 1.0).abs() < 1e-6, "{value}");
    }

    #[test]
    fn k1_penalty_sums_each_completion_without_masked_tokens() {
        let (logp, reference) = ([-1.0, -2.0, -0.5, -4.0], [-1.5, -1.0, -0.25, -3.0]);
        assert_eq!(k1_penalty(&[0, 1, 1, 4], &logp, &reference, None).unwrap(), [0.5, 0.0, -2.25]);
        let mask = [true, false, true, true];
        assert_eq!(k1_penalty(&[0, 1, 1, 4], &logp, &reference, Some(&mask)).unwrap(), [0.5, 0.0, -1.25]);
        assert!(k1_penalty(&[0, 5], &logp, &reference, None).is_err());
        assert!(k1_penalty(&[0, 4], &logp, &reference[..3], None).is_err());
    }
}
