//! Datasets: rows of messages, images and a reference answer.
//!
//! [`open`] and [`read`] make a [`Dataset`] of files; a row becomes a [`Sample`] when it is asked for. Images stay where
//! they are: a sample carries a checked path, and the bytes are read when [`ImageSource::encoded`] is called. [`order`]
//! is the seeded order of an epoch.

mod arrow_cell;
mod arrow_stream;
mod base64;
mod batches;
mod card;
mod cells;
mod dataset;
mod image_path;
mod jsonl;
mod jsonl_table;
mod nearest;
mod order;
mod parquet;
mod parquet_pages;
mod parquet_values;
mod read;
mod row;
mod splits;
mod table;
mod template;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::read_bounded;

pub(crate) use base64::to_data_uri;
pub use cells::{Cell, Cells, ImageCell};
pub use dataset::{Dataset, Source};
pub use jsonl::{MAX_LINE_BYTES, Objects, objects};
pub use nearest::nearest;
pub use order::order;
pub use read::{Named, ReadOptions, open, read, read_usable};
pub use row::conversation_column;
pub use splits::{held_out_split, splits};
pub use table::{Origin, Place, Table, TableOptions, open_table};
pub use template::PromptTemplate;

/// One row of a dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Row number in its dataset, from 0: the name of this row in logs, and in errors where it comes from no file.
    pub row: usize,
    /// Where the row stands, for errors; none for one that was made in memory.
    pub origin: Option<Origin>,
    /// The conversation that is the prompt. For SFT the last message is the assistant's.
    pub messages: Vec<Message>,
    /// The images that `Part::Image` refers to, in order.
    pub images: Vec<ImageSource>,
    /// The reference answer as the dataset holds it (R1-V: `<answer> 3 </answer>`; EasyR1: a bare `3`).
    pub solution: Option<String>,
    /// Every other column, for rewards; bytes are null in it, and an image is `{"path": ..}`.
    pub columns: serde_json::Map<String, serde_json::Value>,
}

impl Sample {
    /// `error` with the place of this row, which caused it: file and line, or the row's number. An error that has its
    /// place already stays as it is.
    pub fn blame(&self, error: Error) -> Error {
        let Some(Origin { file, place }) = &self.origin else {
            return match error {
                Error::Input(message) => Error::Input(format!("row {}: {message}", self.row)),
                other => other,
            };
        };
        let behind = |path: &Path, message: &dyn std::fmt::Display| match path == &**file {
            true => message.to_string(),
            false => format!("{place}: {}: {message}", path.display()),
        };
        match error {
            Error::Input(message) => Error::content(file, format!("{place}: {message}")),
            Error::Content { path, message } => Error::content(file, behind(&path, &message)),
            Error::Missing { path, message } => Error::missing(file, behind(&path, &message)),
            Error::Io { path, action, source } => {
                let source = std::io::Error::new(source.kind(), behind(&path, &source));
                Error::Io { path: file.to_path_buf(), action, source }
            }
            other => other,
        }
    }

    /// Whether the conversation already ends with the assistant's words.
    pub fn ends_with_assistant(&self) -> bool {
        self.messages.last().is_some_and(|m| m.role == "assistant")
    }

    /// The prompt alone: without a closing assistant message, if there is one.
    pub fn prompt(&self) -> Sample {
        let mut sample = self.clone();
        if self.ends_with_assistant() {
            sample.messages.pop();
        }
        sample
    }

    /// The sample as SFT needs it: its last message is the assistant's.
    ///
    /// A conversation that ends with the assistant is returned as it is. Otherwise the
    /// target is the `thinking` column (if it is a string that is not blank), a newline,
    /// and the solution. R1-V writes `None` for a missing `thinking`; this does not.
    ///
    /// # Errors
    /// `Input`, or `Content` with file and line, when there is neither an assistant message nor a solution.
    pub fn supervised(&self) -> Result<Sample> {
        let mut sample = self.clone();
        if self.ends_with_assistant() {
            return Ok(sample);
        }
        let Some(solution) = self.solution.as_deref() else {
            return Err(self.blame(Error::Input(NO_TARGET.into())));
        };
        let thinking = self.columns.get("thinking").and_then(|t| t.as_str()).map_or("", str::trim);
        let target =
            if thinking.is_empty() { solution.to_string() } else { format!("{thinking}\n{solution}") };
        sample.messages.push(Message { role: "assistant".into(), content: vec![Part::Text(target)] });
        Ok(sample)
    }
}

