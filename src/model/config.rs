//! Sizes of a model, read from any dialect of `config.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::family::Family;

pub(super) mod parse;

/// A whole checkpoint's sizes and special ids.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What `model_type` says.
    pub family: Family,
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Whether `lm_head` is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Id of `<|image_pad|>`.
    pub image_token_id: u32,
    /// Id of `<|video_pad|>`.
    pub video_token_id: u32,
    /// Id of `<|vision_start|>`.
    pub vision_start_token_id: u32,
    /// Id of `<|vision_end|>`.
    pub vision_end_token_id: u32,
}

/// The decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding (may exceed the tokenizer's size).
    pub vocab_size: usize,
    /// Width `C`.
    pub hidden_size: usize,
    /// SwiGLU width `F`.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads `H`.
    pub num_attention_heads: usize,
    /// Key/value heads `K`.
    pub num_key_value_heads: usize,
    /// Head dimension `D` (`hidden_size / num_attention_heads` unless the config says otherwise).
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary base.
    pub rope_theta: f64,
    /// Rotary frequencies per axis (time, height, width); they sum to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Longest sequence.
    pub max_position_embeddings: usize,
}

/// The vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of the blocks.
    pub embed_dim: usize,
    /// Width after the merger (the text width).
    pub out_hidden_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// MLP width.
    pub mlp_dim: usize,
    /// Image channels.
    pub in_channels: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Side of a merge block, patches.
    pub spatial_merge_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// What the blocks are made of.
    pub block: BlockKind,
    /// The windows in which most blocks attend; absent where every block attends over the whole image.
    pub windows: Option<WindowConfig>,
}

/// Norms and MLP of the vision tower's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// LayerNorm; `fc2(quick_gelu(fc1(x)))`.
    QuickGelu,
    /// RMSNorm; `down(silu(gate(x)) * up(x))`.
    SwiGlu,
}

impl BlockKind {
    /// Tensors of the MLP's width in a forward pass.
    pub fn mlp_tensors(self) -> usize {
        match self {
            BlockKind::QuickGelu => 2,
            BlockKind::SwiGlu => 3,
        }
    }
}

/// Attention within windows of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// Side of a window, pixels of the resized image.
    pub size: usize,
    /// Numbers of the blocks that attend over the whole image all the same.
    pub full_blocks: Vec<usize>,
}

impl VisionConfig {
    /// Side of a window of `size` pixels in merge blocks; transformers rounds it down.
    pub fn window_side(&self, windows: &WindowConfig) -> usize {
        windows.size / self.spatial_merge_size / self.patch_size
    }
}

impl ModelConfig {
    /// Reads the parsed `config.json` of a checkpoint; `path` is only for errors.
    ///
    /// Three dialects are read: flat (published files, transformers up to 4.51), both (4.52 to
    /// 4.57: flat keys and `text_config`) and nested (5.x: `text_config` only). A key is taken from
    /// `text_config`, else from the top; what is in neither place has transformers' default. The
    /// result is [checked](Self::check).
    ///
    /// # Errors
    /// [`Error::Content`] for another model family, a key of the wrong kind or out of range, two
    /// places that disagree (both values are named), and everything this program would compute
    /// differently from transformers: rotary scaling other than M-RoPE's default, sliding windows,
    /// other activations, quantised weights.
    pub fn from_json(path: &Path, root: &Value) -> Result<Self> {
        let config = parse::config(root).map_err(|message| Error::content(path, message))?;
        config.check().map_err(|message| Error::content(path, message))?;
        Ok(config)
    }

