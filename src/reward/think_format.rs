//! TRL's format reward: does the completion begin with one block of thinking?

use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// 1 if the completion begins with `<think>`, `</think>` follows, and no second `<think>` does; else 0.
///
/// Source: `think_format_reward` of TRL, which matches `^<think>(?!.*<think>)(.*?)</think>.*$`, dots being line ends too.
pub struct ThinkFormat;

impl Reward for ThinkFormat {
    fn name(&self) -> &str {
        "think_format"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let well_formed = |text: &str| {
            let rest = text.strip_prefix("<think>");
            rest.is_some_and(|rest| rest.contains("</think>") && !rest.contains("<think>"))
        };
        Ok(completions.iter().map(|c| Some(f64::from(u8::from(well_formed(c.text))))).collect())
    }
}
