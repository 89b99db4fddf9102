//! A KL weight that moves in a straight line.

use super::check_weight;
use crate::error::Result;

/// `beta(s) = start + (end - start) * s / S`, held after `S`; up or down.
///
/// From `beta_min` to `beta_max` this is what OThink-MR1's prose says ("starts from a small
/// value and gradually increases"), as opposed to its Eq. 3, which is [`super::Othink`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Linear {
    /// The weight at step 0.
    #[serde(rename = "beta_start")]
    pub start: f64,
    /// The weight at the end of the run.
    #[serde(rename = "beta_end")]
    pub end: f64,
}

impl Linear {
    /// The weight at step `s` of `total`, `0 <= s <= total`.
    pub fn beta(&self, s: f64, total: f64) -> f64 {
        self.start + (self.end - self.start) * (s / total)
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
    fn up_and_down() {
        for (start, end, want) in
            [(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]), (1.0, 0.5, [1.0, 0.875, 0.75, 0.625, 0.5, 0.5])]
        {
            let controller = BetaController::new(BetaSchedule::Linear(Linear { start, end }), 4).unwrap();
            assert_eq!([0, 1, 2, 3, 4, 9].map(|s| controller.beta(s)), want);
        }
    }
}
