//! The dynamic KL weight of OThink-MR1 (arXiv 2503.16081, Eq. 3).

use super::check_weight;
use crate::error::{Error, Result};

/// A V over the run: explore (middle down to minimum), then hold back (minimum up to maximum).
///
/// With `beta_mid = (beta_min + beta_max) / 2`, `S` the total number of optimiser steps and
/// `w = exploration_ratio * S`, real and unrounded:
///
/// ```text
/// beta(s) = beta_mid - (beta_mid - beta_min) * s / w                    for s <= w
/// beta(s) = beta_min + (beta_max - beta_min) * (s - w) / (S - w)        for w < s <= S
/// ```
///
/// The paper does not say whether `s` counts from 0, what happens after `S`, or at `w = 0`.
/// Here `s` is the 0-based optimiser step, the value is held after `S`, and `w = 0` leaves
/// the second line alone, from `beta_min` at `s = 0`. The paper sets `w / S = 0.3`, and
/// 0.04 to 0.10 for counting, 0 to 0.02 for geometry.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Othink {
    /// The smallest weight, reached at `s = w`.
    pub beta_min: f64,
    /// The weight at the end of the run.
    pub beta_max: f64,
    /// `w / S`, in `[0, 1]`.
    #[serde(rename = "beta_exploration_ratio")]
    pub exploration_ratio: f64,
}

impl Othink {
    /// The weight at step `s` of `total`, `0 <= s <= total`.
    pub fn beta(&self, s: f64, total: f64) -> f64 {
        let w = self.exploration_ratio * total;
        let mid = (self.beta_min + self.beta_max) / 2.0;
        let (top, share) = if s < w {
            (mid, (w - s) / w)
        } else {
            (self.beta_max, (s - w) / (total - w).max(f64::MIN_POSITIVE))
        };
        self.beta_min + (top - self.beta_min) * share
    }

    /// See [`super::BetaSchedule::validate`].
    pub fn validate(&self) -> Result<()> {
        check_weight("beta_min", self.beta_min)?;
        check_weight("beta_max", self.beta_max)?;
        if self.beta_min > self.beta_max {
            return Err(Error::Usage(format!(
                "beta_min ({}) is above beta_max ({}); exchange them",
                self.beta_min, self.beta_max
            )));
        }
        if !(0.0..=1.0).contains(&self.exploration_ratio) {
            return Err(Error::Usage(format!(
                "beta_exploration_ratio is {}; it is the share of the run spent exploring, from 0 to 1",
                self.exploration_ratio
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaController, BetaSchedule};
    use super::*;

    fn run(beta_min: f64, beta_max: f64, exploration_ratio: f64, total: u64) -> Vec<f64> {
        let schedule = BetaSchedule::Othink(Othink { beta_min, beta_max, exploration_ratio });
        let controller = BetaController::new(schedule, total).unwrap();
        (0..total + 3).map(|s| controller.beta(s)).collect()
    }

    fn near(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (s, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() < 1e-15, "step {s}: {got}, expected {want}");
        }
    }

    #[test]
    fn counting_over_ten_steps() {
        let up = |s: f64| 0.04 + 0.06 * (s - 3.0) / 7.0;
        near(
            &run(0.04, 0.10, 0.3, 10),
            &[0.07, 0.06, 0.05, 0.04, up(4.0), up(5.0), up(6.0), up(7.0), up(8.0), up(9.0), 0.10, 0.10, 0.10],
        );
        assert_eq!(format!("{:.4}", up(9.0)), "0.0914");
    }

    #[test]
    fn geometry_touches_zero_exactly() {
        let betas = run(0.0, 0.02, 0.3, 1000);
        assert_eq!(betas[300], 0.0);
        let picked = [0, 150, 475, 650, 825, 1000].map(|s: usize| betas[s]);
        near(&picked, &[0.01, 0.005, 0.005, 0.01, 0.015, 0.02]);
        assert!(betas.iter().all(|b| (0.0..=0.02).contains(b)));
    }

    #[test]
    fn exploration_steps_are_not_rounded() {
        // w = 2.1: step 2 is still on the way down, step 3 on the way up.
        let betas = run(0.0, 1.0, 0.3, 7);
        near(&betas[1..4], &[0.5 * 1.1 / 2.1, 0.5 * 0.1 / 2.1, 0.9 / 4.9]);
    }

    #[test]
    fn no_exploration_and_nothing_else() {
        near(&run(0.1, 0.5, 0.0, 4), &[0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5]);
        near(&run(0.1, 0.5, 1.0, 4), &[0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1]);
    }
}
