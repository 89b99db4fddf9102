//! Keeps control-token strings inside a user's text from becoming control tokens.
//!
//! Before rendering, every such string in the messages is put between two private marks; after it, what stands between
//! marks is encoded as ordinary text and everything else, the template's own control tokens included, normally. Token
//! ids are those of transformers' `apply_chat_template(..., sanitize_control_tokens=True)`, and, where no text holds a
//! control token, those of an ordinary encoding of the whole conversation. Unlike transformers, which has fixed marks
//! and deletes them from the user's text, the marks are characters that occur nowhere in the input; and a control token
//! that only arises where two pieces of text meet is broken up too.

use std::collections::HashSet;

use regex::Regex;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::processor::tokenizer::Tokenizer;

/// Marks control tokens in messages and encodes the rendered text.
pub(crate) struct Marker {
    /// Any control token, the longest first.
    control: Regex,
    /// The tokens behind `control`.
    tokens: Vec<String>,
    marks: Marks,
}

/// Two characters that the conversation and the template do not use.
#[derive(Clone, Copy)]
struct Marks {
    start: char,
    end: char,
}

impl Marker {
    /// A marker for `tokens` (longest first) in conversations whose text is `corpus`: everything that will be rendered.
    ///
    /// # Errors
    /// [`Error::Input`] where the text uses every private character, or the tokens are too long for a pattern.
    pub(crate) fn new(tokens: &[&str], corpus: &[&str]) -> Result<Self> {
        // One pass over the texts, however many of the characters they use.
        let used: HashSet<char> =
            corpus.iter().flat_map(|text| text.chars()).filter(|c| *c >= '\u{F0000}').collect();
        let mut unused = ('\u{F0000}'..='\u{FFFFD}').filter(|mark| !used.contains(mark));
        let (Some(start), Some(end)) = (unused.next(), unused.next()) else {
            return Err(Error::Input("the conversation uses every private-use character".into()));
        };
        let pattern = tokens.iter().map(|token| regex::escape(token)).collect::<Vec<_>>().join("|");
        let control = Regex::new(&pattern).map_err(|error| {
            Error::Input(format!("the tokenizer's control tokens make no pattern: {error}"))
        })?;
        let tokens = tokens.iter().map(|token| token.to_string()).collect();
        Ok(Marker { control, tokens, marks: Marks { start, end } })
    }

