//! The lines that are exchanged with a reward process: one JSON object each.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::worker::MAX_ANSWER_BYTES;
use crate::data::{ImageSource, Message, Part, Sample, to_data_uri};
use crate::reward::{Completed, Progress};

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
    images: Vec<String>,
    columns: Columns<'a>,
    step: u64,
    max_steps: u64,
    epoch: f64,
    last: bool,
}

#[derive(Serialize)]
struct Columns<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    solution: Option<&'a str>,
    #[serde(flatten)]
    others: &'a Map<String, Value>,
}

/// The line that asks for the reward of a completion. `last` tells that no other is
/// asked for before this is answered.
pub(super) fn request(id: u64, completed: &Completed<'_>, progress: Progress, last: bool) -> String {
    let Sample { messages, images, solution, columns, .. } = completed.sample;
    let Progress { step, max_steps, epoch } = progress;
    let request = Request {
        id,
        prompt: messages.iter().map(message).collect(),
        completion: completed.text,
        completion_ids: completed.tokens,
        images: images
            .iter()
            .map(|image| match image {
                ImageSource::File(path) => path.display().to_string(),
                ImageSource::Bytes(bytes) => to_data_uri(bytes),
            })
            .collect(),
        // A column that is no text stays what the rows have.
        columns: Columns {
            solution: solution.as_deref().filter(|_| !columns.contains_key("solution")),
            others: columns,
        },
        step,
        max_steps,
        epoch,
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

/// A line of the process.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// Of the completion with this id.
    Answer(u64, Said),
    /// So many completions are worked on at once, from now on.
    Takes(usize),
    /// The process gets ready, or is.
    Ready(bool),
}

/// What an answer says of its completion.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Its reward; `None` where none applies.
    Reward(Option<f64>),
    /// Why there is none.
    Error(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    takes: Option<usize>,
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    reward: Option<Option<f64>>,
    #[serde(default)]
    error: Option<String>,
}

/// Tells `null` from what is not there.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Some)
}

/// Reads a line of the process. The error says what is wrong with it and shows its start.
pub(super) fn line(line: &[u8]) -> Result<Line, String> {
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
    let id = match answer {
        Answer { id: None, takes: Some(count), ready: None, reward: None, error: None } => {
            return Ok(Line::Takes(count));
        }
        Answer { id: None, takes: None, ready: Some(ready), reward: None, error: None } => {
            return Ok(Line::Ready(ready));
        }
        Answer { id: Some(id), takes: None, ready: None, .. } => id,
        _ => return Err(wrong("an answer that has not one `id`")),
    };
    match answer {
        Answer { error: Some(text), reward: None, .. } => Ok(Line::Answer(id, Said::Error(text))),
        Answer { error: None, reward: Some(reward), .. } => match reward {
            Some(reward) if reward.is_nan() || reward.abs() > MAX_REWARD => {
                Err(wrong(&format!("a reward that is not between -{MAX_REWARD:e} and {MAX_REWARD:e}")))
            }
            reward => Ok(Line::Answer(id, Said::Reward(reward))),
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
        let line = request(5, &completed, Progress { step: 2, max_steps: 9, epoch: 0.5 }, true);
        assert!(!line.contains('\n'));
        let wanted = json!({
            "id": 5,
            "prompt": [{"role": "system", "content": "s\n"},
                       {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}],
            "completion": "c\u{2028}\n",
            "completion_ids": [7, 8],
            "images": ["/a/b.png", "data:image/png;base64,AQ=="],
            "columns": {"solution": "3", "level": {"a": [1, null]}},
            "step": 2,
            "max_steps": 9,
            "epoch": 0.5,
            "last": true,
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), wanted);
        let number = Sample { columns: Map::from_iter([("solution".into(), json!(3))]), ..sample.clone() };
        let line = request(5, &Completed { sample: &number, ..completed }, Progress::default(), false);
        assert!(line.contains(r#""columns":{"solution":3}"#), "{line}");
    }

    #[test]
    fn case_46_answers_are_a_number_null_or_a_reason() {
        let read = |text: &str| line(text.as_bytes());
        assert_eq!(read(r#"{"id": 3, "reward": 0.5}"#), Ok(Line::Answer(3, Said::Reward(Some(0.5)))));
        assert_eq!(read(r#"{"reward": -1, "id": 0}"#), Ok(Line::Answer(0, Said::Reward(Some(-1.0)))));
        assert_eq!(read("{\"id\": 3, \"reward\": null}\r"), Ok(Line::Answer(3, Said::Reward(None))));
        assert_eq!(read(r#"{"id": 3, "error": "x"}"#), Ok(Line::Answer(3, Said::Error("x".into()))));
        assert_eq!(read(r#"{"takes": 4}"#), Ok(Line::Takes(4)));
        assert_eq!(read(r#"{"ready": false}"#), Ok(Line::Ready(false)));
        for (line, what) in [
            ("hello", "no answer: hello"),
            ("", "no answer"),
            (r#"{"id": 3}"#, "not one of"),
            (r#"{"reward": 1}"#, "not one `id`"),
            (r#"{"id": 3, "takes": 1}"#, "not one `id`"),
            (r#"{"takes": 1, "reward": 1}"#, "not one `id`"),
            (r#"{"takes": -1}"#, "invalid value"),
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
        let nested = line(&[b'['; 100_000]).unwrap_err();
        assert!(nested.len() < 400 && nested.ends_with(".."), "{nested}");
        assert!(line(&vec![b'x'; MAX_ANSWER_BYTES + 1]).unwrap_err().contains("more than 1048576 bytes"));
        assert!(line(b"\xff\xfe").is_err());
    }
}
