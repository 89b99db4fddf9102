//! Datasets: rows of messages, images and a reference answer.
//!
//! [`read`] turns a JSONL file, or a folder that holds one per split, into [`Sample`]s.
//! Images stay where they are: a sample carries a checked path, and the bytes are read
//! when [`ImageSource::encoded`] is called. [`order`] is the seeded order of an epoch.

mod dataset;
mod image_path;
mod jsonl;
mod nearest;
mod order;
mod row;
mod template;

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};

pub use dataset::{ReadOptions, locate, read};
pub use jsonl::{MAX_LINE_BYTES, read_objects};
pub use nearest::nearest;
pub use order::order;
pub use template::PromptTemplate;

/// One row of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Row number in its dataset, from 0: the name of this row in errors and logs.
    pub row: usize,
    /// The conversation that is the prompt. For SFT the last message is the assistant's.
    pub messages: Vec<Message>,
    /// The images that `Part::Image` refers to, in order.
    pub images: Vec<ImageSource>,
    /// The reference answer as the dataset holds it (R1-V: `<answer> 3 </answer>`).
    pub solution: Option<String>,
    /// Every other column, for rewards.
    pub columns: serde_json::Map<String, serde_json::Value>,
}

impl Sample {
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
    /// `Input` when there is neither an assistant message nor a solution.
    pub fn supervised(&self) -> Result<Sample> {
        let mut sample = self.clone();
        if self.ends_with_assistant() {
            return Ok(sample);
        }
        let Some(solution) = self.solution.as_deref() else {
            return Err(Error::Input(format!(
                "row {}: supervised training needs a target: end `messages` with an assistant \
                 message or give the row a `solution`",
                self.row
            )));
        };
        let thinking = self.columns.get("thinking").and_then(|t| t.as_str()).map_or("", str::trim);
        let target =
            if thinking.is_empty() { solution.to_string() } else { format!("{thinking}\n{solution}") };
        sample.messages.push(Message { role: "assistant".into(), content: vec![Part::Text(target)] });
        Ok(sample)
    }
}

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

impl ImageSource {
    /// The encoded bytes; a file is read now.
    ///
    /// # Errors
    /// `Missing` if the file has gone, `Content` if it is not a regular file or larger than
    /// [`MAX_IMAGE_FILE_BYTES`], `Io` if it cannot be read.
    pub fn encoded(&self) -> Result<Cow<'_, [u8]>> {
        let path = match self {
            ImageSource::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            ImageSource::File(path) => path,
        };
        // Asked before opening: opening a pipe would wait for a writer.
        let meta = fs::metadata(path).map_err(|e| Error::io(path, "read the image", e))?;
        if !meta.is_file() {
            return Err(Error::content(path, "is not a regular file; an image has to be one"));
        }
        if meta.len() > MAX_IMAGE_FILE_BYTES {
            return Err(Error::content(
                path,
                format!("is {} bytes long; images are read up to {MAX_IMAGE_FILE_BYTES}", meta.len()),
            ));
        }
        let bytes = fs::read(path).map_err(|e| Error::io(path, "read the image", e))?;
        Ok(Cow::Owned(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(columns: serde_json::Value) -> Sample {
        Sample {
            row: 4,
            messages: vec![Message { role: "user".into(), content: vec![Part::Text("How many?".into())] }],
            images: vec![],
            solution: Some("<answer> 3 </answer>".into()),
            columns: columns.as_object().cloned().unwrap_or_default(),
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
    fn encoded_reads_files_lazily_and_only_regular_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let source = ImageSource::File(path.clone());
        assert_eq!(source.encoded().unwrap_err().exit_code(), 66);
        fs::write(&path, b"abc").unwrap();
        assert_eq!(source.encoded().unwrap().as_ref(), b"abc");
        assert_eq!(ImageSource::Bytes(Arc::from(&b"xy"[..])).encoded().unwrap().as_ref(), b"xy");
        let folder = ImageSource::File(dir.path().to_path_buf());
        assert_eq!(folder.encoded().unwrap_err().exit_code(), 65);
    }
}
