//! One JSON object of a dataset to one [`Sample`].

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::image_path::ImageRoots;
use super::{ImageSource, Message, NO_TARGET, Part, PromptTemplate, Sample, nearest};

/// Columns with a meaning; all others are kept in `Sample::columns`.
const KNOWN: [&str; 8] =
    ["image", "images", "file_name", "problem", "solution", "messages", "prompt", "completion"];

/// Names that other trainers' files use for ours.
const SYNONYMS: [(&str, &str); 7] = [
    ("question", "problem"),
    ("query", "problem"),
    ("conversations", "messages"),
    ("answer", "solution"),
    ("ground_truth", "solution"),
    ("image_path", "image"),
    ("image_file", "image"),
];

/// Most images of one row: each is decoded and held with all others of its row.
const MAX_IMAGES: usize = 512;

/// Why a row is refused; the caller adds file and line.
type RowResult<T> = std::result::Result<T, String>;

/// Reads the rows of one dataset.
pub(super) struct RowReader {
    pub(super) roots: ImageRoots,
    pub(super) template: PromptTemplate,
    pub(super) need_solution: bool,
    pub(super) need_target: bool,
}

/// A piece of a message before its image is known.
enum RawPart {
    Text(String),
    /// The next image of the `image`/`images` column.
    Mark,
    /// An image named in the message itself.
    Inline(String),
}

struct RawMessage {
    role: String,
    content: Vec<RawPart>,
}

impl RowReader {
    /// The sample for row number `row` (from 0).
    pub(super) fn sample(&self, row: usize, mut object: Map<String, Value>) -> RowResult<Sample> {
        let solution = self.take_solution(&mut object)?;
        let (messages, names) = self.take_conversation(&mut object)?;
        if self.need_target && solution.is_none() && messages.last().is_none_or(|m| m.role != "assistant") {
            return Err(NO_TARGET.into());
        }
        if names.len() > MAX_IMAGES {
            return Err(format!("the row has {} images; at most {MAX_IMAGES} are taken", names.len()));
        }
        let images = names
            .iter()
            .map(|name| self.roots.resolve(name).map(ImageSource::File))
            .collect::<RowResult<Vec<_>>>()?;
        Ok(Sample { row, origin: None, messages, images, solution, columns: object })
    }

    fn take_solution(&self, object: &mut Map<String, Value>) -> RowResult<Option<String>> {
        if self.need_solution && !object.contains_key("solution") {
            return Err(missing(&["solution"], object));
        }
        match object.remove("solution") {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            None => Ok(None),
            Some(Value::Null) if !self.need_solution => Ok(None),
            Some(other) => Err(format!("`solution` has to be a string or a number, not {}", kind(&other))),
        }
    }

    /// The messages, and the names of the images in the order of `Part::Image`'s index.
    fn take_conversation(&self, object: &mut Map<String, Value>) -> RowResult<(Vec<Message>, Vec<String>)> {
        // Asked before anything is removed, so that the error lists every column.
        let source = ["messages", "prompt", "problem"].into_iter().find(|c| object.contains_key(*c));
        let Some(source) = source else {
            return Err(missing(&["problem", "messages", "prompt"], object));
        };
        let names = take_image_names(object)?;
        let value = object.remove(source).unwrap_or(Value::Null);
        let mut messages = match (source, value) {
            ("problem", Value::String(text)) => vec![user(&self.template.apply(&text))],
            ("prompt", Value::String(text)) => vec![user(&text)],
            ("messages" | "prompt", Value::Array(turns)) => read_messages(source, turns)?,
            ("problem", other) => return Err(format!("`problem` has to be a string, not {}", kind(&other))),
            (_, other) => {
                return Err(format!("`{source}` has to be a list of messages, not {}", kind(&other)));
            }
        };
        if source == "prompt" {
            match object.remove("completion") {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => {
                    messages
                        .push(RawMessage { role: "assistant".into(), content: vec![RawPart::Text(text)] });
                }
                Some(Value::Array(turns)) => messages.extend(read_messages("completion", turns)?),
                Some(other) => {
                    return Err(format!(
                        "`completion` has to be a string or a list of messages, not {}",
                        kind(&other)
                    ));
                }
            }
        }
        place_images(source, messages, names)
    }
}

