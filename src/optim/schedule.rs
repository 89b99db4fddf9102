//! Learning-rate schedules, as Hugging Face's `get_scheduler` defines them.

use crate::error::{Error, Result};

pub use crate::config::LrSchedulerType;

/// The learning rate of each optimiser step. With warm-up `W` and total `S`:
///
/// ```text
/// s < W:   peak * s / W
/// linear:  peak * (S - s) / (S - W)
/// cosine:  peak * (1 + cos(pi * (s - W) / (S - W))) / 2
/// ```
///
/// Step 0 of a warm-up has learning rate 0, as in Hugging Face. Past `S` the rate is 0 (linear)
/// or stays 0 (cosine, which there would rise again).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// The shape.
    pub scheduler_type: LrSchedulerType,
    /// The option `learning_rate`.
    pub peak: f64,
    /// Warm-up steps, from [`warmup_steps`].
    pub warmup_steps: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
}

impl LrSchedule {
    /// The learning rate of optimiser step `step` (0-based).
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if self.scheduler_type == LrSchedulerType::Constant {
            return 1.0;
        }
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.scheduler_type {
            LrSchedulerType::Linear => self.total_steps.saturating_sub(step) as f64 / decay_steps,
            LrSchedulerType::Cosine => {
                let progress = ((step - self.warmup_steps) as f64 / decay_steps).min(1.0);
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => 1.0,
        }
    }
}

/// The warm-up of a run of `total_steps`: the option `warmup_steps` if it is not 0, else
/// `ceil(warmup_ratio * total_steps)`.
///
/// # Errors
/// [`Error::Usage`] if the ratio is not in `[0, 1]`.
pub fn warmup_steps(warmup_steps: u64, warmup_ratio: f64, total_steps: u64) -> Result<u64> {
    if !(0.0..=1.0).contains(&warmup_ratio) {
        return Err(Error::Usage(format!(
            "warmup_ratio is {warmup_ratio}; it is the share of the run spent warming up, from 0 to 1"
        )));
    }
    if warmup_steps > 0 {
        return Ok(warmup_steps);
    }
    Ok((warmup_ratio * total_steps as f64).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `transformers.get_scheduler` over whole runs (`tools/reference/make_trl_golden.py`).
    #[test]
    fn equals_transformers() {
        #[derive(serde::Deserialize)]
        struct Run {
            lr_scheduler_type: LrSchedulerType,
            learning_rate: f64,
            warmup_steps: u64,
            total_steps: u64,
            rates: Vec<f64>,
        }
        #[derive(serde::Deserialize)]
        struct Golden {
            schedules: Vec<Run>,
        }
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden/torch_optim.json")).unwrap();
        assert!(golden.schedules.len() >= 8);
        for run in golden.schedules {
            let schedule = LrSchedule {
                scheduler_type: run.lr_scheduler_type,
                peak: run.learning_rate,
                warmup_steps: run.warmup_steps,
                total_steps: run.total_steps,
            };
            for (step, &want) in run.rates.iter().enumerate() {
                let got = schedule.learning_rate(step as u64);
                assert!(
                    (got - want).abs() <= 1e-12 * run.learning_rate,
                    "{schedule:?} at {step}: {got}, {want}"
                );
            }
        }
    }

    #[test]
    fn cosine_stays_at_zero_past_the_end() {
        let schedule = LrSchedule {
            scheduler_type: LrSchedulerType::Cosine,
            peak: 1.0,
            warmup_steps: 2,
            total_steps: 10,
        };
        assert_eq!([10, 13, 18, 100].map(|s| schedule.learning_rate(s)), [0.0; 4]);
    }

    #[test]
    fn warm_up_rounds_up_and_steps_win() {
        assert_eq!(warmup_steps(0, 0.1, 11).unwrap(), 2);
        assert_eq!(warmup_steps(0, 0.0, 11).unwrap(), 0);
        assert_eq!(warmup_steps(5, 0.5, 100).unwrap(), 5);
        assert!(warmup_steps(0, 1.5, 100).unwrap_err().to_string().contains("warmup_ratio"));
    }
}
