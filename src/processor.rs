//! From a [`Sample`] to the model's input: tokens, patches, positions.
//!
//! ```text
//! messages --chat template--> text --tokenizer--> ids --expansion--> tokens + positions
//! images   --decode--> RGB --smart_resize, bicubic--> RGB --patchify--> grey-level patches
//! ```
//!
//! Everything equals what transformers computes with its PIL image backend: ids, positions and grids exactly, patches to
//! the byte from the same decoded RGB. Patches stay bytes; the patch embedding applies
//! [`ImageConfig::normalisation`](image_config::ImageConfig).

pub mod chat;
mod control_tokens;
pub mod decode;
pub mod image_config;
mod jpeg;
pub mod patches;
mod positions;
pub mod resize;
pub mod tokenizer;
mod transparency;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use self::chat::ChatTemplate;
pub use self::image_config::{ImageConfig, Normalisation};
pub use self::patches::Patches;
pub use self::tokenizer::{DecodeStream, Tokenizer};

use self::control_tokens::Marker;
use self::positions::expand_images;
use crate::data::{ImageSource, Message, Part, Sample};
use crate::error::{Error, Result};

/// The placeholder that a chat template writes for an image.
pub const IMAGE_TOKEN: &str = "<|image_pad|>";

/// A tokenised prompt, ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Token ids with every image placeholder expanded to one token per merged patch block.
    pub tokens: Vec<u32>,
    /// Temporal, vertical and horizontal position of each token (M-RoPE), `[3][T]`.
    pub positions_3t: [Vec<i32>; 3],
    /// The position of the token after the last one, on all three axes.
    pub next_position: i32,
    /// The images, in the order of their placeholders.
    pub images: Vec<Patches>,
    /// The rendered chat text before image expansion, for logs.
    pub text: String,
}

/// What a caller may set over the checkpoint folder's files.
#[derive(Clone, Debug, Default)]
pub struct ProcessorOptions {
    /// Fewest pixels of a resized image, in place of the file's.
    pub min_pixels: Option<u64>,
    /// Most pixels of a resized image, in place of the file's.
    pub max_pixels: Option<u64>,
    /// A chat template file, in place of the folder's.
    pub chat_template_path: Option<PathBuf>,
    /// Variables for the chat template (`add_vision_id`, ...), over the tokenizer's special tokens.
    pub chat_template_kwargs: Map<String, Value>,
}

/// The processor of one checkpoint. Immutable: any number of threads may use it at once.
#[derive(Debug)]
pub struct Processor {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    image_config: ImageConfig,
    image_token: u32,
    chat_template_kwargs: Map<String, Value>,
}

/// Ids of a conversation before image expansion, and its text without marks.
struct Encoded {
    ids: Vec<u32>,
    text: String,
}

impl Processor {
    /// Loads `tokenizer.json`, the chat template and the image settings of a checkpoint folder.
    ///
    /// # Errors
    /// [`Error::Content`] for an absent or broken file, a link out of the folder, or a tokenizer without [`IMAGE_TOKEN`];
    /// [`Error::Missing`] for a chat template that the options name and that is not there; [`Error::Usage`] for impossible pixel limits, [`Error::Io`].
    pub fn load(folder: &Path, options: &ProcessorOptions) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let template = ChatTemplate::load(folder, options.chat_template_path.as_deref())?;
        let image_config = ImageConfig::load(folder)?.with_limits(options.min_pixels, options.max_pixels)?;
        let image_token = tokenizer.token_id(IMAGE_TOKEN).ok_or_else(|| {
            let message =
                format!("no token {IMAGE_TOKEN}: this is not the tokenizer of a Qwen2-VL-family model");
            Error::content(folder.join("tokenizer.json"), message)
        })?;
        let chat_template_kwargs = options.chat_template_kwargs.clone();
        Ok(Processor { tokenizer, template, image_config, image_token, chat_template_kwargs })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The image settings in force.
    pub fn image_config(&self) -> &ImageConfig {
        &self.image_config
    }

    /// The id of [`IMAGE_TOKEN`].
    pub fn image_token(&self) -> u32 {
        self.image_token
    }

    /// What the user should know about the files that were loaded: print each once.
    pub fn warnings(&self) -> Vec<String> {
        self.template.warning().map(str::to_string).into_iter().collect()
    }

