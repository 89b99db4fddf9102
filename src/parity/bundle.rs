//! A reference bundle: `inputs.json`, the images it names, `expected.safetensors`.

use crate::data::ImageSource;
use crate::error::{Error, Result};
use crate::files::{file_inside, read_bounded};
use crate::model::safetensors::{Dtype, SafetensorsFile, TensorEntry};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Largest `inputs.json` read, bytes.
const MAX_INPUTS_BYTES: u64 = 16 << 20;
/// Most examples, and most completions of the GRPO case.
const MAX_EXAMPLES: usize = 1000;
/// Most optimiser steps.
const MAX_STEPS: usize = 1000;
/// Limits, not values.
const NOISE: &str = "noise.";

/// A bundle whose inputs have been read and whose expected values can be.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    inputs: Inputs,
    expected: SafetensorsFile,
}

/// Expected values.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// f32, or widened from bf16 or f16.
    Floats(Vec<f32>),
    /// Whole numbers of any width.
    Integers(Vec<i64>),
}

/// An expected tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Stored,
}

/// `inputs.json`.
#[derive(Clone, Debug, Deserialize)]
struct Inputs {
    examples: Vec<ExampleInput>,
    #[serde(default)]
    processor: PixelLimits,
    grpo_e2e: Option<GrpoInput>,
    #[serde(default)]
    batch: BatchInput,
    #[serde(default)]
    train: TrainInput,
}

/// Pixel limits of the processor, in place of the checkpoint's.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct PixelLimits {
    /// Fewest pixels of a resized image.
    pub min_pixels: Option<u64>,
    /// Most pixels of a resized image.
    pub max_pixels: Option<u64>,
}

/// One conversation and the completion that follows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ExampleInput {
    /// The conversation; a generation prompt follows it.
    pub messages: Vec<MessageInput>,
    /// The completion's text; control tokens in it are control tokens.
    pub completion: String,
}

/// One turn.
#[derive(Clone, Debug, Deserialize)]
pub struct MessageInput {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Text, or text and images.
    pub content: ContentInput,
}

/// What a turn says.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`content` has to be a string, or a list of objects with `text` or `image`")]
pub enum ContentInput {
    /// Plain text.
    Text(String),
    /// Text and images in reading order.
    Parts(Vec<PartInput>),
}

/// `{"type": "text", "text": ...}` or `{"type": "image", "image": path}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PartInput {
    /// An image, by its path in the bundle.
    Image {
        /// The path.
        image: String,
    },
    /// A text.
    Text {
        /// The text.
        text: String,
    },
}

/// The GRPO case: completions of example 0's prompt.
#[derive(Clone, Debug, Deserialize)]
pub struct GrpoInput {
    /// Texts; control tokens in them are control tokens.
    pub completions: Vec<String>,
    /// The ratio is clipped below at `1 - epsilon_low`.
    pub epsilon_low: f64,
    /// The ratio is clipped above at `1 + epsilon_high`.
    pub epsilon_high: f64,
    /// Weight of the k3 KL.
    pub beta: f64,
    /// `grpo`.
    pub loss_type: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct BatchInput {
    pad_token: String,
}

impl Default for BatchInput {
    fn default() -> Self {
        BatchInput { pad_token: "<|endoftext|>".to_owned() }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct TrainInput {
    steps: usize,
}

impl Default for TrainInput {
    fn default() -> Self {
        TrainInput { steps: 5 }
    }
}

impl Bundle {
    /// Reads `inputs.json` and the header of `expected.safetensors`.
    ///
    /// # Errors
    /// [`Error::Missing`] without one of the two; [`Error::Content`] where a file breaks its format, lacks a field, or
    /// asks for what is beyond the format.
    pub fn open(dir: &Path) -> Result<Bundle> {
        let file = |name: &str| {
            file_inside(dir, name)?.ok_or_else(|| {
                Error::missing(
                    dir.join(name),
                    "not found: a reference bundle holds inputs.json and expected.safetensors; \
                     tools/reference/make_bundle.py makes one, --bundle names its folder",
                )
            })
        };
        let path = file("inputs.json")?;
        let wrong = |message: String| Error::content(&path, message);
        let inputs: Inputs = serde_json::from_slice(&read_bounded(&path, MAX_INPUTS_BYTES)?)
            .map_err(|e| wrong(format!("{e}; tools/reference/README.md has the format")))?;
        let completions = inputs.grpo_e2e.as_ref().map_or(0, |grpo| grpo.completions.len());
        if inputs.examples.is_empty() || inputs.examples.len().max(completions) > MAX_EXAMPLES {
            return Err(wrong(format!(
                "has {} examples and {completions} GRPO completions; 1 to {MAX_EXAMPLES} are read",
                inputs.examples.len()
            )));
        }
        if inputs.train.steps > MAX_STEPS {
            return Err(wrong(format!(
                "train.steps is {}; at most {MAX_STEPS} are made",
                inputs.train.steps
            )));
        }
        if let Some(grpo) = inputs.grpo_e2e.as_ref().filter(|grpo| grpo.loss_type != "grpo") {
            return Err(wrong(format!("grpo_e2e.loss_type is {:?}; a bundle's is \"grpo\"", grpo.loss_type)));
        }
        let expected = SafetensorsFile::open(&file("expected.safetensors")?)?;
        if expected.tensors().iter().all(|tensor| tensor.name.starts_with(NOISE)) {
            return Err(Error::content(expected.path(), "holds no expected values: make the bundle again"));
        }
        Ok(Bundle { dir: dir.to_path_buf(), inputs, expected })
    }

    /// The conversations.
    pub fn examples(&self) -> &[ExampleInput] {
        &self.inputs.examples
    }

    /// Pixel limits the reference was made with.
    pub fn pixel_limits(&self) -> PixelLimits {
        self.inputs.processor
    }

    /// The GRPO case, if there is one.
    pub fn grpo(&self) -> Option<&GrpoInput> {
        self.inputs.grpo_e2e.as_ref()
    }

    /// The token that batches are padded with.
    pub fn pad_token(&self) -> &str {
        &self.inputs.batch.pad_token
    }

    /// Optimiser steps of the training case.
    pub fn steps(&self) -> usize {
        self.inputs.train.steps
    }

    /// Units of progress of one comparison.
    pub fn stages(&self) -> u64 {
        self.inputs.examples.len() as u64 + 4
    }

    /// `inputs.json`.
    pub fn inputs_path(&self) -> PathBuf {
        self.dir.join("inputs.json")
    }

    /// The file of expected values.
    pub fn expected_path(&self) -> &Path {
        self.expected.path()
    }

    /// Keys to compute, without the limits among them.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.expected
            .tensors()
            .iter()
            .map(|tensor| tensor.name.as_str())
            .filter(|name| !name.starts_with(NOISE))
    }

    /// Whether a key is to be computed.
    pub fn has(&self, key: &str) -> bool {
        !key.starts_with(NOISE) && self.expected.tensor(key).is_some()
    }

    /// Shape of an expected tensor.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.expected.tensor(key).map(|tensor| tensor.shape.as_slice())
    }

