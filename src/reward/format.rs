//! The format reward: is the completion one thinking block and one answer block?

use std::sync::LazyLock;

use regex::Regex;

use super::{Completed, Reward};
use crate::error::Result;
use crate::rollout::Watch;

/// R1-V's format reward: 1 if the whole completion matches
/// `<think>.*?</think>\s*<answer>.*?</answer>` (`re.fullmatch` with `re.DOTALL`), else 0.
///
/// Source: Deep-Agent/R1-V, `grpo.py`, since 2025-02-07. As there, nothing may stand before
/// or after, not even a line end, and the blocks may hold further tags.
pub struct Format;

/// Python's `\s` also holds the four separators U+001C to U+001F, which Rust's does not.
static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?s)\A<think>.*?</think>[\s\x1c-\x1f]*<answer>.*?</answer>\z")
        .expect("the pattern is constant")
});

impl Reward for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, completions: &[Completed<'_>], _: Watch<'_>) -> Result<Vec<Option<f64>>> {
        let matches = |c: &Completed<'_>| Some(f64::from(u8::from(PATTERN.is_match(c.text))));
        Ok(completions.iter().map(matches).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{PromptTemplate, Sample};

    /// Verdicts of Python's `re.fullmatch(pattern, text, re.DOTALL)`.
    #[test]
    fn equals_pythons_fullmatch() {
        let sample = Sample::from_problem(0, vec![], "?", PromptTemplate::None, None);
        let cases = [
            ("<think>a</think><answer>3</answer>", 1.0),
            ("<think>a\nb</think>\n\n<answer>\n3\n</answer>", 1.0),
            ("<think></think> \t<answer></answer>", 1.0),
            ("<think>a</think>\u{1c}\u{2003}<answer>3</answer>", 1.0),
            ("<think>a</think><answer>3</answer><answer>4</answer>", 1.0),
            ("<think>a</think> b <think></think><answer>3</answer>", 1.0),
            ("<think>a</think><answer>3</answer>\n", 0.0),
            (" <think>a</think><answer>3</answer>", 0.0),
            ("<think>a</think> so <answer>3</answer>", 0.0),
            ("<think>a<answer>3</answer>", 0.0),
            ("<answer>3</answer>", 0.0),
            ("<Think>a</Think><answer>3</answer>", 0.0),
            ("<think>a</think><answer>3", 0.0),
            ("", 0.0),
        ];
        let completions = cases.map(|(text, _)| Completed { sample: &sample, text, tokens: &[] });
        let scores = Format.score(&completions, &|_| Ok(())).unwrap();
        for ((text, wanted), score) in cases.into_iter().zip(scores) {
            assert_eq!(score, Some(wanted), "{text:?}");
        }
    }

    /// One of many tries has to be that fast: other work may be going on.
    #[test]
    fn case_52_hostile_text_takes_linear_time() {
        let sample = Sample::from_problem(0, vec![], "?", PromptTemplate::None, None);
        for piece in ["<think></think><answer>", "</think> <answer>", "<think>", " ", "</answer>"] {
            let text = format!("<think>{}", piece.repeat((1 << 20) / piece.len()));
            let is_fast = |_| {
                let start = std::time::Instant::now();
                let completion = Completed { sample: &sample, text: &text, tokens: &[] };
                assert_eq!(Format.score(&[completion], &|_| Ok(())).unwrap(), [Some(0.0)]);
                start.elapsed().as_millis() < 200
            };
            assert!((0..10).any(is_fast), "{piece:?}");
        }
    }
}
