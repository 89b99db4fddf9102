//! From a `Sample` to the model's input: tokens, patches, positions.

use std::sync::Arc;

/// One image, resized and cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// Temporal, vertical and horizontal number of patches (`image_grid_thw`), before merging.
    pub grid_thw: [usize; 3],
    /// `[N, channels * temporal_patch_size * patch * patch]` grey levels, rows in the order
    /// Hugging Face uses (2x2 merge blocks), columns in Conv3d order (channel, frame, y, x).
    /// Normalisation happens at the patch embedding.
    pub bytes: Arc<[u8]>,
}

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
