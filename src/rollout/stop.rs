//! Stop strings, found in the decoded text as it grows.
//!
//! A stop string may span tokens, and a token may hold only part of a character, so neither ids nor
//! single decoded tokens can be compared. [`StopState`] decodes a short window of tokens, takes the
//! text that later tokens can no longer change, and searches only where a match can be new. Work
//! per token is bounded, however long the completion is.

use crate::error::{Error, Result};

/// Decodes token ids to text; bytes that are no UTF-8 become U+FFFD, as in `tokenizers`.
pub type Decode<'a> = &'a dyn Fn(&[u32]) -> String;

/// Undecided tokens at most. A character is at most 4 bytes, hence 4 tokens; more than that ends in
/// U+FFFD only where the model writes bytes that never become text.
const MAX_UNDECIDED: usize = 8;

/// Tokens that can still complete a character begun by the token before them.
const CHARACTER_TAIL: usize = 3;

/// The strings at which generation stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<String>,
    longest_bytes: usize,
}

impl StopStrings {
    /// Checks and keeps `strings`; none is fine.
    ///
    /// # Errors
    /// `Usage` for an empty string, or one with U+FFFD (which stands for undecodable bytes).
    pub fn new(strings: Vec<String>) -> Result<Self> {
        for string in &strings {
            if string.is_empty() {
                return Err(Error::Usage("a stop string is empty; leave it out".to_string()));
            }
            if string.contains(char::REPLACEMENT_CHARACTER) {
                return Err(Error::Usage(format!(
                    "the stop string {string:?} holds U+FFFD, which stands for bytes that are no text; \
                     use text as the model writes it"
                )));
            }
        }
        let longest_bytes = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(StopStrings { strings, longest_bytes })
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Byte offset of the earliest match in `text`.
    fn find(&self, text: &str) -> Option<usize> {
        self.strings.iter().filter_map(|s| text.find(s.as_str())).min()
    }
}

/// The decoded text of one completion, and how far decoding has come.
#[derive(Clone, Debug, Default)]
pub struct StopState {
    /// The final text of the tokens before `decided`.
    text: String,
    /// The first token of the decode window: decoders may treat a first token specially, so the
    /// tokens decided last are decoded again as context.
    context: usize,
    /// Tokens whose text is final.
    decided: usize,
}

impl StopState {
    /// Takes in the last of `tokens` (the whole completion so far; call once per token). True when a
    /// stop string is complete; [`StopState::text`] then ends just before it.
    pub fn push(&mut self, tokens: &[u32], stops: &StopStrings, decode: Decode) -> bool {
        let window = tokens.get(self.context..).unwrap_or_default();
        let known = decode(tokens.get(self.context..self.decided).unwrap_or_default());
        let all = decode(window);
        let fresh = after_common_prefix(&known, &all);
        let stable = fresh.trim_end_matches(char::REPLACEMENT_CHARACTER);

        let from = floor_char_boundary(&self.text, self.text.len().saturating_sub(stops.longest_bytes));
        let mut searched = self.text.split_off(from);
        let overlap = searched.len();
        searched.push_str(stable);
        if let Some(at) = stops.find(&searched) {
            self.text.push_str(&searched[..at]);
            return true;
        }
        self.text.push_str(&searched[..overlap]);

        if stable.len() == fresh.len() {
            self.decide(tokens.len(), fresh);
        } else if tokens.len().saturating_sub(self.decided) >= MAX_UNDECIDED {
            // Split where no character is cut, far enough from the end that none can still change.
            let context = self.context;
            let split = (CHARACTER_TAIL..MAX_UNDECIDED).find_map(|left_over| {
                let end = tokens.len() - left_over;
                let head = decode(tokens.get(context..end)?);
                (end > self.decided && all.starts_with(&head)).then_some((end, head))
            });
            match split {
                Some((end, head)) => self.decide(end, after_common_prefix(&known, &head)),
                None => self.decide(tokens.len(), fresh),
            }
        }
        false
    }

    /// The text so far: up to the stop string once [`StopState::push`] has said true.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `text` is the final text of the tokens up to `end`.
    fn decide(&mut self, end: usize, text: &str) {
        self.text.push_str(text);
        self.context = self.decided;
        self.decided = end;
    }
}

/// What `all` has after the characters that it shares with `known`.
fn after_common_prefix<'a>(known: &str, all: &'a str) -> &'a str {
    let shared: usize =
        known.chars().zip(all.chars()).take_while(|(a, b)| a == b).map(|(_, b)| b.len_utf8()).sum();
    &all[shared..]
}