    /// Tokenises the whole conversation and loads its images. With `add_generation_prompt` the text ends where the
    /// assistant's turn begins; without, after the last message.
    ///
    /// Control-token strings in message texts stay text (see `control_tokens.rs` for the exact ids).
    ///
    /// # Errors
    /// Every error has the row's file and line in front, or its number where it has no file. [`Error::Input`] (with a
    /// file, [`Error::Content`]): an image index out of range, an image that no message shows, a number of placeholders in
    /// the rendered text that is not the number of images, an image whose sides differ 200-fold; [`Error::Content`] for a
    /// broken image or a failing template; [`Error::Missing`] and [`Error::Io`] for image files.
    pub fn encode(&self, sample: &Sample, add_generation_prompt: bool) -> Result<Prompt> {
        let encoded = self.encode_messages(&sample.messages, add_generation_prompt);
        encoded
            .and_then(|encoded| self.assemble(sample, &sample.messages, encoded))
            .map_err(|error| sample.blame(error))
    }

    /// Splits a conversation whose last message is the assistant's into the prompt before that message's text and the
    /// completion: the ids of its text and of the control token that ends the turn (`<|im_end|>`), without what the
    /// template writes after it.
    ///
    /// Prompt and completion ids together are those of the whole rendered conversation up to that token. The one
    /// exception is a completion whose first characters the tokenizer would merge with the generation prompt's last
    /// (`"assistant\n"` before a text that begins with a line break): then the completion is encoded by itself, because
    /// at sampling time the prompt is tokenised alone.
    ///
    /// # Errors
    /// As [`Processor::encode`], and [`Error::Input`] where the last message is not the assistant's, holds an image, or
    /// the template does not render it as the generation prompt followed by its text and a control token.
    pub fn encode_with_completion(&self, sample: &Sample) -> Result<(Prompt, Vec<u32>)> {
        self.split_completion(sample).map_err(|error| sample.blame(error))
    }

    /// Token ids of a completion as a model would have produced it: control tokens in `text` (such as a final
    /// `<|im_end|>`) are control tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_completion(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    /// Decodes, resizes and cuts every image of a sample.
    fn load_images(&self, sample: &Sample, messages: &[Message]) -> Result<Vec<Patches>> {
        let mut shown = vec![false; sample.images.len()];
        let mut images = Vec::new();
        for part in messages.iter().flat_map(|message| &message.content) {
            let Part::Image(index) = part else { continue };
            let (Some(source), Some(seen)) = (sample.images.get(*index), shown.get_mut(*index)) else {
                return Err(Error::Input(format!(
                    "a message shows image {index}, but the row has {} images",
                    sample.images.len()
                )));
            };
            *seen = true;
            let rgb = decode::load_for_model(source, &image_name(sample, *index))?;
            let patches = patches::patches_of(&rgb, &self.image_config);
            images.push(patches.map_err(|error| of_file(source, error))?);
        }
        match shown.iter().position(|seen| !seen) {
            None => Ok(images),
            Some(index) => Err(Error::Input(format!(
                "the row has {} images, but no message shows image {index}",
                sample.images.len()
            ))),
        }
    }

    /// Expands the placeholders of encoded messages with the sample's images.
    fn assemble(&self, sample: &Sample, messages: &[Message], encoded: Encoded) -> Result<Prompt> {
        let images = self.load_images(sample, messages)?;
        let merge = self.image_config.merge_size;
        let positioned = expand_images(&encoded.ids, self.image_token, &images, merge)?;
        Ok(Prompt {
            tokens: positioned.tokens,
            positions_3t: positioned.positions_3t,
            next_position: positioned.next_position,
            images,
            text: encoded.text,
        })
    }

    fn render(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let mut variables = self.chat_template_kwargs.clone();
        variables.insert("add_generation_prompt".into(), Value::Bool(add_generation_prompt));
        self.template.render(messages, &variables)
    }

    /// A marker for the control tokens in `messages`, if any occurs, and the messages with them marked.
    fn mark(&self, mut messages: Value) -> Result<(Value, Option<Marker>)> {
        let control = self.tokenizer.control_tokens(self.template.source());
        let texts = texts_of(&messages);
        if !control.iter().any(|token| texts.contains(token)) {
            return Ok((messages, None));
        }
        let kwargs = Value::Object(self.chat_template_kwargs.clone()).to_string();
        let marker = Marker::new(&control, &[&texts, self.template.source(), &kwargs])?;
        marker.mark(&mut messages);
        Ok((messages, Some(marker)))
    }

