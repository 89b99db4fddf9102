//! A KL weight that moves along half a cosine, as learning rates do (SGDR, arXiv 1608.03983).

use super::check_weight;
use crate::error::Result;

/// `beta(s) = end + (start - end) * (1 + cos(pi * s / S)) / 2`, held after `S`; up or down.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cosine {
    /// The weight at step 0.
    #[serde(rename = "beta_start")]
    pub start: f64,
    /// The weight at the end of the run.
    #[serde(rename = "beta_end")]
    pub end: f64,
}

impl Cosine {
    /// The weight at step `s` of `total`, `0 <= s <= total`.
    pub fn beta(&self, s: f64, total: f64) -> f64 {
        self.end + (self.start - self.end) * 0.5 * (1.0 + (std::f64::consts::PI * s / total).cos())
    }

    /// See [`super::BetaSchedule::validate`].
    pub fn validate(&self) -> Result<()> {
        check_weight("beta_start", self.start)?;
        check_weight("beta_end", self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaController, BetaSchedule};
    use super::*;

    #[test]
    fn thirds_of_a_half_wave() {
        // cos(0), cos(60 deg), cos(120 deg), cos(180 deg) = 1, 0.5, -0.5, -1.
        let controller =
            BetaController::new(BetaSchedule::Cosine(Cosine { start: 0.8, end: 0.4 }), 3).unwrap();
        for (s, want) in [(0, 0.8), (1, 0.7), (2, 0.5), (3, 0.4), (7, 0.4)] {
            assert!((controller.beta(s) - want).abs() < 1e-15, "{s}: {}", controller.beta(s));
        }
    }
}
