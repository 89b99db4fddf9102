//! The KL term: its weight over a run (one file per schedule) and its estimators.
//!
//! [`BetaController`] gives `beta(s)` of the loss (Eq. 4 of OThink-MR1, arXiv 2503.16081) at
//! optimiser step `s`, counted from 0. A schedule is one small struct with `beta(step, total)`
//! and one arm here. [`KlEstimator`] says which quantity is multiplied by it.

pub mod adaptive;
pub mod constant;
pub mod cosine;
pub mod estimator;
pub mod linear;
pub mod othink;

pub use adaptive::Adaptive;
pub use constant::Constant;
pub use cosine::Cosine;
pub use estimator::{KlEstimator, k1_penalty, value_and_slope};
pub use linear::Linear;
pub use othink::Othink;

use crate::error::{Error, Result};

/// How the KL weight moves over a run (option `beta_schedule`).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "beta_schedule", rename_all = "snake_case")]
pub enum BetaSchedule {
    /// The paper's V: middle, down to the minimum, up to the maximum.
    Othink(Othink),
    /// One value.
    Constant(Constant),
    /// A straight line.
    Linear(Linear),
    /// Half a cosine.
    Cosine(Cosine),
    /// A controller that holds the measured KL near a target.
    Adaptive(Adaptive),
}

impl BetaSchedule {
    /// Whether a reference model is needed at any step of the run.
    ///
    /// Decided by the whole schedule: a weight that is 0 at this step (the paper's geometry
    /// recipe reaches exactly 0 at `s = w`) says nothing about the next one.
    pub fn needs_reference(&self) -> bool {
        match self {
            BetaSchedule::Othink(schedule) => schedule.beta_max > 0.0,
            BetaSchedule::Constant(schedule) => schedule.beta > 0.0,
            BetaSchedule::Linear(schedule) => schedule.start > 0.0 || schedule.end > 0.0,
            BetaSchedule::Cosine(schedule) => schedule.start > 0.0 || schedule.end > 0.0,
            BetaSchedule::Adaptive(schedule) => schedule.initial > 0.0,
        }
    }

    /// Refuses weights that are negative or not finite, and ranges that are upside down.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option.
    pub fn validate(&self) -> Result<()> {
        match self {
            BetaSchedule::Othink(schedule) => schedule.validate(),
            BetaSchedule::Constant(schedule) => schedule.validate(),
            BetaSchedule::Linear(schedule) => schedule.validate(),
            BetaSchedule::Cosine(schedule) => schedule.validate(),
            BetaSchedule::Adaptive(schedule) => schedule.validate(),
        }
    }
}

/// Whatever a run must save to continue its KL weight bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BetaState {
    /// The weight of the adaptive controller after the last observation; the other schedules
    /// are functions of the step and ignore it.
    pub adaptive_beta: f64,
}

/// The KL weight of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BetaController {
    schedule: BetaSchedule,
    total_steps: u64,
    adaptive_beta: f64,
}

impl BetaController {
    /// A controller at the start of a run of `total_steps` optimiser steps.
    ///
    /// # Errors
    /// [`Error::Usage`] if the schedule is invalid or the run has no step.
    pub fn new(schedule: BetaSchedule, total_steps: u64) -> Result<Self> {
        schedule.validate()?;
        if total_steps == 0 {
            return Err(Error::Usage(
                "the run has no optimiser step to schedule beta over; set max_steps to at least 1".into(),
            ));
        }
        let adaptive_beta = match schedule {
            BetaSchedule::Adaptive(schedule) => schedule.initial,
            _ => 0.0,
        };
        Ok(BetaController { schedule, total_steps, adaptive_beta })
    }

    /// The KL weight of optimiser step `step` (0-based). Steps past the end keep the last value.
    pub fn beta(&self, step: u64) -> f64 {
        let (s, total) = (step.min(self.total_steps) as f64, self.total_steps as f64);
        match self.schedule {
            BetaSchedule::Othink(schedule) => schedule.beta(s, total),
            BetaSchedule::Constant(schedule) => schedule.beta,
            BetaSchedule::Linear(schedule) => schedule.beta(s, total),
            BetaSchedule::Cosine(schedule) => schedule.beta(s, total),
            BetaSchedule::Adaptive(_) => self.adaptive_beta,
        }
    }

    /// Tells the controller the mean KL of a finished step over `sequences` completions.
    /// Only the adaptive schedule listens.
    ///
    /// # Errors
    /// [`Error::Protect`] if the adaptive schedule is told a KL that is not finite.
    pub fn observe(&mut self, kl: f64, sequences: usize) -> Result<()> {
        if let BetaSchedule::Adaptive(schedule) = self.schedule {
            self.adaptive_beta = schedule.next(self.adaptive_beta, kl, sequences)?;
        }
        Ok(())
    }

