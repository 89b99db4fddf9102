//! Sizes of a Qwen2-VL model, read from any dialect of `config.json`.

/// A whole checkpoint's sizes and special ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen2VlConfig {
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
    pub hidden_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// MLP width, `embed_dim * mlp_ratio` (the ratio may be fractional; truncated as Python's `int`).
    pub mlp_dim: usize,
    /// Image channels.
    pub in_channels: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Side of a merge block, patches.
    pub spatial_merge_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
}
