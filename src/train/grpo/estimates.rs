//! KL estimates side by side: what each estimator says of the same tokens, whichever is in force.

use crate::config::{ImportanceSamplingLevel, KlEstimator};
use crate::error::Result;
use crate::loss::{LossConfig, LossMetrics, ScoreInputs, loss_of_scores};
use crate::tensor::Tensor;

/// Sums behind the estimates of some micro-batches; those that cannot be had are missing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimates {
    k1: Option<LossMetrics>,
    k3: Option<LossMetrics>,
    exact: Option<LossMetrics>,
}

impl Estimates {
    /// The estimates of a micro-batch whose loss gave `measured`; `exact` are the policy's scores with the exact KL to the
    /// reference, where another estimator is in force.
    ///
    /// They come from the loss itself at weight 0, whose gradient nobody takes.
    pub(super) fn of(
        config: &LossConfig,
        inputs: &ScoreInputs<'_>,
        measured: &LossMetrics,
        exact: Option<&Tensor>,
    ) -> Result<Estimates> {
        let by = |kl_estimator: KlEstimator, inputs: &ScoreInputs<'_>| -> Result<LossMetrics> {
            if kl_estimator == config.kl_estimator {
                return Ok(*measured);
            }
            let importance_sampling_level = ImportanceSamplingLevel::Token;
            let config = LossConfig { beta: 0.0, kl_estimator, importance_sampling_level, ..*config };
            Ok(loss_of_scores(&config, inputs)?.metrics)
        };
        let sampled = |estimator| inputs.reference.is_some().then(|| by(estimator, inputs)).transpose();
        let exact = match exact {
            Some(scores) => {
                let inputs = ScoreInputs { scores, reference: None, exact_kl: true, ..*inputs };
                Some(by(KlEstimator::Full, &inputs)?)
            }
            None => inputs.exact_kl.then_some(*measured),
        };
        Ok(Estimates { k1: sampled(KlEstimator::K1)?, k3: sampled(KlEstimator::K3)?, exact })
    }

    /// Adds those of another micro-batch.
    pub(super) fn merge(&mut self, other: &Estimates) {
        let parts = [(&mut self.k1, &other.k1), (&mut self.k3, &other.k3), (&mut self.exact, &other.exact)];
        for (own, other) in parts {
            if let Some(other) = other {
                own.get_or_insert_default().merge(other);
            }
        }
    }

    /// Metrics `kl/k1`, `kl/k3` and `kl/exact`: mean nats per token that counts.
    pub(super) fn means(&self) -> [Option<f64>; 3] {
        [self.k1, self.k3, self.exact].map(|metrics| metrics?.kl())
    }
}