    /// An expected tensor; `None` if the bundle has no such key.
    ///
    /// # Errors
    /// [`Error::Content`] if it is stored in a type that is neither a number of at most 32 bits nor i64.
    pub fn read(&self, key: &str) -> Result<Option<Expected>> {
        let Some(tensor) = self.expected.tensor(key) else { return Ok(None) };
        let map = self.expected.read()?;
        let values = match tensor.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Stored::Floats(map.read_f32(tensor)?),
            // What is compared with it has f32's digits.
            Dtype::F64 => Stored::Floats(map.read_f64(tensor)?.into_iter().map(|x| x as f32).collect()),
            _ => Stored::Integers(map.read_i64(tensor)?),
        };
        // A single number may be stored without a dimension.
        let shape = if tensor.shape.is_empty() { vec![1] } else { tensor.shape.clone() };
        Ok(Some(Expected { shape, values }))
    }

    /// Floats that are given, not compared: of this shape, or `None` if the bundle has no such key.
    ///
    /// # Errors
    /// [`Error::Content`] if type or shape differ.
    pub fn given(&self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(found) = self.read(key)? else { return Ok(None) };
        match found.values {
            Stored::Floats(values) if found.shape == shape => Ok(Some(values)),
            _ => Err(Error::content(
                self.expected.path(),
                format!("{key} has shape {:?}; inputs.json makes it floats of shape {shape:?}", found.shape),
            )),
        }
    }

    /// How far the reference's own f32 and f64 results of a key lie apart, if the bundle tells.
    ///
    /// # Errors
    /// [`Error::Content`] if it is not one finite number.
    pub fn noise(&self, key: &str) -> Result<Option<f64>> {
        let name = format!("{NOISE}{key}");
        let Some(values) = self.given(&name, &[1])? else { return Ok(None) };
        match values.first() {
            Some(noise) if noise.is_finite() && *noise >= 0.0 => Ok(Some(f64::from(*noise))),
            _ => Err(Error::content(
                self.expected.path(),
                format!("{name} is not a finite number of at least 0"),
            )),
        }
    }

    /// The reference's pixels of an image: `[H, W, 3]` bytes; `None` if the bundle has none.
    ///
    /// # Errors
    /// [`Error::Content`] if type or shape are not those of an image.
    pub fn decoded(&self, image: &str) -> Result<Option<([usize; 3], Vec<u8>)>> {
        let key = images_key(image);
        let Some(tensor) = self.expected.tensor(&key) else { return Ok(None) };
        match *tensor {
            TensorEntry { dtype: Dtype::U8, ref shape, .. } if shape.len() == 3 && shape[2] == 3 => {
                let map = self.expected.read()?;
                Ok(Some(([shape[0], shape[1], 3], map.bytes(tensor)?.to_vec())))
            }
            _ => Err(Error::content(
                self.expected.path(),
                format!(
                    "{key} is {} of shape {:?}; expected U8 of shape [height, width, 3]",
                    tensor.dtype, tensor.shape
                ),
            )),
        }
    }

    /// The file of an image that `inputs.json` names.
    ///
    /// # Errors
    /// [`Error::Content`] if the path leaves the bundle; [`Error::Missing`] if there is no such file.
    pub fn image(&self, name: &str) -> Result<ImageSource> {
        match file_inside(&self.dir, name)? {
            Some(path) => Ok(ImageSource::File(path)),
            None => Err(Error::missing(self.dir.join(name), "not found: inputs.json names this image")),
        }
    }
}

/// The key of an image's pixels.
pub(super) fn images_key(image: &str) -> String {
    format!("decoded.{image}")
}
