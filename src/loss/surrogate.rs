//! The clipped surrogate of one importance ratio (PPO, arXiv 1707.06347; two-sided with delta).

use super::LossConfig;

/// Value and derivative of the surrogate at one ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Surrogate {
    /// `-min(min(rho, delta) * A, clip(rho) * A)`.
    pub loss: f64,
    /// Its derivative by `log rho`.
    pub slope: f64,
    /// The (delta-bounded) ratio is below the clip range and A < 0.
    pub low_clipped: bool,
    /// The (delta-bounded) ratio is above the clip range and A > 0.
    pub high_clipped: bool,
}

/// Evaluates the surrogate. `config` has been validated (the clip range is not upside down).
pub(super) fn clipped_surrogate(config: &LossConfig, ratio: f64, advantage: f64) -> Surrogate {
    let (floor, ceiling) = (1.0 - config.epsilon, 1.0 + config.epsilon_high);
    // d rho / d log rho = rho wherever a bound does not hold it; a bound itself passes it.
    let clipped = ratio.clamp(floor, ceiling);
    let clipped_slope = if clipped == ratio { ratio } else { 0.0 };
    // Not `f64::min`, which would swallow a NaN ratio.
    let (bounded, bounded_slope) = match config.delta {
        Some(delta) if ratio > delta => (delta, 0.0),
        _ => (ratio, ratio),
    };
    let (unclipped_gain, clipped_gain) = (bounded * advantage, clipped * advantage);
    let (gain, slope) = if unclipped_gain < clipped_gain {
        (unclipped_gain, bounded_slope)
    } else if clipped_gain < unclipped_gain {
        (clipped_gain, clipped_slope)
    } else {
        // Equal (or NaN, which stays NaN): `min` halves the gradient between its sides.
        (unclipped_gain, 0.5 * (bounded_slope + clipped_slope))
    };
    Surrogate {
        loss: -gain,
        slope: -advantage * slope,
        low_clipped: bounded < floor && advantage < 0.0,
        high_clipped: bounded > ceiling && advantage > 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImportanceSamplingLevel, LossType};
    use super::*;
    use crate::kl::KlEstimator;

    fn config(delta: Option<f64>) -> LossConfig {
        LossConfig {
            loss_type: LossType::Grpo,
            importance_sampling_level: ImportanceSamplingLevel::Token,
            epsilon: 0.25,
            epsilon_high: 0.5,
            delta,
            kl_estimator: KlEstimator::K3,
            beta: 0.0,
            max_completion_length: 8,
        }
    }

    /// (ratio, advantage, delta) -> (loss, slope, low, high)
    type Row = (f64, f64, Option<f64>, f64, f64, bool, bool);

    #[test]
    fn every_region_by_hand() {
        let rows: &[Row] = &[
            // Inside the range both sides tie and the gradient is whole.
            (1.0, 2.0, None, -2.0, -2.0, false, false),
            (1.0, -2.0, None, 2.0, 2.0, false, false),
            (1.25, 2.0, None, -2.5, -2.5, false, false),
            // At a bound exactly: still whole.
            (1.5, 1.0, None, -1.5, -1.5, false, false),
            // Above the range: held for A > 0, free for A < 0.
            (2.0, 1.0, None, -1.5, 0.0, false, true),
            (2.0, -1.0, None, 2.0, 2.0, false, false),
            // Below the range: free for A > 0, held for A < 0.
            (0.5, 1.0, None, -0.5, -0.5, false, false),
            (0.5, -1.0, None, 0.75, 0.0, true, false),
            // delta bounds what A < 0 leaves free.
            (8.0, -1.0, Some(4.0), 4.0, 0.0, false, false),
            (3.0, -1.0, Some(4.0), 3.0, 3.0, false, false),
            // delta inside the clip range takes the A > 0 side over; A < 0 follows the clip.
            (1.25, 1.0, Some(1.125), -1.125, 0.0, false, false),
            (1.25, -1.0, Some(1.125), 1.25, 1.25, false, false),
            // Nothing to gain.
            (2.0, 0.0, None, 0.0, 0.0, false, false),
        ];
        for &(ratio, advantage, delta, loss, slope, low_clipped, high_clipped) in rows {
            let got = clipped_surrogate(&config(delta), ratio, advantage);
            assert_eq!(
                got,
                Surrogate { loss, slope, low_clipped, high_clipped },
                "{ratio} {advantage} {delta:?}"
            );
        }
    }

    #[test]
    fn nan_is_not_swallowed() {
        for delta in [None, Some(4.0)] {
            assert!(clipped_surrogate(&config(delta), f64::NAN, 1.0).loss.is_nan());
        }
    }
}
