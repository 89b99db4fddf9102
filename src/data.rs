//! Datasets: rows of messages, images and a reference answer.

use std::path::PathBuf;
use std::sync::Arc;

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
