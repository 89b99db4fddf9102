//! The lines that are exchanged with a reward process: one JSON object each.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::worker::MAX_ANSWER_BYTES;
use crate::data::{ImageSource, Message, Part, Sample};
use crate::reward::Completed;

/// Largest reward, either way.
pub(super) const MAX_REWARD: f64 = 1e9;

/// Most characters of an answer that an error shows.
const SHOWN_CHARS: usize = 200;

#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    prompt: Value,
    completion: &'a str,
    completion_ids: &'a [u32],
    images: Vec<Option<String>>,
    columns: Columns<'a>,
    last: bool,
}

#[derive(Serialize)]
struct Columns<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    solution: Option<&'a str>,
    #[serde(flatten)]
    others: &'a Map<String, Value>,
}

/// The line that asks for the reward of a completion. `last` tells that no other is asked for before this is answered.
pub(super) fn request(id: u64, completed: &Completed<'_>, last: bool) -> String {
    let Sample { messages, images, solution, columns, .. } = completed.sample;
    let request = Request {
        id,
        prompt: messages.iter().map(message).collect(),
        completion: completed.text,
        completion_ids: completed.tokens,
        images: images
            .iter()
            .map(|image| match image {
                ImageSource::File(path) => Some(path.display().to_string()),
                ImageSource::Bytes(_) => None,
            })
            .collect(),
        columns: Columns { solution: solution.as_deref(), others: columns },
        last,
    };
    // Texts, numbers and maps with text keys always have a JSON form.
    serde_json::to_string(&request).unwrap_or_default()
}

/// A message in TRL's form: its content is a text where there is nothing else, else a list of parts.
fn message(message: &Message) -> Value {
    let content: Value = match message.content.as_slice() {
        [Part::Text(text)] => text.as_str().into(),
        parts => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => json!({"type": "text", "text": text}),
                Part::Image(_) => json!({"type": "image"}),
            })
            .collect(),
    };
    json!({"role": message.role, "content": content})
}

/// What an answer says of the completion with its id.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Its reward; `None` where none applies.
    Reward(Option<f64>),
    /// Why there is none.
    Error(String),
}

#[derive(Deserialize)]
struct Answer {
    id: u64,
    #[serde(default, deserialize_with = "given")]
    reward: Option<Option<f64>>,
    #[serde(default)]
    error: Option<String>,
}

/// Tells `null` from what is not there.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Some)
}

/// Reads an answer: whose it is and what it says. The error says what is wrong with the line and shows its start.
pub(super) fn answer(line: &[u8]) -> Result<(u64, Said), String> {
    let wrong = |what: &str| {
        let text = String::from_utf8_lossy(&line[..line.len().min(4 * SHOWN_CHARS)]);
        let shown: String = text.chars().take(SHOWN_CHARS).collect();
        let more = if shown.len() < line.len() { ".." } else { "" };
        format!("{what}: {shown}{more}")
    };
    if line.len() > MAX_ANSWER_BYTES {
        return Err(wrong(&format!("a line of more than {MAX_ANSWER_BYTES} bytes")));
    }
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong("a line that is no answer"));
    }
    let answer: Answer = serde_json::from_slice(line).map_err(|error| {
        let reason = error.to_string();
        let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
        wrong(&format!("a line that is no answer ({reason})"))
    })?;
    match answer {
        Answer { id, error: Some(text), reward: None } => Ok((id, Said::Error(text))),
        Answer { id, error: None, reward: Some(reward) } => match reward {
            Some(reward) if reward.is_nan() || reward.abs() > MAX_REWARD => {
                Err(wrong(&format!("a reward that is not between -{MAX_REWARD:e} and {MAX_REWARD:e}")))
            }
            reward => Ok((id, Said::Reward(reward))),
        },
        _ => Err(wrong("an answer that has not one of `reward` and `error`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_with_all_that_is_known() {
        let mut columns = Map::new();
        columns.insert("level".into(), json!({"a": [1, null]}));
        let sample = Sample {
            messages: vec![
                Message { role: "system".into(), content: vec![Part::Text("s\n".into())] },
                Message { role: "user".into(), content: vec![Part::Image(0), Part::Text("q".into())] },
            ],
            images: vec![ImageSource::File("/a/b.png".into()), ImageSource::Bytes(vec![1].into())],
            solution: Some("3".into()),
            columns,
            ..Sample::default()
        };
        let completed = Completed { sample: &sample, text: "c\u{2028}\n", tokens: &[7, 8] };
        let line = request(5, &completed, true);
        assert!(!line.contains('\n'));
        let wanted = json!({
            "id": 5,
            "prompt": [{"role": "system", "content": "s\n"},
                       {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}],
            "completion": "c\u{2028}\n",
            "completion_ids": [7, 8],
            "images": ["/a/b.png", null],
            "columns": {"solution": "3", "level": {"a": [1, null]}},
            "last": true,
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), wanted);
    }

    #[test]
    fn case_46_answers_are_a_number_null_or_a_reason() {
        let read = |line: &str| answer(line.as_bytes());
        assert_eq!(read(r#"{"id": 3, "reward": 0.5}"#), Ok((3, Said::Reward(Some(0.5)))));
        assert_eq!(read(r#"{"reward": -1, "id": 0}"#), Ok((0, Said::Reward(Some(-1.0)))));
        assert_eq!(read("{\"id\": 3, \"reward\": null}\r"), Ok((3, Said::Reward(None))));
        assert_eq!(read(r#"{"id": 3, "error": "x"}"#), Ok((3, Said::Error("x".into()))));
        for (line, what) in [
            ("hello", "no answer: hello"),
            ("", "no answer"),
            (r#"{"id": 3}"#, "not one of"),
            (r#"{"id": 3, "reward": 1, "error": "x"}"#, "not one of"),
            (r#"{"id": 3, "reward": NaN}"#, "no answer (expected value): {\"id\": 3, \"reward\": NaN}"),
            (r#"{"id": 3, "reward": 1e999}"#, "number out of range"),
            (r#"{"id": 3, "reward": 1e10}"#, "between -1e9 and 1e9"),
            (r#"{"id": 3, "reward": "1"}"#, "invalid type: string"),
            (r#"{"id": -3, "reward": 1}"#, "invalid value"),
            (r#"{"id": 3, "score": 1}"#, "not one of"),
            (r#"{"id": 3, "reward": 1, "reward": 2}"#, "duplicate field"),
            ("[1, 2]", "no answer: [1, 2]"),
            (r#"{"id": 3, "rew"#, "no answer (EOF"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(what), "{line}: {message}");
        }
        let nested = answer(&[b'['; 100_000]).unwrap_err();
        assert!(nested.len() < 400 && nested.ends_with(".."), "{nested}");
        assert!(answer(&vec![b'x'; MAX_ANSWER_BYTES + 1]).unwrap_err().contains("more than 1048576 bytes"));
        assert!(answer(b"\xff\xfe").is_err());
    }
}
