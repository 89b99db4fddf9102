//! Conversations in the forms that trainers' files have.

use serde_json::Value;

use super::RowResult;
use super::images::{Picture, from_base64, picture};
use crate::data::cells::{Cell, Cells};

/// A piece of a message before its image is known.
pub(super) enum RawPart {
    Text(String),
    /// The next image of the `image`/`images` column.
    Mark,
    /// An image in the message itself.
    Inline(Picture),
}

pub(super) struct RawMessage {
    pub(super) role: String,
    pub(super) content: Vec<RawPart>,
}

/// A user message with its `<image>` marks cut out of `text`.
pub(super) fn user(text: &str) -> RawMessage {
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

/// `[{"role": .., "content": ..}, ..]` in the forms that Hugging Face chat templates take, OpenAI's parts included, or
/// `[{"from": .., "value": ..}, ..]`.
pub(super) fn read_messages(column: &str, turns: Vec<Cell>) -> RowResult<Vec<RawMessage>> {
    if turns.is_empty() {
        return Err(format!("`{column}` is empty; it needs at least one message"));
    }
    let read = |(i, turn): (usize, Cell)| {
        read_message(turn).map_err(|reason| format!("`{column}`, message {}: {reason}", i + 1))
    };
    turns.into_iter().enumerate().map(read).collect()
}

fn read_message(turn: Cell) -> RowResult<RawMessage> {
    let mut turn = turn
        .into_entries()
        .map_err(|other| format!("an object with `role` and `content` was expected, not {}", other.kind()))?;
    // In a table every entry is there, if only as null.
    let mut take = |ours: &str, theirs: &str| match turn.take(ours) {
        None | Some(Cell::Json(Value::Null)) if turn.contains(theirs) => turn.take(theirs),
        other => other,
    };
    let role = match take("role", "from") {
        Some(Cell::Json(Value::String(role))) => match role.as_str() {
            "system" | "user" | "assistant" => role,
            "human" => "user".into(),
            "gpt" => "assistant".into(),
            _ => return Err(format!("unknown role `{role}` (known: system, user, assistant; human, gpt)")),
        },
        _ => return Err("`role` is missing or not a string".into()),
    };
    let content = match take("content", "value") {
        // The assistant's words are a target; an `<image>` in them is text.
        Some(Cell::Json(Value::String(text))) if role == "assistant" => vec![RawPart::Text(text)],
        Some(Cell::Json(Value::String(text))) => split_marks(&text),
        Some(other) if role == "assistant" && other.spelled().is_some() => {
            vec![RawPart::Text(other.spelled().unwrap_or_default())]
        }
        Some(other) => match other.into_items() {
            Ok(parts) => parts.into_iter().map(read_part).collect::<RowResult<_>>()?,
            Err(other) => {
                return Err(format!("`content` has to be a string or a list, not {}", other.kind()));
            }
        },
        None => return Err("`content` is missing".into()),
    };
    Ok(RawMessage { role, content })
}

/// `{"type": "text", "text": ..}`, `{"type": "image"}` with an image or without, or OpenAI's `{"type": "image_url"}`.
fn read_part(part: Cell) -> RowResult<RawPart> {
    let mut part = part
        .into_entries()
        .map_err(|other| format!("a content part has to be an object, not {}", other.kind()))?;
    let wanted = match part.get("type") {
        Some(Cell::Json(Value::String(name))) => name.clone(),
        _ => String::new(),
    };
    match wanted.as_str() {
        "text" => match part.take("text") {
            Some(Cell::Json(Value::String(text))) => Ok(RawPart::Text(text)),
            _ => Err("a text part needs a string `text`".into()),
        },
        "image" => {
            if let Some(cell) = filled(&mut part, "base64") {
                return from_base64(cell).map(RawPart::Inline);
            }
            match ["image", "path", "url"].iter().find_map(|key| filled(&mut part, key)) {
                None => Ok(RawPart::Mark),
                Some(cell) => picture(cell).map(RawPart::Inline),
            }
        }
        "image_url" => {
            let cell = filled(&mut part, "image_url").ok_or("an image_url part needs an `image_url`")?;
            let url = match cell.into_entries() {
                Ok(mut entries) => filled(&mut entries, "url").ok_or("an `image_url` needs a `url`")?,
                Err(text) => text,
            };
            picture(url).map(RawPart::Inline)
        }
        other => {
            let known = "known: text, image, image_url";
            Err(format!("content part of type `{other}` is not supported ({known})"))
        }
    }
}

/// Takes an entry out that is there and not null.
fn filled(entries: &mut Cells, name: &str) -> Option<Cell> {
    entries.take(name).filter(|cell| !cell.is_null())
}