/// Numbers the images of a conversation in reading order.
///
/// A `problem` or `prompt` without any mark gets the row's images at the start of its first
/// user message (R1-V's order, and TRL's); `messages` has to say where they go.
fn place_images(
    source: &str,
    mut messages: Vec<RawMessage>,
    names: Vec<String>,
) -> RowResult<(Vec<Message>, Vec<String>)> {
    let parts = || messages.iter().flat_map(|m| &m.content);
    let marks = parts().filter(|p| matches!(p, RawPart::Mark)).count();
    let inline = parts().filter(|p| matches!(p, RawPart::Inline(_))).count();
    if inline > 0 && (marks > 0 || !names.is_empty()) {
        return Err(format!(
            "`{source}` names {inline} image(s) itself, and there are {marks} mark(s) for and {} entries in the \
             image column; use one way or the other",
            names.len()
        ));
    }
    if marks == 0 && !names.is_empty() && source != "messages" {
        let Some(first) = messages.iter_mut().find(|m| m.role == "user") else {
            return Err(format!("`{source}` has no user message to hold the row's {} image(s)", names.len()));
        };
        first.content.splice(0..0, names.iter().map(|_| RawPart::Mark));
    } else if marks != names.len() {
        return Err(format!(
            "`{source}` has {marks} `<image>` mark(s), but the row has {} image(s); they have to be equal",
            names.len()
        ));
    }

    let mut found = names;
    let mut next = 0;
    let mut numbered = Vec::with_capacity(messages.len());
    for message in messages {
        let mut content = Vec::with_capacity(message.content.len());
        for part in message.content {
            content.push(match part {
                RawPart::Text(text) => Part::Text(text),
                RawPart::Mark => Part::Image(next),
                RawPart::Inline(name) => {
                    found.push(name);
                    Part::Image(next)
                }
            });
            next += usize::from(matches!(content.last(), Some(Part::Image(_))));
        }
        numbered.push(Message { role: message.role, content });
    }
    Ok((numbered, found))
}

/// A user message with its `<image>` marks cut out of `text`.
fn user(text: &str) -> RawMessage {
    RawMessage { role: "user".into(), content: split_marks(text) }
}

fn split_marks(text: &str) -> Vec<RawPart> {
    let mut content = Vec::new();
    for (i, piece) in text.split("<image>").enumerate() {
        if i > 0 {
            content.push(RawPart::Mark);
        }
        if !piece.is_empty() {
            content.push(RawPart::Text(piece.to_string()));
        }
    }
    content
}

/// `[{"role": .., "content": ..}, ..]` in the forms that Hugging Face chat templates take.
fn read_messages(column: &str, turns: Vec<Value>) -> RowResult<Vec<RawMessage>> {
    if turns.is_empty() {
        return Err(format!("`{column}` is empty; it needs at least one message"));
    }
    let read = |(i, turn): (usize, Value)| {
        read_message(turn).map_err(|reason| format!("`{column}`, message {}: {reason}", i + 1))
    };
    turns.into_iter().enumerate().map(read).collect()
}

fn read_message(turn: Value) -> RowResult<RawMessage> {
    let Value::Object(mut turn) = turn else {
        return Err(format!("an object with `role` and `content` was expected, not {}", kind(&turn)));
    };
    let role = match turn.remove("role") {
        Some(Value::String(role)) if ["system", "user", "assistant"].contains(&role.as_str()) => role,
        Some(Value::String(role)) => {
            return Err(format!("unknown role `{role}` (known: system, user, assistant)"));
        }
        _ => return Err("`role` is missing or not a string".into()),
    };
    let content = match turn.remove("content") {
        // The assistant's words are a target; an `<image>` in them is text.
        Some(Value::String(text)) if role == "assistant" => vec![RawPart::Text(text)],
        Some(Value::String(text)) => split_marks(&text),
        Some(Value::Array(parts)) => parts.into_iter().map(read_part).collect::<RowResult<_>>()?,
        Some(other) => return Err(format!("`content` has to be a string or a list, not {}", kind(&other))),
        None => return Err("`content` is missing".into()),
    };
    Ok(RawMessage { role, content })
}

