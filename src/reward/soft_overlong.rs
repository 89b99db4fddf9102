//! DAPO's punishment of overlong completions.

use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// Of a completion of `n` tokens: 0 up to `max_len - cache`, then falling by `1 / cache` for each token, to -1 at `max_len`;
/// -1 above.
///
/// Source: DAPO (arXiv 2503.14476), Eq. 13; TRL's `get_soft_overlong_punishment`.
pub struct SoftOverlong {
    /// `max_completion_len`, tokens.
    pub max_len: usize,
    /// `soft_punish_cache`, tokens; at most `max_len`.
    pub cache: usize,
}

impl SoftOverlong {
    fn of_length(&self, tokens: usize) -> f64 {
        let free = self.max_len.saturating_sub(self.cache);
        if tokens <= free {
            0.0
        } else if tokens <= self.max_len {
            -((tokens - free) as f64) / self.cache as f64
        } else {
            -1.0
        }
    }
}

impl Reward for SoftOverlong {
    fn name(&self) -> &str {
        "soft_overlong"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        Ok(completions.iter().map(|c| Some(self.of_length(c.tokens.len()))).collect())
    }

    fn needs_tokens(&self) -> bool {
        true
    }
}