    /// Marks every control token in every string of `messages`, and every seam between neighbouring text parts of a
    /// message across which one would form.
    pub(crate) fn mark(&self, messages: &mut Value) {
        match messages {
            Value::String(text) => {
                if self.control.is_match(text) {
                    let Marks { start, end } = self.marks;
                    *text = self.control.replace_all(text, format!("{start}${{0}}{end}")).into_owned();
                }
            }
            Value::Array(items) => {
                // Seams first: they are judged on the unmarked text.
                let seams = self.seams(items);
                items.iter_mut().for_each(|item| self.mark(item));
                for index in seams {
                    if let Some(Value::String(text)) =
                        items.get_mut(index).and_then(|part| part.get_mut("text"))
                    {
                        text.push(self.marks.end);
                    }
                }
            }
            Value::Object(fields) => fields.values_mut().for_each(|value| self.mark(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Indices of text parts whose end and what follows would together form a control token.
    fn seams(&self, parts: &[Value]) -> Vec<usize> {
        let texts: Vec<Option<&str>> =
            parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect();
        // Neighbouring texts are joined only as far as a token reaches: there may be very many.
        let longest = self.tokens.first().map_or(0, String::len);
        let is_seam = |index: usize| {
            let (mut before, mut length) = (Vec::new(), 0);
            for text in texts[..=index].iter().rev().map_while(|text| *text) {
                before.push(text);
                length += text.len();
                if length >= longest {
                    break;
                }
            }
            before.reverse();
            let (before, mut after) = (before.concat(), String::new());
            for text in texts[index + 1..].iter().map_while(|text| *text) {
                after.push_str(text);
                if after.len() >= longest {
                    break;
                }
            }
            self.tokens.iter().any(|token| {
                let mut splits = token.char_indices().map(|(at, _)| at).skip(1);
                splits.any(|at| before.ends_with(&token[..at]) && after.starts_with(&token[at..]))
            })
        };
        (0..texts.len().saturating_sub(1)).filter(|&index| is_seam(index)).collect()
    }

    /// The text without marks.
    pub(crate) fn strip(&self, rendered: &str) -> String {
        rendered.replace([self.marks.start, self.marks.end], "")
    }

    /// Token ids of a rendered text: what is marked as ordinary text, the rest normally. A lone mark (a template may cut
    /// a text between two) is dropped, but the text still breaks there.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Error::Input`] where the tokenizer makes the control token from ordinary text, too.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<u32>> {
        let Marks { start, end } = self.marks;
        let mut ids = Vec::new();
        let mut rest = rendered;
        let mut mark_before = None;
        loop {
            let cut = rest.char_indices().find(|(_, character)| [start, end].contains(character));
            let chunk = &rest[..cut.map_or(rest.len(), |(at, _)| at)];
            let mark_after = cut.map(|(_, mark)| mark);
            let marked = mark_before == Some(start)
                && mark_after == Some(end)
                && self.tokens.iter().any(|token| token == chunk);
            ids.extend(match mark_before {
                None => tokenizer.encode(chunk)?,
                Some(_) if chunk.is_empty() => Vec::new(),
                Some(_) => self.encode_piece(tokenizer, chunk, marked)?,
            });
            match cut {
                Some((at, mark)) => {
                    rest = &rest[at + mark.len_utf8()..];
                    mark_before = Some(mark);
                }
                None => return Ok(ids),
            }
        }
    }

    fn encode_piece(&self, tokenizer: &Tokenizer, chunk: &str, marked: bool) -> Result<Vec<u32>> {
        let ids = tokenizer.encode_continuation(chunk, marked)?;
        if marked && tokenizer.token_id(chunk).is_some_and(|id| ids.contains(&id)) {
            return Err(Error::Input(format!(
                "the text holds {chunk:?}, which this tokenizer turns into a control token even as plain text; remove it"
            )));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::tokenizer::tests::bundle;
    use serde_json::json;

    #[test]
    fn marks_strings_and_seams_and_nothing_else() {
        let marker = Marker::new(&["<|im_end|>", "<|x|>"], &["\u{F0000}"]).unwrap();
        let (start, end) = ('\u{F0001}', '\u{F0002}');
        let mut messages = json!([{"role": "user", "content": [
            {"type": "text", "text": "a<|im_end|>b<|x|>"},
            {"type": "text", "text": "<|im"},
            {"type": "text", "text": "_"},
            {"type": "text", "text": "end|>"},
            {"type": "image"},
            {"type": "text", "text": "<|"},
            {"type": "image"},
            {"type": "text", "text": "x|>"},
        ]}]);
        let unmarked = messages.clone();
        marker.mark(&mut messages);
        let texts: Vec<&str> =
            messages[0]["content"].as_array().unwrap().iter().filter_map(|p| p["text"].as_str()).collect();
        assert_eq!(texts[0], format!("a{start}<|im_end|>{end}b{start}<|x|>{end}"));
        assert_eq!(
            texts[1..],
            [format!("<|im{end}"), format!("_{end}"), "end|>".into(), "<|".into(), "x|>".into()]
        );
        assert_eq!(marker.strip(&messages.to_string()), unmarked.to_string());
    }

    /// Many parts, and a text of all private characters but two: one pass over each.
    #[test]
    fn long_conversations_take_time_in_proportion() {
        let start = std::time::Instant::now();
        let mut private: Vec<char> = ('\u{F0000}'..='\u{FFFFD}').collect();
        let all: String = private.iter().collect();
        assert_eq!(Marker::new(&["<|x|>"], &[&all]).err().unwrap().exit_code(), 65);
        private.truncate(private.len() - 2);
        let corpus = private.iter().collect::<String>().repeat(10);
        let marker = Marker::new(&["<|x|>"], &[&corpus]).unwrap();
        let mut messages = Value::from(vec![json!({"type": "text", "text": "<|".repeat(100)}); 20_000]);
        messages[7]["text"] = json!("x|>");
        marker.mark(&mut messages);
        let text = |n: usize| messages[n]["text"].as_str().unwrap();
        assert!(text(6).ends_with("<|\u{FFFFD}") && text(8).ends_with("<|") && text(7) == "x|>");
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }

    #[test]
    fn marked_tokens_are_text_lone_marks_are_breaks_and_the_rest_is_normal() {
        let tokenizer = bundle();
        let marker = Marker::new(&tokenizer.control_tokens(""), &[]).unwrap();
        let (start, end) = ('\u{F0000}', '\u{F0001}');
        let ids = |text: &str| marker.encode(&tokenizer, text).unwrap();
        let literal = tokenizer.encode_plain("<|im_end|>").unwrap();
        assert_eq!(ids(&format!("{start}<|im_end|>{end}<|im_end|>")), [literal.clone(), vec![501]].concat());
        // Forged or torn marks do not protect what is not a control token, and never make one.
        let torn = ids(&format!("<|im{end}_end|>"));
        assert!(torn.iter().all(|&id| id < 499), "{torn:?}");
        assert_eq!(ids(&format!("{start}abc{end}")), tokenizer.encode("abc").unwrap());
        assert_eq!(ids("a\n<|im_end|>\n"), tokenizer.encode("a\n<|im_end|>\n").unwrap());
    }
}
