//! One completion while it grows.

use crate::error::{Error, Result};
use crate::rollout::sampler::DrawKey;
use crate::rollout::stop::{Decode, StopState, StopStrings};

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token; it is the last token.
    Stop,
    /// A stop string; its tokens are kept, its text is not shown.
    StopString,
    /// The limit on new tokens.
    Length,
}

impl FinishReason {
    /// The name in logs and output files: `stop`, `stop_string` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::StopString => "stop_string",
            FinishReason::Length => "length",
        }
    }
}

/// When completions end. Where several reasons hold at once, the first field wins.
#[derive(Clone, Debug, PartialEq)]
pub struct StopRules {
    /// End-of-sequence ids.
    pub eos: Vec<u32>,
    /// Stop strings, looked for in the decoded text.
    pub strings: StopStrings,
    /// Longest completion in tokens.
    pub max_new_tokens: usize,
}

/// One completion of one prompt.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The prompt's place in the shuffled stream of prompts, counted over the whole run.
    prompt: u32,
    /// Index within the prompt's group.
    completion: u32,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    stop: StopState,
}

impl Sequence {
    /// An empty completion, number `completion` of the group of the prompt at place `prompt`.
    pub fn new(prompt: u32, completion: u32) -> Self {
        Sequence { prompt, completion, tokens: Vec::new(), finish: None, stop: StopState::default() }
    }

    /// Appends a token; says whether, and why, the completion is over.
    /// `decode` is called only if there are stop strings.
    ///
    /// # Errors
    /// `Internal` after the end.
    pub fn push(&mut self, token: u32, rules: &StopRules, decode: Decode) -> Result<Option<FinishReason>> {
        if let Some(reason) = self.finish {
            return Err(Error::Internal(format!("a token was appended after `{}`", reason.as_str())));
        }
        self.tokens.push(token);
        self.finish = if rules.eos.contains(&token) {
            Some(FinishReason::Stop)
        } else if !rules.strings.is_empty() && self.stop.push(&self.tokens, &rules.strings, decode) {
            Some(FinishReason::StopString)
        } else if self.tokens.len() >= rules.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        Ok(self.finish)
    }

    /// The coordinates of the next token's draw.
    ///
    /// # Errors
    /// `Internal` beyond 2^32 tokens.
    pub fn draw_key(&self, seed: u64) -> Result<DrawKey> {
        let position = u32::try_from(self.tokens.len())
            .map_err(|_| Error::Internal("a completion has outgrown its counter".to_string()))?;
        Ok(DrawKey { seed, prompt: self.prompt, completion: self.completion, position })
    }

    /// The prompt's place in the shuffled stream.
    pub fn prompt(&self) -> u32 {
        self.prompt
    }

    /// Index within the prompt's group.
    pub fn completion(&self) -> u32 {
        self.completion
    }

    /// The tokens so far, those of a stop string and an end-of-sequence token included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why the completion ended; `None` while it grows.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The text to show: up to a stop string, if one was found, else all that `decode` makes of the
    /// tokens.
    pub fn text(&self, decode: Decode) -> String {
        match self.finish {
            Some(FinishReason::StopString) => self.stop.text().to_string(),
            _ => decode(&self.tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter per id.
    fn decode(tokens: &[u32]) -> String {
        tokens.iter().filter_map(|t| char::from_u32(u32::from(b'a') + t)).collect()
    }

    fn rules(strings: &[&str]) -> StopRules {
        let strings = StopStrings::new(strings.iter().map(ToString::to_string).collect()).expect("valid");
        StopRules { eos: vec![25, 24], strings, max_new_tokens: 4 }
    }

    fn run(tokens: &[u32], rules: &StopRules) -> Sequence {
        let mut sequence = Sequence::new(7, 3);
        for token in tokens {
            let finish = sequence.push(*token, rules, &decode).expect("not finished yet");
            assert_eq!(finish, sequence.finish());
        }
        sequence
    }

    #[test]
    fn ends_by_eos_string_or_length() {
        let rules = rules(&["bc"]);
        let eos = run(&[0, 24], &rules);
        assert_eq!((eos.finish(), eos.text(&decode).as_str()), (Some(FinishReason::Stop), "ay"));
        let string = run(&[0, 1, 2], &rules);
        assert_eq!((string.finish(), string.text(&decode).as_str()), (Some(FinishReason::StopString), "a"));
        assert_eq!(string.tokens(), [0, 1, 2]);
        let length = run(&[0, 1, 1, 1], &rules);
        assert_eq!((length.finish(), length.text(&decode).as_str()), (Some(FinishReason::Length), "abbb"));
        assert_eq!(run(&[0, 1, 1], &rules).finish(), None);
    }

    #[test]
    fn eos_outranks_string_outranks_length() {
        assert_eq!(run(&[0, 1, 1, 25], &rules(&["bz"])).finish(), Some(FinishReason::Stop));
        assert_eq!(run(&[0, 1, 1, 2], &rules(&["bc"])).finish(), Some(FinishReason::StopString));
    }

    #[test]
    fn nothing_is_decoded_without_stop_strings() {
        let mut sequence = Sequence::new(0, 0);
        let never = |_: &[u32]| -> String { unreachable!("decoded") };
        assert_eq!(sequence.push(1, &rules(&[]), &never).expect("open"), None);
    }

    #[test]
    fn draw_keys_count_tokens() {
        let sequence = run(&[0, 0], &rules(&[]));
        let expected = DrawKey { seed: 99, prompt: 7, completion: 3, position: 2 };
        assert_eq!(sequence.draw_key(99).expect("short"), expected);
    }

    #[test]
    fn misuse_is_an_error() {
        let rules = rules(&[]);
        let mut done = run(&[24], &rules);
        assert!(matches!(done.push(0, &rules, &decode), Err(Error::Internal(_))));
    }
}