/// What is wrong with a row without a target.
const NO_TARGET: &str = "supervised training needs a target: end `messages` with an assistant message or give the row \
                         a `solution`";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text and images in reading order.
    pub content: Vec<Part>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Plain text; control tokens inside it stay text.
    Text(String),
    /// Index into `Sample::images`.
    Image(usize),
}

/// Where an image's encoded bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageSource {
    /// A file, already resolved and checked to lie under an allowed folder.
    File(PathBuf),
    /// Encoded bytes (png, jpeg, webp) held in the dataset.
    Bytes(Arc<[u8]>),
}

/// Largest encoded image that is read, in bytes: 256 MiB.
pub const MAX_IMAGE_FILE_BYTES: u64 = 256 << 20;
/// Longest side of an image, in pixels.
pub const MAX_IMAGE_SIDE: u32 = 16_384;
/// Most bytes that the decoded samples of one image may take: 512 MiB, 179 million pixels of 8-bit RGB.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;

impl ImageSource {
    /// What an image column of JSONL has to hold to mean this image: its path, or its bytes in a `data:` URI.
    pub fn as_text(&self) -> String {
        match self {
            ImageSource::File(path) => path.display().to_string(),
            ImageSource::Bytes(bytes) => to_data_uri(bytes),
        }
    }

    /// The encoded bytes; a file is read now.
    ///
    /// # Errors
    /// `Missing` if the file has gone, `Content` if it is not a regular file or larger than
    /// [`MAX_IMAGE_FILE_BYTES`], `Io` if it cannot be read.
    pub fn encoded(&self) -> Result<Cow<'_, [u8]>> {
        match self {
            ImageSource::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            ImageSource::File(path) => read_bounded(path, MAX_IMAGE_FILE_BYTES).map(Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(columns: serde_json::Value) -> Sample {
        Sample {
            row: 4,
            messages: vec![Message { role: "user".into(), content: vec![Part::Text("How many?".into())] }],
            solution: Some("<answer> 3 </answer>".into()),
            columns: columns.as_object().cloned().unwrap_or_default(),
            ..Sample::default()
        }
    }

    fn target(sample: &Sample) -> &Part {
        &sample.messages.last().unwrap().content[0]
    }

    #[test]
    fn supervised_joins_thinking_and_solution() {
        let with = sample(serde_json::json!({"thinking": "<think>a b c</think>"})).supervised().unwrap();
        assert_eq!(target(&with), &Part::Text("<think>a b c</think>\n<answer> 3 </answer>".into()));
        let without = sample(serde_json::json!({"thinking": null})).supervised().unwrap();
        assert_eq!(target(&without), &Part::Text("<answer> 3 </answer>".into()));
        // Already supervised: unchanged, and its prompt is the original conversation.
        assert_eq!(with.supervised().unwrap(), with);
        assert_eq!(with.prompt().messages, sample(serde_json::json!({})).messages);
    }

    #[test]
    fn supervised_without_any_target_names_the_row() {
        let mut s = sample(serde_json::json!({}));
        s.solution = None;
        let message = s.supervised().unwrap_err().to_string();
        assert!(message.contains("row 4") && message.contains("solution"), "{message}");
    }

    #[test]
    fn errors_name_the_line_once_and_keep_their_class() {
        let mut s = sample(serde_json::json!({}));
        let io = |path: &str| Error::io(path, "read", std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(s.blame(Error::Input("x".into())).to_string(), "row 4: x");
        s.origin = Some(Origin { file: Path::new("t.jsonl").into(), place: Place::Line(7) });
        for (error, code, message) in [
            (Error::Input("x".into()), 65, "t.jsonl: line 7: x"),
            (Error::content("a.png", "broken"), 65, "t.jsonl: line 7: a.png: broken"),
            (Error::missing("a.png", "gone"), 66, "t.jsonl: line 7: a.png: gone"),
            (io("a.png"), 74, "t.jsonl: cannot read: line 7: a.png: permission denied"),
            (Error::Usage("x".into()), 2, "x"),
        ] {
            let once = s.blame(error);
            assert_eq!((once.exit_code(), once.to_string().as_str()), (code, message));
            assert_eq!(s.blame(once).to_string(), message);
        }
    }

    #[test]
    fn encoded_reads_files_lazily_and_only_regular_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let source = ImageSource::File(path.clone());
        assert_eq!(source.encoded().unwrap_err().exit_code(), 66);
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(source.encoded().unwrap().as_ref(), b"abc");
        assert_eq!(ImageSource::Bytes(Arc::from(&b"xy"[..])).encoded().unwrap().as_ref(), b"xy");
        let folder = ImageSource::File(dir.path().to_path_buf());
        assert_eq!(folder.encoded().unwrap_err().exit_code(), 65);
    }
}