/// `{"type": "text", "text": ..}` or `{"type": "image"}`, the latter with a path or without.
fn read_part(part: Value) -> RowResult<RawPart> {
    let Value::Object(mut part) = part else {
        return Err(format!("a content part has to be an object, not {}", kind(&part)));
    };
    let wanted = part.get("type").and_then(Value::as_str).unwrap_or("").to_string();
    match wanted.as_str() {
        "text" => match part.remove("text") {
            Some(Value::String(text)) => Ok(RawPart::Text(text)),
            _ => Err("a text part needs a string `text`".into()),
        },
        "image" => {
            let name = ["image", "path", "url"].iter().find_map(|key| part.remove(*key));
            match name {
                None | Some(Value::Null) => Ok(RawPart::Mark),
                Some(value) => image_name(value).map(RawPart::Inline),
            }
        }
        other => Err(format!("content part of type `{other}` is not supported (known: text, image)")),
    }
}

/// Takes the image column out of the row.
fn take_image_names(object: &mut Map<String, Value>) -> RowResult<Vec<String>> {
    let mut given = Vec::new();
    for column in ["image", "images", "file_name"] {
        if let Some(value) = object.remove(column)
            && !value.is_null()
        {
            given.push((column, value));
        }
    }
    if let [(a, _), (b, _), ..] = given.as_slice() {
        return Err(format!("the row has both `{a}` and `{b}`; keep one"));
    }
    let Some((column, value)) = given.pop() else { return Ok(Vec::new()) };
    let names = match value {
        Value::Array(list) => list.into_iter().map(image_name).collect(),
        one => image_name(one).map(|name| vec![name]),
    };
    names.map_err(|reason| format!("`{column}`: {reason}"))
}

/// A path, or Hugging Face's `{"path": .., "bytes": null}`.
fn image_name(value: Value) -> RowResult<String> {
    match value {
        Value::String(name) => Ok(name),
        Value::Object(mut image) => match image.remove("path") {
            Some(Value::String(name)) => Ok(name),
            _ => Err("an image object needs a string `path`; save image bytes as a file".into()),
        },
        other => Err(format!("an image has to be a path, not {}", kind(&other))),
    }
}

/// The message for columns of which one has to be there and none is.
fn missing(wanted: &[&str], object: &Map<String, Value>) -> String {
    let quoted: Vec<_> = wanted.iter().map(|w| format!("`{w}`")).collect();
    let found: Vec<_> = object.keys().map(String::as_str).collect();
    let mut message = format!("no column {}; columns found: {}", quoted.join(" or "), found.join(", "));
    let alike =
        |column: &&&str| !KNOWN.contains(*column) && nearest(column, wanted.iter().copied()).is_some();
    let synonym = SYNONYMS.iter().find(|(theirs, ours)| wanted.contains(ours) && found.contains(theirs));
    if let Some((theirs, ours)) = synonym {
        message.push_str(&format!("; rename `{theirs}` to `{ours}`"));
    } else if let Some(column) = found.iter().find(alike) {
        let ours = nearest(column, wanted.iter().copied()).unwrap_or(wanted[0]);
        message.push_str(&format!("; did you mean `{ours}` by `{column}`?"));
    }
    message
}

/// What a JSON value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Sample {
    /// A one-question sample: the images, then the question in its template's words.
    ///
    /// This is what a row with `image`, `problem` and `solution` becomes.
    pub fn from_problem(
        row: usize,
        images: Vec<ImageSource>,
        problem: &str,
        template: PromptTemplate,
        solution: Option<String>,
    ) -> Sample {
        let mut content: Vec<Part> = (0..images.len()).map(Part::Image).collect();
        content.push(Part::Text(template.apply(problem)));
        let messages = vec![Message { role: "user".into(), content }];
        Sample { row, messages, images, solution, ..Sample::default() }
    }

    /// The image files that the sample names.
    pub fn image_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.images.iter().filter_map(|image| match image {
            ImageSource::File(path) => Some(path),
            ImageSource::Bytes(_) => None,
        })
    }
}

#[cfg(test)]
mod tests;
