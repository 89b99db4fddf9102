//! A constant KL weight: GRPO as in DeepSeekMath (arXiv 2402.03300).

use super::check_weight;
use crate::error::Result;

/// `beta(s) = beta`. 0 means that no reference model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Constant {
    /// The weight.
    pub beta: f64,
}

impl Constant {
    /// See [`super::BetaSchedule::validate`].
    pub fn validate(&self) -> Result<()> {
        check_weight("beta", self.beta)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaController, BetaSchedule};
    use super::*;

    #[test]
    fn never_moves() {
        let controller = BetaController::new(BetaSchedule::Constant(Constant { beta: 0.04 }), 3).unwrap();
        assert_eq!([0, 1, 2, 3, 100].map(|s| controller.beta(s)), [0.04; 5]);
    }
}