    fn encode_messages(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Encoded> {
        let (messages, marker) = self.mark(messages_json(messages))?;
        self.encode_rendered(&self.render(&messages, add_generation_prompt)?, marker.as_ref())
    }

    fn encode_rendered(&self, rendered: &str, marker: Option<&Marker>) -> Result<Encoded> {
        Ok(match marker {
            None => Encoded { ids: self.tokenizer.encode(rendered)?, text: rendered.to_string() },
            Some(marker) => {
                Encoded { ids: marker.encode(&self.tokenizer, rendered)?, text: marker.strip(rendered) }
            }
        })
    }

    fn split_completion(&self, sample: &Sample) -> Result<(Prompt, Vec<u32>)> {
        let Some((answer, prompt_messages)) =
            sample.messages.split_last().filter(|(message, _)| message.role == "assistant")
        else {
            let last = sample.messages.last().map_or("none", |message| message.role.as_str());
            return Err(Error::Input(format!(
                "supervised training needs an assistant message at the end; the last role is {last}"
            )));
        };
        if answer.content.iter().any(|part| matches!(part, Part::Image(_))) {
            return Err(Error::Input(
                "the assistant's last message holds an image; it can only be text".into(),
            ));
        }
        // Marked as one conversation, so that both renderings have the same marks.
        let (messages, marker) = self.mark(messages_json(&sample.messages))?;
        let before = Value::from(messages.as_array().map_or(&[][..], |all| &all[..prompt_messages.len()]));
        let rendered_prompt = self.render(&before, true)?;
        let rendered = self.render(&messages, false)?;
        let not_a_prefix = || {
            Error::Input(format!(
                "{}: the chat template does not render the assistant's message as the generation prompt followed by \
                 its text and a control token, so it cannot be used for supervised training",
                self.template.path().display()
            ))
        };
        let answer_text = rendered.strip_prefix(rendered_prompt.as_str()).ok_or_else(not_a_prefix)?;
        let prompt = self.encode_rendered(&rendered_prompt, marker.as_ref())?;
        let whole = self.encode_rendered(&rendered, marker.as_ref())?;
        let mut completion = match whole.ids.strip_prefix(prompt.ids.as_slice()) {
            Some(rest) => rest.to_vec(),
            None => self.encode_rendered(answer_text, marker.as_ref())?.ids,
        };
        // Texts of the message cannot hold control tokens, so the last one is the template's.
        let end =
            completion.iter().rposition(|&id| self.tokenizer.is_special(id)).ok_or_else(not_a_prefix)?;
        completion.truncate(end + 1);
        Ok((self.assemble(sample, prompt_messages, prompt)?, completion))
    }
}

/// Decodes every image of a row and gives none of them: an error now instead of in the middle of a run.
///
/// # Errors
/// Those of [`Processor::encode`] that are about images.
pub fn check_images(sample: &Sample) -> Result<()> {
    image_sizes(sample).map(drop)
}

/// Decodes every image of a row and gives their sizes, each as (width, height) in pixels, upright.
///
/// # Errors
/// As [`check_images`].
pub fn image_sizes(sample: &Sample) -> Result<Vec<(usize, usize)>> {
    let size = |(index, source): (usize, &ImageSource)| {
        let rgb = decode::load_for_model(source, &image_name(sample, index))?;
        resize::check_aspect_ratio(rgb.height, rgb.width).map_err(|error| of_file(source, error))?;
        Ok((rgb.width, rgb.height))
    };
    let sizes = sample.images.iter().enumerate().map(size).collect::<Result<_>>();
    sizes.map_err(|error| sample.blame(error))
}

/// What stands for an image without a file in errors.
fn image_name(sample: &Sample, index: usize) -> String {
    format!("row {}, image {index}", sample.row)
}

/// An error about the pixels of an image, with its file where it has one.
fn of_file(source: &ImageSource, error: Error) -> Error {
    match (source, error) {
        (ImageSource::File(path), Error::Input(message)) => Error::content(path, message),
        (_, error) => error,
    }
}

/// Messages in the form that transformers passes to a template. Without any image in the conversation each content is
/// one string, as text-only data has it; with images it is a list of typed parts.
fn messages_json(messages: &[Message]) -> Value {
    let multimodal =
        messages.iter().flat_map(|message| &message.content).any(|part| matches!(part, Part::Image(_)));
    let content = |parts: &[Part]| -> Value {
        if multimodal {
            parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => json!({"type": "text", "text": text}),
                    Part::Image(_) => json!({"type": "image"}),
                })
                .collect()
        } else {
            parts
                .iter()
                .filter_map(|part| match part {
                    Part::Text(text) => Some(text.as_str()),
                    Part::Image(_) => None,
                })
                .collect::<String>()
                .into()
        }
    };
    messages
        .iter()
        .map(|message| json!({"role": message.role, "content": content(&message.content)}))
        .collect()
}

/// Every text that a template can print from `messages`, neighbouring text parts joined.
fn texts_of(messages: &Value) -> String {
    let mut texts = String::new();
    for message in messages.as_array().into_iter().flatten() {
        for field in ["role", "content"] {
            match &message[field] {
                Value::Array(parts) => parts.iter().for_each(|part| match part["text"].as_str() {
                    Some(text) => texts.push_str(text),
                    None => texts.push('\n'),
                }),
                other => texts.push_str(other.as_str().unwrap_or_default()),
            }
            texts.push('\n');
        }
    }
    texts
}

#[cfg(test)]
mod tests;