/// The last character boundary of `text` at or before byte `at`.
fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use std::cell::Cell;

    /// A byte-level vocabulary: ids below 256 are bytes, the rest are these strings.
    const WORDS: [&[u8]; 9] =
        [b"st", b"op", b"opera", b"sto", b"pper", b"las", b"topper", b"stop\xE4\xBD", b"\xA0!"];

    fn decode(tokens: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in tokens {
            match u8::try_from(*id) {
                Ok(byte) => bytes.push(byte),
                // Ids beyond the vocabulary decode to nothing.
                Err(_) => bytes.extend_from_slice(WORDS.get(*id as usize - 256).copied().unwrap_or_default()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(ToString::to_string).collect()).expect("valid stop strings")
    }

    /// How many tokens are taken before a stop, and the text shown.
    fn run(tokens: &[u32], stops: &StopStrings) -> (Option<usize>, String) {
        let mut state = StopState::default();
        for n in 1..=tokens.len() {
            if state.push(&tokens[..n], stops, &decode) {
                return (Some(n), state.text().to_string());
            }
        }
        (None, state.text().to_string())
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    /// The examples of transformers' `StopStringCriteria`.
    #[test]
    fn overhangs_on_both_sides_match() {
        let stop = stops(&["stop"]);
        for (tokens, taken, text) in [
            (vec![256, 257], 2, ""),
            (vec![256, 258], 2, ""),
            (vec![259, 260], 2, ""),
            (vec![261, 262], 2, "la"),
            (vec![256, 257, 120], 2, ""),
        ] {
            assert_eq!(run(&tokens, &stop), (Some(taken), text.to_string()), "{tokens:?}");
        }
        assert_eq!(run(&[256, 120, 257], &stop), (None, "stxop".to_string()));
    }

    #[test]
    fn characters_split_across_tokens_match_only_when_whole() {
        let tokens = bytes("a你好b");
        assert_eq!(run(&tokens, &stops(&["好"])), (Some(7), "a你".to_string()));
        assert_eq!(run(&tokens, &stops(&["é"])), (None, "a你好b".to_string()));
    }

    #[test]
    fn a_match_before_an_unfinished_character_does_not_wait() {
        assert_eq!(run(&[120, 263, 264], &stops(&["stop"])), (Some(2), "x".to_string()));
        assert_eq!(run(&[120, 263, 264], &stops(&["p你"])), (Some(3), "xsto".to_string()));
        assert_eq!(run(&[120, 263, 264], &stops(&["p好"])), (None, "xstop你!".to_string()));
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(run(&[261, 262], &stops(&["per", "top", "stop"])), (Some(2), "la".to_string()));
    }

    #[test]
    fn long_strings_match_across_many_tokens() {
        let text = "so the answer is <answer> 42 </answer> and more";
        let (taken, shown) = run(&bytes(text), &stops(&["</answer>", "never"]));
        assert_eq!(shown, "so the answer is <answer> 42 ");
        assert_eq!(taken, text.find("</answer>").map(|at| at + "</answer>".len()));
    }

    #[test]
    fn endless_undecodable_bytes_cost_a_bounded_window() {
        let longest = Cell::new(0);
        let counting = |tokens: &[u32]| {
            longest.set(longest.get().max(tokens.len()));
            decode(tokens)
        };
        let mut tokens = vec![0x80; 500];
        tokens.extend(bytes("你stop"));
        let mut state = StopState::default();
        let found = (1..=tokens.len()).find(|n| state.push(&tokens[..*n], &stops(&["你stop"]), &counting));
        assert_eq!(found, Some(tokens.len()));
        assert_eq!(state.text(), "\u{FFFD}".repeat(500));
        assert!(longest.get() <= 2 * MAX_UNDECIDED, "{}", longest.get());
    }

    /// Against the definition: stop after the first prefix whose whole decoding, up to what later
    /// bytes may change, holds a stop string; show what stands before it.
    #[test]
    fn random_sequences_equal_decoding_from_scratch() {
        let alphabet: Vec<u32> =
            bytes("sto你é").into_iter().chain([256, 257, 262, 263, 264, 0x80, 0xF0, 999]).collect();
        let stop = stops(&["stop", "o你", "ééé", "tt"]);
        let mut stream = Stream::new(9, Purpose::Task, 0);
        let mut stopped = 0;
        for _ in 0..3000 {
            let tokens: Vec<u32> =
                (0..40).map(|_| alphabet[stream.below(alphabet.len() as u32) as usize]).collect();
            let from_scratch = (1..=tokens.len()).find_map(|n| {
                let text = decode(&tokens[..n]);
                stop.find(&text).map(|at| (n, text[..at].to_string()))
            });
            let (taken, shown) = run(&tokens, &stop);
            assert_eq!(taken, from_scratch.as_ref().map(|f| f.0), "{tokens:?}");
            if let Some((_, text)) = from_scratch {
                stopped += 1;
                assert_eq!(shown, text, "{tokens:?}");
            }
        }
        assert!((500..3000).contains(&stopped), "{stopped} of 3000 stopped");
    }

    #[test]
    fn unusable_strings_are_refused() {
        for bad in ["", "a\u{FFFD}"] {
            assert!(matches!(StopStrings::new(vec![bad.to_string()]), Err(Error::Usage(_))), "{bad:?}");
        }
        assert!(StopStrings::new(Vec::new()).expect("none is fine").is_empty());
    }
}