    /// Whether a reference model is needed at any step; see [`BetaSchedule::needs_reference`].
    pub fn needs_reference(&self) -> bool {
        self.schedule.needs_reference()
    }

    /// What to save in a checkpoint.
    pub fn state(&self) -> BetaState {
        BetaState { adaptive_beta: self.adaptive_beta }
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`Error::Input`] if the saved weight is negative or not finite.
    pub fn restore(&mut self, state: BetaState) -> Result<()> {
        if !state.adaptive_beta.is_finite() || state.adaptive_beta < 0.0 {
            return Err(Error::Input(format!(
                "the checkpoint's adaptive beta is {}; a finite number of at least 0 was expected",
                state.adaptive_beta
            )));
        }
        self.adaptive_beta = state.adaptive_beta;
        Ok(())
    }
}

/// Refuses a KL weight that is negative or not finite.
fn check_weight(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::Usage(format!("{option} is {value}; a KL weight must be a finite number of at least 0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn othink(beta_min: f64, beta_max: f64) -> BetaSchedule {
        BetaSchedule::Othink(Othink { beta_min, beta_max, exploration_ratio: 0.3 })
    }

    #[test]
    fn a_reference_is_needed_by_the_schedule_not_the_instant() {
        let geometry = BetaController::new(othink(0.0, 0.02), 10).unwrap();
        assert_eq!(geometry.beta(3), 0.0);
        assert!(geometry.needs_reference());
        assert!(!BetaSchedule::Constant(Constant { beta: 0.0 }).needs_reference());
        assert!(BetaSchedule::Constant(Constant { beta: 0.04 }).needs_reference());
        assert!(!othink(0.0, 0.0).needs_reference());
        assert!(BetaSchedule::Linear(Linear { start: 0.0, end: 0.1 }).needs_reference());
        assert!(BetaSchedule::Cosine(Cosine { start: 0.1, end: 0.0 }).needs_reference());
        let adaptive = |initial| BetaSchedule::Adaptive(Adaptive { initial, target: 0.1, horizon: 100.0 });
        assert!(adaptive(0.04).needs_reference());
        assert!(!adaptive(0.0).needs_reference());
    }

    #[test]
    fn saved_state_continues_bit_for_bit() {
        let adaptive = BetaSchedule::Adaptive(Adaptive { initial: 0.04, target: 0.1, horizon: 1000.0 });
        let mut whole = BetaController::new(adaptive, 10).unwrap();
        whole.observe(0.15, 64).unwrap();
        let saved = serde_json::to_string(&whole.state()).unwrap();
        let mut resumed = BetaController::new(adaptive, 10).unwrap();
        resumed.restore(serde_json::from_str(&saved).unwrap()).unwrap();
        for controller in [&mut whole, &mut resumed] {
            controller.observe(0.07, 64).unwrap();
        }
        assert_ne!(whole.beta(2), 0.04);
        assert_eq!(whole.beta(2).to_bits(), resumed.beta(2).to_bits());
        assert!(matches!(resumed.restore(BetaState { adaptive_beta: f64::NAN }), Err(Error::Input(_))));
    }

    #[test]
    fn only_the_adaptive_schedule_listens() {
        let mut controller = BetaController::new(othink(0.04, 0.10), 10).unwrap();
        let before = controller.beta(5);
        controller.observe(f64::NAN, 64).unwrap();
        assert_eq!(controller.beta(5), before);
    }

    #[test]
    fn bad_schedules_name_their_option() {
        let message = |schedule| BetaController::new(schedule, 10).unwrap_err().to_string();
        assert!(message(othink(0.2, 0.1)).contains("beta_min"));
        assert!(message(othink(-0.1, 0.1)).contains("beta_min"));
        assert!(message(BetaSchedule::Constant(Constant { beta: f64::NAN })).contains("beta is NaN"));
        let steep = Othink { beta_min: 0.0, beta_max: 0.1, exploration_ratio: 1.5 };
        assert!(message(BetaSchedule::Othink(steep)).contains("beta_exploration_ratio"));
        let adaptive = |target, horizon| BetaSchedule::Adaptive(Adaptive { initial: 0.1, target, horizon });
        assert!(message(adaptive(0.0, 1.0)).contains("kl_target"));
        assert!(message(adaptive(0.1, 0.0)).contains("kl_horizon"));
        assert!(BetaController::new(othink(0.0, 0.1), 0).unwrap_err().to_string().contains("max_steps"));
    }

    #[test]
    fn schedules_survive_a_config_file() {
        let schedule = othink(0.04, 0.10);
        let json = serde_json::to_string(&schedule).unwrap();
        assert!(json.starts_with(r#"{"beta_schedule":"othink","beta_min":0.04"#), "{json}");
        assert_eq!(serde_json::from_str::<BetaSchedule>(&json).unwrap(), schedule);
    }
}
