//! A penalty for saying the same again and again.

use std::collections::HashSet;

use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// `max_penalty * (1 - distinct / all)` over the n-grams of the completion's tokens; 0 for one of fewer than n tokens.
///
/// Source: `get_repetition_penalty_reward` of TRL, after "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373),
/// appendix C.2. VLM-R1 and open-r1 take n-grams of words for it.
pub struct Repetition {
    /// `repetition_n_grams`, n, at least 1.
    pub n_grams: usize,
    /// `repetition_max_penalty`, at most 0.
    pub max_penalty: f64,
}

impl Repetition {
    fn of_tokens(&self, tokens: &[u32]) -> f64 {
        let all = (tokens.len() + 1).saturating_sub(self.n_grams);
        let distinct = tokens.windows(self.n_grams).collect::<HashSet<_>>().len();
        if distinct == all {
            return 0.0;
        }
        (1.0 - distinct as f64 / all as f64) * self.max_penalty
    }
}

impl Reward for Repetition {
    fn name(&self) -> &str {
        "repetition"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(completions.iter().map(|c| Some(self.of_tokens(c.tokens))).collect())
    }

    fn needs_tokens(&self) -> bool {
        true
    }
}
