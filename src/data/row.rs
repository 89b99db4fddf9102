//! One row of a table to one [`Sample`].

mod images;
mod messages;

use serde_json::Value;

use super::cells::{Cell, Cells};
use super::image_path::ImageRoots;
use super::{ImageSource, Message, NO_TARGET, Part, PromptTemplate, Sample, nearest};
use images::{Picture, take_pictures};
use messages::{RawMessage, RawPart, read_messages, user};

/// The columns that can be a row's conversation, the first of several first.
const SOURCES: [&str; 4] = ["messages", "prompt", "problem", "conversations"];

/// The columns that hold the reference answer: of several, the first counts. All but the first, and that if it is numbers, stay columns.
const ANSWERS: [&str; 3] = ["solution", "answer", "ground_truth"];

/// Columns with a meaning of their own.
const KNOWN: [&str; 12] = [
    "image",
    "images",
    "file_name",
    "problem",
    "solution",
    "answer",
    "ground_truth",
    "reward_model",
    "messages",
    "conversations",
    "prompt",
    "completion",
];

/// Names that other trainers' files use for ours.
const SYNONYMS: [(&str, &str); 6] = [
    ("question", "problem"),
    ("query", "problem"),
    ("label", "solution"),
    ("target", "solution"),
    ("image_path", "image"),
    ("image_file", "image"),
];

/// Most images of one row: each is decoded and held with all others of its row.
const MAX_IMAGES: usize = 512;

/// Why a row is refused; the caller adds the place.
type RowResult<T> = Result<T, String>;

/// Reads the rows of one dataset.
pub(super) struct RowReader {
    pub(super) roots: ImageRoots,
    pub(super) template: PromptTemplate,
    pub(super) need_solution: bool,
    pub(super) need_target: bool,
}

/// What is made of a row's conversation.
struct Conversation {
    messages: Vec<Message>,
    /// In the order of `Part::Image`'s index.
    pictures: Vec<Picture>,
    /// The reply to a single question, which is the answer if no column is.
    reply: Option<String>,
}

/// The column that a row's conversation is taken from. In a table all rows have all columns, so that null is as good as
/// absent.
pub fn conversation_column(cells: &Cells) -> Option<&'static str> {
    let filled = |column: &&&str| cells.get(column).is_some_and(|cell| !cell.is_null());
    SOURCES.iter().find(filled).or(SOURCES.iter().find(|column| cells.contains(column))).copied()
}

impl RowReader {
    /// The sample for row number `row` (from 0).
    pub(super) fn sample(&self, row: usize, mut cells: Cells) -> RowResult<Sample> {
        let null = cells.get(ANSWERS[0]).is_some_and(Cell::is_null);
        let solution = take_solution(&mut cells)?;
        if self.need_solution && solution.is_none() && !cells.contains("conversations") {
            return Err(if null { "`solution` is null".into() } else { missing(&ANSWERS, &cells) });
        }
        let Conversation { messages, pictures, reply } = self.take_conversation(&mut cells)?;
        let solution = solution.or(reply);
        if self.need_solution && solution.is_none() {
            return Err(missing(&ANSWERS, &cells));
        }
        if !messages.iter().any(|message| message.role == "user") {
            return Err("no message is the user's: there is nothing to answer".into());
        }
        if self.need_target && solution.is_none() && messages.last().is_none_or(|m| m.role != "assistant") {
            return Err(NO_TARGET.into());
        }
        if pictures.len() > MAX_IMAGES {
            return Err(format!("the row has {} images; at most {MAX_IMAGES} are taken", pictures.len()));
        }
        let images = pictures
            .into_iter()
            .map(|picture| match picture {
                Picture::Path(name) => self.roots.resolve(&name).map(ImageSource::File),
                Picture::Bytes(bytes) => Ok(ImageSource::Bytes(bytes)),
            })
            .collect::<RowResult<Vec<_>>>()?;
        Ok(Sample { row, origin: None, messages, images, solution, columns: cells.into_json() })
    }

    fn take_conversation(&self, cells: &mut Cells) -> RowResult<Conversation> {
        // Asked before anything is removed, so that the error lists every column.
        let Some(source) = conversation_column(cells) else {
            return Err(missing(&SOURCES, cells));
        };
        let pictures = take_pictures(cells)?;
        // A question stays a column, for the rewards that name it.
        let value = if source == "problem" { cells.get(source).cloned() } else { cells.take(source) };
        let value = value.unwrap_or(Cell::Json(Value::Null));
        let mut reply = None;
        let mut messages = match (source, value) {
            ("problem", Cell::Json(Value::String(text))) => vec![user(&self.template.apply(&text))],
            ("prompt", Cell::Json(Value::String(text))) => vec![user(&text)],
            ("problem", other) => return Err(format!("`problem` has to be a string, not {}", other.kind())),
            (_, value) => match value.into_items() {
                Ok(turns) => read_messages(source, turns)?,
                Err(other) => {
                    return Err(format!("`{source}` has to be a list of messages, not {}", other.kind()));
                }
            },
        };
        if source == "conversations"
            && let Some((question, answer)) = self.single_question(&mut messages)
        {
            reply = Some(answer);
            // VLM-R1's rewards name the question so. A column of the rows' own counts.
            let _ = cells.push("problem".into(), Value::from(question).into());
        }
        if source == "prompt" {
            match cells.take("completion") {
                None | Some(Cell::Json(Value::Null)) => {}
                Some(Cell::Json(Value::String(text))) => {
                    messages
                        .push(RawMessage { role: "assistant".into(), content: vec![RawPart::Text(text)] });
                }
                Some(other) => match other.into_items() {
                    Ok(turns) => messages.extend(read_messages("completion", turns)?),
                    Err(other) => {
                        return Err(format!(
                            "`completion` has to be a string or a list of messages, not {}",
                            other.kind()
                        ));
                    }
                },
            }
        }
        let (messages, pictures) = place_images(source, messages, pictures)?;
        Ok(Conversation { messages, pictures, reply })
    }