    /// Checks that the sizes fit together and that no product of them overflows.
    ///
    /// # Errors
    /// What is wrong, in a sentence that names the keys and their values.
    pub fn check(&self) -> std::result::Result<(), String> {
        let Self { text, vision, .. } = self;
        let keys = self.family.vision_keys();
        check_range("vocab_size", text.vocab_size, MAX_VOCABULARY)?;
        check_range("hidden_size", text.hidden_size, MAX_WIDTH)?;
        check_range("intermediate_size", text.intermediate_size, MAX_WIDTH)?;
        check_range("num_hidden_layers", text.num_hidden_layers, MAX_LAYERS)?;
        check_range("num_attention_heads", text.num_attention_heads, MAX_WIDTH)?;
        check_range("num_key_value_heads", text.num_key_value_heads, MAX_WIDTH)?;
        check_range("max_position_embeddings", text.max_position_embeddings, MAX_POSITIONS)?;
        check_range("vision_config.depth", vision.depth, MAX_LAYERS)?;
        check_range(&format!("vision_config.{}", keys.width), vision.embed_dim, MAX_WIDTH)?;
        check_range("vision_config.num_heads", vision.num_heads, MAX_WIDTH)?;
        check_range(&format!("vision_config.{}", keys.mlp), vision.mlp_dim, MAX_WIDTH)?;
        check_range("vision_config.in_channels", vision.in_channels, MAX_PATCH_AXIS)?;
        check_range("vision_config.patch_size", vision.patch_size, MAX_PATCH_AXIS)?;
        check_range("vision_config.spatial_merge_size", vision.spatial_merge_size, MAX_PATCH_AXIS)?;
        check_range("vision_config.temporal_patch_size", vision.temporal_patch_size, MAX_PATCH_AXIS)?;
        let merged = vision.embed_dim.checked_mul(vision.spatial_merge_size * vision.spatial_merge_size);
        check_range(
            &format!("vision_config.{} * spatial_merge_size^2", keys.width),
            merged.unwrap_or(usize::MAX),
            MAX_WIDTH,
        )?;
        if text.head_dim.checked_mul(text.num_attention_heads) != Some(text.hidden_size) {
            return Err(format!(
                "num_attention_heads ({}) times the head dimension ({}) is not hidden_size ({})",
                text.num_attention_heads, text.head_dim, text.hidden_size
            ));
        }
        if !text.num_attention_heads.is_multiple_of(text.num_key_value_heads) {
            return Err(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                text.num_key_value_heads, text.num_attention_heads
            ));
        }
        let [t, h, w] = text.mrope_section;
        let half = t.checked_add(h).and_then(|sum| sum.checked_add(w));
        if half.and_then(|half| half.checked_mul(2)) != Some(text.head_dim) {
            return Err(format!(
                "mrope_section [{t}, {h}, {w}] does not sum to half the head dimension ({} / 2)",
                text.head_dim
            ));
        }
        if !vision.embed_dim.is_multiple_of(vision.num_heads) {
            return Err(format!(
                "vision_config.num_heads ({}) does not divide vision_config.{} ({})",
                vision.num_heads, keys.width, vision.embed_dim
            ));
        }
        let vision_head_dim = vision.embed_dim / vision.num_heads;
        if !vision_head_dim.is_multiple_of(4) {
            return Err(format!(
                "the vision head dimension ({} {} / num_heads {} = {vision_head_dim}) is not a multiple of 4, which the 2-axis rotary embedding needs",
                keys.width, vision.embed_dim, vision.num_heads
            ));
        }
        if let Some(windows) = vision.windows.as_ref().filter(|windows| vision.window_side(windows) == 0) {
            return Err(format!(
                "vision_config.window_size ({}) is less than a merged patch (spatial_merge_size {} * patch_size {})",
                windows.size, vision.spatial_merge_size, vision.patch_size
            ));
        }
        if vision.out_hidden_size != text.hidden_size {
            return Err(format!(
                "vision_config.{} ({}) is not hidden_size ({}): image rows would not fit among the text rows",
                keys.out, vision.out_hidden_size, text.hidden_size
            ));
        }
        if !(text.rms_norm_eps.is_finite() && text.rms_norm_eps > 0.0 && text.rms_norm_eps < 1.0) {
            return Err(format!("rms_norm_eps ({}) is not between 0 and 1", text.rms_norm_eps));
        }
        if !(text.rope_theta.is_finite() && text.rope_theta > 0.0) {
            return Err(format!("rope_theta ({}) is not a positive number", text.rope_theta));
        }
        Ok(())
    }
}

// Bounds far above every published model (Qwen2-VL-72B: width 8192, 29568 in the MLP, 80 layers,
// 152064 tokens) and low enough that no product of three sizes overflows 64 bits.
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
const MAX_POSITIONS: usize = 1 << 30;
const MAX_PATCH_AXIS: usize = 1 << 10;

fn check_range(key: &str, value: usize, max: usize) -> std::result::Result<(), String> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(format!("{key} is {value}; between 1 and {max} is supported"))
}

#[cfg(test)]
mod tests;
