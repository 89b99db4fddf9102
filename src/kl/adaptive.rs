//! The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2).

use super::check_weight;
use crate::error::{Error, Result};

/// The most that one observation's relative error may count.
const ERROR_CLIP: f64 = 0.2;

/// Raises the weight while the measured KL is above the target and lowers it below:
///
/// ```text
/// e    = clip(KL / target - 1, -0.2, 0.2)
/// beta = beta * (1 + e * n / horizon)
/// ```
///
/// with `n` completions in the step. `n / horizon` is held to at most 1, so one step never
/// moves the weight by more than a fifth and never to 0. A weight of 0 stays 0.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adaptive {
    /// The weight before the first observation.
    #[serde(rename = "beta")]
    pub initial: f64,
    /// The KL per token that the controller aims at, in nats.
    #[serde(rename = "kl_target")]
    pub target: f64,
    /// Completions over which an error of 1 would double the weight.
    #[serde(rename = "kl_horizon")]
    pub horizon: f64,
}

impl Adaptive {
    /// The weight after a step with mean KL `kl` over `sequences` completions.
    ///
    /// # Errors
    /// [`Error::Protect`] if the KL is not finite.
    pub fn next(&self, beta: f64, kl: f64, sequences: usize) -> Result<f64> {
        if !kl.is_finite() {
            return Err(Error::Protect(format!(
                "the KL to the reference is {kl}, so the adaptive beta cannot follow it; \
                 lower learning_rate or resume from an earlier checkpoint"
            )));
        }
        let error = (kl / self.target - 1.0).clamp(-ERROR_CLIP, ERROR_CLIP);
        Ok(beta * (1.0 + error * (sequences as f64 / self.horizon).min(1.0)))
    }

    /// See [`super::BetaSchedule::validate`].
    pub fn validate(&self) -> Result<()> {
        check_weight("beta", self.initial)?;
        for (option, value) in [("kl_target", self.target), ("kl_horizon", self.horizon)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::Usage(format!("{option} is {value}; it must be a finite number above 0")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaController, BetaSchedule};
    use super::*;

    #[test]
    fn follows_the_error_and_clips_it() {
        let schedule = Adaptive { initial: 0.1, target: 0.5, horizon: 100.0 };
        let after = |kl, n| schedule.next(0.1, kl, n).unwrap();
        assert!((after(0.55, 50) - 0.1 * (1.0 + 0.1 * 0.5)).abs() < 1e-15);
        assert!((after(5.0, 50) - 0.1 * 1.1).abs() < 1e-15);
        assert!((after(-3.0, 50) - 0.1 * 0.9).abs() < 1e-15);
        // A step larger than the horizon counts as the horizon.
        assert!((after(0.0, 100_000) - 0.08).abs() < 1e-15);
        assert!(matches!(schedule.next(0.1, f64::NAN, 1), Err(Error::Protect(_))));
    }

    #[test]
    fn holds_a_system_at_its_target() {
        // A stand-in policy whose KL is inversely proportional to beta: KL = 0.02 / beta.
        let schedule = Adaptive { initial: 1.0, target: 0.1, horizon: 640.0 };
        let mut controller = BetaController::new(BetaSchedule::Adaptive(schedule), 1000).unwrap();
        for step in 0..500 {
            controller.observe(0.02 / controller.beta(step), 64).unwrap();
        }
        assert!((controller.beta(500) - 0.2).abs() < 1e-3, "{}", controller.beta(500));
    }
}