    /// Treats a conversation of one question and its reply as VLM-R1 does: the question gets the template's words, and
    /// the reply, which is taken out, is the answer. Gives both. Any other conversation stays as it is.
    fn single_question(&self, messages: &mut Vec<RawMessage>) -> Option<(String, String)> {
        let questions = messages.iter().filter(|message| message.role == "user").count();
        let [.., question, reply] = messages.as_mut_slice() else { return None };
        let ([.., RawPart::Text(words)], [RawPart::Text(text)]) =
            (question.content.as_mut_slice(), reply.content.as_slice())
        else {
            return None;
        };
        if questions != 1 || question.role != "user" || reply.role != "assistant" {
            return None;
        }
        let (question, answer) = (words.clone(), text.clone());
        *words = self.template.apply(words);
        messages.pop();
        Some((question, answer))
    }
}

/// The reference answer; null is none.
fn take_solution(cells: &mut Cells) -> RowResult<Option<String>> {
    let read = |name: &str, cell: &Cell| match cell {
        Cell::Json(Value::String(text)) => Ok(Some(text.clone())),
        Cell::Json(Value::Null) => Ok(None),
        other => match other.spelled() {
            Some(text) => Ok(Some(text)),
            None => Err(format!("`{name}` has to be a string or numbers, not {}", other.kind())),
        },
    };
    if let Some(cell) = cells.get(ANSWERS[0]) {
        let text = read(ANSWERS[0], cell)?;
        // Numbers stay what they are for the rewards.
        if cell.spelled().is_none() {
            cells.take(ANSWERS[0]);
        }
        if text.is_some() {
            return Ok(text);
        }
    }
    // Another trainer's column may mean something else: then it is only a column.
    let other = ANSWERS[1..].iter().find_map(|name| {
        let cell = cells.get(name).filter(|cell| !matches!(cell, Cell::Json(Value::Array(_))))?;
        read(name, cell).ok().flatten()
    });
    let verl = || match cells.get("reward_model") {
        Some(Cell::Json(object)) => {
            read("reward_model", &Cell::Json(object.get("ground_truth")?.clone())).ok().flatten()
        }
        _ => None,
    };
    Ok(other.or_else(verl))
}

/// Numbers the images of a conversation in reading order.
///
/// Without any mark, the row's images go to the start of the first user message (R1-V's order, and TRL's); `messages` has
/// to say where they go.
fn place_images(
    source: &str,
    mut messages: Vec<RawMessage>,
    pictures: Vec<Picture>,
) -> RowResult<(Vec<Message>, Vec<Picture>)> {
    let parts = || messages.iter().flat_map(|m| &m.content);
    let marks = parts().filter(|p| matches!(p, RawPart::Mark)).count();
    let inline = parts().filter(|p| matches!(p, RawPart::Inline(_))).count();
    if inline > 0 && (marks > 0 || !pictures.is_empty()) {
        return Err(format!(
            "`{source}` names {inline} image(s) itself, and there are {marks} mark(s) for and {} entries in the \
             image column; use one way or the other",
            pictures.len()
        ));
    }
    if marks == 0 && !pictures.is_empty() && source != "messages" {
        let Some(first) = messages.iter_mut().find(|m| m.role == "user") else {
            return Err(format!(
                "`{source}` has no user message to hold the row's {} image(s)",
                pictures.len()
            ));
        };
        first.content.splice(0..0, pictures.iter().map(|_| RawPart::Mark));
    } else if marks != pictures.len() {
        return Err(format!(
            "`{source}` has {marks} `<image>` mark(s), but the row has {} image(s); they have to be equal",
            pictures.len()
        ));
    }

    let mut found = pictures;
    let mut next = 0;
    let mut numbered = Vec::with_capacity(messages.len());
    for message in messages {
        let mut content = Vec::with_capacity(message.content.len());
        for part in message.content {
            content.push(match part {
                RawPart::Text(text) => Part::Text(text),
                RawPart::Mark => Part::Image(next),
                RawPart::Inline(picture) => {
                    found.push(picture);
                    Part::Image(next)
                }
            });
            next += usize::from(matches!(content.last(), Some(Part::Image(_))));
        }
        numbered.push(Message { role: message.role, content });
    }
    Ok((numbered, found))
}

/// The message for columns of which one has to be there and none is.
fn missing(wanted: &[&str], cells: &Cells) -> String {
    let quoted: Vec<_> = wanted.iter().map(|w| format!("`{w}`")).collect();
    let found: Vec<_> = cells.iter().map(|(name, _)| name).collect();
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
        let columns = [("problem".to_owned(), Value::from(problem))].into_iter().collect();
        Sample { row, origin: None, messages, images, solution, columns }
    }

    /// The image files that the sample names.
    pub fn image_files(&self) -> impl Iterator<Item = &std::path::PathBuf> {
        self.images.iter().filter_map(|image| match image {
            ImageSource::File(path) => Some(path),
            ImageSource::Bytes(_) => None,
        })
    }
}

#[cfg(test)]
mod tests;
