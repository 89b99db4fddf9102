//! Rewards that fall with the length of the completion along half a cosine.

use std::f64::consts::PI;

use super::answer::is_correct;
use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// From `at_start`, of no tokens, to `at_end`, of `max_len` and more:
/// `at_end + (at_start - at_end) / 2 * (1 + cos(pi * n / max_len))`.
fn half_cosine(tokens: usize, max_len: usize, at_start: f64, at_end: f64) -> f64 {
    let progress = (tokens as f64 / max_len as f64).min(1.0);
    at_end + 0.5 * (at_start - at_end) * (1.0 + (progress * PI).cos())
}

/// Right answers are worth the more, the shorter the completion is; wrong ones have a range of their own. `None` without a
/// solution.
///
/// Of n tokens, along half a cosine: a right one from `max_value_correct` at n = 0 to `min_value_correct` at `max_len`, a wrong
/// one from `min_value_wrong` to `max_value_wrong`. What is right, `accuracy` says.
///
/// Source: "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373); the names and defaults are those of TRL's
/// `get_cosine_scaled_reward`, which comes from open-r1. As in TRL the length is in tokens (open-r1 counts characters), and beyond
/// `max_len` the reward stays what it is there (open-r1's rises again).
pub struct Cosine {
    /// Of a wrong one, at no length.
    pub min_value_wrong: f64,
    /// Of a wrong one, at `max_len`.
    pub max_value_wrong: f64,
    /// Of a right one, at `max_len`.
    pub min_value_correct: f64,
    /// Of a right one, at no length.
    pub max_value_correct: f64,
    /// `cosine_max_len`, tokens, at least 1.
    pub max_len: usize,
}

impl Reward for Cosine {
    fn name(&self) -> &str {
        "cosine"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let of = |c: &Completed<'_>| {
            let solution = c.sample.solution.as_deref()?;
            let (at_start, at_end) = match is_correct(c.text, solution) {
                true => (self.max_value_correct, self.min_value_correct),
                false => (self.min_value_wrong, self.max_value_wrong),
            };
            Some(half_cosine(c.tokens.len(), self.max_len, at_start, at_end))
        };
        Ok(completions.iter().map(of).collect())
    }

    fn needs_solution(&self) -> bool {
        true
    }

    fn needs_tokens(&self) -> bool {
        true
    }
}

/// Shorter is better, right or wrong: from 1 at no tokens to 0.5 at 1024 and more, along half a cosine.
///
/// Source: VLM-R1's `length`, as it computes: it means to tell right from wrong, as [`Cosine`] does, but takes every completion
/// as right. Beyond 1024 tokens the reward stays 0.5, where theirs rises again.
pub struct Length;

/// VLM-R1's `cosine_max_len`, tokens.
const LENGTH_MAX_LEN: usize = 1024;

impl Reward for Length {
    fn name(&self) -> &str {
        "length"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(completions.iter().map(|c| Some(half_cosine(c.tokens.len(), LENGTH_MAX_LEN, 1.0, 0.5))).collect())
    }

    fn needs_tokens(&self) -> bool {
        true
    }
}
